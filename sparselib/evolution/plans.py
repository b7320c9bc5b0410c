"""The next topology of one layer: laid out first, checked whole, then carried out in place."""

from typing import NamedTuple

import torch
from torch import Tensor

from sparselib._types import ParameterGroup
from sparselib.evolution import grow as grows
from sparselib.nn.sparse_layer import SparseLayer
from sparselib.ranking import contains, marked, places

Optimizer = torch.optim.Optimizer


class Plan(NamedTuple):
    """The next topology of a layer.

    Attributes
    ----------
    positions : Tensor, int64, ascending
        Where connections will be.
    values : Tensor
        Their weights.
    source : Tensor, int32 or int64
        Entry i comes from old entry ``source[i]``, or is new where that is -1.
    trusted : bool
        Whether the positions are valid by construction, so that nothing has to be looked at.
    """

    positions: Tensor
    values: Tensor
    source: Tensor
    trusted: bool = False


class Ascending(NamedTuple):
    """Numbers in ascending order, and where each stood before."""

    values: Tensor
    indices: Tensor


def unchanged(layer: SparseLayer) -> Plan:
    """Return the plan that keeps every connection."""
    values = layer.values.detach()
    count = values.numel()
    source = torch.arange(count, dtype=_index(count), device=values.device)
    return Plan(layer.positions, values.clone(), source, trusted=True)


def lay_out(
    layer: SparseLayer,
    leaving: Tensor,
    grow: grows.Grow,
    context: grows.Context,
    regrow: bool,
    count: int | None = None,
) -> Plan:
    """Lay out the topology without the connections marked `leaving` and with as many new ones.

    Parameters
    ----------
    layer : SparseLayer
        As it is now.
    leaving : Tensor of bool
        Which of its connections leave.
    grow : callable
        The grow rule.
    context : Context
        What the grow rule may know; `occupied` are all connections.
    regrow : bool
        Whether a connection that leaves may come back as a new one.
    count : int, optional
        How many new ones, if not as many.

    Raises
    ------
    ValueError
        If what the grow rule returns cannot be connections of this layer.
    """
    kept = marked(~leaving)
    if count is None:
        count = leaving.numel() - kept.numel()
    stay = context.occupied.index_select(0, kept)
    del kept  # found again in `_merged`: of a large layer little should be held at once
    if regrow:
        context = context._replace(occupied=stay)
    grown, values = grow(layer, count, context)
    ascending = check_grown(layer, grown, values, count, context)
    layer.region.check(grown)
    return _merged(layer, leaving, stay, ascending, values)


def _merged(
    layer: SparseLayer,
    leaving: Tensor,
    stay: Tensor,
    grown: Ascending,
    values: Tensor,
) -> Plan:
    """Merge the connections that stay with those that grow; both ascend."""
    place = torch.arange(values.numel(), device=values.device)
    place += places(stay, grown.values)
    is_old = leaving.new_ones(stay.numel() + values.numel())
    rest = marked(is_old.index_fill_(0, place, False))
    kept = marked(~leaving)
    old = layer.values.detach()
    weights = old.new_empty(is_old.shape)
    weights.scatter_(0, place, values[grown.indices].to(old))
    weights.scatter_(0, rest, old.index_select(0, kept))
    kind = _index(leaving.numel())
    source = torch.full_like(is_old, -1, dtype=kind)
    source.scatter_(0, rest, kept.to(kind))
    del kept, is_old
    positions = torch.empty_like(source, dtype=torch.int64)
    positions.scatter_(0, place, grown.values).scatter_(0, rest, stay)
    return Plan(positions, weights, source, trusted=True)


def _index(connections: int) -> torch.dtype:
    """Return the smallest type that counts connections."""
    return torch.int32 if connections <= 2**31 else torch.int64


def evolve(
    layer: SparseLayer, planned: Plan, optimizer: Optimizer | None = None
) -> None:
    """Carry out a plan, and let the optimizer's state follow the connections.

    Every state tensor of the shape of `values` moves with the survivors bit for bit, and begins
    anew for the others: at zero, but for the two whose optimizer begins elsewhere, Rprop's step
    size and Adagrad's sum. So does the gradient, at zero. Scalars such as Adam's step count stay.
    As many connections as before are written in place; of another number, everything is put in
    new memory, under the same ``nn.Parameter``.
    """
    values = layer.values
    followers = [] if optimizer is None else follow(values, optimizer)
    moved = [follower.moved(planned.source) for follower in followers]
    is_in_place = planned.positions.numel() == values.numel()
    is_trusted = planned.trusted and is_in_place
    rewire = layer._rewire_trusted if is_trusted else layer.rewire
    rewire(planned.positions, planned.values)
    for follower, numbers in zip(followers, moved):
        if is_in_place:
            follower.tensor.copy_(numbers)
        elif follower.key is None:
            values.grad = numbers
        elif optimizer is not None:
            optimizer.state[values][follower.key] = numbers


class Follower(NamedTuple):
    """One number per connection that moves with it.

    Attributes
    ----------
    tensor : Tensor, shape (nnz,)
        The numbers.
    start : float
        Where that of a new connection begins.
    key : str or None
        Its name in the optimizer's state; None for the gradient.
    """

    tensor: Tensor
    start: float
    key: str | None

    def moved(self, source: Tensor) -> Tensor:
        """Return the numbers in the order of a plan's `source`."""
        if not self.tensor.numel():
            return self.tensor.new_full(source.shape, self.start)
        moved = self.tensor.index_select(0, source.clamp(min=0))
        return moved.masked_fill_(source < 0, self.start)


