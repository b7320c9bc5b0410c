"""The stored runs of perceptrons, by family and size, and what they cost."""

from typing import NamedTuple

import clock
import pandas as pd
import tuning

from sparselib import plot, sweep
from sparselib.comparison import Difference

# in the order of the tables; the words of plots and sentences
FAMILIES = {
    "dense": "dense",
    "low_rank": "low rank",
    "static": "fixed connections",
    "set": "SET",
    "rigl": "RigL",
    "repair": "Ertl, repaired",
    "pruned": "pruned at once",
    "gradual": "pruned gradually",
    "granet": "GraNet",
}
# the color and the mark of each, in the figures of all pages
STYLES = dict(
    zip(
        FAMILIES,
        zip(
            [*plot.COLORS, plot.GRAY, plot.BLUE],
            ["s-", "v-", "o-", "o--", "o:", "o-.", "^-", "^--", "^:"],
            strict=True,
        ),
        strict=True,
    )
)
SHRINKING = ("pruned", "gradual", "granet")  # dense at first


class Network(NamedTuple):
    """One perceptron of the table.

    Attributes
    ----------
    family : str
        One of `FAMILIES`.
    width : int
        Neurons of each of its two hidden layers.
    sparsity : float
        Of these layers.
    rank : int
        Of these layers, if it is low.
    """

    family: str
    width: int
    sparsity: float = 0.0
    rank: int = 0

    def __str__(self) -> str:
        size = f", rank {self.rank}" if self.rank else ""
        size = f", {100 * self.sparsity:g} %" if self.sparsity else size
        return f"{FAMILIES[self.family]}, {self.width}{size}"

    @property
    def word(self) -> str:
        """Its word on the page that measures costs: sparse families cost the same to use."""
        return f"{self.width}/{self.sparsity:g}/{self.rank}"


def stored(dataset: str = "fashion_mnist") -> pd.DataFrame:
    """Return all runs on a data set."""
    rows = sweep.stored("frontier-mlp" if dataset == "fashion_mnist" else "frontier-datasets")
    return rows[rows.dataset == dataset]


def networks(dataset: str = "fashion_mnist") -> list[Network]:
    """Return the networks that have runs, in the order of the families, small ones first."""
    sizes = stored(dataset)[["family", "width", "sparsity", "rank"]].drop_duplicates()
    found = [Network(*size) for size in sizes.itertuples(index=False)]
    order = list(FAMILIES)
    return sorted(found, key=lambda n: (order.index(n.family), n.width, -n.sparsity, n.rank))


def runs(network: Network, dataset: str = "fashion_mnist") -> pd.DataFrame:
    """Return all runs of a network, their test accuracy in per cent, too."""
    rows = stored(dataset)
    rows = rows.assign(test_percent=100 * rows.test_accuracy)
    same = pd.Series(True, index=rows.index)
    for name, value in network._asdict().items():
        same &= rows[name] == value
    return rows[same]


def tuned(network: Network, dataset: str = "fashion_mnist") -> pd.DataFrame:
    """Return its runs with the step size that is best on validation samples, first seed."""
    return tuning.chosen(runs(network, dataset), "valid_accuracy", smallest=False)


def costs() -> dict[str, clock.Cost]:
    """Return what networks cost, by their words."""
    return clock.costs("mlp")


def difference(one: Network, other: Network, dataset: str = "fashion_mnist") -> Difference | None:
    """Return by how many points of test accuracy one is ahead, paired by seed; None of one pair."""
    return tuning.difference(tuned(one, dataset), tuned(other, dataset), "test_percent")
