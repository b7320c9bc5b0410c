"""How good: measures of outputs against labels."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor


def accuracy(outputs: Float[Tensor, "samples classes"], labels: Int[Tensor, "samples"]) -> float:
    """Share of samples whose largest output is that of their class, in [0, 1]."""
    if len(labels) == 0:
        raise ValueError("accuracy of no samples is undefined")
    return float((outputs.argmax(1) == labels).double().mean())


def ara(accuracies: Sequence[float], b: float = 0.5) -> float:
    r"""Average Ratiod Accuracy, a measure of how soon a network learns (Radu, Eq. 3).

    .. math:: ARA = \frac{\sum_{i=1}^n a_i (i c_1 + c_2)}{n^2 (b + 1) / 2}, \quad
       c_1 = \frac{n - nb}{n - 1}, \quad c_2 = n - n c_1

    A mean of the accuracies in which the first epoch weighs `b` times as much as the last, and the
    weight grows evenly in between. With b = 1 it is the ordinary mean.

    Parameters
    ----------
    accuracies : sequence of float
        One an epoch, in any unit; the result has the same.
    b : float
        Weight of the first epoch relative to the last, at least 0.

    Raises
    ------
    ValueError
        If there are no epochs, or `b` is negative.
    """
    n = len(accuracies)
    if n == 0 or not b >= 0:
        raise ValueError(f"ARA needs at least one epoch and b >= 0, not {n} epochs and b={b}")
    if n == 1:
        return float(accuracies[0])
    c1 = (n - n * b) / (n - 1)
    c2 = n - n * c1
    return float(
        sum(a * (i * c1 + c2) for i, a in enumerate(accuracies, 1)) / (n * n * (b + 1) / 2)
    )
