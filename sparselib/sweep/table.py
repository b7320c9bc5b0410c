"""The table of a sweep, written as its runs are done, and never from two libraries."""

from pathlib import Path

from .grid import Sweep
from .notebook import Run, complete
from .rows import gather


def is_done(run: Run) -> bool:
    """Whether a run is complete and its row there."""
    return run.row.is_file() and complete(run.executed)


def done(sweep: Sweep) -> set[str]:
    """Name the runs that are done; one whose row the table holds is, wherever that was."""
    here = {run.key for run in sweep.runs if is_done(run)}
    return here | ({run.key for run in sweep.runs} & recorded(sweep.results))


def publish(sweep: Sweep) -> Path | None:
    """Write the rows that are there; return the file, or None if there is no new one.

    Rows of another version of library, notebook or data stay until every run of the grid has been
    done anew; till then the new ones go into a file beside the executed notebooks.
    """
    rows = {run.key: run.row for run in sweep.runs if is_done(run)}
    if not rows:
        return None
    known, there = {run.key for run in sweep.runs}, recorded(sweep.results)
    if there <= known or known <= rows.keys() | there:
        table, keep = sweep.results, known & there
    else:
        table, keep = _aside(sweep), set()
    gather(rows.values(), table, keep)
    return table


def recorded(table: Path) -> set[str]:
    """Runs of which a table holds rows; a row without a name counts as one of another version."""
    import pandas as pd

    if not table.is_file():
        return set()
    frame = pd.read_csv(table, dtype=str)
    return set(frame["run"]) if "run" in frame else {""} if len(frame) else set()


def _aside(sweep: Sweep) -> Path:
    return sweep.runs[0].folder.parent / sweep.results.name
