"""Tables of measurements: HIGGS, ISOLET and epilepsy, from csv files of the UCI repository."""

import csv
import gzip
import hashlib
import warnings
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64

from .files import Folder, find, locate, open_content
from .split import Samples, Split, hold_out

OFFICIAL = ("HIGGS.csv.gz", "HIGGS.csv")
SUBSET = "HIGGS_subset35298.csv.gz"
LETTERS = {"isolet1+2+3+4.data": 6238, "isolet5.data": 1559}
SEGMENTS = (
    11_500,
    179,
)  # rows and columns of epilepsy, the last of which is the class
# SHA-256 of the numbers of epilepsy as 16-bit integers, row by row
EPILEPSY = "9b2e89a4d8f0a0e255b1ff6ebc896f932ea861912b90d7e72ce00d123b3b3c71"
UNPACKING = (EOFError, gzip.BadGzipFile, zlib.error)


def higgs(
    folder: Folder = None,
    rows: int = 600_000,
    valid: int | float = 0,
    seed: int = 0,
    standardize: bool = True,
) -> Split:
    """Return the first rows of HIGGS (Baldi, Sadowski and Whiteson, 2014): 28 features, 2 classes.

    Ertl (Section 4.1) takes the first 600,000 samples, 500,000 to train and 100,000 to test. The
    paper does not state which are which: here they follow each other in file order. Fewer rows are
    split in the same proportion, 5 : 1.

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
    standardize
        Subtract the mean and divide by the standard deviation of the training part, feature by
        feature. The paper does not state whether it did.

    Raises
    ------
    ValueError
        If the file is damaged; the sentence names the line and the column.
    DataUnavailable
        If the file lies nowhere and cannot be fetched.
    """
    if rows < 6:
        raise ValueError(f"rows={rows} cannot be split 5 : 1: pass 6 or more.")
    table = read_csv(_path(folder), rows, columns=29, label=0, labels=range(2))
    if len(table) < rows:
        warnings.warn(
            f"HIGGS is reduced: the file holds {len(table):,} of the {rows:,} rows asked for.",
            stacklevel=2,
        )
    cut = len(table) * 5 // 6
    train, held = hold_out(_samples(table[:cut]), valid, seed)
    parts = (train, held, _samples(table[cut:]))
    if standardize:
        parts = standardized(*parts)
    return Split(*parts, classes=2, name="higgs", note=_note(*parts))


def isolet(
    folder: Folder = None,
    valid: int | float = 0,
    seed: int = 0,
    definition: str = "text",
) -> Split:
    """Return ISOLET (Cole and Fanty, 1994): 617 features of spoken letters, 26 classes.

    Speakers 1 to 120 train, 6238 samples, and speakers 121 to 150 test, 1559 samples. Features
    lie in [-1, 1] as they come. Radu counts 1560 test samples; with ``definition="code"`` the
    first row of both files is lost, as it is where a program takes it for a header.

    Parameters
    ----------
    folder
        Where `isolet/isolet1+2+3+4.data` and `isolet/isolet5.data` lie, as text or gzipped, with
        `.gz` behind the name; see `files.folders` for the default. They are not fetched, because
        the UCI repository packs them with the old `compress`.
    valid
        How many of the training samples are held out, as a count or a fraction below 1.
    seed
        Chooses the samples that are held out.
    definition
        ``"text"`` or ``"code"``.

    Raises
    ------
    ValueError
        If a file is damaged or `definition` unknown.
    DataUnavailable
        If a file lies nowhere.
    """
    if definition not in ("text", "code"):
        raise ValueError(
            f"definition must be 'text' or 'code', not {definition!r}"
        )
    lost = 1 if definition == "code" else 0
    whole, test = (
        _samples(_letters(name, rows, folder)[lost:], label=617, first=1)
        for name, rows in LETTERS.items()
    )
    train, held = hold_out(whole, valid, seed)
    note = f"{len(train):,} / {len(held):,} / {len(test):,} spoken letters of the UCI files"
    return Split(train, held, test, classes=26, name="isolet", note=note)