def follow(values: Tensor, optimizer: Optimizer) -> list[Follower]:
    """Return what moves with the connections.

    Raises
    ------
    ValueError
        If the optimizer keeps a tensor for these values that has another shape.
    """
    found = []
    if values.grad is not None:
        found.append(Follower(values.grad, 0.0, None))
    memory = memory_of(values, optimizer)
    for key, tensor in optimizer.state.get(values, {}).items():
        if key in memory:
            start = _start(key, values, optimizer)
            found.append(Follower(tensor, start, key))
        elif isinstance(tensor, Tensor) and tensor.numel() > 1:
            raise ValueError(
                f"the optimizer state {key!r} of shape {tuple(tensor.shape)} cannot follow "
                f"{values.numel()} connections"
            )
    return found


def memory_of(values: Tensor, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return what an optimizer remembers of each connection."""
    return {
        key: tensor
        for key, tensor in optimizer.state.get(values, {}).items()
        if isinstance(tensor, Tensor) and tensor.shape == values.shape
    }


def group_of(values: Tensor, optimizer: Optimizer, name: str) -> ParameterGroup:
    """Return the parameter group that holds these values now.

    Raises
    ------
    ValueError
        If none does.
    """
    for group in optimizer.param_groups:
        if any(parameter is values for parameter in group["params"]):
            return group
    raise ValueError(
        f"the optimizer does not hold the values of layer {name!r}; build it from the "
        f"parameters of this model"
    )


def refuse_joint_curvature(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose memory mixes all parameters, so that none of it can follow.

    Raises
    ------
    ValueError
        If it is LBFGS, or wraps it.
    """
    kinds = {type(optimizer)} | {
        type(part) for part in vars(optimizer).values()
    }
    if torch.optim.LBFGS in kinds:
        raise ValueError(
            "LBFGS remembers directions over all parameters at once, which cannot follow single "
            "connections; take an optimizer with a state per parameter, such as AdamW or SGD"
        )


def check_grown(
    layer: SparseLayer,
    positions: Tensor,
    values: Tensor,
    count: int,
    context: grows.Context,
) -> Ascending:
    """Refuse what a grow rule returned unless it is `count` free cells and their finite weights.

    Returns
    -------
    Ascending
        The positions, int64, in ascending order, and where each stood.

    Raises
    ------
    ValueError
        With a sentence that names the fault.
    """
    shapes = tuple(positions.shape), tuple(values.shape)
    if shapes != ((count,), (count,)):
        raise ValueError(
            f"the grow rule returned {shapes[0]} positions and {shapes[1]} values where {count} "
            f"connections were dropped"
        )
    if positions.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"the grow rule returned positions of {positions.dtype}; positions are int64, because "
            f"floating-point numbers do not represent large ones exactly"
        )
    if not values.dtype.is_floating_point:
        raise ValueError(
            f"the grow rule returned values of {values.dtype}, not of a real type"
        )
    ascending = _in_order(positions.to(torch.int64))
    if count == 0:
        return ascending
    first = int(ascending.values[0])
    last = int(ascending.values[-1])
    if first < 0 or last >= layer.csr.cells:
        raise ValueError(
            f"the grow rule returned positions from {first} to {last}; the layer has the cells "
            f"0..{layer.csr.cells - 1}"
        )
    occurs_twice = (ascending.values[1:] == ascending.values[:-1]).any()
    if occurs_twice or contains(context.occupied, ascending.values).any():
        raise ValueError(
            "the grow rule returned a position twice or one that is taken"
        )
    if not torch.isfinite(values).all():
        raise ValueError("the grow rule returned weights that are not finite")
    return ascending


def _in_order(positions: Tensor) -> Ascending:
    """Sort positions, unless they ascend already, as those that are drawn do."""
    if (positions.diff() > 0).all():
        places = torch.arange(positions.numel(), device=positions.device)
        return Ascending(positions, places)
    return Ascending(*positions.sort())


def check_dropped(indices: Tensor, connections: int) -> None:
    """Refuse what a drop rule returned unless it is distinct indices of connections.

    Raises
    ------
    ValueError
        With a sentence that names the fault.
    """
    if indices.ndim != 1 or indices.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"the drop rule returned a {indices.ndim}-D tensor of {indices.dtype}; it returns "
            f"indices of connections, a 1-D tensor of int64"
        )
    if indices.numel() == 0:
        return
    first = int(indices.min())
    last = int(indices.max())
    if first < 0 or last >= connections:
        raise ValueError(
            f"the drop rule returned indices from {first} to {last}; there are the connections "
            f"0..{connections - 1}"
        )
    ordered = _in_order(indices).values
    if (ordered[1:] == ordered[:-1]).any():
        raise ValueError("the drop rule returned a connection twice")


def _start(key: str, values: Tensor, optimizer: Optimizer) -> float:
    group = group_of(values, optimizer, "")
    if key == "step_size":  # Rprop
        return float(group["lr"])
    if key == "sum":  # Adagrad
        return float(group.get("initial_accumulator_value", 0.0))
    return 0.0
