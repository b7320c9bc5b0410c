"""Evolution that stays on the device: the same topologies, and the processor never waits.

The rules of `sparselib.evolution.drop` and `sparselib.evolution.grow` look at how many connections
leave before they choose as many new ones, and on a GPU each such look waits for all that was
launched before. With ``Evolution(..., device_resident=True)`` every number that depends on the
weights stays on the device, and every shape is known beforehand. The same connections are
replaced; only the gradients of the candidates may differ in the last bit, as the device adds them
in another order. `GradientGrowth`, `SET` and `RigL` are those of `sparselib` with that option.

Nothing can be refused without a look: where weights, inputs or costs are not finite, a layer
keeps its topology, and the number of replaced connections that `step` returns is 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselib._types import Function
from sparselib.evolution import drop as drops
from sparselib.evolution import grow as grows
from sparselib.evolution.plans import Plan
from sparselib.evolution.strategies import Strategy, rule_name
from sparselib.nn.sparse_layer import SparseLayer
from sparselib.ranking import draw, first_at_least, nth_free

# gradient entries at once: a device is slow at many small blocks
BLOCK_CELLS = 2**24


class Leaving(NamedTuple):
    """What a drop rule decides, without a look at it.

    Attributes
    ----------
    marks : Tensor, bool, shape (nnz,)
        Which connections leave.
    most : int
        No more than these can leave, whatever the weights.
    threshold : Tensor or None
        What the layer remembers for its next step.
    """

    marks: Tensor
    most: int
    threshold: Tensor | None = None


@dataclass(frozen=True)
class Growth:
    """What a grow rule is given.

    Attributes
    ----------
    layer : SparseLayer
        As it is now.
    context : Context
        What a grow rule may know.
    leaving : Tensor, bool, shape (nnz,)
        Which connections leave.
    occupied : Tensor, int64, shape (nnz,)
        Where nothing may grow; the number of all cells in place of a cell that became free.
    most : int
        The largest number that can leave.
    regrow : bool
        Whether what leaves may come back.
    """

    layer: SparseLayer
    context: grows.Context
    leaving: Tensor
    occupied: Tensor
    most: int
    regrow: bool

    @property
    def count(self) -> Int[Tensor, ""]:
        """How many connections leave."""
        return self.leaving.sum()


Dropping = Callable[..., Leaving]
Growing = Callable[[Growth], tuple[Tensor, Tensor]]


@final
class OnDevice(Strategy):
    """A drop rule and a grow rule in the forms that wait for nothing.

    Raises
    ------
    ValueError
        If a rule has no such form; the sentence names it.
    """

    is_device_resident = True

    def __init__(self, drop: drops.Drop, grow: grows.Grow) -> None:
        self._drop = _form(drop, DROPPING, "drop")
        self._grow = _form(grow, GROWING, "grow")
        self.needs_gradient = grows.needs_gradient(grow)
        self.rules = {"drop": rule_name(drop), "grow": rule_name(grow)}
        if (
            _plain(drop) is drops.adaptive_threshold
            and _plain(grow) is grows.random
        ):
            raise ValueError(
                "the grow rule random has no device-resident form after the drop rule "
                "adaptive_threshold: how many it has to draw is known on the device alone"
            )

    def plan(
        self,
        layer: SparseLayer,
        fraction: float,
        state: drops.State,
        context: grows.Context,
        regrow: bool,
    ) -> Plan:
        """Drop, then grow, with sizes that do not depend on the weights."""
        values = layer.values.detach()
        _check_region(layer)
        if self.needs_gradient:
            grows.batches(context)
        dropped = self._drop(values, fraction, state)
        _check_room(layer, dropped.most, regrow)
        is_sound = self._is_sound(values, context)
        leaving = dropped.marks & is_sound
        if dropped.threshold is not None:
            before = torch.as_tensor(state.get("threshold", dropped.threshold))
            state["threshold"] = torch.where(
                is_sound, dropped.threshold, before
            )
        occupied = context.occupied
        if regrow:
            occupied = torch.where(leaving, layer.csr.cells, occupied)
        growth = Growth(layer, context, leaving, occupied, dropped.most, regrow)
        positions, grown = self._grow(growth)
        return _merged(layer, leaving, positions, grown)

    def _is_sound(self, values: Tensor, context: grows.Context) -> Tensor:
        """Whether all numbers are finite in every process."""
        tensors = [values]
        if self.needs_gradient:
            tensors += [
                tensor for batch in grows.batches(context) for tensor in batch
            ]
        is_finite = torch.stack(
            [torch.isfinite(tensor).all() for tensor in tensors]
        ).all()
        return context.average(is_finite.to(values.dtype)) >= 1


def drop_smallest(
    values: Tensor, fraction: float, state: drops.State
) -> Leaving:
    """Drop the smallest magnitudes."""
    most = round(fraction * values.numel())
    return Leaving(largest(-values.abs(), most, most), most)


def drop_from_both_sides(
    values: Tensor, fraction: float, state: drops.State
) -> Leaving:
    """Drop from either side of zero, what is nearest to it."""
    most = round(fraction * values.numel())
    is_negative = values < 0
    below = (fraction * is_negative.sum().double()).round().long()
    above = torch.minimum(most - below, (~is_negative).sum())
    nearness = -values.abs()
    never = torch.full_like(values, -torch.inf)
    marks = largest(
        torch.where(is_negative, nearness, never), most - above, most
    )
    marks |= largest(torch.where(is_negative, never, nearness), above, most)
    return Leaving(marks, most)


def drop_below_threshold(
    values: Tensor,
    fraction: float,
    state: drops.State,
    start: float = 0.01,
    factor: float = 1.1,
) -> Leaving:
    """Drop below the adaptive threshold, at most twice the target."""
    target = fraction * values.numel()
    exactly = round(target)
    threshold = state.get("threshold", start)
    if not isinstance(threshold, Tensor):
        threshold = torch.full(
            (), threshold, dtype=torch.float64, device=values.device
        )
        state["threshold"] = threshold
    below = values.abs() <= threshold
    found = below.sum()
    moved = torch.where(found < target, threshold * factor, threshold / factor)
    moved = moved.clamp(min=torch.finfo(values.dtype).tiny)
    marks = torch.where(
        found > 2 * target, largest(-values.abs(), exactly, exactly), below
    )
    return Leaving(marks, max(int(2 * target), exactly), moved)


def grow_costliest(
    growth: Growth, neurons: int | None = None
) -> tuple[Tensor, Tensor]:
    r"""Grow the largest gradients of the costliest neurons.

    How many neurons are open depends on the weights. Any K neurons have at least
    :math:`K \cdot columns - nnz` free cells, so the gradients of
    :math:`K = \max(\sqrt{N}, (nnz + N) / columns)` neurons hold those of all that can be open,
    where N is the largest number that may leave.
    """
    layer = growth.layer
    context = growth.context
    count = growth.count
    most = growth.most
    rows, columns = layer.shape
    nnz = layer.values.numel()
    least = round(most**0.5) if neurons is None else neurons
    k = max(least, -(-(nnz + most) // max(columns, 1)), 1)
    costs = grows.neuron_costs(context)
    order = torch.sort(costs, descending=True, stable=True).indices
    taken = torch.zeros(rows + 1, dtype=torch.int64, device=order.device)
    taken.scatter_add_(
        0, growth.occupied // max(columns, 1), torch.ones_like(growth.occupied)
    )
    room = (columns - taken[:-1][order]).cumsum(0)
    wanted = (torch.searchsorted(room, count.view(1)) + 1).double()
    if neurons is None:
        wanted = wanted.maximum(count.double().sqrt().round())
    else:
        wanted = wanted.clamp(min=neurons)
    chosen, place = order[:k].sort()
    positions, gradients = _best(growth, chosen, place < wanted)
    return positions, -context.lr * gradients


def grow_all(growth: Growth) -> tuple[Tensor, Tensor]:
    """Grow the largest gradients of all, one step against them."""
    neurons = torch.arange(growth.layer.shape[0], device=growth.leaving.device)
    positions, gradients = _best(
        growth, neurons, torch.ones_like(neurons, dtype=torch.bool)
    )
    return positions, -growth.context.lr * gradients


def grow_all_at_zero(growth: Growth) -> tuple[Tensor, Tensor]:
    """Grow the largest gradients of all, at zero."""
    positions, values = grow_all(growth)
    return positions, torch.zeros_like(values)


def grow_anywhere(growth: Growth) -> tuple[Tensor, Tensor]:
    """Grow anywhere, at zero; as many leave as should, or none."""
    values = growth.layer.values.detach()
    cells = growth.layer.csr.cells
    most = growth.most
    # without the sentinels at its end: as many as stay, if as many leave as should
    staying = values.numel() - (most if growth.regrow else 0)
    taken = growth.occupied.sort().values[:staying]
    rank = draw(cells - taken.numel(), most, growth.context.generator)
    rank = rank.pin_memory() if values.is_cuda else rank
    rank = rank.to(values.device, non_blocking=True)
    positions = torch.where(growth.leaving.any(), nth_free(rank, taken), cells)
    return positions, torch.zeros_like(values[:most])


DROPPING: dict[Function, Dropping] = {
    drops.magnitude: drop_smallest,
    drops.set_fractions: drop_from_both_sides,
    drops.adaptive_threshold: drop_below_threshold,
}
GROWING: dict[Function, Growing] = {
    grows.random: grow_anywhere,
    grows.gradient_of_costliest: grow_costliest,
    grows.full_gradient: grow_all,
    grows.full_gradient_at_zero: grow_all_at_zero,
}


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
    growth: Growth, neurons: Tensor, is_open: Tensor
) -> tuple[Tensor, Tensor]:
    """Free cells with the largest gradients, ascending, then the number of all cells."""
    layer = growth.layer
    occupied = growth.occupied
    most = growth.most
    rows, columns = layer.shape
    step = max(1, BLOCK_CELLS // max(columns, 1))
    every = torch.arange(columns, device=neurons.device)
    none = layer.values.detach()[:0]
    kept = [occupied.new_empty(0), none, none]
    for block, opened in zip(neurons.split(step), is_open.split(step)):
        gradients = grows.gradient(layer, growth.context, block).flatten()
        place = every.new_full((rows + 1,), len(block))
        place.scatter_(0, block, torch.arange(len(block), device=block.device))
        closed = torch.cat([opened.logical_not(), opened.new_ones(1)])
        taken = closed.repeat_interleave(columns)
        taken.scatter_(
            0, place[occupied // columns] * columns + occupied % columns, True
        )
        scores = torch.where(taken[: gradients.numel()], -1.0, gradients.abs())
        cells = (block[:, None] * columns + every).flatten()
        kept = [
            torch.cat(pair) for pair in zip(kept, (cells, gradients, scores))
        ]
        if len(neurons) > step:
            few = min(most, kept[2].numel())
            chosen = indices(largest(kept[2], few, few), few)
            kept = [tensor[chosen] for tensor in kept]
    positions, values, scores = kept
    chosen = indices(
        largest(scores, growth.count, min(most, scores.numel())), most
    )
    positions = torch.cat([positions, positions.new_full((1,), rows * columns)])
    return positions[chosen], torch.cat([values, values.new_zeros(1)])[chosen]


def _merged(
    layer: SparseLayer, leaving: Tensor, positions: Tensor, values: Tensor
) -> Plan:
    old = layer.values.detach()
    cells = layer.shape[0] * layer.shape[1]
    staying = torch.where(leaving, cells, layer.positions)
    ascending, order = torch.sort(torch.cat([staying, positions]), stable=True)
    order = order[: old.numel()]
    source = torch.where(order < old.numel(), order, -1)
    values = torch.cat([old, values.to(old.dtype)])[order]
    return Plan(ascending[: old.numel()], values, source, trusted=True)


def _plain(rule: Function) -> Function:
    """Return the rule that a ``functools.partial`` completes."""
    return _plain(rule.func) if isinstance(rule, partial) else rule


def _form(
    rule: Function, forms: Mapping[Function, Function], kind: str
) -> Function:
    form = forms.get(_plain(rule))
    if form is None or (isinstance(rule, partial) and rule.args):
        known = ", ".join(rule_name(one) for one in forms)
        raise ValueError(
            f"the {kind} rule {rule_name(rule)} has no device-resident form; those with one are "
            f"{known}"
        )
    return partial(form, **rule.keywords) if isinstance(rule, partial) else form


def _check_region(layer: SparseLayer) -> None:
    if layer.cells < layer.csr.cells or layer.sample_dimensions > 1:
        raise ValueError(
            f"{type(layer).__name__} has a region, which evolution on the device cannot keep to; "
            f"use the rules of sparselib itself"
        )


def _check_room(layer: SparseLayer, most: int, regrow: bool) -> None:
    free = layer.csr.cells - layer.values.numel()
    if not regrow and most > free:
        raise ValueError(
            f"{most} connections may leave and cannot grow into {free} free cells; raise the "
            f"sparsity of the layer or lower the fraction"
        )
