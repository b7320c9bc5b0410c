"""When an evolution happens, and how large it is then."""

import math
from abc import ABC, abstractmethod
from typing import Unpack, final

import torch
from torch import nn

from sparselib._types import SavedState, StateDict
from sparselib.evolution import drop as drops
from sparselib.evolution import grow as grows
from sparselib.evolution._options import SeededOptions
from sparselib.evolution.engine import Evolution, Replaced
from sparselib.evolution.plans import Plan, lay_out
from sparselib.evolution.strategies import Strategy, rule_name
from sparselib.nn.sparse_layer import SparseLayer
from sparselib.ranking import largest, marked


def annealed(first: float, last: float, way: float) -> float:
    """Return what falls by half a cosine: `first` at 0, `last` from 1 of the way on."""
    turn = math.cos(math.pi * min(way, 1.0))
    return last + (first - last) * (1 + turn) / 2


class Schedule(ABC):
    """Lets an evolution happen at some training steps.

    Parameters
    ----------
    evolution : Evolution
        What happens.
    stop : int
        Training step at which it ends.
    every : int
        Training steps from one evolution to the next.

    Attributes
    ----------
    evolution : Evolution
        What changes the topology.
    steps : int
        Calls of `step` so far.

    Raises
    ------
    ValueError
        If a number is not positive.
    """

    def __init__(self, evolution: Evolution, stop: int, every: int) -> None:
        if stop < 1 or every < 1:
            raise ValueError(
                f"a schedule has positive numbers of steps, not stop={stop} and every={every}"
            )
        self.evolution = evolution
        self.stop = stop
        self.every = every
        self.steps = 0

    @abstractmethod
    def is_due(self, step: int) -> bool:
        """Whether the topology changes after so many training steps."""

    @abstractmethod
    def prepare(self, step: int) -> None:
        """Tell the evolution how far the training is."""

    @abstractmethod
    def identity(self) -> dict[str, int | float]:
        """Return the numbers without which a saved state means something else."""

    def step(self) -> Replaced:
        """Count a training step; return how many connections each layer replaced, if it was due."""
        self.steps += 1
        if not self.is_due(self.steps):
            return Replaced({})
        self.prepare(self.steps)
        return self.evolution.step()

    def state_dict(self) -> StateDict:
        """Return what the next step depends on besides model and optimizer."""
        return {
            "steps": self.steps,
            "schedule": self.identity(),
            "evolution": self.evolution.state_dict(),
        }

    def load_state_dict(self, state_dict: SavedState) -> None:
        """Take over what `state_dict` returned.

        Raises
        ------
        ValueError
            If it belongs to another schedule, and as `Evolution`; nothing is changed then.
        """
        schedule = state_dict.get("schedule")
        if schedule != self.identity():
            raise ValueError(
                f"the state belongs to a {type(self).__name__} with {schedule}, this one has "
                f"{self.identity()}"
            )
        steps = state_dict.get("steps")
        if not isinstance(steps, int) or steps < 0:
            raise ValueError(
                f"the state of a schedule has a number of steps, not {steps!r}"
            )
        self.evolution.load_state_dict(state_dict["evolution"])
        self.steps = steps


@final
class CosineSchedule(Schedule):
    r"""Evolves every so many training steps, by a share that falls to nothing (Evci, 2020).

    At training step t, a multiple of `every` below `stop`, the evolution replaces the share

    .. math:: f(t) = \frac{\alpha}{2} \left(1 + \cos \frac{\pi t}{T_{end}}\right)

    of the connections, where :math:`\alpha` is the share that the evolution has when the schedule
    is built and :math:`T_{end}` is `stop`. RigL's authors replace .3 every 100 steps and stop at
    three quarters of the training.

    Parameters
    ----------
    evolution : Evolution
        Any pair of rules.
    stop : int
        Training step from which on the topology stays as it is.
    every : int
        Training steps from one evolution to the next.

    Raises
    ------
    ValueError
        If a number is not positive.

    Examples
    --------
    >>> evolution = sl.RigL(model, optimizer, 0.3)
    >>> schedule = sl.evolution.CosineSchedule(evolution, stop=750)
    >>> sl.fit(model, data, optimizer, epochs, after_step=schedule.step)
    """

    def __init__(
        self, evolution: Evolution, stop: int, every: int = 100
    ) -> None:
        super().__init__(evolution, stop, every)
        self.first = evolution.fraction

    def fraction(self, step: int) -> float:
        """Share of the connections that are replaced after so many training steps."""
        return annealed(self.first, 0.0, step / self.stop)

    def is_due(self, step: int) -> bool:
        """Whether it is a multiple, and before the end."""
        return step % self.every == 0 and step < self.stop

    def prepare(self, step: int) -> None:
        """Set the share."""
        self.evolution.fraction = self.fraction(step)

    def identity(self) -> dict[str, int | float]:
        """First share, end and distance."""
        return {"stop": self.stop, "every": self.every, "first": self.first}


