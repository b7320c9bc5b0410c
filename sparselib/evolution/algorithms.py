"""Published algorithms by name: a drop rule, a grow rule, and what the authors do besides."""

from typing import Unpack

import torch
from torch import nn

from sparselib._types import Hook
from sparselib.evolution import drop as drops
from sparselib.evolution import grow as grows
from sparselib.evolution._options import RuleOptions
from sparselib.evolution.engine import Evolution


def SET(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    fraction: float = 0.3,
    *,
    definition: str = "text",
    **options: Unpack[RuleOptions],
) -> Evolution:
    """Sparse evolutionary training (Mocanu et al., 2018): random connections.

    Drops `fraction` of the positive and of the negative weights nearest zero. What grows starts
    at zero, and survivors keep their optimizer state: that is ``definition="text"``, as Ertl
    retells it. The authors' programs differ. ``"keras"`` builds model and optimizer anew after
    every epoch, so that the optimizer forgets everything, of dense layers and biases too;
    ``"scipy"`` lets new weights start at N(0, 0.1²).

    Raises
    ------
    ValueError
        If `definition` is none of these, and as `Evolution`.
    """
    grow = {
        "text": grows.random,
        "keras": grows.random,
        "scipy": grows.random_normal,
    }
    check_definition(definition, *grow)
    if definition == "keras":
        options["after"] = _in_turn(optimizer.state.clear, options.get("after"))
    return Evolution(
        model,
        optimizer,
        drops.set_fractions,
        grow[definition],
        fraction,
        **options,
    )


def GradientGrowth(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    fraction: float = 0.1,
    **options: Unpack[RuleOptions],
) -> Evolution:
    """Ertl's evolution (3.2.4): adaptive threshold, gradients of the k costliest neurons.

    The threshold begins at 0.01 and moves by a tenth per step. Where no weight is that small, as
    after `sparsify`, which keeps the largest, nothing leaves for many steps: `RigL` and `SET` drop
    a share of the weights from the first step on.
    """
    return Evolution(
        model,
        optimizer,
        drops.adaptive_threshold,
        grows.gradient_of_costliest,
        fraction,
        **options,
    )


def RigL(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    fraction: float = 0.3,
    **options: Unpack[RuleOptions],
) -> Evolution:
    """Evci et al. (2020): smallest magnitudes leave, largest gradients of all come, at zero."""
    return Evolution(
        model,
        optimizer,
        drops.magnitude,
        grows.full_gradient_at_zero,
        fraction,
        **options,
    )


def check_definition(definition: str, *known: str) -> None:
    """Refuse a definition that is none of those known."""
    if definition not in known:
        raise ValueError(
            f"definition must be one of {', '.join(known)}, not {definition!r}"
        )


def _in_turn(first: Hook, second: Hook | None) -> Hook:
    def call() -> None:
        first()
        if second is not None:
            second()

    return call
