"""Which connections leave.

A drop rule is a function ``(values, fraction, state) -> indices`` of the connections to remove,
ascending. `state` is a dictionary that belongs to the layer and outlives the step; most rules
ignore it.

A rule that has to know more is decorated with `with_context` and is a function ``(layer, fraction,
context) -> indices``: it reads what a grow rule reads, and besides the gradient of the connections,
what the optimizer remembers of them, and the layer's dictionary.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselib._types import Function
from sparselib.evolution.grow import (
    Context,
    Rule,
    State,
    declared,
    without_gradient,
)
from sparselib.nn.sparse_layer import SparseLayer
from sparselib.ranking import largest, marked

ByValues = Callable[[Tensor, float, State], Tensor]
ByContext = Callable[[SparseLayer, float, Context], Tensor]
Drop = ByValues | ByContext


def with_context(rule: Rule) -> Rule:
    """Declare that a drop rule is called with the layer, the fraction and a `Context`.

    A decorator. The context holds no batches then, unless the grow rule needs them; for a rule
    that reads them there is `with_batches`.
    """
    return without_gradient(with_batches(rule))


def with_batches(rule: Rule) -> Rule:
    """Declare what `with_context` declares, and that the rule reads the context's batches."""
    vars(rule)["reads_context"] = True
    return rule


def reads_context(rule: Function) -> bool:
    """Whether a rule is called with a context."""
    return declared(rule, "reads_context", False)


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
    negative = marked(values < 0)
    positive = marked(values >= 0)
    from_negative = round(fraction * negative.numel())
    is_dropped = torch.zeros_like(values, dtype=torch.bool)
    for side, count in (
        (negative, from_negative),
        (positive, total - from_negative),
    ):
        is_dropped[side[largest(-values[side].abs(), count)]] = True
    return marked(is_dropped)


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
    return marked(below)


@with_context
def taylor(
    layer: SparseLayer, fraction: float, context: Context
) -> Int[Tensor, "dropped"]:
    r"""Drop the `fraction` of weights with the smallest :math:`(g w)^2`.

    What the loss would change by without the weight, to first order (Molchanov et al., 2019), from
    the gradient :math:`g` of the last backward passes.

    Raises
    ------
    ValueError
        If there is no gradient: a step comes before `zero_grad`.
    """
    importance = (gradient_of(context) * layer.values.detach()).square()
    return largest(-importance, round(fraction * importance.numel()))


@with_context
def magnitude_and_gradient(
    layer: SparseLayer, fraction: float, context: Context, weight: float
) -> Int[Tensor, "dropped"]:
    r"""Drop the `fraction` of weights with the smallest :math:`|w| + \lambda |g|`.

    The importance of MEST (Yuan et al., 2021): a small weight that is about to grow stays.

    Parameters
    ----------
    layer, fraction, context
        As for every rule that reads the context.
    weight : float
        :math:`\lambda`, at least 0; give it by a ``functools.partial``.

    Raises
    ------
    ValueError
        If there is no gradient, or `weight` is negative.
    """
    if not weight >= 0:
        raise ValueError(
            f"the gradient counts with a weight of at least 0, not {weight}"
        )
    values = layer.values.detach()
    importance = values.abs() + weight * gradient_of(context).abs()
    return largest(-importance, round(fraction * values.numel()))


@with_context
def relative_importance(
    layer: SparseLayer, fraction: float, context: Context
) -> Int[Tensor, "dropped"]:
    r"""Drop the `fraction` of weights that matter least to their neurons at both ends.

    .. math:: \frac{|w_{ij}|}{\sum_k |w_{ik}|} + \frac{|w_{ij}|}{\sum_k |w_{kj}|}

    The relative importance of Zhang and others (2024, ICLR): the share that a weight has of those
    that neuron i reads by and of those that input j is read by. Unlike `magnitude` it leaves few
    neurons without connections.
    """
    sizes = layer.values.detach().abs()
    rows = context.occupied // layer.shape[1]
    columns = context.occupied % layer.shape[1]
    importance = torch.zeros_like(sizes)
    for places, count in ((rows, layer.shape[0]), (columns, layer.shape[1])):
        total = sizes.new_zeros(count).index_add_(0, places, sizes)[places]
        importance += torch.where(total > 0, sizes / total, 0.0)
    return largest(-importance, round(fraction * sizes.numel()))


def gradient_of(context: Context) -> Float[Tensor, "nnz"]:
    """Return the gradient of the connections.

    Raises
    ------
    ValueError
        If the context has none.
    """
    if context.gradient is None:
        raise ValueError(
            "this drop rule reads the gradient of the connections, and they have none; call the "
            "step of the evolution after a backward pass and before zero_grad"
        )
    return context.gradient
