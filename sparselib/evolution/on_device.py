"""Evolution that stays on the device: the same topologies, and the processor never waits.

The rules of `sparselib.evolution.drop` and `sparselib.evolution.grow` look at how many connections
leave before they choose as many new ones, and on a GPU each such look waits for all that was
launched before. Here
every number that depends on the weights stays on the device, and every shape is known
beforehand. `GradientGrowth`, `SET` and `RigL` replace what those of `sparselib` replace; only the
gradients of the candidates may differ in the last bit, as the device adds them in another order.

Nothing can be refused without a look: where weights, inputs or costs are not finite, a layer
keeps its topology, and the number of replaced connections that `step` returns is 0.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparselib.evolution import drop, grow
from sparselib.evolution.engine import Evolution, Plan
from sparselib.nn.linear import CSRLinear
from sparselib.nn.sparse_layer import SparseLayer
from sparselib.ranking import draw, first_at_least, nth_free


def GradientGrowth(
    model: nn.Module, optimizer: torch.optim.Optimizer, fraction: float = 0.1, **options: Any
) -> Evolution:
    """Ertl's evolution (3.2.4), as `sparselib.GradientGrowth`."""
    rules = drop.adaptive_threshold, grow.gradient_of_costliest
    return Evolution(model, optimizer, *rules, fraction, whole=gradients_of_costliest, **options)


def SET(
    model: nn.Module, optimizer: torch.optim.Optimizer, fraction: float = 0.3, **options: Any
) -> Evolution:
    """Sparse evolutionary training (Mocanu et al., 2018), as `sparselib.SET`."""
    rules = drop.set_fractions, grow.random
    return Evolution(model, optimizer, *rules, fraction, whole=random, **options)


def RigL(
    model: nn.Module, optimizer: torch.optim.Optimizer, fraction: float = 0.3, **options: Any
) -> Evolution:
    """Evci et al. (2020), as `sparselib.RigL`."""
    rules = drop.magnitude, grow.full_gradient_at_zero
    return Evolution(model, optimizer, *rules, fraction, whole=full_gradient, **options)


