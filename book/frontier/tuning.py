"""What was chosen on validation data, and by how much it differs from something else."""

import pandas as pd

from sparselib.comparison import Difference, paired_difference


def chosen(every: pd.DataFrame, measure: str, smallest: bool = True) -> pd.DataFrame:
    """Return the runs with the step size that was best with the first seed, by seed.

    Parameters
    ----------
    every : DataFrame
        All runs of one family, with the columns `lr`, `seed` and `measure`.
    measure : str
        What was measured on validation data.
    smallest : bool
        Whether a smaller one is better.
    """
    first = every[every.seed == 0].set_index("lr")[measure]
    lr = first.idxmin() if smallest else first.idxmax()
    return every[every.lr == lr].sort_values("seed")


def difference(one: pd.DataFrame, other: pd.DataFrame, measure: str) -> Difference | None:
    """Return by how much one is larger, paired by the seeds of both; None of a single one."""
    pair = one.merge(other, on="seed", suffixes=("", "_other"))
    if len(pair) < 2:
        return None
    return paired_difference(pair[measure], pair[f"{measure}_other"])
