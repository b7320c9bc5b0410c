"""Programs in a Python of their own."""

import subprocess
import sys


def run_plain(program):
    """Run without the shape checks of the test run, which refuse torch's symbolic sizes."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()
