"""``python -m sparselib.sweep table.yml``: run a grid, resume it, gather its table."""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from . import engine
from .grid import Sweep, read
from .notebook import Outcome, Run, failure
from .table import done, publish, recorded

SECONDS_BETWEEN_TABLES = 10


def main(arguments: list[str] | None = None) -> int:
    """Run a sweep file; return 0 if every run that was asked for is done, 1 if not."""
    options = _parser().parse_args(arguments)
    try:
        sweep = read(options.file, options.runs)
        chosen = _choose(sweep, options.only)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    finished = done(sweep)
    missing = [run for run in chosen if run.key not in finished]
    if not options.retry_failed:
        missing = [run for run in missing if not run.failed.is_file()]
    missing = missing[: options.limit]
    _announce(sweep, chosen, missing, finished)
    if options.dry_run:
        for run in missing:
            print(run.key, sweep.describe(run))
        return 0
    return _carry_out(sweep, chosen, missing, options)


def _carry_out(
    sweep: Sweep, chosen: list[Run], missing: list[Run], options: argparse.Namespace
) -> int:
    lost: list[Outcome] = []
    workers = engine.Workers(options.scheduler, options.workers, options.threads, sweep.resources)
    try:
        lost = _run(sweep, missing, workers)
    except KeyboardInterrupt:
        print("stopped; what is done is kept, the same command goes on", file=sys.stderr)
        return 130
    if not _publish(sweep):
        return 1
    return _conclude(sweep, chosen, lost)


def _run(sweep: Sweep, missing: list[Run], workers: engine.Workers) -> list[Outcome]:
    runs, lost, written = {run.key: run for run in missing}, [], time.monotonic()
    with tqdm(total=len(runs), desc=sweep.file.stem, unit="run", disable=not runs) as bar:
        for outcome in engine.outcomes(missing, workers):
            seconds = f"{outcome.seconds:8.1f} s" if outcome.seconds else " " * 10
            told = f"{outcome.status:6} {seconds}  {sweep.describe(runs[outcome.key])}"
            bar.write(f"{told}  {outcome.error}".rstrip(), file=sys.stdout)
            bar.update()
            lost += [outcome] if outcome.status == "lost" else []
            if time.monotonic() > written + SECONDS_BETWEEN_TABLES:
                _publish(sweep, ended=False)
                written = time.monotonic()
    return lost


def _publish(sweep: Sweep, ended: bool = True) -> bool:
    try:
        table = publish(sweep)
    except OSError as error:
        print(
            f"{sweep.results} could not be written ({error.strerror}); its rows are safe in "
            f"{sweep.runs[0].folder}: make room and give the same command again",
            file=sys.stderr,
        )
        return False
    if ended and table and table != sweep.results:
        print(
            f"{sweep.results.name} keeps its rows of another version until the whole grid is done; "
            f"the new ones are in {table}"
        )
    return True


def _conclude(sweep: Sweep, chosen: list[Run], lost: list[Outcome]) -> int:
    runs, finished = {run.key: run for run in chosen}, done(sweep)
    failed = [run for run in chosen if run.failed.is_file() and run.key not in finished]
    for run in failed:
        print(f"failed: {sweep.describe(run)}\n  {failure(run.failed)}\n  see {run.failed}")
    for outcome in lost:
        print(f"lost: {sweep.describe(runs[outcome.key])}\n  {outcome.error}")
    print(
        f"{len(finished & runs.keys())} of {len(chosen)} runs done; "
        f"{len(recorded(sweep.results))} rows in {sweep.results}"
    )
    if failed:
        print("give --retry-failed to try the failed ones again")
    return 1 if failed or lost else 0


def _choose(sweep: Sweep, only: list[str]) -> list[Run]:
    import yaml

    runs = sweep.runs
    for text in only:
        name, equals, value = text.partition("=")
        if not equals or any(name not in run.parameters for run in runs):
            raise ValueError(f"--only {text}: give the name of a parameter, '=' and a value")
        wanted = yaml.safe_load(value)
        values = [run.parameters[name] for run in runs]
        runs = [run for run in runs if run.parameters[name] == wanted]
        if not runs:
            found = ", ".join(sorted(set(map(str, values))))
            raise ValueError(f"--only {text}: no run has this value; there are {found}")
    return runs


def _announce(sweep: Sweep, chosen: list[Run], missing: list[Run], finished: set[str]) -> None:
    state = Counter(
        "done" if run.key in finished else "failed before" if run.failed.is_file() else "to do"
        for run in chosen
    )
    told = ", ".join(f"{count} {name}" for name, count in state.items())
    print(f"{sweep.file.name}: {len(chosen)} of {len(sweep.runs)} runs chosen: {told}")
    if missing and not engine.is_parallel():
        print("dask is not installed: one run after the other (pip install sparselib[sweep])")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m sparselib.sweep", description=__doc__)
    parser.add_argument("file", type=Path, help="the sweep, YAML")
    parser.add_argument("--scheduler", default="", help="address of a running dask scheduler")
    parser.add_argument(
        "--workers", type=int, help="processes here; one a core by default, 0 for none besides this"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--dry-run", action="store_true", help="list what would run")
    parser.add_argument("--only", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--limit", type=int, help="start at most this many runs")
    parser.add_argument("--retry-failed", action="store_true", help="and those that failed before")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="for executed notebooks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
