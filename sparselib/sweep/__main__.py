"""``python -m sparselib.sweep table.yml``: run a grid, resume it, gather its table.

Exit status: 0, all runs that were asked for are done; 1, some are not, or the table could not be
written; 2, nothing was started, as the file, an option, the table or the scheduler does not allow
it; 130, stopped by the keyboard. Whatever the status, rows of finished runs are in the table or
beside it, and the same command goes on.
"""

import argparse
import functools
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from . import engine
from .grid import Sweep, read
from .history import check_clean
from .notebook import Outcome, Perform, Run, failure, with_papermill
from .table import Table, strangers, table_rows
from .workers import (
    Certificates,
    SchedulerError,
    Workers,
    is_parallel,
)

SECONDS_BETWEEN_TABLES = 10
SHARE_FOR_TABLES = 0.02  # of the time: a table is written as a whole


def main(
    arguments: list[str] | None = None, perform: Perform = with_papermill
) -> int:
    """Run a sweep file; return the exit status.

    Parameters
    ----------
    arguments : list of str, optional
        Those of the command line.
    perform : callable
        What executes a run's notebook; a simulation gives another.
    """
    options = _parser().parse_args(arguments)
    try:
        certificates = _certificates(options)
        sweep = read(
            options.file, options.runs, not options.dry_run, options.results
        )
        chosen = _choose(sweep, options.only)
        table = Table(sweep)
        finished = table.done()
        _check_table(sweep, options.replace)
        if not (options.dry_run or options.allow_dirty):
            check_clean(sweep.runs[0].notebook)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    missing = [run for run in chosen if run.key not in finished]
    if not options.retry_failed:
        missing = [run for run in missing if not run.failed.is_file()]
    missing = missing[: options.limit]
    if options.dry_run:
        _list(sweep, chosen, missing, finished)
        return 0
    _announce(sweep, chosen, missing, finished)
    workers = Workers(
        options.scheduler,
        options.workers,
        options.threads,
        sweep.resources,
        perform,
        certificates,
        options.plain_tcp,
    )
    return _carry_out(table, chosen, missing, workers)


def _list(
    sweep: Sweep, chosen: list[Run], missing: list[Run], finished: set[str]
) -> None:
    """Print what would run, to whoever reads on."""
    try:
        _announce(sweep, chosen, missing, finished)
        for run in missing:
            print(run.key, sweep.describe(run))
        sys.stdout.flush()
    except BrokenPipeError:  # as head does, once it has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _carry_out(
    table: Table,
    chosen: list[Run],
    missing: list[Run],
    workers: Workers,
) -> int:
    if missing and workers.is_exposed():
        print(
            "cryptography is not installed: other users of this machine could reach the workers "
            "(pip install sparselib[sweep])"
        )
    try:
        lost = _run(table, missing, workers)
    except SchedulerError as error:
        print(f"{error}; nothing was started", file=sys.stderr)
        return 2
    except engine.SchedulerLostError as error:
        return _stop(
            table, 1, f"{error}; what is done is kept, the same command goes on"
        )
    except KeyboardInterrupt:
        return _stop(
            table,
            130,
            "stopped; what is done is kept, the same command goes on",
        )
    if not _publish(table):
        return 1
    return _conclude(table, chosen, lost)


def _stop(table: Table, status: int, sentence: str) -> int:
    """Publish what is done, and print why runs are missing."""
    _publish(table)
    print(sentence, file=sys.stderr)
    return status


def _check_table(sweep: Sweep, replace: bool) -> None:
    """Refuse a table that cannot be written, or whose rows of another grid this would delete."""
    folder = next(path for path in sweep.results.parents if path.exists())
    if not os.access(folder, os.W_OK):
        raise ValueError(
            f"{sweep.results} cannot be written: {folder} is read-only"
        )
    others = strangers(sweep)
    if others and not replace:
        names = [
            name for name in sweep.runs[0].parameters if others[0].get(name)
        ]
        told = (
            ", ".join(f"{name} = {others[0][name]}" for name in names)
            or "no parameter of its"
        )
        raise ValueError(
            f"{sweep.results} holds {len(others)} rows that are of no run of {sweep.file.name}, "
            f"such as {told}: name another file for the results, or give --replace to have these "
            f"rows replaced"
        )


