"""A notebook that counts its own executions and can be told to fail, and a real dask cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import nbformat
import pandas as pd
import yaml
from apart import Program

ROOT = Path(__file__).resolve().parent.parent
PARAMETERS = """
x: int = 1
mode: str = "ok"
pause: float = 0.0
scale: str = "paper"
results: str = ""
"""
WORK = """
import json, os, signal, time
from pathlib import Path

from ipykernel.connect import get_connection_info

transport = get_connection_info(unpack=True)["transport"]
here = Path(os.environ["SWEEP_LOG"])
with here.open("a") as log:
    start = {"x": x, "kernel": os.getpid(), "worker": os.getppid(), "transport": transport}
    log.write(json.dumps(start) + "\\n")
if mode == "raise":
    raise ValueError(f"{x} is no good")
if mode == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "murder":
    os.kill(os.getppid(), signal.SIGKILL)
time.sleep(pause)
told = {"x": x, "square": x * x}
if mode == "lie":
    told["x"] = x + 1
Path(results).write_text(json.dumps(told)[: 5 if mode == "half" else None])
"""


class Place:
    """A folder with a notebook, a sweep of it, and the traces of its runs."""

    def __init__(self, folder, grid, log=None, **spec):
        self.folder = folder
        self.log = log or folder / "log"
        self.table = folder / "out" / "table.csv"
        parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        cells = [parameters, nbformat.v4.new_code_cell(WORK)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "page.ipynb")
        self.file = folder / "sweep.yml"
        self.write(grid=grid, **spec)

    def write(self, **spec):
        common = {"notebook": "page.ipynb", "results": "out/table.csv", "scale": "paper"}
        self.file.write_text(yaml.safe_dump(common | spec), encoding="utf-8")

    def start(self, *options, file=None):
        words = ["-m", "sparselib.sweep", file or self.file, "--allow-dirty", *options]
        return Program(*words, env=environ(self.log), cwd=self.folder)

    def start_from_a_shell(self, *options, command=(), environment=()):
        """Start a Python that has loaded nothing; a command may stand in front of it."""
        words = [*command, sys.executable, "-m", "sparselib.sweep", self.file, "--allow-dirty"]
        words += options
        return subprocess.Popen(
            [*map(str, words)],
            cwd=self.folder,
            env=environ(self.log) | dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options, **more):
        return result(self.start(*options, **more))

    def run_from_a_shell(self, *options, **more):
        return result(self.start_from_a_shell(*options, **more))

    def starts(self):
        """What the notebooks wrote when they started."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.is_file() else []
        return [json.loads(line) for line in lines]

    def rows(self):
        return sorted(pd.read_csv(self.table).x)


def result(process):
    """Exit status, and what was printed and told, of a sweep that was started."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def environ(log):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "SWEEP_LOG": str(log), "OMP_NUM_THREADS": "1"}


def until(condition, seconds=90):
    """Wait for something to become true, and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])


def alive(pid):
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
            != "Z"
        )
    except OSError:
        return False


def kill(pid):
    os.kill(pid, signal.SIGKILL)


class Cluster(NamedTuple):
    """A scheduler that runs, and where notebooks of its workers write when they start."""

    address: str
    pid: int
    log: Path


def launch(kind, folder, log, *more, protocol="tcp", options=(), method="forkserver"):
    """Start a scheduler, or a worker of the one whose address is in the folder.

    Nannies start processes by a method of multiprocessing, which forks sooner than it spawns.
    """
    environment = environ(log) | {
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
        "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": method,
    }
    words = ["-m", f"distributed.cli.dask_{kind}", "--no-dashboard", "--host", "127.0.0.1"]
    words += ["--scheduler-file", folder / "scheduler.json", "--protocol", protocol]
    return Program(*words, *options, *more, env=environment, cwd=folder)


def launch_worker(folder, log, *more, **how):
    """Start a worker that does one run at a time."""
    alone = ["--nthreads", "1", "--local-directory", folder, "--memory-limit", "0"]
    return launch("worker", folder, log, *alone, *more, **how)


@contextmanager
def cluster(folder, log, workers=2, nannies=True, **how):
    """Start a scheduler and workers, each a process of its own, on 127.0.0.1."""
    note = folder / "scheduler.json"
    processes = [launch("scheduler", folder, log, "--port", "0", **how)]
    try:
        until(lambda: note.is_file() and note.stat().st_size, 300)
        for _ in range(workers):
            nanny = "--nanny" if nannies else "--no-nanny"
            processes.append(launch_worker(folder, log, nanny, **how))
        address = json.loads(note.read_text(encoding="utf-8"))["address"]
        yield Cluster(address, processes[0].pid, log)
    finally:
        for process in reversed(processes):
            process.end()
