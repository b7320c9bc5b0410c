"""Rows of results: what a run measured, with where, when and by which sources."""

import csv
import hashlib
import io
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch

from sparselib import atomic
from sparselib._version import __version__

from .history import commit
from .parameters import PLACES, Values, check_scale

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
RESULTS = Path("data/results")


@runtime_checkable
class Source(Protocol):
    """Data that can be named again, as a `Split` can."""

    @property
    def name(self) -> str:
        """What it is."""

    @property
    def checksum(self) -> str:
        """Of what is in it."""


def record(
    parameters: Values, measures: Row, data: Source | None = None
) -> None:
    """Write this run's row of results to the file that the parameter `results` names, if any.

    Parameters
    ----------
    parameters : mapping
        What `check` returned.
    measures : dict
        Numbers at full precision; a list is a curve.
    data : Split, optional
        Its `name` and `checksum` are recorded; None for random numbers.

    Raises
    ------
    ValueError
        If a name is both a parameter and a measure, or `scale` names no reduction.
    """
    whole = row(parameters, measures, data)
    if parameters["results"]:
        write(whole, parameters["results"])


def row(parameters: Values, measures: Row, data: Source | None = None) -> Row:
    """Return one row of results: parameters, measures and provenance; see `record`."""
    check_scale(parameters["scale"])
    told = columns(parameters)
    if twice := told.keys() & measures.keys():
        raise ValueError(f"{sorted(twice)} are both parameters and measures")
    return (
        told
        | measures
        | provenance(parameters.get("device", "cpu"))
        | {"data": f"{data.name} {data.checksum}" if data else "random numbers"}
        | {"scale": parameters["scale"]}
    )


def columns(parameters: Mapping[str, object]) -> Row:
    """Return the columns of a row that are parameters; lists and choices of lists are JSON.

    Places of files are none of them, and the name of the device is written instead of `device`.
    """
    left_out = (*PLACES, "device", "scale")
    return {
        name: json.dumps(value) if isinstance(value, list | dict) else value
        for name, value in parameters.items()
        if name not in left_out
    }


def provenance(device: torch.device | str = "cpu") -> Row:
    """Name of the device, versions, checksum of the library's source, commit, and date (UTC)."""
    return {
        "device": _name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "sparselib": f"{__version__} {SOURCE}",
        "commit": commit(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    }


def write(row: Row, path: str | Path) -> None:
    """Write one row as JSON, whole or not at all."""
    atomic.write_text(Path(path), json.dumps(row, indent=1) + "\n")


def gather(paths: Iterable[str | Path], table: str | Path) -> int:
    """Collect rows (JSON files) into one sorted CSV, whole or not at all; return their number.

    Raises
    ------
    FileNotFoundError
        If `paths` is empty.
    """
    rows = [
        json.loads(Path(path).read_text(encoding="utf-8")) for path in paths
    ]
    if not rows:
        raise FileNotFoundError(f"there is no row of results for {table}")
    write_table([cells(row) for row in rows], Path(table))
    return len(rows)


def cells(row: Row) -> dict[str, str]:
    """Return a row as a table has it: as texts, a curve as numbers of six digits with spaces."""
    return {name: _cell(value) for name, value in row.items()}


def write_table(rows: Sequence[Mapping[str, str]], table: Path) -> None:
    """Write rows of cells as one CSV, whole or not at all, sorted by all columns in their order."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    ranks = [_ranks([row.get(name, "") for row in rows]) for name in names]
    order = sorted(range(len(rows)), key=list(zip(*ranks)).__getitem__)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(names)
    for number in order:
        lines.writerow([rows[number].get(name, "") for name in names])
    atomic.write_text(table, text.getvalue())


def curve(cell: str) -> np.ndarray:
    """Read a curve back from its cell of the CSV."""
    return np.array([float(number) for number in cell.split()])


def stored(name: str, folder: str | Path = ".") -> "pd.DataFrame":
    """Read a table of results of the checkout in which a page runs.

    Parameters
    ----------
    name : str
        Of the table, such as ``"csr-table4"`` for ``data/results/csr-table4.csv``.
    folder : path
        A folder of the checkout, at whatever depth.

    Returns
    -------
    pandas.DataFrame
        One row per run.

    Raises
    ------
    FileNotFoundError
        If neither `folder` nor a folder above it holds ``data/results``, or that has no such table.
    """
    import pandas as pd

    here = Path(folder).resolve()
    for place in (here, *here.parents):
        if (place / RESULTS).is_dir():
            table = place / RESULTS / f"{name}.csv"
            if not table.is_file():
                known = sorted(path.stem for path in table.parent.glob("*.csv"))
                raise FileNotFoundError(
                    f"{table.parent} has no table {name!r}; it has {', '.join(known)}"
                )
            return pd.read_csv(table)
    raise FileNotFoundError(
        f"no folder from {here} upward holds {RESULTS.as_posix()}; run this in a checkout"
    )


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{number:.6g}" for number in value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value)


def _ranks(column: list[str]) -> list[tuple[bool, float | str]]:
    """Return what the cells of a column are sorted by: numbers as numbers, empty cells last."""
    try:
        return [(not cell, float(cell or 0)) for cell in column]
    except ValueError:
        return [(not cell, cell) for cell in column]


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name", platform.machine())
    if "cpu family" not in facts:
        return name
    # processors of several generations share a name
    return f"{name} (family {facts['cpu family']}, model {facts['model']})"


def _checksum(package: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(
            path.relative_to(package).as_posix().encode() + path.read_bytes()
        )
    return digest.hexdigest()[:12]


# taken at import: a file may change while a long run goes on with the old code
SOURCE = _checksum(Path(__file__).parents[1])