def _run(table: Table, missing: list[Run], workers: Workers) -> list[Outcome]:
    sweep = table.sweep
    runs = {run.key: run for run in missing}
    lost = []
    written = time.monotonic()
    pause = float(SECONDS_BETWEEN_TABLES)
    with tqdm(
        total=len(runs), desc=sweep.file.stem, unit="run", disable=not runs
    ) as bar:
        tell = functools.partial(bar.write, file=sys.stderr)
        for outcome in engine.outcomes(missing, workers, tell):
            seconds = (
                f"{outcome.seconds:8.1f} s" if outcome.seconds else " " * 10
            )
            told = f"{outcome.status:6} {seconds}  {sweep.describe(runs[outcome.key])}"
            bar.write(f"{told}  {outcome.error}".rstrip(), file=sys.stdout)
            bar.update()
            lost += [outcome] if outcome.status == "lost" else []
            begun = time.monotonic()
            if begun > written + pause:
                _publish(table, ended=False)
                written = time.monotonic()
                spent = written - begun
                pause = max(SECONDS_BETWEEN_TABLES, spent / SHARE_FOR_TABLES)
    return lost


def _publish(table: Table, ended: bool = True) -> bool:
    sweep = table.sweep
    try:
        written = table.publish()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        print(
            f"{sweep.results} could not be written ({why}); its rows are safe in "
            f"{sweep.runs[0].folder}: make room and give the same command again",
            file=sys.stderr,
        )
        return False
    if ended and written and written != sweep.results:
        print(
            f"{sweep.results.name} keeps its rows of another version until the whole grid is done; "
            f"the new ones are in {written}"
        )
    return True


def _conclude(table: Table, chosen: list[Run], lost: list[Outcome]) -> int:
    sweep = table.sweep
    runs = {run.key: run for run in chosen}
    finished = table.done()
    failed = [
        run
        for run in chosen
        if run.failed.is_file() and run.key not in finished
    ]
    for run in failed:
        print(
            f"failed: {sweep.describe(run)}\n  {failure(run.failed)}\n  see {run.failed}"
        )
    for outcome in lost:
        print(f"lost: {sweep.describe(runs[outcome.key])}\n  {outcome.error}")
    print(
        f"{len(finished & runs.keys())} of {len(chosen)} runs done; "
        f"{len(table_rows(sweep.results))} rows in {sweep.results}"
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
            raise ValueError(
                f"--only {text}: give the name of a parameter, '=' and a value"
            )
        try:
            wanted = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"--only {text}: {value} is no YAML") from None
        values = [run.parameters[name] for run in runs]
        runs = [run for run in runs if run.parameters[name] == wanted]
        if not runs:
            found = ", ".join(sorted(set(map(str, values))))
            raise ValueError(
                f"--only {text}: no run has this value; there are {found}"
            )
    return runs


def _announce(
    sweep: Sweep, chosen: list[Run], missing: list[Run], finished: set[str]
) -> None:
    state = Counter(
        "done"
        if run.key in finished
        else "failed before"
        if run.failed.is_file()
        else "to do"
        for run in chosen
    )
    told = ", ".join(f"{count} {name}" for name, count in state.items())
    print(
        f"{sweep.file.name}: {len(chosen)} of {len(sweep.runs)} runs chosen: {told}"
    )
    if missing and not is_parallel():
        print(
            "dask is not installed: one run after the other (pip install sparselib[sweep])"
        )


def _certificates(options: argparse.Namespace) -> Certificates | None:
    """Return the files for TLS that options name, if they name any."""
    if not (options.tls_ca_file or options.tls_cert or options.tls_key):
        return None
    if not (options.tls_ca_file and options.tls_cert and options.scheduler):
        raise ValueError(
            "--tls-ca-file and --tls-cert belong together, and to a --scheduler tls://host:port"
        )
    return Certificates(options.tls_ca_file, options.tls_cert, options.tls_key)


def _number(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is not below the least."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"give a whole number from {least} on, not {text!r}"
            )
        return int(text)

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m sparselib.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="the sweep, YAML")
    parser.add_argument(
        "--scheduler", default="", help="address of a running dask scheduler"
    )
    parser.add_argument(
        "--tls-ca-file",
        type=Path,
        help="certificate of the authority of a scheduler with TLS",
    )
    parser.add_argument("--tls-cert", type=Path, help="one's own certificate")
    parser.add_argument("--tls-key", type=Path, help="its key")
    parser.add_argument(
        "--plain-tcp",
        action="store_true",
        help="speak to a scheduler elsewhere without TLS",
    )
    parser.add_argument(
        "--workers",
        type=_number(0),
        help="processes here; one per core by default, 0 for none besides this",
    )
    parser.add_argument(
        "--threads", type=_number(1), default=1, help="threads of each process"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would run"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME=VALUE"
    )
    parser.add_argument(
        "--limit", type=_number(0), help="start at most this many runs"
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="and those that failed before",
    )
    parser.add_argument(
        "--allow-dirty",
        action="store_true",
        help="run code that no commit holds; rows record it",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="rows of another grid in the table",
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="table to write instead of the file's, such as one of this machine",
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="for executed notebooks"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
