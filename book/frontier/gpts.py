"""The stored runs of language models, by family, and what their steps cost."""

import json
from typing import NamedTuple

import numpy as np
import pandas as pd

from sparselib import sweep
from sparselib.comparison import Difference, paired_difference

# width of the feed-forward networks, their sparsity, and that of attention
FAMILIES = {
    "dense, 1536 wide": "1536/0/0",
    "dense, 384 wide": "384/0/0",
    "dense, 154 wide": "154/0/0",
    "sparse, 90 %": "1536/0.9/0",
    "sparse, 95 %": "1536/0.95/0",
    "sparse, attention 70 %": "1536/0.9/0.7",
}
WIDE, NARROW, SPARSE = "dense, 1536 wide", "dense, 154 wide", "sparse, 90 %"


class Cost(NamedTuple):
    """What a network costs on the machine that was timed.

    Attributes
    ----------
    step_ms, predict_ms : float
        Milliseconds of a step of training, and of predicting for one window.
    trainable : float
        Parameters.
    bytes : float
        That are stored: weights, biases and their places.
    macs : float
        Multiply-accumulates of one window, forward.
    """

    step_ms: float
    predict_ms: float
    trainable: float
    bytes: float
    macs: float


def clock() -> pd.Series:
    """Return the row of the clock: all families in turn, on a quiet machine."""
    rows = sweep.stored("frontier-seconds")
    return rows[rows.network == "gpt"].iloc[-1]


def costs() -> dict[str, Cost]:
    """Return the cost of each family."""
    row = clock()
    places = json.loads(row.families)
    columns = [sweep.curve(row[name]) for name in Cost._fields]
    return {
        family: Cost(*(column[places.index(word)] for column in columns))
        for family, word in FAMILIES.items()
    }


def runs(family: str, rule: str = "static", density_step: bool = True) -> pd.DataFrame:
    """Return all runs of a family."""
    rows = sweep.stored("frontier-gpt")
    hidden, sparsity, attention = (float(number) for number in FAMILIES[family].split("/"))
    chosen = (rows.hidden == hidden) & (rows.sparsity == sparsity)
    chosen &= (rows.attention == attention) & (rows.rule == rule)
    return rows[chosen & (rows.density_step == density_step)]


def tuned(family: str, rule: str = "static", density_step: bool = True) -> pd.DataFrame:
    """Return its runs with the step size that is best on validation text with the first seed."""
    every = runs(family, rule, density_step)
    lr = every[every.seed == 0].set_index("lr").valid_loss.idxmin()
    return every[every.lr == lr].sort_values("seed")


def curve(part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return steps, and the mean validation loss after each."""
    losses = np.mean([sweep.curve(values) for values in part.valid_curve], axis=0)
    return np.arange(1, len(losses) + 1) * part.every.iloc[0], losses


def difference(one: pd.DataFrame, other: pd.DataFrame) -> Difference | None:
    """Return how much more test loss one has, paired by the seeds of both; None of a single one."""
    pair = one.merge(other, on="seed", suffixes=("", "_other"))
    if len(pair) < 2:
        return None
    return paired_difference(pair.test_loss, pair.test_loss_other)
