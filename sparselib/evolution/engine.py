"""Evolving topologies: an evolution is to the topology what a scheduler is to the learning rate."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparselib._types import Hook, SavedState, StateDict
from sparselib.evolution import _gathering as gathering
from sparselib.evolution import drop as drops
from sparselib.evolution import grow as grows
from sparselib.evolution._ranks import Group, Ranks
from sparselib.evolution.on_device import OnDevice
from sparselib.evolution.plans import (
    Optimizer,
    Plan,
    evolve,
    follow,
    group_of,
    memory_of,
    refuse_joint_curvature,
    unchanged,
)
from sparselib.evolution.strategies import DropThenGrow, Strategy
from sparselib.nn._watch import Watch
from sparselib.nn.sparse_layer import SparseLayer, sparse_layers

# the parts of a saved state that must be those of the evolution that loads it
IDENTITY = ("rules", "fraction", "seed")


if TYPE_CHECKING:
    Counts = Mapping[str, int]
else:
    Counts = Mapping  # a checker at runtime would read an item, and so wait for the device


class Replaced(Counts):
    """How many connections each layer replaced in a step.

    A mapping from names of layers to numbers. Where the evolution stays on the device, the number
    does too until it is read.
    """

    def __init__(self, counts: dict[str, Tensor]) -> None:
        self._counts = counts

    def __getitem__(self, name: str) -> int:
        return int(self._counts[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        return repr(dict(self))


class Evolution:
    """Replaces connections of every sparse layer of a model, as many as leave.

    Used like a scheduler: build it from model and optimizer, then call `step` whenever the
    topology shall change, ordinarily after an epoch. If the step of any layer is impossible, an
    error is raised before any layer has changed.

    Growth sees the gradient that the optimizer uses: summed over all uses of a layer and all
    backward passes since the last `zero_grad`, averaged over the processes that train together,
    in the scale that unscaling, clipping or averaging has left in `values.grad`. For that, inputs
    and output gradients are kept by reference until the gradient is cleared; rules that need none
    keep nothing. Where not every step is followed by an evolution, ``is_watching = False`` in
    the others saves the memory.

    What is trained, its learning rate and its optimizer state are read in `step`, so parameters
    may be frozen and groups added at any time. Layers that share their values evolve once.

    Parameters
    ----------
    model : nn.Module
        Has at least one sparse layer. A layer that lacks no connection, or whose values need no
        gradient, is left as it is.
    optimizer : torch.optim.Optimizer
        Must hold the `values` of the layers that are trained.
    drop : callable
        ``(values, fraction, state) -> indices``, or with what a grow rule knows, see
        `sparselib.evolution.drop`.
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
        if it reads as many features as this one writes. With growth at random take
        `sparselib.evolution.grow.random_from_fed`: others read what the release has emptied.
    device_resident : bool
        Run the same rules without a value that the processor waits for, see
        `sparselib.evolution.on_device`.
    strategy : Strategy, optional
        In place of `drop` and `grow`, what is no drop rule followed by a grow rule.
    process_group : ProcessGroup, "alone" or None
        The processes that train this model together, which evolve alike: they average the
        gradient, and the topology of the first is everybody's. None is all processes, if
        ``torch.distributed`` is initialized; ``"alone"`` is none but this one.
    after : callable, optional
        Called without arguments at the end of every step.

    Attributes
    ----------
    steps : int
        Number of steps so far.
    state : dict of str to dict
        What the rules remember of each layer.

    Raises
    ------
    ValueError
        If the model has no sparse layer that is trained, the optimizer lacks one or cannot let its
        state follow, `fraction` is impossible, or the rules do not go together.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        drop: drops.Drop | None = None,
        grow: grows.Grow | None = None,
        fraction: float = 0.3,
        *,
        seed: int = 0,
        regrow: bool = True,
        repair: bool = False,
        device_resident: bool = False,
        strategy: Strategy | None = None,
        process_group: Group = None,
        after: Hook | None = None,
    ) -> None:
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must lie in [0, 1], not {fraction}")
        self.strategy = _strategy(drop, grow, device_resident, strategy)
        if repair and not self.strategy.can_repair:
            raise ValueError(
                f"repair=True needs a drop rule that is followed by a grow rule on the processor; "
                f"{type(self.strategy).__name__} cannot keep to the rows that repair leaves open"
            )
        refuse_joint_curvature(optimizer)
        self.model = model
        self.optimizer = optimizer
        self.fraction = fraction
        self.seed = seed
        self.regrow = regrow
        self.repair = repair
        self.process_group = process_group
        self.after = after
        self.steps = 0
        self._first_fraction = fraction
        self._sparse = sparse_layers(unwrapped(model))
        if not self.layers:
            raise ValueError(
                f"{type(model).__name__} has no sparse layer, such as CSRLinear, that is "
                f"trained and has room to grow"
            )
        for name, layer in self.layers.items():
            group_of(layer.values, optimizer, name)
        self.state: dict[str, drops.State] = {name: {} for name in self._sparse}
        self._watches: dict[str, Watch] = {}
        if self.strategy.needs_gradient:
            self._watches = {
                name: Watch(layer) for name, layer in self._sparse.items()
            }

    @property
    def layers(self) -> dict[str, SparseLayer]:
        """The layers that evolve, by name: trained now, with room, and one of those that are tied.

        Raises
        ------
        ValueError
            If layers share values but not their connections, or values are sharded.
        """
        found: dict[str, SparseLayer] = {}
        for name, layer in self._sparse.items():
            _check_whole(name, layer)
            heads = [
                head for head in found if found[head].values is layer.values
            ]
            for head in heads:
                _check_tied(head, found[head], name, layer)
            has_room = (
                not self.strategy.needs_room
                or layer.values.numel() < layer.cells
            )
            if layer.values.requires_grad and has_room and not heads:
                found[name] = layer
        return found

    @property
    def is_watching(self) -> bool:
        """Whether batches are kept for a growth by gradient; set it to False where none follows."""
        return any(watch.is_open for watch in self._watches.values())

    @is_watching.setter
    def is_watching(self, value: bool) -> None:
        for watch in self._watches.values():
            watch.is_open = value
            if not value:
                watch.forget()

    @torch.no_grad()
    def step(self) -> Replaced:
        """Evolve every layer once; return how many connections each replaced."""
        layers = self.layers
        ranks = Ranks(self.process_group)
        self._check(layers, ranks)
        states = {name: dict(state) for name, state in self.state.items()}
        plans: dict[str, Plan] = {}
        contexts = self._contexts(layers, ranks)
        for name in reversed(layers):
            layer = layers[name]
            if contexts is None:
                plans[name] = unchanged(layer)
                continue
            context = contexts.pop(name)._replace(
                rows=self._open_rows(name, plans), fed=self._fed(name)
            )
            plans[name] = self._plan(name, layer, states[name], context, ranks)
        counts: dict[str, Tensor] = {}
        for name in list(plans):
            planned = plans.pop(name)  # large layers leave memory to the next
            evolve(layers[name], planned, self.optimizer)
            self._rewire_twins(layers[name], planned)
            counts[name] = (planned.source < 0).count_nonzero()
        for watch in self._watches.values():
            watch.forget()
        self.state = states
        self.steps += 1
        if self.after is not None:
            self.after()
        return Replaced({name: counts[name] for name in layers})

    def state_dict(self) -> StateDict:
        """Return what the next step depends on besides model and optimizer."""
        return {
            "steps": self.steps,
            "state": {name: dict(state) for name, state in self.state.items()},
            "rules": dict(self.strategy.rules),
            "fraction": self._first_fraction,
            "fraction_now": self.fraction,
            "seed": self.seed,
            "gathered": {
                name: watch.state() for name, watch in self._watches.items()
            },
        }

    def check_state_dict(self, state_dict: SavedState) -> None:
        """Refuse a state that is not one of an evolution like this; nothing is changed.

        Raises
        ------
        ValueError
            With a sentence that names what the state has and what this evolution has.
        """
        if (
            not isinstance(state_dict.get("steps"), int)
            or state_dict["steps"] < 0
        ):
            raise ValueError(
                f"the state of an evolution has a number of steps, not {state_dict.get('steps')!r}"
            )
        state = state_dict.get("state")
        if not isinstance(state, Mapping) or not all(
            isinstance(s, Mapping) for s in state.values()
        ):
            raise ValueError(
                "the state of an evolution has a dictionary for each layer"
            )
        is_old = not set(IDENTITY) & state_dict.keys()
        names = set(self._sparse)
        if not (set(state) <= names if is_old else set(state) == names):
            raise ValueError(
                f"the state belongs to the layers {sorted(state)}, this evolution to "
                f"{sorted(names)}"
            )
        if is_old:
            warnings.warn(
                "this state of an evolution does not name its rules, fraction and seed; "
                "it is taken for one of this evolution's",
                stacklevel=3,
            )
            return
        own = self.state_dict()
        for key in IDENTITY:
            if state_dict.get(key) != own[key]:
                raise ValueError(
                    f"the state belongs to an evolution with {key} {state_dict.get(key)!r}, this "
                    f"one has {own[key]!r}; build it as the other was built"
                )
        now = state_dict.get("fraction_now", own["fraction"])
        if not isinstance(now, float | int) or not 0 <= now <= 1:
            raise ValueError(f"fraction must lie in [0, 1], not {now!r}")

    def load_state_dict(self, state_dict: SavedState) -> None:
        """Take over what `state_dict` returned.

        Raises
        ------
        ValueError
            As `check_state_dict`; nothing is changed then.
        """
        self.check_state_dict(state_dict)
        saved = state_dict["state"]
        self.steps = state_dict["steps"]
        self.state = {name: dict(saved.get(name, {})) for name in self._sparse}
        self.fraction = state_dict.get("fraction_now", self.fraction)
        for name, watch in self._watches.items():
            watch.restore(
                state_dict.get("gathered", {}).get(name, {}),
                self._sparse[name].values,
            )

    def _check(self, layers: dict[str, SparseLayer], ranks: Ranks) -> None:
        """Raise before anything is planned if a layer cannot evolve."""
        for name, layer in layers.items():
            group_of(layer.values, self.optimizer, name)
            follow(layer.values, self.optimizer)
            if self.strategy.is_device_resident:
                continue
            broken = int((~torch.isfinite(layer.values)).count_nonzero())
            if broken:
                raise ValueError(
                    f"layer {name!r}: {broken} of {layer.values.numel()} weights are not finite; "
                    f"the topology was kept"
                )
            if not ranks.hold_the_same(layer.csr, layer.values):
                raise ValueError(
                    f"layer {name!r} differs from process to process; processes that train one "
                    f"model start from the same weights and average their gradients, as "
                    f"DistributedDataParallel does; if each trains a model of its own, build the "
                    f"evolution with process_group='alone'"
                )

    def _contexts(
        self, layers: dict[str, SparseLayer], ranks: Ranks
    ) -> dict[str, grows.Context] | None:
        """Return what the rules may know, or None if the gradient of a layer is not finite."""
        contexts: dict[str, grows.Context] = {}
        nowhere = torch.empty(0, dtype=torch.int64)
        factor: Tensor | float = 1.0
        for name, layer in layers.items():
            rate = group_of(layer.values, self.optimizer, name)["lr"]
            context = grows.Context(
                occupied=nowhere,  # until its plan is made, as its rows
                rows=nowhere,
                lr=rate if self.strategy.is_device_resident else float(rate),
                generator=_generator(self.seed, name, self.steps),
                average=ranks.average,
                gradient=layer.values.grad,
                memory=memory_of(layer.values, self.optimizer),
            )
            if self.strategy.needs_gradient:
                context, gradient = self._gathered(name, layer, context, ranks)
                if gradient is not None and not self._is_sound(
                    context, gradient, ranks
                ):
                    warnings.warn(
                        f"layer {name!r}: the gradient is not finite, as where GradScaler skips a "
                        f"step; no connection was replaced",
                        stacklevel=4,
                    )
                    return None
                if gradient is not None:
                    context = context._replace(gradient=gradient)
                    factor = self._factor(
                        name, layer, context, gradient, factor
                    )
                    context = gathering.rescaled(context, factor)
            contexts[name] = context
        return contexts

    def _gathered(
        self,
        name: str,
        layer: SparseLayer,
        context: grows.Context,
        ranks: Ranks,
    ) -> tuple[grows.Context, Tensor | None]:
        """Return the context with batches, and the gradient that the optimizer saw."""
        values = layer.values
        own = [
            self._watches[n]
            for n, twin in self._sparse.items()
            if twin.values is values
        ]
        found = [batch for watch in own for batch in watch.batches_of(values)]
        gradients = [values.grad, *(watch.gradient for watch in own)]
        gradient = next((one for one in gradients if one is not None), None)
        if not ranks.is_true_everywhere(
            bool(found) and gradient is not None, values
        ):
            return context, None
        return gathering.with_batches(
            context, gathering.joined(layer, found)
        ), gradient

    def _is_sound(
        self, context: grows.Context, gradient: Tensor, ranks: Ranks
    ) -> bool:
        if self.strategy.is_device_resident:
            return True
        tensors = [
            gradient,
            *(tensor for batch in grows.batches(context) for tensor in batch),
        ]
        is_finite = all(map(grows.is_finite, tensors))
        return ranks.is_true_everywhere(is_finite, gradient)

    def _factor(
        self,
        name: str,
        layer: SparseLayer,
        context: grows.Context,
        gradient: Tensor,
        before: Tensor | float,
    ) -> Tensor | float:
        scale = gathering.scale_of(layer, context, gradient)
        precision = torch.finfo(layer.values.dtype).eps ** 0.75
        if self.strategy.is_device_resident:
            return gathering.factor_on_device(scale, before, precision)
        try:
            return gathering.factor_checked(scale, float(before), precision)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error

    def _plan(
        self,
        name: str,
        layer: SparseLayer,
        state: drops.State,
        context: grows.Context,
        ranks: Ranks,
    ) -> Plan:
        context = context._replace(occupied=layer.positions)
        try:
            planned = self.strategy.plan(
                layer, self.fraction, state, context, self.regrow
            )
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
        if ranks.count == 1:
            return planned
        positions = ranks.share(planned.positions)
        values = ranks.share(planned.values)
        return Plan(
            positions, values, ranks.share(planned.source), planned.trusted
        )

    def _open_rows(self, name: str, planned: dict[str, Plan]) -> Tensor:
        layer = self._sparse[name]
        rows = torch.arange(layer.shape[0], device=layer.values.device)
        names = list(self._sparse)
        following = names[names.index(name) + 1 :][:1]
        if not (self.repair and following):
            return rows
        onward = self._sparse[following[0]]
        if not _reads(onward, layer):
            return rows
        columns = onward.shape[1]
        next_plan = planned.get(following[0])
        positions = (
            onward.positions if next_plan is None else next_plan.positions
        )
        fan_out = torch.bincount(positions % columns, minlength=columns)
        return rows[fan_out > 0]

    def _fed(self, name: str) -> Tensor | None:
        """Return the inputs of a layer that a connection of the one before leads into."""
        names = list(self._sparse)
        preceding = names[: names.index(name)][-1:]
        if not preceding or self.strategy.is_device_resident:
            return None
        before = self._sparse[preceding[0]]
        if not _reads(self._sparse[name], before):
            return None
        return before.csr.fan_in().nonzero().flatten()

    def _rewire_twins(self, layer: SparseLayer, planned: Plan) -> None:
        for twin in self._sparse.values():
            if twin.values is layer.values and twin.csr is not layer.csr:
                twin.rewire(planned.positions, planned.values)


