"""What a step and a prediction of each family cost, on a quiet machine."""

import json
from typing import NamedTuple

import pandas as pd

from sparselib import sweep


class Cost(NamedTuple):
    """What a network costs on the machine that was timed.

    Attributes
    ----------
    step_ms, predict_ms : float
        Milliseconds of a step of training, and of predicting for one sample.
    trainable : float
        Parameters.
    bytes : float
        That are stored: weights, biases and their places.
    macs : float
        Multiply-accumulates of one sample, forward.
    """

    step_ms: float
    predict_ms: float
    trainable: float
    bytes: float
    macs: float


def rows(network: str) -> pd.DataFrame:
    """Return the rows of a kind of network, each of families in turn; the first is the oldest."""
    found = sweep.stored("frontier-seconds")
    return found[found.network == network].sort_values("date")


def costs(network: str) -> dict[str, Cost]:
    """Return the cost of each family by its word, from the oldest row that holds it."""
    found: dict[str, Cost] = {}
    for _, row in rows(network).iterrows():
        columns = [sweep.curve(row[name]) for name in Cost._fields]
        for word, *values in zip(json.loads(row.families), *columns):
            found.setdefault(word, Cost(*values))
    return found
