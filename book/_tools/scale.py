"""Measure what a sweep costs besides its runs, as their number grows: time, memory, publishing.

Times are those of computing, in milliseconds per run, so that other work on the machine counts for
little; `wall_ms` is what a clock shows, with two workers.

Runs are simulated: everything is as in a sweep, but in place of papermill and a kernel, `pretend`
leaves an executed page and a row. So what is measured is all that a run costs except its notebook.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nbformat
import psutil
import yaml

from sparselib.sweep import __main__ as command
from sparselib.sweep.notebook import Outcome, Run
from sparselib.sweep.rows import write

PARAMETERS = """
x: int = 0
rate: float = 0.1
sizes: list[int] = [256, 256]
rule: str = "set"
scale: str = "paper"
results: str = ""
"""
EPOCHS = 100  # numbers of the curve in each row
OUTPUT = 30_000  # characters of the output in each executed page


def pretend(run: Run, page: Path, row: Path) -> float:
    """Leave what a run leaves, without a kernel."""
    executed = json.loads(run.notebook.read_text(encoding="utf-8"))
    executed["metadata"]["papermill"] = {"end_time": "now", "exception": None}
    executed["metadata"]["output"] = "x" * OUTPUT
    page.write_text(json.dumps(executed), encoding="utf-8")
    x = run.parameters["x"]
    write({"square": x * x, "loss_curve": [1 / (x + n + 1) for n in range(EPOCHS)]}, row)
    return 0.001


def prepare(folder: Path, runs: int) -> Path:
    """Write a page and a sweep of it."""
    cell = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    work = nbformat.v4.new_code_cell("pass\n" * 1000)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, work]), folder / "page.ipynb")
    file = folder / "sweep.yml"
    grid = [{"product": {"x": list(range(runs))}}]
    spec = {"notebook": "page.ipynb", "results": "table.csv", "scale": "paper", "grid": grid}
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return file


def computing() -> tuple[float, float]:
    """Return the seconds that this process, and those that it started, have computed so far."""
    children = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            used = process.cpu_times()
            children += used.user + used.system
    return time.process_time(), children


def measure(runs: int) -> dict[str, float]:
    """Carry out a simulated sweep in this process."""
    spent: list[float] = []
    marks: list[tuple[float, float, float]] = []  # wall, driver and workers, from run to run
    publish = command.Table.publish
    outcomes = command.engine.outcomes

    def timed(table: command.Table) -> Path | None:
        begun = time.process_time()
        written = publish(table)
        spent.append(time.process_time() - begun)
        return written

    def watched(*arguments: object) -> Iterator[Outcome]:
        for number, outcome in enumerate(outcomes(*arguments)):
            if number % (runs // 10) == 0 or number == runs - 1:
                marks.append((time.perf_counter(), *computing()))
            yield outcome

    command.Table.publish = timed
    command.engine.outcomes = watched
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    try:
        file = prepare(folder, runs)
        options = [str(file), "--workers", "2", "--allow-dirty", "--runs", str(folder / "runs")]
        status = command.main(options, pretend)
        assert status == 0, f"the sweep ended with {status}"
    finally:
        shutil.rmtree(folder)
    wall, driver, workers = (1000 * (b - a) / (runs - 1) for a, b in zip(marks[0], marks[-1]))
    last = marks[-1][1] - marks[-2][1]
    return {
        "runs": runs,
        "wall_ms": wall,
        "driver_ms": driver,
        "driver_ms_last_tenth": 10_000 * last / runs,
        "workers_ms": workers,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "published": len(spent),
        "publish_last_ms": 1000 * spent[-1],
        "publish_share": sum(spent) / (marks[-1][0] - marks[0][0]),
    }


def main() -> None:
    """Measure each size in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("\n" + json.dumps(measure(options.one)))
        return
    for runs in options.runs:
        command_line = [sys.executable, __file__, "--one", str(runs)]
        done = subprocess.run(command_line, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print("  ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
