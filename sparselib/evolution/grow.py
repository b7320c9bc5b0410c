"""Which connections come.

A grow rule is a function ``(layer, count, context) -> (positions, values)`` that returns `count`
distinct free positions of the layer and the values they start with. It reads what it needs of the
`Context`; no rule allocates out x in. A layer may have a `region` outside which nothing grows.

A rule may need the gradient, and then an evolution gathers batches for it. One that does not is
decorated with `without_gradient`, and costs a training loop nothing.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselib import ops
from sparselib._types import Function
from sparselib.csr import CSR
from sparselib.nn.sparse_layer import SparseLayer
from sparselib.ranking import (
    ascending,
    contains,
    draw,
    largest,
    marked,
    nth_free,
    places,
    weighted_draw,
)

BLOCK_CELLS = 2**21  # gradient entries held at once by `full_gradient`
WALK_CELLS = (
    2**19
)  # scores of paths held at once, which need four times as much around them
TAKEN = -1.0  # below every size of a gradient

NOTHING: Mapping[str, Tensor] = MappingProxyType({})

Batch = tuple[Tensor, Tensor]
State = dict[str, Any]
Rule = TypeVar("Rule", bound=Function)
Product = Callable[[CSR, Tensor, Tensor], Tensor]


def as_it_is(tensor: Tensor) -> Tensor:
    """Return the tensor: the average over the only process."""
    return tensor


def without_gradient(rule: Rule) -> Rule:
    """Declare that a grow rule reads neither inputs nor costs, so that nobody has to gather them.

    A decorator. A rule without it may need them.
    """
    vars(rule)["needs_gradient"] = False
    return rule


def needs_gradient(rule: Function) -> bool:
    """Whether a rule may read inputs and costs."""
    return declared(rule, "needs_gradient", True)


def declared(rule: Function, name: str, default: bool) -> bool:
    """Return what a decorator declared of a rule, or of what a ``functools.partial`` completes."""
    while isinstance(rule, partial):
        rule = rule.func
    return bool(getattr(rule, name, default))


class Context(NamedTuple):
    """What a grow rule may know, and a drop rule that reads the context.

    Attributes
    ----------
    occupied : Tensor, int64, sorted
        Positions that may not be chosen.
    rows : Tensor, int64, sorted
        Neurons open to new connections, ordinarily all.
    inputs : Tensor, shape (batch, in), or None
        What the layer read in all passes since the last `zero_grad`, in the type of the values; a
        convolution's has the time as third dimension.
    costs : Tensor, shape (batch, out), or None
        Gradient of the loss with respect to what the layer wrote, likewise, in the scale of the
        gradient that the optimizer uses.
    lr : float
        Learning rate of the layer's values. On the device it may be a tensor.
    generator : torch.Generator or None
        Seeded by layer and step.
    further : tuple of (Tensor, Tensor)
        More inputs and costs, where signals of several lengths cannot be one batch.
    average : callable
        ``tensor -> tensor``, the mean over all processes that train this model together.
    gradient : Tensor, shape (nnz,), or None
        Gradient of the connections' values as the optimizer uses it, if there is one.
    memory : mapping of str to Tensor
        What the optimizer remembers of each connection, such as ``"exp_avg"``.
    state : dict, or None
        What a drop rule keeps of the layer from step to step; a grow rule gets None.
    fed : Tensor, int64, sorted, or None
        Inputs that are neurons of the sparse layer before, and have a connection into them; None
        where no such layer is known.
    """

    occupied: Tensor
    rows: Tensor
    inputs: Tensor | None = None
    costs: Tensor | None = None
    lr: float = 0.0
    generator: torch.Generator | None = None
    further: tuple[Batch, ...] = ()
    average: Callable[[Tensor], Tensor] = as_it_is
    gradient: Tensor | None = None
    memory: Mapping[str, Tensor] = NOTHING
    state: State | None = None
    fed: Tensor | None = None


Grown = tuple[Tensor, Tensor]
Grow = Callable[[SparseLayer, int, Context], Grown]


def gradient(
    layer: SparseLayer, context: Context, rows: Int[Tensor, "some"]
) -> Float[Tensor, "some columns"]:
    """Dense gradient of some neurons: of all batches, averaged over all processes.

    Raises
    ------
    ValueError
        If the context holds no batch.
    """
    total = torch.zeros(
        (), dtype=layer.values.dtype, device=layer.values.device
    )
    for inputs, costs in batches(context):
        total = total + layer.gradient(inputs, costs[:, rows], rows)
    return context.average(total)


def neuron_costs(context: Context) -> Float[Tensor, "rows"]:
    r"""Cost :math:`\sum_b |c_{bi}|` of each neuron over all batches, averaged over all processes.

    Raises
    ------
    ValueError
        If the context holds no batch.
    """
    sums = [
        costs.abs().sum(
            [dimension for dimension in range(costs.ndim) if dimension != 1]
        )
        for _, costs in batches(context)
    ]
    return context.average(torch.stack(sums).sum(0))


def batches(context: Context) -> list[Batch]:
    """Return inputs and costs of every batch, or raise if there was none.

    Raises
    ------
    ValueError
        If the context holds no batch.
    """
    if context.inputs is None or context.costs is None:
        raise ValueError(
            "growing by gradient needs one forward and one backward pass through the layer, whose "
            "gradient reaches its values, before the step"
        )
    return [(context.inputs, context.costs), *context.further]


@without_gradient
def random(layer: SparseLayer, count: int, context: Context) -> Grown:
    """Grow anywhere with equal probability, at zero (SET as Ertl describes it, Section 3.2.4)."""
    region = layer.region
    rows = context.rows
    taken = region.number(_within(layer, context), rows)
    cell = _drawn(int(region.room[rows].sum()), taken, count, context)
    return region.position(cell, rows), torch.zeros_like(layer.values[:count])


@without_gradient
def random_from_fed(layer: SparseLayer, count: int, context: Context) -> Grown:
    """Grow anywhere with equal probability, at zero, out of neurons that have inputs themselves.

    `random` also reads neurons that no connection leads into, which repeat their bias. Where lost
    weights are released (``repair=True`` of `Evolution`) these are all that nobody read before. As
    `random` where the layer before is not sparse, or not known.

    Raises
    ------
    ValueError
        If there is too little room, or the layer has a region.
    """
    columns = layer.shape[1]
    fed = context.fed
    if fed is None or fed.numel() == columns:
        return random(layer, count, context)
    if layer.cells < layer.csr.cells:
        raise ValueError(
            "growth out of fed neurons cannot keep to a region; grow by another rule"
        )
    rows = context.rows
    width = max(fed.numel(), 1)
    within = _within(layer, context)
    column = within % columns
    taken = within // columns * width + places(fed, column)
    taken = taken[contains(fed, column)]
    cell = _drawn(rows.numel() * fed.numel(), taken, count, context)
    positions = rows[cell // width] * columns + fed[cell % width]
    return positions, torch.zeros_like(layer.values[:count])


@without_gradient
def random_normal(
    layer: SparseLayer, count: int, context: Context, std: float = 0.1
) -> Grown:
    r"""Grow anywhere with equal probability, at :math:`N(0, std^2)` (SET's program for SciPy)."""
    positions, values = random(layer, count, context)
    normal = torch.randn(
        count, dtype=torch.float64, generator=context.generator
    )
    return positions, (std * normal).to(values)


@without_gradient
def random_uniform(layer: SparseLayer, count: int, context: Context) -> Grown:
    r"""Grow anywhere with equal probability, uniformly in :math:`\pm 1 / \sqrt{N_{out}}`.

    LiSET without features: its author's program with gamma = 0.
    """
    positions, _ = random(layer, count, context)
    return positions, uniform_values(layer, count, context)


def gradient_of_costliest(
    layer: SparseLayer, count: int, context: Context, neurons: int | None = None
) -> Grown:
    r"""Grow the largest gradients of the k costliest neurons (Ertl, Section 3.2.4).

    The gradient of neuron :math:`i` is :math:`\nabla_i = v_i c_i`, so only the
    :math:`k = \sqrt{N_t}` neurons (Eq. 1) with the largest cost :math:`\sum_b |c_{bi}|` are
    multiplied out: a k x in block. A new weight starts at :math:`w = -\eta \nabla`. Where the
    block has fewer free cells than `count`, more neurons are taken.

    Parameters
    ----------
    layer, count, context
        As for every grow rule; `context` must hold inputs and costs.
    neurons : int, optional
        k; by default :math:`\sqrt{N_t}`, rounded.

    Raises
    ------
    ValueError
        If the context holds no batch, the batch is not finite, or there is too little room.
    """
    _check_finite(context)
    costs = neuron_costs(context)[context.rows]
    k = round(count**0.5) if neurons is None else neurons
    columns = layer.shape[1]
    taken = torch.bincount(
        context.occupied // columns, minlength=layer.shape[0]
    )[context.rows]
    order = torch.sort(costs, descending=True, stable=True).indices
    room = (layer.region.room[context.rows] - taken)[order].cumsum(0)
    _check_room(count, int(room[-1]) if room.numel() else 0)
    k = max(k, 1, int(torch.searchsorted(room, count)) + 1)
    rows = context.rows[order[:k]].sort().values
    return _largest_gradients(layer, count, context, rows)


def full_gradient(layer: SparseLayer, count: int, context: Context) -> Grown:
    """Grow the largest gradients of all (Evci et al., 2020), in blocks of neurons.

    The same as `gradient_of_costliest` with every neuron, at the cost of the whole dense gradient
    in time, but never in memory.
    """
    room = int(layer.region.room[context.rows].sum())
    _check_room(count, room - _within(layer, context).numel())
    return _largest_gradients(layer, count, context, context.rows)


def full_gradient_at_zero(
    layer: SparseLayer, count: int, context: Context
) -> Grown:
    """Grow the largest gradients of all, at zero (RigL, Evci et al., 2020)."""
    positions, values = full_gradient(layer, count, context)
    return positions, torch.zeros_like(values)


@without_gradient
def linear_features(
    layer: SparseLayer,
    count: int,
    context: Context,
    importance: Float[Tensor, "columns"],
) -> Grown:
    r"""Grow where important features are read (LiSET, Radu, Eq. 2).

    Free cells are drawn one after the other without replacement, each in proportion to the
    importance :math:`\tilde w` of its column:
    :math:`p(W_{i_1 j_1}) / p(W_{i_2 j_2}) = \tilde w_{i_1} / \tilde w_{i_2}`. Values are uniform
    in :math:`\pm 1 / \sqrt{N_{out}}`, as in the author's program; the paper gives none.

    Raises
    ------
    ValueError
        If an importance is negative or not finite, or the columns above 0 have too little room.
    """
    weights = _checked_importance(layer, importance).cpu()
    if layer.cells < layer.csr.cells:
        raise ValueError(
            "growth by features cannot keep to a region; grow by another rule"
        )
    columns = layer.shape[1]
    height = context.rows.numel()
    cells = _within(layer, context).cpu()
    taken = (cells % columns * height + cells // columns).sort().values
    drawn = weighted_draw(weights, height, taken, count, context.generator).to(
        context.rows.device
    )
    positions = context.rows[drawn % max(height, 1)] * columns + drawn // max(
        height, 1
    )
    return positions, uniform_values(layer, count, context)


@without_gradient
def likeliest_features(
    layer: SparseLayer,
    count: int,
    context: Context,
    importance: Float[Tensor, "columns"],
) -> Grown:
    r"""Grow the largest :math:`u \tilde w` of all free cells, :math:`u` uniform in [0, 1).

    The author's program for LiSET. Unlike Eq. 2 it gives nothing to features of low importance:
    what is chosen lies above a threshold that only :math:`\tilde w` near its maximum can reach.
    """
    weights = _checked_importance(layer, importance).to(context.rows.device)
    columns = layer.shape[1]
    positions = context.rows[:0]
    scores = weights[:0]
    for block in context.rows.split(max(1, BLOCK_CELLS // max(columns, 1))):
        cells = _free_cells(layer, context._replace(rows=block))
        uniform = torch.rand(
            cells.numel(), dtype=torch.float64, generator=context.generator
        )
        positions = torch.cat(
            [positions, block[cells // columns] * columns + cells % columns]
        )
        scores = torch.cat(
            [scores, uniform.to(weights.device) * weights[cells % columns]]
        )
        best = largest(scores, min(count, scores.numel()))
        positions = positions[best]
        scores = scores[best]
    _check_room(count, positions.numel())
    return positions, uniform_values(layer, count, context)


@without_gradient
def length_three_paths(
    layer: SparseLayer, count: int, context: Context
) -> Grown:
    r"""Grow where many paths of three connections lead already, at zero.

    .. math:: s_{uv} = \sum_{z \in L_3(u, v)} \frac{i_z + 1}{e_z + 1}

    The soft regrowth of CHTs (Zhang et al., 2025, CH2-L3n, Eq. 3 and Algorithm 1): free cells are
    drawn one after the other without replacement, each in proportion to :math:`s_{uv}`. The layer
    is the graph of its outputs u and its inputs v. :math:`L_3(u, v)` are all neurons on paths of
    three connections from u to v, the local community; of the connections of such a neuron z,
    :math:`i_z` lead into the community and :math:`e_z` out of it, to neither u nor v. Where fewer
    cells than `count` have a path, the rest is drawn uniformly from the others; the authors'
    program adds :math:`10^{-5}` to every score then. Neither weights nor gradients are read. A
    connection that was there before starts at its former weight with the authors (Appendix J),
    here at zero.

    Scores are multiplied out for blocks of neurons, once for those of either side, in time
    :math:`O((rows + columns) \cdot nnz)`. No more than half a million of them are there at once,
    so that the memory is that of `full_gradient`.

    Raises
    ------
    ValueError
        If there is too little room.
    """
    occupied = context.occupied
    room = int(layer.region.room[context.rows].sum())
    _check_room(count, room - _within(layer, context).numel())
    graph = CSR.from_positions(occupied, layer.shape)
    # a cell's two scores are the speeds of two clocks: the earlier one has the speed of their sum
    sides = [
        _soonest(layer, count, context, graph, of_columns)
        for of_columns in (False, True)
    ]
    both = torch.cat([cells for cells, _ in sides])
    cells, place = both.unique(return_inverse=True)
    times = torch.cat([times for _, times in sides])
    earlier = times.new_full(cells.shape, torch.inf)
    earlier.scatter_reduce_(0, place, times, "amin")
    positions = cells[largest(-earlier, min(count, cells.numel()))]
    taken = ascending(torch.cat([occupied, positions]))
    others, values = random(
        layer, count - positions.numel(), context._replace(occupied=taken)
    )
    positions = ascending(torch.cat([positions, others]))
    return positions, values.new_zeros(count)


def community_scores(
    graph: CSR, neurons: Int[Tensor, "some"], of_columns: bool = False
) -> Float[Tensor, "some across"]:
    r"""Sum :math:`(i_z + 1) / (e_z + 1)` over the z of a cell's local community on one side.

    Of `length_three_paths`: with the rows u, the sum is over those z that are rows like u, and for
    columns over the columns. At connections it is 0.

    Parameters
    ----------
    graph : CSR
        Where the connections are.
    neurons : Tensor of integers, shape (some,)
        Rows, or columns.
    of_columns : bool
        Which of them. `across` are the neurons of the other side.
    """
    ones = torch.ones(graph.nnz, device=graph.device)
    products: tuple[Product, Product] = ops.spmm, ops.spmm_t
    back, forth = products if of_columns else reversed(products)
    degree = graph.fan_out() if of_columns else graph.fan_in()
    start = ones.new_zeros(len(neurons), len(degree))
    start.scatter_(1, neurons[:, None], 1.0)
    connected = back(graph, ones, start)
    common = forth(graph, ones, connected)
    # without the connection to the seed; where nothing is left, no cell is free
    outward = (degree - common - 1).clamp(min=0)
    inward = torch.where(common > 0, common + 1, 0)
    scores = back(graph, ones, inward / (outward + 1))
    return scores.masked_fill_(connected > 0, 0)


def _soonest(
    layer: SparseLayer,
    count: int,
    context: Context,
    graph: CSR,
    of_columns: bool,
) -> tuple[Int[Tensor, "some"], Float[Tensor, "some"]]:
    """Return the `count` free cells whose clocks strike first, and when."""
    rows, columns = layer.shape
    neurons = context.rows
    if of_columns:
        neurons = torch.arange(columns, device=neurons.device)
    cells = neurons[:0]
    times = torch.empty(0, dtype=torch.float64, device=neurons.device)
    for block in neurons.split(max(1, WALK_CELLS // max(rows, columns, 1))):
        scores = community_scores(graph, block, of_columns)
        near, across = (scores > 0).nonzero(as_tuple=True)
        speeds = scores[near, across].double()
        row, column = block[near], across
        if of_columns:
            row, column = across, block[near]
        found = row * columns + column
        is_open = layer.region.holds(found)
        if of_columns:
            is_open &= contains(context.rows, row)
        clock = exponential(speeds.numel(), context).to(speeds.device)
        cells = torch.cat([cells, found[is_open]])
        times = torch.cat([times, (clock / speeds)[is_open]])
        first = largest(-times, min(count, times.numel()))
        cells = cells[first]
        times = times[first]
    return cells, times


def exponential(count: int, context: Context) -> Float[Tensor, "count"]:
    """Draw `count` exponentially distributed numbers of mean 1, on the CPU, in double precision.

    The first of clocks that strike after such a time, each divided by the clock's speed, is every
    one of them in proportion to its speed.
    """
    uniform = torch.rand(
        count, dtype=torch.float64, generator=context.generator
    )
    return -torch.log1p(-uniform)


def uniform_values(layer: SparseLayer, count: int, context: Context) -> Tensor:
    r"""Draw `count` weights uniformly in :math:`\pm 1 / \sqrt{N_{out}}`."""
    uniform = torch.rand(
        count, dtype=torch.float64, generator=context.generator
    )
    return ((2 * uniform - 1) * layer.shape[0] ** -0.5).to(layer.values)


def recall(
    layer: SparseLayer, count: int, context: Context, neurons: int
) -> float:
    """Share of the `count` largest gradients that `neurons` costliest neurons hold (Figure 3)."""
    best, _ = full_gradient(layer, count, context)
    costs = neuron_costs(context)
    costliest = largest(costs, neurons)
    return float(torch.isin(best // layer.shape[1], costliest).float().mean())


def _largest_gradients(
    layer: SparseLayer, count: int, context: Context, rows: Tensor
) -> Grown:
    _check_finite(context)
    columns = layer.shape[1]
    taken = _within(layer, context._replace(rows=rows))
    positions = torch.empty(0, dtype=torch.int64, device=layer.values.device)
    values = layer.values.detach()[:0]
    # what is not larger than the smallest of `count` found before has no chance
    least = values.new_tensor(TAKEN)
    first = 0
    for block in rows.split(max(1, BLOCK_CELLS // max(columns, 1))):
        gradients = gradient(layer, context, block).flatten()
        ends = taken.new_tensor([first, first + gradients.numel()])
        low, high = torch.searchsorted(taken, ends).tolist()
        sizes = gradients.abs()
        sizes[taken[low:high] - first] = TAKEN
        if layer.cells < layer.csr.cells:
            sizes[~layer.region.mask(block).flatten()] = TAKEN
        cells = marked(~(sizes <= least))  # with those of NaN
        if cells.numel() > count:
            cells = cells[largest(sizes[cells], count)]
        candidates = block[cells // columns] * columns + cells % columns
        positions = torch.cat([positions, candidates])
        values = torch.cat([values, gradients[cells]])
        best = largest(values.abs(), min(count, values.numel()))
        positions = positions[best]
        values = values[best]
        if 0 < count == values.numel():
            least = values.abs().min()
        first += gradients.numel()
    return positions, (-context.lr * values).to(layer.values.dtype)


def _drawn(
    cells: int, taken: Int[Tensor, "taken"], count: int, context: Context
) -> Int[Tensor, "count"]:
    """Draw `count` of so many cells, numbered from 0, that are not taken."""
    free = cells - taken.numel()
    _check_room(count, free)
    rank = draw(free, count, context.generator).to(taken.device)
    return nth_free(rank, taken)


def _free_cells(layer: SparseLayer, context: Context) -> Int[Tensor, "free"]:
    """Free cells of the open rows, counted as if no other rows existed."""
    free = layer.region.mask(context.rows).flatten()
    free[_within(layer, context)] = False
    return marked(free)


def _checked_importance(layer: SparseLayer, importance: Tensor) -> Tensor:
    weights = importance.detach().double()
    if weights.shape != (layer.shape[1],):
        raise ValueError(
            f"{layer.shape[1]} features need as many importances, not {tuple(weights.shape)}"
        )
    if not (torch.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(
            f"importances are finite and at least 0, not {weights.min():g} to {weights.max():g}"
        )
    return weights


def _within(layer: SparseLayer, context: Context) -> Int[Tensor, "taken"]:
    """Occupied cells of the open rows, counted as if no other rows existed."""
    rows, columns = layer.shape
    if context.rows.numel() == rows:
        return context.occupied
    if context.rows.numel() == 0:
        return context.rows
    row = context.occupied // columns
    place = places(context.rows, row)
    inside = context.rows[place.clamp(max=context.rows.numel() - 1)] == row
    return (place * columns + context.occupied % columns)[inside]


def is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite.

    A sum is finite only if every term is, and costs less than a look at each; where it is not, it
    may have overflowed, and each is looked at.
    """
    return bool(torch.isfinite(tensor.sum())) or bool(
        torch.isfinite(tensor).all()
    )


def _check_finite(context: Context) -> None:
    for inputs, costs in batches(context):
        for name, tensor in (("inputs", inputs), ("costs", costs)):
            if not is_finite(tensor):
                raise ValueError(
                    f"the {name} of the last batch are not finite; the topology was kept"
                )


def _check_room(count: int, free: int) -> None:
    if count > free:
        raise ValueError(
            f"{count} connections cannot grow into {free} free cells; raise the sparsity of the "
            f"layer or lower the fraction"
        )
