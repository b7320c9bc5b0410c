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
    exponential,
    neuron_costs,
    without_gradient,
)
from sparselib.nn.sparse_layer import SparseLayer
from sparselib.ranking import contains, largest, marked, places

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
    importance = shares(layer, context)
    return largest(-importance, round(fraction * importance.numel()))


@with_context
def sampled_importance(
    layer: SparseLayer,
    fraction: float,
    context: Context,
    steps: int,
    alpha: float = 1.0,
    start: float = 0.5,
    end: float = 0.9,
) -> Int[Tensor, "dropped"]:
    r"""Draw which weights stay, each in proportion to :math:`s_{ij}`; the others leave.

    .. math::
        s_{ij} = \big(\alpha |w_{ij}| + (1 - \alpha) r_{ij}\big)^{\delta / (1 - \delta)}

    The soft removal of CHTs (Zhang et al., 2025, Eq. 2), with :math:`r_{ij}` of
    `relative_importance` (Eq. 1). What stays is drawn one after the other without replacement, so
    that a small weight may stay while training has not decided on it yet. :math:`\delta` rises
    linearly with the steps, and the draw comes nearer to taking the largest. The exponent is that
    of the authors' program, 1 at :math:`\delta = 0.5` and 9 at 0.9; there the exponent itself rises
    linearly.

    Parameters
    ----------
    layer, fraction, context
        As for every rule that reads the context; the context's state counts the steps.
    steps : int
        Number of evolution steps in which :math:`\delta` rises; give it by a
        ``functools.partial``.
    alpha : float
        1 counts magnitudes, which did best in most of the authors' tests, and 0 relative
        importance. They test no number between.
    start, end : float
        :math:`\delta` in the first step and after `steps` of them. The authors' Appendix H ends at
        0.9, their Section 3.1 at 0.75.

    Raises
    ------
    ValueError
        If `steps` is below 1, `alpha` outside [0, 1], `start` or `end` outside [0, 1), or the
        context has no state.
    """
    _check_softness(steps, alpha, start, end)
    state = state_of(context)
    step = state.get("steps", 0)
    state["steps"] = step + 1
    delta = start + (end - start) * min(step / steps, 1.0)
    sizes = layer.values.detach().abs()
    mixed = alpha * sizes + (1 - alpha) * shares(layer, context)
    logarithm = mixed.double().clamp(min=torch.finfo(torch.float64).tiny).log()
    # the first of n exponential clocks that run at the speeds s is each in proportion to s, and so
    # is the next of the others
    clock = exponential(sizes.numel(), context).to(logarithm.device)
    time = clock.log() - delta / (1 - delta) * logarithm
    return largest(time, round(fraction * sizes.numel()))


@with_context
def unchanged_negatives(
    layer: SparseLayer, fraction: float, context: Context
) -> Int[Tensor, "dropped"]:
    r"""Drop the negative weights with the smallest :math:`|w_t - w_{t - 1}|`.

    What NeurRev (Li et al., 2024) removes in its search for dormant neurons: a neuron before a ReLU
    that writes nothing but zeros gets no gradient, so that its weights do not change, and it is
    negative weights that keep it below zero. :math:`w_{t - 1}` is the weight at the step before; of
    a connection that came in that step it counts as 0. In the first step no change is known and
    nothing leaves. Never more leave than there are negative weights, even if `fraction` of all is
    more.

    Of NeurRev this is the removal alone, as the paper's published reviews report it; its full text
    was not at hand.

    Parameters
    ----------
    layer, fraction, context
        As for every rule that reads the context; its state keeps position and weight of each
        connection from step to step.

    Raises
    ------
    ValueError
        If the context has no state.
    """
    state = state_of(context)
    values = layer.values.detach()
    is_staying = torch.ones_like(values, dtype=torch.bool)
    if "values" in state:
        negative = marked(values < 0)
        change = (values - _before(state, context.occupied, values)).abs()
        count = min(round(fraction * values.numel()), negative.numel())
        is_staying[negative[largest(-change[negative], count)]] = False
    state["positions"] = context.occupied[is_staying]
    state["values"] = values[is_staying]
    return marked(~is_staying)


@with_batches
def costless(
    layer: SparseLayer,
    fraction: float,
    context: Context,
    rule: ByValues = adaptive_threshold,
) -> Int[Tensor, "dropped"]:
    r"""Drop all weights of neurons whose cost is exactly zero, and what `rule` drops of the others.

    Ertl's proposal for lost weights: "removing weights of neurons whose cost is exactly zero during
    backpropagation" (Section 5.1). The cost of neuron i is :math:`\sum_b |c_{bi}|` over the batches
    since the last `zero_grad`. It is zero where nothing reads the neuron, but also where it was
    below zero before a ReLU in all samples of those batches; ``repair=True`` of `Evolution` looks
    at the structure instead.

    Parameters
    ----------
    layer, fraction, context
        As for every rule that reads batches.
    rule : callable
        A rule that reads values, such as `magnitude`.

    Raises
    ------
    ValueError
        If the context holds no batch, or has no state.
    """
    is_leaving = (neuron_costs(context) == 0)[
        context.occupied // layer.shape[1]
    ]
    is_leaving[rule(layer.values.detach(), fraction, state_of(context))] = True
    return marked(is_leaving)


def shares(layer: SparseLayer, context: Context) -> Float[Tensor, "nnz"]:
    """Return the share of each weight in its row, plus its share in its column."""
    sizes = layer.values.detach().abs()
    rows = context.occupied // layer.shape[1]
    columns = context.occupied % layer.shape[1]
    importance = torch.zeros_like(sizes)
    for ends, count in ((rows, layer.shape[0]), (columns, layer.shape[1])):
        total = sizes.new_zeros(count).index_add_(0, ends, sizes)[ends]
        importance += torch.where(total > 0, sizes / total, 0.0)
    return importance


def state_of(context: Context) -> State:
    """Return what the rule keeps of the layer.

    Raises
    ------
    ValueError
        If the context has no place for it.
    """
    if context.state is None:
        raise ValueError(
            "this drop rule remembers its last step, and the context has no state to keep it in; "
            "an Evolution gives one, and so does context._replace(state={})"
        )
    return context.state


def _before(state: State, positions: Tensor, values: Tensor) -> Tensor:
    """Return what each connection weighed after the step before, 0 where there was none."""
    known = state["positions"].to(positions.device)
    weights = torch.zeros_like(values)
    is_known = contains(known, positions)
    place = places(known, positions[is_known])
    weights[is_known] = state["values"].to(values)[place]
    return weights


def _check_softness(steps: int, alpha: float, start: float, end: float) -> None:
    if not steps >= 1:
        raise ValueError(
            f"the softness changes in at least 1 step, not {steps}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha is the weight of magnitudes against relative importance, from 0 to 1, not "
            f"{alpha}"
        )
    for delta in (start, end):
        if not 0 <= delta < 1:
            raise ValueError(
                f"delta lies in [0, 1), not {delta}; at 1 nothing is drawn any more, as by "
                f"drop.magnitude and drop.relative_importance"
            )


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
