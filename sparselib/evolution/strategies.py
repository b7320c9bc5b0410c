"""What lays out the next topology of a layer: ordinarily a drop rule, then a grow rule."""

from abc import ABC, abstractmethod
from functools import partial
from typing import cast, final

import torch
from torch import Tensor

from sparselib._types import Function
from sparselib.evolution import drop as drops
from sparselib.evolution import grow as grows
from sparselib.evolution.plans import Plan, check_dropped, lay_out
from sparselib.nn.sparse_layer import SparseLayer
from sparselib.ranking import contains


class Strategy(ABC):
    """Lays out the next topology of one layer at a time; an `Evolution` carries it out.

    Derive from it what is no drop rule followed by a grow rule, and give it to an evolution in
    place of both: ``Evolution(model, optimizer, strategy=...)``. A plan may have another number of
    connections than the layer, as in gradual pruning; the optimizer's state follows.

    Attributes
    ----------
    rules : dict of str to str
        The names of its rules, which a saved state carries.
    needs_gradient : bool
        Whether the context must hold inputs and costs.
    is_device_resident : bool
        Whether it waits for no value of a tensor. Then weights that are not finite cannot be
        refused, and it has to keep the topology itself.
    can_repair : bool
        Whether it keeps to the rows of the context in what it drops, too.
    needs_room : bool
        Whether it leaves layers alone that have every connection.
    """

    rules: dict[str, str]
    needs_gradient: bool = True
    is_device_resident: bool = False
    can_repair: bool = False
    needs_room: bool = True

    @abstractmethod
    def plan(
        self,
        layer: SparseLayer,
        fraction: float,
        state: drops.State,
        context: grows.Context,
        regrow: bool,
    ) -> Plan:
        """Lay out the next topology of a layer, without a change to it.

        Parameters
        ----------
        layer : SparseLayer
            As it is now.
        fraction : float
            Share of its connections to replace.
        state : dict
            The layer's own, from step to step; changes to it count only if the step succeeds.
        context : Context
            What a grow rule may know; `occupied` are all connections.
        regrow : bool
            Whether a connection that leaves may come back as a new one.
        """


@final
class DropThenGrow(Strategy):
    """A drop rule, then a grow rule that returns as many connections.

    Parameters
    ----------
    drop : callable
        ``(values, fraction, state) -> indices``, or with the context, see
        `sparselib.evolution.drop`.
    grow : callable
        ``(layer, count, context) -> (positions, values)``, see `sparselib.evolution.grow`.
    """

    can_repair = True

    def __init__(self, drop: drops.Drop, grow: grows.Grow) -> None:
        self.drop = drop
        self.grow = grow
        self.needs_gradient = grows.needs_gradient(grow) or (
            drops.reads_context(drop) and grows.needs_gradient(drop)
        )
        self.rules = {"drop": rule_name(drop), "grow": rule_name(grow)}

    def plan(
        self,
        layer: SparseLayer,
        fraction: float,
        state: drops.State,
        context: grows.Context,
        regrow: bool,
    ) -> Plan:
        """Drop, then grow; a connection of a closed row leaves too."""
        leaving = torch.zeros_like(layer.values, dtype=torch.bool)
        dropped = self._dropped(layer, fraction, state, context)
        check_dropped(dropped, leaving.numel())
        leaving[dropped] = True
        if context.rows.numel() < layer.shape[0]:
            rows = context.occupied // layer.shape[1]
            leaving |= ~contains(context.rows, rows)
        return lay_out(layer, leaving, self.grow, context, regrow)

    def _dropped(
        self,
        layer: SparseLayer,
        fraction: float,
        state: drops.State,
        context: grows.Context,
    ) -> Tensor:
        if drops.reads_context(self.drop):
            by_context = cast(drops.ByContext, self.drop)
            return by_context(layer, fraction, context._replace(state=state))
        by_values = cast(drops.ByValues, self.drop)
        return by_values(layer.values.detach(), fraction, state)


def rule_name(rule: Function) -> str:
    """Return the name of a rule, with what a ``functools.partial`` has fixed."""
    if isinstance(rule, partial):
        fixed = [_text(given) for given in rule.args]
        fixed += [
            f"{key}={_text(given)}"
            for key, given in sorted(rule.keywords.items())
        ]
        return f"{rule_name(rule.func)}({', '.join(fixed)})"
    return str(getattr(rule, "__qualname__", type(rule).__qualname__))


def _text(given: object) -> str:
    return rule_name(given) if callable(given) else repr(given)
