"""Evolving topologies: an evolution is to the topology what a scheduler is to the learning rate."""

import hashlib
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparselib.evolution import grow as grows
from sparselib.nn.linear import CSRLinear
from sparselib.nn.sparse_layer import SparseLayer, sparse_layers

Drop = Callable[[Tensor, float, dict[str, Any]], Tensor]
Grow = Callable[[SparseLayer, int, grows.Context], grows.Grown]


class Plan(NamedTuple):
    """The next topology of a layer.

    Entry i comes from old entry ``source[i]``, or is new where that is -1. If `trusted`, no check.
    """

    positions: Tensor
    values: Tensor
    source: Tensor
    trusted: bool = False


Whole = Callable[[SparseLayer, float, dict[str, Any], grows.Context, bool], Plan]


def plan(layer: SparseLayer, leaving: Tensor, grow: Grow, context: grows.Context) -> Plan:
    """Lay out the topology without the connections marked `leaving` and with as many new ones."""
    old, count = layer.values.detach(), int(leaving.sum())
    kept = (~leaving).nonzero().flatten()
    positions, values = grow(layer, count, context)
    _check_grown(positions, values, count, context.occupied)
    order = torch.sort(torch.cat([layer.positions[kept], positions]))
    source = torch.cat([kept, torch.full_like(positions, -1)])[order.indices]
    return Plan(order.values, torch.cat([old[kept], values])[order.indices], source)


