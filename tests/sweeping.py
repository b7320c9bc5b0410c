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

    def __init__(self, folder, grid, **spec):
        self.folder = folder
        self.log = folder / "log"
        self.table = folder / "out" / "table.csv"
        parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        cells = [parameters, nbformat.v4.new_code_cell(WORK)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "page.ipynb")
        self.file = folder / "sweep.yml"
        self.write(grid=grid, **spec)

    def write(self, **spec):
        common = {"notebook": "page.ipynb", "results": "out/table.csv", "scale": "paper"}
        self.file.write_text(yaml.safe_dump(common | spec), encoding="utf-8")

    def start(self, *options, environment=(), command=(), file=None):
        command = [*command, sys.executable, "-m", "sparselib.sweep", str(file or self.file)]
        return subprocess.Popen(
            [*command, "--allow-dirty", *map(str, options)],
            cwd=self.folder,
            env=environ(self.log) | dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options, **more):
        process = self.start(*options, **more)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def starts(self):
        """What the notebooks wrote when they started."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.is_file() else []
        return [json.loads(line) for line in lines]

    def rows(self):
        return sorted(pd.read_csv(self.table).x)


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
    """A scheduler that runs."""

    address: str
    pid: int


def end(process):
    """Wait for a process that was asked to end; one whose worker was just killed may not listen."""
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def cluster(folder, log, workers=2, protocol="tcp", options=()):
    """Start a scheduler and workers, each a process of its own, on 127.0.0.1."""
    note, processes = folder / "scheduler.json", []
    environment = environ(log) | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}

    def launch(kind, *more):
        command = [sys.executable, "-m", "distributed.cli.dask_" + kind, "--no-dashboard"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        place = ["--host", "127.0.0.1", "--scheduler-file", str(note), "--protocol", protocol]
        command += [*place, *options, *more]
        processes.append(subprocess.Popen(command, env=environment, **quiet))

    launch("scheduler", "--port", "0")
    until(lambda: note.is_file() and note.stat().st_size, 300)
    for _ in range(workers):
        launch("worker", "--nthreads", "1", "--local-directory", str(folder), "--memory-limit", "0")
    try:
        yield Cluster(json.loads(note.read_text(encoding="utf-8"))["address"], processes[0].pid)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            end(process)
