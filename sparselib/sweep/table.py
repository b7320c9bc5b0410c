"""The table of a sweep, written as its runs are done, and never from two libraries."""

import csv
import json
from pathlib import Path

from .grid import Sweep
from .notebook import Run, complete
from .rows import cells, columns, write_table

# columns of a row that are neither parameters nor measures
ABOUT = {
    "device",
    "threads",
    "sparselib",
    "commit",
    "torch",
    "date",
    "data",
    "scale",
}
ABOUT |= {"run_seconds", "run"}


class Table:
    """The table of a sweep as it grows.

    Each row is read once. Publishing still writes the whole file, since only then is it there whole
    or not at all; so it is for the caller to publish rarely.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._rows: dict[str, dict[str, str]] = {}

    def done(self) -> set[str]:
        """Name the runs that are done; one whose row the table holds is, wherever that was."""
        self._read()
        return self._rows.keys() | recorded(self.sweep).keys()

    def publish(self) -> Path | None:
        """Write the rows that are there; return the file, or None if there is no new one.

        Rows of another version of library, notebook or data stay until every run of the grid has
        been done anew; till then the new ones go into a file beside the executed notebooks.
        """
        self._read()
        if not self._rows:
            return None
        known = {run.key for run in self.sweep.runs}
        there = {row.get("run", "") for row in table_rows(self.sweep.results)}
        kept = recorded(self.sweep)
        if there <= known or known <= self._rows.keys() | kept.keys():
            table = self.sweep.results
            rows = kept | self._rows
        else:
            table = _aside(self.sweep)
            rows = self._rows
        write_table(list(rows.values()), table)
        return table

    def _read(self) -> None:
        """Read the rows of the runs that were done since, here or by another sweep."""
        for run in self.sweep.runs:
            if run.key not in self._rows:
                row = _finished(run)
                if row is not None:
                    self._rows[run.key] = row


def _finished(run: Run) -> dict[str, str] | None:
    """Return a run's row if the run is complete and its row there, whole."""
    try:
        row = json.loads(run.row.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(row, dict) or not complete(run.executed):
        return None
    return cells(row)


def recorded(sweep: Sweep) -> dict[str, dict[str, str]]:
    """Rows of the sweep's runs in its table; one that has lost its results counts for nothing."""
    keys = {run.key for run in sweep.runs}
    names = set(sweep.runs[0].parameters) | ABOUT
    return {
        row["run"]: row
        for row in table_rows(sweep.results)
        if row.get("run") in keys
        and any(row[name] for name in row if name not in names)
    }


def strangers(sweep: Sweep) -> list[dict[str, str]]:
    """Rows of the table that are of no point of the grid, in this version or another.

    A row may be of a point if it has the same value in every parameter that both have.
    """
    points = [columns(run.parameters) for run in sweep.runs]
    keys = {run.key for run in sweep.runs}
    values_of: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    found = []
    for row in table_rows(sweep.results):
        shared = tuple(name for name in points[0] if row.get(name))
        if shared not in values_of:
            values_of[shared] = {
                tuple(_text(p[name]) for name in shared) for p in points
            }
        values = tuple(_text(row[name]) for name in shared)
        ours = shared and values in values_of[shared]
        if row.get("run") not in keys and not ours:
            found.append(row)
    return found


def table_rows(table: Path) -> list[dict[str, str]]:
    """Read the cells of a table as text; a table that is not there has none.

    Raises
    ------
    ValueError
        If it is no CSV with as many cells in each line as in its header.
    """
    if not table.is_file():
        return []
    try:
        with table.open(encoding="utf-8", newline="") as file:
            lines = [line for line in csv.reader(file, strict=True) if line]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table} is damaged ({error}); {_ADVICE}") from None
    header = lines[0] if lines else []
    if len(set(header)) < len(header):
        raise ValueError(
            f"{table} is damaged (a column stands twice); {_ADVICE}"
        )
    for number, line in enumerate(lines, 1):
        if len(line) != len(header) or "\0" in "".join(line):
            raise ValueError(
                f"{table} is damaged (row {number} has {len(line)} cells, its header "
                f"{len(header)}); {_ADVICE}"
            )
    return [dict(zip(header, line)) for line in lines[1:]]


_ADVICE = "restore it from the history, or move it away: rows in the folder of runs are kept"


def _text(value: object) -> str:
    """Write a value as a table may have it: 1 and 1.0 are the same."""
    try:
        return (
            str(value) if isinstance(value, bool) else repr(float(str(value)))
        )
    except (ValueError, TypeError):
        return str(value)


def _aside(sweep: Sweep) -> Path:
    return sweep.runs[0].folder.parent / sweep.results.name