def epilepsy(folder: Folder = None, definition: str = "code") -> Split:
    """Return UCI's epilepsy recognition (Andrzejak and others, 2001): EEG of 178 samples each.

    Bizopoulos and Koutsouris (Section IV-B) merge its five classes into three, here epilepsy 0,
    tumor 1 and eyes 2, and split 11,500 signals into 76, 12 and 12 %: 8740, 1380 and 1380. They
    follow each other in file order, as in the released code.

    Parameters
    ----------
    folder
        Where `uci-epilepsy/data.csv` lies; see `files.folders` for the default. Not fetched. Its
        numbers are checked, so that ends of lines, quotes and names of rows are free.
    definition
        The range of values, by the smallest and largest of all: ``"code"``, [-1, 1], as the
        paper's tables have it, or ``"text"``, [0, 1].

    Raises
    ------
    ValueError
        If the file is damaged or `definition` unknown.
    DataUnavailable
        If the file lies nowhere.
    """
    if definition not in ("text", "code"):
        raise ValueError(
            f"definition must be 'text' or 'code', not {definition!r}"
        )
    table = _segments(find("uci-epilepsy", "data.csv", folder))
    values = table[:, :-1].astype(np.float64)
    merged = np.array([0, 1, 1, 2, 2])[table[:, -1] - 1]
    scaled = (values - values.min()) / (values.max() - values.min())
    if definition == "code":
        scaled = 2 * scaled - 1
    x = torch.from_numpy(scaled.astype(np.float32))
    y = torch.from_numpy(merged)
    sizes = [8740, 1380, 1380]
    train, valid, test = map(Samples, x.split(sizes), y.split(sizes))
    note = (
        "EEG segments of the UCI file in its order; 0 epilepsy, 1 tumor, 2 eyes"
    )
    return Split(train, valid, test, classes=3, name="epilepsy", note=note)


def standardized(
    train: Samples, valid: Samples, test: Samples
) -> tuple[Samples, Samples, Samples]:
    """Give each feature mean 0 and standard deviation 1 on the training part.

    A feature that is constant there is only centered.
    """
    values = train.x.numpy().astype(np.float64)
    mean = values.mean(0)
    std = values.std(0)
    std[std == 0] = 1

    def scaled(part: Samples) -> Samples:
        return Samples(
            torch.from_numpy(
                ((part.x.numpy() - mean) / std).astype(np.float32)
            ),
            part.y,
        )

    return scaled(train), scaled(valid), scaled(test)


def read_csv(
    path: Path, rows: int, *, columns: int, label: int, labels: range
) -> Float32[np.ndarray, "rows columns"]:
    """Read the first rows of a csv file of numbers, one of whose columns is a label.

    Raises
    ------
    ValueError
        If a row has another number of columns or holds anything but finite numbers, if a label is
        none of `labels`, or if the file is cut short, be it within the last number.
    """
    import pandas as pd

    layout = _Layout(columns, label, labels)
    try:
        with np.errstate(over="ignore"), open_content(path) as file:
            lines = _Lines(file)
            table = pd.read_csv(
                lines,
                header=None,
                nrows=rows,
                dtype=np.float32,
                skip_blank_lines=False,
                quoting=csv.QUOTE_NONE,
            ).to_numpy()
    except UNPACKING as error:
        raise ValueError(
            f"{path} is refused: it is no complete gzip file ({error})."
        ) from error
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} is refused: {_fault(path, rows, layout) or error}."
        ) from error
    sound = table.shape[1] == columns and np.isfinite(table).all()
    if not sound or not np.isin(table[:, label], labels).all():
        raise ValueError(f"{path} is refused: {_fault(path, rows, layout)}.")
    if lines.ended < len(table):
        raise ValueError(
            f"{path} is refused: its last line has no end, so the file is cut short."
        )
    return table


class _Layout(NamedTuple):
    columns: int
    label: int
    labels: range


class _Lines:
    """A file as pandas reads it, which counts the lines that have an end."""

    def __init__(self, file: BufferedIOBase) -> None:
        self.file = file
        self.ended = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> bytes:
        line = self.file.readline()
        if not line:
            raise StopIteration
        return line

    def read(self, size: int = -1) -> bytes:
        """Read some bytes; a last line without an end is not counted."""
        data = self.file.read(size)
        self.ended += data.count(b"\n")
        return data


