"""Who is ahead: intervals of differences paired by seed and of further runs, and fronts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import pandas as pd


class Difference(NamedTuple):
    """A mean difference and its interval.

    Attributes
    ----------
    mean, low, high : float
        The mean of the differences, and the ends of the interval.
    pairs : int
        How many there were.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def is_decided(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def __format__(self, spec: str) -> str:
        signed = f"+{spec.removeprefix('+')}"
        low, high = format(self.low, signed), format(self.high, signed)
        return f"{format(self.mean, signed)} ({low} to {high})"


def paired_difference(
    ours: ArrayLike,
    theirs: ArrayLike,
    level: float = 0.95,
) -> Difference:
    r"""Return the mean of :math:`d_i = a_i - b_i` with Student's interval (1908).

    .. math:: \bar d \pm t_{n-1} \, s_d / \sqrt n

    Pairs share what makes runs differ besides what is compared, such as the seed, which then
    cancels. The interval holds the true difference in `level` of all experiments if differences
    are about normal.

    Parameters
    ----------
    ours, theirs : sequence of float
        Runs in the same order of seeds.
    level : float
        Confidence, in (0, 1).

    Raises
    ------
    ValueError
        If there are not at least two pairs of finite numbers, or the level is impossible.
    """
    a = np.asarray(ours, dtype=float)
    b = np.asarray(theirs, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(
            f"an interval needs two sequences of at least two paired numbers, not {a.shape} and "
            f"{b.shape}"
        )
    _check_level(level)
    differences = a - b
    if not np.isfinite(differences).all():
        raise ValueError(
            f"an interval needs finite numbers, but a difference is {differences}"
        )
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / len(a) ** 0.5
    half = _student(level, len(a)) * error
    return Difference(mean, mean - half, mean + half, len(a))


def runs_by_seed(
    rows: "pd.DataFrame",
    parameter: str,
    values: Sequence[object],
    measure: str,
    by: Sequence[str] = (),
) -> "pd.DataFrame":
    """Return a measure of runs that differ in one parameter, side by side, for differences.

    Parameters
    ----------
    rows : DataFrame
        Rows of a sweep, with a column `seed`.
    parameter : str
        In what they differ.
    values : sequence
        Its values that are compared.
    measure : str
        The column that is compared.
    by : sequence of str
        Parameters that runs have to share besides the seed.

    Returns
    -------
    DataFrame
        A column per value; a row for each seed that ran with all of them, by `by` and seed.

    Raises
    ------
    ValueError
        If a value has no run, or two runs differ in none of these parameters.
    """
    ran = set(rows[parameter])
    if missing := [value for value in values if value not in ran]:
        raise ValueError(
            f"no run has {missing} as {parameter}; there are {sorted(ran, key=str)}"
        )
    shared = [*by, "seed"]
    compared = rows[rows[parameter].isin(list(values))]
    if compared.duplicated([*shared, parameter]).any():
        raise ValueError(
            f"runs are told apart by {[*shared, parameter]}, and some are alike in all of them; "
            "select fewer"
        )
    table = compared.pivot(index=shared, columns=parameter, values=measure)
    return table.reindex(columns=list(values)).dropna()


def prediction_interval(
    runs: ArrayLike, level: float = 0.95
) -> tuple[float, float]:
    r"""Return where one more run would end (Whitmore, 1986, The American Statistician 40).

    .. math:: \bar x \pm t_{n-1} \, s \sqrt{1 + 1 / n}

    A single number of somebody else's, such as a paper's, differs from ours if it lies outside.
    If the runs are about normal, a further run lies inside in `level` of all experiments, however
    few the runs are.

    Parameters
    ----------
    runs : sequence of float
        What they reached.
    level : float
        Confidence, in (0, 1).

    Raises
    ------
    ValueError
        If there are not at least two finite numbers, or the level is impossible.
    """
    x = np.asarray(runs, dtype=float)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(
            f"a prediction needs a sequence of at least two runs, not {x.shape}"
        )
    _check_level(level)
    if not np.isfinite(x).all():
        raise ValueError(
            f"a prediction needs finite numbers, but the runs are {x}"
        )
    half = _student(level, len(x)) * float(x.std(ddof=1))
    half *= (1 + 1 / len(x)) ** 0.5
    mean = float(x.mean())
    return mean - half, mean + half


def may_end_at(number: float, runs: ArrayLike) -> bool:
    """Whether one more run might end at a number: it lies in the 95 % `prediction_interval`.

    Of fewer than two runs nothing is known, and the answer is no.
    """
    if np.size(runs) < 2:
        return False
    low, high = prediction_interval(runs)
    return low <= number <= high


def _check_level(level: float) -> None:
    """Refuse what is no probability."""
    if not 0 < level < 1:
        raise ValueError(f"a level of confidence lies in (0, 1), not {level}")


def _student(level: float, count: int) -> float:
    """Return the half width of Student's distribution that holds `level` of it."""
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, count - 1))


def front(costs: ArrayLike, losses: ArrayLike) -> list[int]:
    """Return the indices of the points that no other point undercuts, cheapest first.

    A point is off the front if another one costs no more and loses no more, and less in one of the
    two (Pareto, 1906). Of equal points the first is on it.

    Parameters
    ----------
    costs, losses : sequence of float
        One of each per point; less is better.

    Raises
    ------
    ValueError
        If their numbers differ or one is not finite.
    """
    cost = np.asarray(costs, dtype=float)
    loss = np.asarray(losses, dtype=float)
    if cost.shape != loss.shape or cost.ndim != 1:
        raise ValueError(
            f"a front needs one cost and one loss per point, not {cost.shape} and {loss.shape}"
        )
    if not (np.isfinite(cost).all() and np.isfinite(loss).all()):
        raise ValueError("a front needs finite costs and losses")
    found: list[int] = []
    least = np.inf
    for index in np.lexsort((loss, cost)):
        if loss[index] < least:
            least = loss[index]
            found.append(int(index))
    return found