def evolve(
    layer: SparseLayer, planned: Plan, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Carry out a plan, in place, and let the optimizer's state follow the connections.

    Every state tensor of the shape of `values` moves with the survivors bit for bit and is zero
    for the new; so is the gradient. Scalars such as Adam's step count stay.
    """
    tensors = [] if optimizer is None else _state_tensors(layer.values, optimizer)
    rewire = layer._rewire_trusted if planned.trusted else layer.rewire
    rewire(planned.positions, planned.values)
    new = planned.source < 0
    for tensor in tensors:
        tensor.copy_(tensor[planned.source].masked_fill(new, 0))


class Evolution:
    """Replaces connections of every sparse layer of a model; their number is invariant.

    Used like a scheduler: build it from model and optimizer, then call `step` whenever the
    topology shall change, ordinarily after an epoch. Growth looks at the last batch that ran
    forward and backward in training mode. If the step of any layer is impossible, an error is
    raised before any layer has changed.

    Parameters
    ----------
    model : nn.Module
        Has at least one sparse layer. A layer that lacks no connection, or whose values need no
        gradient, is left as it is.
    optimizer : torch.optim.Optimizer
        Must hold the layers' `values`.
    drop : callable
        ``(values, fraction, state) -> indices``, see `sparselib.evolution.drop`.
    grow : callable
        ``(layer, count, context) -> (positions, values)``, see `sparselib.evolution.grow`.
    fraction : float
        Share of the connections to replace in each step, in [0, 1].
    seed : int
        Each layer and step draws from its own generator, made of seed, layer name and step.
    regrow : bool
        Whether a connection that leaves may come back in the same step, as a new one.
    repair : bool
        Release the "lost weights" of Ertl's Figure 11: connections into a neuron without a
        connection onward leave too, and none grow into it. Onward means the next sparse layer,
        if it reads as many features as this one writes.
    whole : callable, optional
        ``(layer, fraction, state, context, regrow) -> Plan`` in place of both, see `resident`.
    after : callable, optional
        Called without arguments at the end of every step.

    Raises
    ------
    ValueError
        If the model has no sparse layer, the optimizer lacks one, or `fraction` is impossible.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        drop: Drop,
        grow: Grow,
        fraction: float = 0.3,
        *,
        seed: int = 0,
        regrow: bool = True,
        repair: bool = False,
        whole: Whole | None = None,
        after: Callable[[], Any] | None = None,
    ) -> None:
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must lie in [0, 1], not {fraction}")
        if repair and whole is not None:
            raise ValueError("repair=True needs drop and grow one after the other, not whole=")
        self.layers = {
            name: layer
            for name, layer in sparse_layers(model).items()
            if layer.values.requires_grad and layer.values.numel() < layer.cells
        }
        if not self.layers:
            raise ValueError(
                f"{type(model).__name__} has no sparse layer, such as CSRLinear, that is "
                f"trained and has room to grow"
            )
        self.optimizer, self.drop, self.grow, self.fraction = optimizer, drop, grow, fraction
        self.seed, self.regrow, self.repair, self.whole = seed, regrow, repair, whole
        self.after = after
        self.steps = 0
        self.state: dict[str, dict[str, Any]] = {name: {} for name in self.layers}
        self._watches: dict[str, _Watch] = {}
        for name, layer in self.layers.items():
            _lr(layer.values, optimizer, name)
            self._watches[name] = _Watch(as_it_was=not isinstance(layer, CSRLinear))
            handle = layer.register_forward_hook(self._watches[name])
            weakref.finalize(self, handle.remove)

    @torch.no_grad()
    def step(self) -> dict[str, Any]:
        """Evolve every layer once; return how many connections each replaced."""
        plans: dict[str, Plan] = {}
        states = {name: dict(state) for name, state in self.state.items()}
        onward: dict[str, Plan] = {}
        for name in reversed(self.layers):
            rows = self._open_rows(name, onward)
            plans[name] = onward[name] = self._plan(name, states[name], rows)
        for layer in self.layers.values():
            _state_tensors(layer.values, self.optimizer)
        for name, planned in plans.items():
            evolve(self.layers[name], planned, self.optimizer)
            if not self._watches[name].in_graph:
                self._watches[name].batch = None
        self.state, self.steps = states, self.steps + 1
        if self.after is not None:
            self.after()
        counts = {name: (plans[name].source < 0).sum() for name in self.layers}
        return counts if self.whole else {name: int(n) for name, n in counts.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on besides model and optimizer."""
        return {"steps": self.steps, "state": {name: dict(s) for name, s in self.state.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        if state_dict["state"].keys() != self.layers.keys():
            raise ValueError(
                f"the state belongs to the layers {sorted(state_dict['state'])}, this evolution "
                f"to {sorted(self.layers)}"
            )
        self.steps = state_dict["steps"]
        self.state = {name: dict(state) for name, state in state_dict["state"].items()}

    def _plan(self, name: str, state: dict[str, Any], rows: Tensor) -> Plan:
        layer = self.layers[name]
        values, positions = layer.values.detach(), layer.positions
        inputs, costs = self._watches[name].batch or (None, None)
        context = grows.Context(
            occupied=positions,
            rows=rows,
            inputs=inputs,
            costs=costs,
            lr=_lr(layer.values, self.optimizer, name),
            generator=_generator(self.seed, name, self.steps),
        )
        if self.whole is not None:
            return self.whole(layer, self.fraction, state, context, self.regrow)
        broken = int((~torch.isfinite(values)).sum())
        if broken:
            raise ValueError(
                f"layer {name!r}: {broken} of {values.numel()} weights are not finite; the "
                f"topology was kept"
            )
        leaving = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
        leaving[self.drop(values, self.fraction, state)] = True
        leaving |= ~torch.isin(positions // layer.shape[1], rows)
        if self.regrow:
            context = context._replace(occupied=positions[~leaving])
        try:
            return plan(layer, leaving, self.grow, context)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error

    def _open_rows(self, name: str, planned: dict[str, Plan]) -> Tensor:
        layer, names = self.layers[name], list(self.layers)
        rows = torch.arange(layer.shape[0], device=layer.values.device)
        following = names[names.index(name) + 1 :][:1]
        if not (self.repair and following):
            return rows
        columns = self.layers[following[0]].shape[1]
        if columns != layer.shape[0]:
            return rows
        fan_out = torch.bincount(planned[following[0]].positions % columns, minlength=columns)
        return rows[fan_out > 0]


class _Watch:
    """A forward hook that keeps the last batch to pass forward and backward through a layer.

    Where layers are fused it is not called, but given the batch to `keep`. A layer with a gradient
    of its own, such as a convolution, gets the batch as it was, and one signal as a batch of one;
    others get rows of features.
    """

    def __init__(self, as_it_was: bool = False) -> None:
        self.as_it_was = as_it_was
        self.batch: tuple[Tensor, Tensor] | None = None
        self.in_graph = False

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if layer.training and output.requires_grad:
            output.register_hook(partial(self.keep, args[0].detach()))

    def keep(self, inputs: Tensor, costs: Tensor) -> None:
        costs = costs.detach()
        if not self.as_it_was:
            inputs = inputs.reshape(-1, inputs.shape[-1])
            costs = costs.reshape(-1, costs.shape[-1])
        elif inputs.ndim == 2:
            inputs, costs = inputs[None], costs[None]
        self.batch = inputs, costs
        self.in_graph = costs.is_cuda and torch.cuda.is_current_stream_capturing()

    def __getstate__(self) -> dict[str, Any]:
        return {"as_it_was": self.as_it_was, "batch": None, "in_graph": False}


def _lr(values: Tensor, optimizer: torch.optim.Optimizer, name: str) -> float:
    for group in optimizer.param_groups:
        if any(parameter is values for parameter in group["params"]):
            return float(group["lr"])
    raise ValueError(
        f"the optimizer does not hold the values of layer {name!r}; build it from the "
        f"parameters of this model"
    )


def _state_tensors(values: Tensor, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    tensors = [] if values.grad is None else [values.grad]
    for key, tensor in optimizer.state.get(values, {}).items():
        if isinstance(tensor, Tensor) and tensor.shape == values.shape:
            tensors.append(tensor)
        elif isinstance(tensor, Tensor) and tensor.numel() > 1:
            raise ValueError(
                f"the optimizer state {key!r} of shape {tuple(tensor.shape)} cannot follow "
                f"{values.numel()} connections"
            )
    return tensors


def _generator(seed: int, name: str, step: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{name}/{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _check_grown(positions: Tensor, values: Tensor, count: int, occupied: Tensor) -> None:
    if positions.shape != (count,) or values.shape != (count,):
        raise ValueError(
            f"the grow rule returned {tuple(positions.shape)} positions and "
            f"{tuple(values.shape)} values where {count} connections were dropped"
        )
    if positions.unique().numel() != count or torch.isin(positions, occupied).any():
        raise ValueError("the grow rule returned a position twice or one that is taken")
    if not torch.isfinite(values).all():
        raise ValueError("the grow rule returned weights that are not finite")
