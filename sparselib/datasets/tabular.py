"""Tables of measurements: HIGGS, from the csv file of the UCI repository."""

import csv
import gzip
import warnings
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from .files import Folder, find, locate
from .split import Samples, Split, hold_out

COLUMNS = 29
OFFICIAL = ("HIGGS.csv.gz", "HIGGS.csv")
SUBSET = "HIGGS_subset35298.csv.gz"


def higgs(
    folder: Folder = None,
    rows: int = 600_000,
    valid: int | float = 0,
    seed: int = 0,
    standardise: bool = True,
) -> Split:
    """Return the first rows of HIGGS (Baldi, Sadowski and Whiteson, 2014): 28 features, 2 classes.

    Ertl (Section 4.1) takes the first 600,000 samples, 500,000 to train and 100,000 to test. The
    paper does not say which are which: here they follow each other in file order. Fewer rows are
    divided in the same proportion, 5 : 1.

    Parameters
    ----------
    folder
        Where `higgs/` lies or is fetched to; see `files.folders` for the default. The official
        HIGGS.csv.gz or HIGGS.csv is preferred to the subset of 35,298 rows. If none is there, the
        official file is fetched: 2.8 GB.
    rows
        How many rows to read. A file with fewer gives all it has, with a warning.
    valid
        How many of the training rows are held out, as a count or a fraction below 1.
    seed
        Chooses the rows that are held out.
    standardise
        Subtract the mean and divide by the standard deviation of the training part, feature by
        feature. The paper does not say whether it did.

    Raises
    ------
    ValueError
        If the file is damaged; the sentence names the line and the column.
    DataUnavailable
        If the file lies nowhere and cannot be fetched.
    """
    if rows < 6:
        raise ValueError(f"rows={rows} cannot be divided 5 : 1: pass 6 or more.")
    table = read_csv(_path(folder), rows)
    if len(table) < rows:
        warnings.warn(
            f"HIGGS is reduced: the file holds {len(table):,} of the {rows:,} rows asked for.",
            stacklevel=2,
        )
    cut = len(table) * 5 // 6
    train, held = hold_out(_samples(table[:cut]), valid, seed)
    parts = (train, held, _samples(table[cut:]))
    if standardise:
        parts = standardised(*parts)
    return Split(*parts, classes=2, name="higgs", note=_note(*parts))


def standardised(train: Samples, valid: Samples, test: Samples) -> tuple[Samples, Samples, Samples]:
    """Give each feature mean 0 and standard deviation 1 on the training part.

    A feature that is constant there is only centred.
    """
    values = train.x.numpy().astype(np.float64)
    mean, std = values.mean(0), values.std(0)
    std[std == 0] = 1

    def scaled(part: Samples) -> Samples:
        return Samples(torch.from_numpy(((part.x.numpy() - mean) / std).astype(np.float32)), part.y)

    return scaled(train), scaled(valid), scaled(test)


def read_csv(path: Path, rows: int) -> Float32[np.ndarray, "rows 29"]:
    """Read the first rows of a HIGGS csv file: the label, 0 or 1, and 28 features.

    Raises
    ------
    ValueError
        If a row has another number of columns or holds anything but finite numbers, if a label is
        neither 0 nor 1, or if the file is cut short.
    """
    import pandas as pd

    try:
        with np.errstate(over="ignore"):
            table = pd.read_csv(
                path,
                header=None,
                nrows=rows,
                dtype=np.float32,
                skip_blank_lines=False,
                quoting=csv.QUOTE_NONE,
            ).to_numpy()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is refused: it is no complete gzip file ({error}).") from error
    except ValueError as error:
        raise ValueError(f"{path} is refused: {_fault(path, rows) or error}.") from error
    sound = table.shape[1] == COLUMNS and np.isfinite(table).all()
    if not sound or not np.isin(table[:, 0], (0, 1)).all():
        raise ValueError(f"{path} is refused: {_fault(path, rows)}.")
    if len(table) < rows and not _ends_a_line(path):
        raise ValueError(f"{path} is refused: its last line has no end, so the file is cut short.")
    return table


def _path(folder: Folder) -> Path:
    names = (*OFFICIAL, SUBSET)
    present = (name for name in names if locate("higgs", name, folder))
    return find("higgs", next(present, OFFICIAL[0]), folder)


def _fault(path: Path, rows: int) -> str:
    """Say what is wrong with the first line that is wrong; slow, so only after a failure."""
    with _open(path) as file:
        for number, line in zip(range(1, rows + 1), file):
            fields = line.decode(errors="replace").rstrip("\r\n").split(",")
            if len(fields) != COLUMNS:
                return f"line {number} has {len(fields)} columns where {COLUMNS} are expected"
            for column, text in enumerate(fields, 1):
                if not _is_finite(text):
                    return f"line {number}, column {column} holds {text!r}, no finite number"
            if float(fields[0]) not in (0, 1):
                return f"line {number} holds the label {fields[0]!r}, neither 0 nor 1"
    return ""


def _is_finite(text: str) -> bool:
    try:
        return abs(float(text)) <= float(np.finfo(np.float32).max)
    except ValueError:
        return False


def _open(path: Path) -> BufferedIOBase:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _ends_a_line(path: Path) -> bool:
    if path.suffix == ".gz":
        return True
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"


def _note(train: Samples, valid: Samples, test: Samples) -> str:
    counts = f"{len(train):,} / {len(valid):,} / {len(test):,} rows"
    total = len(train) + len(valid) + len(test)
    if total == 600_000:
        return f"{counts}: the first 600,000 rows of the file, as in the paper"
    return f"{counts}: reduced to {total:,} of the paper's 600,000 rows, divided 5 : 1"


def _samples(table: Float32[np.ndarray, "rows 29"]) -> Samples:
    return Samples(torch.from_numpy(table[:, 1:].copy()), torch.from_numpy(table[:, 0]).long())
