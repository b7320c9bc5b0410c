"""Processes that train together evolve alike, whatever data each of them sees."""

import socket
from pathlib import Path

import apart
import pytest

PROGRAM = Path(__file__).with_name("together.py")


def together(processes, steps):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = apart.run(PROGRAM, processes, steps, port)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "evolutions"), [(2, 20), (4, 6)])
def test_topologies_parameters_and_optimizer_state_are_equal(processes, evolutions):
    lines = together(processes, evolutions)
    assert len(lines) == 9
    assert [line for line in lines if "False" in line] == []
