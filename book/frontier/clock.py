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


def row(network: str) -> pd.Series:
    """Return the row of a kind of network: all its families, in turn in one process."""
    found = sweep.stored("frontier-seconds")
    return found[found.network == network].iloc[0]


def costs(network: str) -> dict[str, Cost]:
    """Return the cost of each family by its word."""
    own = row(network)
    columns = [sweep.curve(own[name]) for name in Cost._fields]
    return {word: Cost(*values) for word, *values in zip(json.loads(own.families), *columns)}
