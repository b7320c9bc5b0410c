"""Which connections leave.

A drop rule is a function ``(values, fraction, state) -> indices`` of the connections to remove,
ascending. `state` is a dictionary that belongs to the layer and outlives the step; most rules
ignore it.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselib.ranking import largest

State = dict[str, Any]
Drop = Callable[[Tensor, float, State], Tensor]


def magnitude(
    values: Float[Tensor, "nnz"], fraction: float, state: State | None = None
) -> Int[Tensor, "dropped"]:
    """Drop the `fraction` of weights nearest zero, exactly round(fraction * nnz) of them."""
    return largest(-values.abs(), round(fraction * values.numel()))


def set_fractions(
    values: Float[Tensor, "nnz"], fraction: float, state: State | None = None
) -> Int[Tensor, "dropped"]:
    """Drop `fraction` of the positive weights and `fraction` of the negative, nearest zero.

    Mocanu et al. (2018): the smallest positive and the largest negative weights. Exact zeros are
    nearest zero from both sides: they count with the positive. The total is
    round(fraction * nnz), whatever the signs.
    """
    total = round(fraction * values.numel())
    negative = (values < 0).nonzero().flatten()
    positive = (values >= 0).nonzero().flatten()
    from_negative = round(fraction * negative.numel())
    dropped = [
        side[largest(-values[side].abs(), count)]
        for side, count in (
            (negative, from_negative),
            (positive, total - from_negative),
        )
    ]
    return torch.cat(dropped).sort().values


def adaptive_threshold(
    values: Float[Tensor, "nnz"],
    fraction: float,
    state: State,
    start: float = 0.01,
    factor: float = 1.1,
) -> Int[Tensor, "dropped"]:
    r"""Drop every :math:`|w| \le \tau`, then move :math:`\tau` toward the target (Ertl, 3.2.4).

    No sorting: after each step :math:`\tau` is multiplied by `factor` if fewer than the target
    fraction fell, and divided by it otherwise. A step that would drop more than twice its target
    (a threshold too high, or many equal weights) drops exactly the target instead, by magnitude.

    Parameters
    ----------
    values : Tensor, shape (nnz,)
        The weights.
    fraction : float
        Target threshold percentage (TTP), as a fraction.
    state : dict
        Carries ``"threshold"`` from step to step.
    start : float
        First threshold; 0.01 in Table 2 of the paper.
    factor : float
        "A small factor"; the paper gives no value.

    Raises
    ------
    ValueError
        If a weight is NaN, or `factor` is not above 1.
    """
    if not factor > 1:
        raise ValueError(f"the adjustment factor must be above 1, not {factor}")
    threshold = state.get("threshold", start)
    below = values.abs() <= threshold
    target = fraction * values.numel()
    actual = int(below.sum())
    tiny = torch.finfo(values.dtype).tiny
    state["threshold"] = max(
        threshold * factor if actual < target else threshold / factor, tiny
    )
    if actual > 2 * target or torch.isnan(values).any():
        return magnitude(values, fraction)
    return below.nonzero().flatten()