def _reads(layer: SparseLayer, before: SparseLayer) -> bool:
    """Whether a layer reads as many features as the one before it writes."""
    return layer.shape[1] == before.shape[0]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that a wrapper for several processes or for compilation holds.

    Raises
    ------
    ValueError
        If it is an ``nn.DataParallel``, which computes with copies that nobody can watch.
    """
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "nn.DataParallel computes with copies of the layers, whose gradients growth cannot "
            "gather; use DistributedDataParallel, one process per device"
        )
    if isinstance(model, DistributedDataParallel):
        return unwrapped(model.module)
    compiled = model._modules.get("_orig_mod")
    return model if compiled is None else unwrapped(compiled)


def _strategy(
    drop: drops.Drop | None,
    grow: grows.Grow | None,
    device_resident: bool,
    strategy: Strategy | None,
) -> Strategy:
    is_pair = drop is not None and grow is not None
    if (
        strategy is not None
        and drop is None
        and grow is None
        and not device_resident
    ):
        return strategy
    if strategy is not None or not is_pair:
        raise ValueError(
            "an evolution needs drop= and grow=, both of them, or strategy= in place of both and "
            "of device_resident="
        )
    assert drop is not None
    assert grow is not None
    return OnDevice(drop, grow) if device_resident else DropThenGrow(drop, grow)


def _check_whole(name: str, layer: SparseLayer) -> None:
    """Refuse values of which this process holds a part only."""
    values = layer.values
    is_plain = type(values) is nn.Parameter and type(values.data) is Tensor
    if not is_plain or values.numel() != layer.csr.nnz:
        raise ValueError(
            f"layer {name!r} has {layer.csr.nnz} connections, but its values are a "
            f"{type(values).__name__} of {values.numel()} numbers; values that are sharded "
            f"(FSDP) or parametrized cannot evolve: train with DistributedDataParallel"
        )


def _check_tied(
    head: str, first: SparseLayer, name: str, layer: SparseLayer
) -> None:
    """Refuse layers that share their values, but not the connections these belong to."""
    if first.csr is layer.csr:
        return
    if first.shape != layer.shape or not torch.equal(
        first.positions, layer.positions
    ):
        raise ValueError(
            f"layers {head!r} and {name!r} share their values but not their connections; a value "
            f"cannot follow both: let them share `csr` too, or untie them"
        )


def _generator(seed: int, name: str, step: int) -> torch.Generator:
    digest = hashlib.blake2b(
        f"{seed}/{name}/{step}".encode(), digest_size=8
    ).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
