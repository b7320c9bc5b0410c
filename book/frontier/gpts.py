"""The stored runs of language models, by family, and what their steps cost."""

import clock
import numpy as np
import pandas as pd
import tuning

from sparselib import sweep
from sparselib.comparison import Difference

# by the features of a token and the neurons of a feed-forward network: those neurons, their
# sparsity, and that of attention; @ features of a token, if not 384
FAMILIES = {
    "dense 384-1536": "1536/0/0",
    "dense 384-384": "384/0/0",
    "dense 384-154": "154/0/0",
    "dense 256-1024": "1024/0/0@256",
    "dense 192-768": "768/0/0@192",
    "dense 128-512": "512/0/0@128",
    "dense 64-256": "256/0/0@64",
    "90 % sparse 384-1536": "1536/0.9/0",
    "95 % sparse 384-1536": "1536/0.95/0",
    "90 % and attention 70 % sparse 384-1536": "1536/0.9/0.7",
    "95 % sparse 192-768": "768/0.95/0@192",
    "95 % sparse 192-1536": "1536/0.95/0@192",
    "95 % sparse 128-1024": "1024/0.95/0@128",
    "95 % sparse 128-512": "512/0.95/0@128",
}
SPARSE, SPARSER = "90 % sparse 384-1536", "95 % sparse 384-1536"
SMALL = "95 % sparse 192-768"


def costs() -> dict[str, clock.Cost]:
    """Return the cost of each family."""
    found = clock.costs("gpt")
    return {family: found[word] for family, word in FAMILIES.items()}


def runs(family: str, rule: str = "static", density_step: bool = True) -> pd.DataFrame:
    """Return all runs of a family."""
    rows = sweep.stored("frontier-gpt")
    word, _, width = FAMILIES[family].partition("@")
    hidden, sparsity, attention = (float(number) for number in word.split("/"))
    chosen = (rows.hidden == hidden) & (rows.sparsity == sparsity)
    chosen &= (rows.attention == attention) & (rows.width == int(width or 384))
    return rows[chosen & (rows.rule == rule) & (rows.density_step == density_step)]


def tuned(family: str, rule: str = "static", density_step: bool = True) -> pd.DataFrame:
    """Return its runs with the step size that is best on validation text with the first seed."""
    return tuning.chosen(runs(family, rule, density_step), "valid_loss")


def curve(part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return steps, and the mean validation loss after each."""
    losses = np.mean([sweep.curve(values) for values in part.valid_curve], axis=0)
    return np.arange(1, len(losses) + 1) * part.every.iloc[0], losses


def difference(one: pd.DataFrame, other: pd.DataFrame) -> Difference | None:
    """Return how much more test loss one has, paired by the seeds of both; None of a single one."""
    return tuning.difference(one, other, "test_loss")