def _segments(path: Path) -> Int64[np.ndarray, "rows columns"]:
    """Read the numbers of epilepsy, and compare them with the published ones."""
    import pandas as pd

    try:
        with open_content(path) as file:
            table = pd.read_csv(file, index_col=0).to_numpy()
    except UNPACKING as error:
        raise ValueError(
            f"{path} is refused: it is no complete gzip file ({error})."
        ) from error
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} is refused: it is no table ({error})."
        ) from error
    if table.shape != SEGMENTS or table.dtype != np.int64:
        raise ValueError(
            f"{path} is refused: it holds {table.dtype} of shape {table.shape}, not whole numbers "
            f"of shape {SEGMENTS}, so it is damaged, cut short or another version. Pass folder= "
            f"with a good copy."
        )
    found = hashlib.sha256(table.astype("<i2").tobytes()).hexdigest()
    if found != EPILEPSY or np.abs(table).max() > np.iinfo(np.int16).max:
        raise ValueError(
            f"{path} is refused: the SHA-256 of its numbers is {found}, but {EPILEPSY} was "
            f"expected, so it is damaged or another version. Pass folder= with a good copy."
        )
    return table


def _letters(
    name: str, rows: int, folder: Folder
) -> Float32[np.ndarray, "rows 618"]:
    path = find("isolet", name, folder)
    table = read_csv(
        path, rows + 1, columns=618, label=617, labels=range(1, 27)
    )
    if len(table) != rows:
        more = "more" if len(table) > rows else f"only {len(table):,}"
        raise ValueError(
            f"{path} is refused: {rows:,} rows are expected, but it holds {more}."
        )
    features = table[:, :617]
    if np.abs(features).max() > 1:
        row, column = np.argwhere(np.abs(features) > 1)[0]
        raise ValueError(
            f"{path} is refused: line {row + 1}, column {column + 1} holds "
            f"{features[row, column]:g}, but features lie in [-1, 1]."
        )
    return table


def _path(folder: Folder) -> Path:
    names = (*OFFICIAL, SUBSET)
    present = (name for name in names if locate("higgs", name, folder))
    return find("higgs", next(present, OFFICIAL[0]), folder)


def _fault(path: Path, rows: int, layout: _Layout) -> str:
    """Describe the first line that is wrong; slow, so only after a failure."""
    try:
        with open_content(path) as file:
            for number, line in zip(range(1, rows + 1), file):
                fault = _fault_of_line(
                    line.decode(errors="replace").rstrip("\r\n"), layout
                )
                if fault:
                    return f"line {number}{fault}"
    except UNPACKING as error:
        return f"it is no complete gzip file ({error})"
    return ""


def _fault_of_line(line: str, layout: _Layout) -> str:
    columns, label, labels = layout
    fields = line.split(",")
    if len(fields) != columns:
        return f" has {len(fields)} columns where {columns} are expected"
    for column, text in enumerate(fields, 1):
        if not _is_finite(text):
            return f", column {column} holds {text!r}, no finite number"
    if float(fields[label]) not in labels:
        return f" holds the label {fields[label]!r}, none of {labels[0]} to {labels[-1]}"
    return ""


def _is_finite(text: str) -> bool:
    try:
        return abs(float(text)) <= float(np.finfo(np.float32).max)
    except ValueError:
        return False


def _note(train: Samples, valid: Samples, test: Samples) -> str:
    counts = f"{len(train):,} / {len(valid):,} / {len(test):,} rows"
    total = len(train) + len(valid) + len(test)
    if total == 600_000:
        return f"{counts}: the first 600,000 rows of the file, as in the paper"
    return f"{counts}: reduced to {total:,} of the paper's 600,000 rows, split 5 : 1"


def _samples(
    table: Float32[np.ndarray, "rows columns"], label: int = 0, first: int = 0
) -> Samples:
    features = np.delete(table, label, axis=1)
    return Samples(
        torch.from_numpy(features),
        torch.from_numpy(table[:, label]).long() - first,
    )