def gradients_of_costliest(
    layer: SparseLayer,
    fraction: float,
    state: drop.State,
    context: grow.Context,
    regrow: bool,
    start: float = 0.01,
    factor: float = 1.1,
) -> Plan:
    r"""Drop below the adaptive threshold, grow the largest gradients of the costliest neurons.

    How many neurons are open depends on the weights. Any K neurons have at least
    :math:`K \cdot columns - nnz` free cells, so the gradients of
    :math:`K = \max(\sqrt{N}, (nnz + N) / columns)` neurons hold those of all that can be open,
    where N is the largest number that may leave, twice the target.
    """
    values, (rows, columns) = layer.values.detach(), layer.shape
    target, exactly = fraction * values.numel(), round(fraction * values.numel())
    most = max(int(2 * target), exactly)
    _check_room(layer, most, regrow)
    inputs, costs = grow.last_batch(context)
    threshold = state.get("threshold", start)
    if not isinstance(threshold, Tensor):
        threshold = torch.full((), threshold, dtype=torch.float64, device=values.device)
    below = values.abs() <= threshold
    found = below.sum()
    is_sound = _is_finite(values, inputs, costs)
    moved = torch.where(found < target, threshold * factor, threshold / factor)
    moved = moved.clamp(min=torch.finfo(values.dtype).tiny)
    state["threshold"] = torch.where(is_sound, moved, threshold)
    leaving = torch.where(found > 2 * target, largest(-values.abs(), exactly, exactly), below)
    leaving &= is_sound
    count, occupied = leaving.sum(), _occupied(context, leaving, regrow, rows * columns)

    k = max(round(most**0.5), -(-(values.numel() + most) // max(columns, 1)), 1)
    order = torch.sort(costs.abs().sum(0), descending=True, stable=True).indices
    taken = torch.zeros(rows + 1, dtype=torch.int64, device=values.device)
    taken.scatter_add_(0, occupied // max(columns, 1), torch.ones_like(occupied))
    room = (columns - taken[:-1][order]).cumsum(0)
    wanted = torch.searchsorted(room, count.view(1)) + 1
    wanted = wanted.maximum(count.double().sqrt().round())
    neurons, place = order[:k].sort()
    grown, gradients = _best(layer, inputs, costs, neurons, place < wanted, occupied, count, most)
    return _merged(layer, leaving, grown, -context.lr * gradients)


def full_gradient(
    layer: SparseLayer, fraction: float, state: drop.State, context: grow.Context, regrow: bool
) -> Plan:
    """Drop the smallest magnitudes, grow the largest gradients of all, at zero."""
    values, (rows, columns) = layer.values.detach(), layer.shape
    most = round(fraction * values.numel())
    _check_room(layer, most, regrow)
    inputs, costs = grow.last_batch(context)
    leaving = largest(-values.abs(), most, most) & _is_finite(values, inputs, costs)
    occupied = _occupied(context, leaving, regrow, rows * columns)
    neurons = torch.arange(rows, device=values.device)
    is_open = torch.ones_like(neurons, dtype=torch.bool)
    grown, _ = _best(layer, inputs, costs, neurons, is_open, occupied, leaving.sum(), most)
    return _merged(layer, leaving, grown, torch.zeros_like(values[:most]))


def random(
    layer: SparseLayer, fraction: float, state: drop.State, context: grow.Context, regrow: bool
) -> Plan:
    """Drop from either side of zero, grow anywhere, at zero."""
    values, cells = layer.values.detach(), layer.shape[0] * layer.shape[1]
    most, is_negative = round(fraction * values.numel()), values < 0
    _check_room(layer, most, regrow)
    below = (fraction * is_negative.sum().double()).round().long()
    above = torch.minimum(most - below, (~is_negative).sum())
    least, never = -values.abs(), torch.full_like(values, -torch.inf)
    leaving = largest(torch.where(is_negative, least, never), most - above, most)
    leaving |= largest(torch.where(is_negative, never, least), above, most)
    leaving &= _is_finite(values)
    occupied = _occupied(context, leaving, regrow, cells)
    # without the sentinels at its end: as many as stay, if as many leave as should
    taken = occupied.sort().values[: values.numel() - (most if regrow else 0)]
    rank = draw(cells - taken.numel(), most, context.generator)
    rank = rank.pin_memory() if values.is_cuda else rank
    rank = rank.to(values.device, non_blocking=True)
    positions = torch.where(leaving.any(), nth_free(rank, taken), cells)
    return _merged(layer, leaving, positions, torch.zeros_like(values[:most]))


def largest(
    scores: Float[Tensor, "n"], count: Int[Tensor, ""] | int, most: int
) -> Bool[Tensor, "n"]:
    """Mark the `count` largest scores, at most `most` of them; ties go to the lowest index."""
    if most == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if isinstance(count, int):
        count = torch.full((), count, device=scores.device)
    best = torch.topk(scores, most).values
    threshold = best.gather(0, (count - 1).clamp(min=0).view(1))
    return first_at_least(scores, threshold, count)


def indices(marks: Bool[Tensor, "n"], most: int) -> Int[Tensor, "most"]:
    """Indices of what is marked, ascending, and n from there on: `nonzero` of a fixed length."""
    numbers = torch.arange(marks.numel(), device=marks.device)
    places = torch.where(marks, marks.cumsum(0) - 1, most)
    return (
        torch.full_like(places[:1], marks.numel())
        .repeat(most + 1)
        .scatter_(0, places, numbers)[:most]
    )


def _best(
    layer: SparseLayer,
    inputs: Tensor,
    costs: Tensor,
    neurons: Tensor,
    is_open: Tensor,
    occupied: Tensor,
    count: Tensor,
    most: int,
) -> tuple[Tensor, Tensor]:
    """Free cells with the largest gradients, ascending, then the number of all cells."""
    rows, columns = costs.shape[1], inputs.shape[1]
    step = max(1, grow.BLOCK_CELLS // max(columns, 1))
    every = torch.arange(columns, device=inputs.device)
    kept = [occupied.new_empty(0), inputs.new_empty(0), inputs.new_empty(0)]
    for block, opened in zip(neurons.split(step), is_open.split(step)):
        gradients = layer.gradient(inputs, costs[:, block]).flatten()
        place = every.new_full((rows + 1,), len(block))
        place.scatter_(0, block, torch.arange(len(block), device=block.device))
        closed = torch.cat([opened.logical_not(), opened.new_ones(1)])
        taken = closed.repeat_interleave(columns)
        taken.scatter_(0, place[occupied // columns] * columns + occupied % columns, True)
        scores = torch.where(taken[: gradients.numel()], -1.0, gradients.abs())
        cells = (block[:, None] * columns + every).flatten()
        kept = [torch.cat(pair) for pair in zip(kept, (cells, gradients, scores))]
        if len(neurons) > step:
            few = min(most, kept[2].numel())
            chosen = indices(largest(kept[2], few, few), few)
            kept = [tensor[chosen] for tensor in kept]
    positions, values, scores = kept
    chosen = indices(largest(scores, count, min(most, scores.numel())), most)
    positions = torch.cat([positions, positions.new_full((1,), rows * columns)])
    return positions[chosen], torch.cat([values, values.new_zeros(1)])[chosen]


def _merged(layer: SparseLayer, leaving: Tensor, positions: Tensor, values: Tensor) -> Plan:
    old, cells = layer.values.detach(), layer.shape[0] * layer.shape[1]
    staying = torch.where(leaving, cells, layer.positions)
    ascending, order = torch.sort(torch.cat([staying, positions]), stable=True)
    order = order[: old.numel()]
    source = torch.where(order < old.numel(), order, -1)
    values = torch.cat([old, values.to(old.dtype)])[order]
    return Plan(ascending[: old.numel()], values, source, trusted=True)


def _occupied(context: grow.Context, leaving: Tensor, regrow: bool, cells: int) -> Tensor:
    return torch.where(leaving, cells, context.occupied) if regrow else context.occupied


def _is_finite(*tensors: Tensor) -> Tensor:
    return torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all()


def _check_room(layer: SparseLayer, most: int, regrow: bool) -> None:
    if not isinstance(layer, CSRLinear):
        raise ValueError(
            f"{type(layer).__name__} has a region, which evolution on the device cannot keep to; "
            f"use the rules of sparselib itself"
        )
    free = layer.shape[0] * layer.shape[1] - layer.values.numel()
    if not regrow and most > free:
        raise ValueError(
            f"{most} connections may leave and cannot grow into {free} free cells; raise the "
            f"sparsity of the layer or lower the fraction"
        )
