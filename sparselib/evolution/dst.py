"""Dynamic sparse training of kernels in groups, each with a region and a budget of its own."""

import math
from typing import Unpack, cast, final

import torch
from torch import nn

from sparselib.evolution import drop as drops
from sparselib.evolution import grow as grows
from sparselib.evolution._options import SeededOptions
from sparselib.evolution.engine import Evolution
from sparselib.evolution.plans import Plan, check_dropped, lay_out
from sparselib.evolution.schedule import Schedule, annealed
from sparselib.evolution.strategies import Strategy, rule_name
from sparselib.nn.sparse_layer import SparseLayer
from sparselib.ranking import marked


@final
class DST(Schedule):
    r"""Dynamic sparse training of regions (Xiao and others, 2022), used as an `Evolution` is.

    Every `every`-th step, each group of filters with the same reach loses
    :math:`\lceil \zeta n_g \rceil` of its :math:`n_g` connections, the nearest zero, and gains as
    many within its region. The share falls by a cosine,

    .. math:: \zeta_e = \zeta_{last} + \tfrac12 (\zeta_0 - \zeta_{last})
       \left(1 + \cos \frac{\pi e}{0.8 E}\right),

    to its last value after 0.8 of all :math:`E` epochs. Layers without regions are one group.
    What grows starts at zero, without memory in the optimizer; in the authors' program it keeps
    Adam's moments of its cell.

    Parameters
    ----------
    model : nn.Module
        Has sparse layers.
    optimizer : torch.optim.Optimizer
        Holds their values.
    epochs : int
        E, counted in calls of `step`.
    fraction, last : float
        First and last share of the connections to replace.
    every : int
        Epochs from one change to the next.
    drop, grow : callable
        Rules as for `Evolution`; the authors' by default.
    **options
        Passed on to `Evolution`.

    Raises
    ------
    ValueError
        If a number is impossible, and as `Evolution`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        fraction: float = 0.5,
        *,
        last: float = 0.001,
        every: int = 5,
        drop: drops.Drop = drops.magnitude,
        grow: grows.Grow = grows.random,
        **options: Unpack[SeededOptions],
    ) -> None:
        if epochs < 1 or every < 1 or not 0 <= last <= fraction <= 1:
            raise ValueError(
                f"DST needs epochs and every from 1 and 0 <= last <= fraction <= 1, not "
                f"epochs={epochs}, every={every}, last={last}, fraction={fraction}"
            )
        evolution = Evolution(
            model,
            optimizer,
            fraction=fraction,
            strategy=ByGroup(drop, grow),
            **options,
        )
        super().__init__(evolution, epochs, every)
        self.fraction = fraction
        self.last = last

    def rate(self, epoch: int) -> float:
        """Share of the connections that a change at the end of an epoch replaces."""
        return annealed(self.fraction, self.last, epoch / (0.8 * self.stop))

    def is_due(self, step: int) -> bool:
        """Whether it is a multiple: in the end, the last share is replaced."""
        return step % self.every == 0

    def prepare(self, step: int) -> None:
        """Set the share."""
        self.evolution.fraction = self.rate(step)

    def identity(self) -> dict[str, int | float]:
        """All epochs, last share and distance."""
        return {"epochs": self.stop, "last": self.last, "every": self.every}


@final
class ByGroup(Strategy):
    """A drop rule and a grow rule for each group of filters with the same reach.

    Parameters
    ----------
    drop, grow : callable
        Rules as for `Evolution`; the drop rule is one of values.

    Raises
    ------
    ValueError
        If the drop rule reads the context, which is of a whole layer.
    """

    def __init__(self, drop: drops.Drop, grow: grows.Grow) -> None:
        if drops.reads_context(drop):
            raise ValueError(
                f"the drop rule {rule_name(drop)} reads the context of a whole layer, and here "
                f"each group of filters drops a share of its own; take a rule of values, such as "
                f"sparselib.drop.magnitude"
            )
        self._drop = cast(drops.ByValues, drop)
        self._grow = grow
        self.needs_gradient = grows.needs_gradient(grow)
        self.rules = {
            "drop": rule_name(drop),
            "grow": rule_name(grow),
            "by": "group",
        }

    def plan(
        self,
        layer: SparseLayer,
        fraction: float,
        state: drops.State,
        context: grows.Context,
        regrow: bool,
    ) -> Plan:
        """Drop and grow in each group as many connections."""
        values = layer.values.detach()
        row = context.occupied // layer.shape[1]
        groups = layer.region.groups()
        leaving = torch.zeros_like(values, dtype=torch.bool)
        counts: list[int] = []
        for number, rows in enumerate(groups):
            own = marked(torch.isin(row, rows))
            share = math.ceil(fraction * own.numel()) / max(own.numel(), 1)
            memory = dict(state.get(f"group {number}", {}))
            state[f"group {number}"] = memory
            dropped = self._drop(values[own], share, memory)
            check_dropped(dropped, own.numel())
            leaving[own[dropped]] = True
            counts.append(dropped.numel())

        def grow(
            layer: SparseLayer, count: int, context: grows.Context
        ) -> grows.Grown:
            grown = [
                self._grow(layer, number, context._replace(rows=rows))
                for rows, number in zip(groups, counts)
            ]
            return torch.cat([p for p, _ in grown]), torch.cat(
                [v for _, v in grown]
            )

        return lay_out(layer, leaving, grow, context, regrow)
