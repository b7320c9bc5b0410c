"""Numbers of Bizopoulos and Koutsouris (2021) beside ours: what the stored runs measured."""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

from sparselib import sweep
from sparselib.comparison import Difference, paired_difference

# phi of Table II, by activation and size of the kernel
TABLE_2 = {
    ("extrema", 8): 0.59,
    ("extrema", 12): 0.55,
    ("extrema", 15): 0.55,
    ("pool", 8): 0.71,
    ("pool", 12): 0.63,
    ("pool", 15): 0.62,
}


def table(number: int) -> pd.DataFrame:
    """Return the runs of a table of the paper, 1 to 4."""
    return sweep.stored(f"san-table{number}")


def runs(rows: pd.DataFrame, size: int, measure: str, **where: str) -> np.ndarray:
    """Return a measure at a kernel size, one number per seed."""
    for column, value in where.items():
        rows = rows[rows[column] == value]
    places = [json.loads(cell).index(size) for cell in rows.sizes]
    return np.array([sweep.curve(cell)[n] for cell, n in zip(rows[measure], places)])


def without_activation(rows: pd.DataFrame) -> pd.Series:
    """Return the accuracy of the classifier on the samples themselves, in percent."""
    return 100 * rows[rows.activation == "raw"].test_accuracy.astype(float)


def gain(rows: pd.DataFrame, size: int, activation: str) -> np.ndarray:
    """Return what reconstructions change in accuracy, in points, by seed."""
    ours = 100 * runs(rows, size, "test_accuracy", activation=activation)
    return ours - without_activation(rows).mean()


def gains(number: int, sizes: Sequence[int]) -> list[float]:
    """Return what reconstructions by Extrema change at each kernel size of a table, on average."""
    rows = table(number)
    return [float(gain(rows, size, "extrema").mean()) for size in sizes]


def lowest(dataset: str, activation: str) -> np.ndarray:
    """Return the lowest phi over the kernel sizes of Table I, by seed."""
    rows = table(1)
    rows = rows[(rows.dataset == dataset) & (rows.activation == activation)]
    return np.array([sweep.curve(cell).min() for cell in rows.test_phi])


def eeg(sizes: Sequence[int]) -> list[float]:
    """Return phi of Extrema on the EEG at each kernel size, on average over the seeds."""
    rows = table(2)
    return [float(runs(rows, m, "test_phi", activation="extrema").mean()) for m in sizes]


def compared(short: str) -> pd.Series:
    """Return phi of "san" or "wavelet" on each of four records, at the size validation chooses."""
    rows = sweep.stored("san-comparison")
    places = zip(rows[f"{short}_test_phi"], rows[f"{short}_place"])
    phi = pd.Series([sweep.curve(cell)[place] for cell, place in places], rows.dataset)
    return phi.groupby(level=0).mean()


def change(kernels: int, variant: str) -> float:
    """Return what a variant of the future work changes in phi, over records and seeds."""
    rows = sweep.stored("san-future")
    rows = rows[(rows.kernels == kernels) & ~rows.sizes.str.contains(r"\[\[")]

    def phi(name: str) -> float:
        same = rows[rows.variant.fillna("") == name]
        return float(
            np.mean([sweep.curve(str(row.test_phi))[row.valid_place] for row in same.itertuples()])
        )

    return phi(variant) - phi("")


def span(numbers: Sequence[float], spec: str = ".2f") -> str:
    """Write the smallest and the largest of some numbers, such as ".54 to .59"."""
    return f"{min(numbers):{spec}} to {max(numbers):{spec}}"


ACTIVATIONS = ("identity", "relu", "topk", "pool", "extrema")


def least_bits(row: pd.Series, ways: Sequence[str], level: float, kind: str = "") -> float:
    """Return the bits per sample of the shortest stream of some methods with at most an error."""
    found = [np.inf]
    for way in ways:
        bits = sweep.curve(row[f"{way}{kind}_bits"])
        found += bits[sweep.curve(row[f"{way}{kind}_error"]) <= level].tolist()
    return min(found)


def bits(ways: Sequence[str], level: float, kind: str = "") -> pd.Series:
    """Return those bits for each record, on average over the seeds; infinite if out of reach."""
    rows = sweep.stored("san-bits")
    cells = rows.apply(least_bits, axis=1, args=(ways, level, kind))
    return cells.groupby(rows.dataset).mean()


def relative_bits(ways: Sequence[str], level: float, kind: str = "") -> Difference:
    """Return ln(bits of some methods / bits of the wavelet) over the records that both reach."""
    ours = bits(ways, level, kind)
    theirs = bits(["wavelet"], level, kind)
    both = np.isfinite(ours) & np.isfinite(theirs)
    return paired_difference(np.log(ours[both]), np.log(theirs[both]))