@final
class GradualPruning(Schedule):
    r"""Prunes a model further and further while it trains (Zhu and Gupta, 2017).

    Every `every` training steps, and at `stop`, each sparse layer loses its smallest weights, until
    its sparsity is

    .. math:: s_t = s_f + (s_i - s_f) \left(1 - \frac{t}{T}\right)^3,

    where :math:`s_i` is the one that it has when it is pruned first, :math:`s_f` the last one and
    :math:`T` is `stop`. With a grow rule and a `fraction` it loses that share of what remains
    besides and grows as many connections: GraNet (Liu and others, 2021), which grows the largest
    gradients, at zero. Layers that begin dense are `CSRLinear` with a sparsity of 0.

    Parameters
    ----------
    model : nn.Module
        Has sparse layers.
    optimizer : torch.optim.Optimizer
        Holds their values; its state follows them.
    sparsity : float
        :math:`s_f`, in [0, 1).
    stop : int
        :math:`T`, in training steps.
    every : int
        Training steps from one pruning to the next.
    grow : callable, optional
        A grow rule, such as `sparselib.grow.full_gradient_at_zero`.
    fraction : float
        Share of the connections that it replaces.
    **options
        Passed on to `Evolution`.

    Raises
    ------
    ValueError
        If a number is impossible, or a grow rule comes without a fraction or the other way round.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: float,
        stop: int,
        every: int = 100,
        *,
        grow: grows.Grow | None = None,
        fraction: float = 0.0,
        **options: Unpack[SeededOptions],
    ) -> None:
        if not 0 <= sparsity < 1:
            raise ValueError(
                f"the last sparsity lies in [0, 1), not at {sparsity}"
            )
        if (grow is None) != (fraction == 0):
            raise ValueError(
                f"what grows needs a rule and a fraction, not grow={grow} and fraction={fraction}"
            )
        self.shrink = Shrink(sparsity, grow)
        evolution = Evolution(
            model,
            optimizer,
            fraction=fraction,
            strategy=self.shrink,
            **options,
        )
        super().__init__(evolution, stop, every)

    def is_due(self, step: int) -> bool:
        """Whether it is a multiple before the end, or the end."""
        return step == self.stop or (
            step % self.every == 0 and step < self.stop
        )

    def prepare(self, step: int) -> None:
        """Set how far the training is."""
        self.shrink.progress = step / self.stop

    def identity(self) -> dict[str, int | float]:
        """Last sparsity, end and distance."""
        return {
            "stop": self.stop,
            "every": self.every,
            "sparsity": self.shrink.sparsity,
        }


@final
class Shrink(Strategy):
    """Drops the smallest weights until a layer is as sparse as the schedule wants, and grows some.

    Parameters
    ----------
    sparsity : float
        The last one.
    grow : callable, optional
        A grow rule.

    Attributes
    ----------
    progress : float
        Share of the way to the last sparsity, in time.
    """

    needs_room = False

    def __init__(self, sparsity: float, grow: grows.Grow | None) -> None:
        self.sparsity = sparsity
        self.progress = 0.0
        self._grow = grow
        self.needs_gradient = grow is not None and grows.needs_gradient(grow)
        grown = "nothing" if grow is None else rule_name(grow)
        self.rules = {"drop": f"to {sparsity}", "grow": grown}

    def plan(
        self,
        layer: SparseLayer,
        fraction: float,
        state: drops.State,
        context: grows.Context,
        regrow: bool,
    ) -> Plan:
        """Keep the largest weights, as many as the sparsity leaves."""
        values = layer.values.detach()
        first = state.setdefault("first", values.numel())
        count = min(self._count(first, layer.cells), values.numel())
        grown = 0 if self._grow is None else round(fraction * count)
        leaving = torch.ones_like(values, dtype=torch.bool)
        leaving[largest(values.abs(), count - grown)] = False
        if self._grow is None or grown == 0:
            kept = marked(~leaving)
            positions = context.occupied[kept]
            return Plan(positions, values[kept], kept, trusted=True)
        return lay_out(layer, leaving, self._grow, context, regrow, grown)

    def _count(self, first: int, cells: int) -> int:
        begin = 1 - first / max(cells, 1)
        rest = (1 - self.progress) ** 3
        sparsity = self.sparsity + (begin - self.sparsity) * rest
        return max(1, round((1 - sparsity) * cells))
