"""What autograd and autocast want to know of an operator of our own."""

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from sparselib._types import Function

Operand = TypeVar("Operand")
_FORMULAS: list[tuple[object, Callable[..., int]]] = []


def own(result: Tensor) -> Tensor:
    """Return the same numbers, no view: what an operator returns may then be changed in place."""
    return result.data


def differentiable(
    product: torch.library.CustomOpDef,
    save: Callable[..., None],
    backward: Function,
) -> None:
    """Register the gradients of an operator, and that autocast computes it in float32."""
    product.register_autograd(backward, setup_context=save)
    for device, key in _AUTOCAST.items():
        _LIBRARY.impl(
            product._opoverload, _without_autocast(product, device), key
        )


def counted(
    product: torch.library.CustomOpDef, flops: Callable[..., int]
) -> None:
    """Note for torch's ``FlopCounterMode`` how many operations an operator takes.

    Parameters
    ----------
    product : CustomOpDef
        The operator.
    flops : callable
        ``(*arguments, out_shape) -> int``: multiplications and additions, from the shapes of the
        operator's arguments that are tensors, the others, and the shape of its result.
    """
    _FORMULAS.append((product._opoverload.overloadpacket, flops))


def tell_counter() -> None:
    """Tell torch's counter of operations, and those that count now, what was noted.

    It is told as late as that because to load it takes a while, and loads Triton.
    """
    counter = sys.modules.get("torch.utils.flop_counter")
    if counter is None:
        return
    known = counter.flop_registry
    for operator, flops in _FORMULAS:
        if operator not in known:
            counter.register_flop_formula(operator)(flops)
    for mode in _get_current_dispatch_mode_stack():
        own_formulas = getattr(
            getattr(mode, "counter", mode), "flop_registry", {}
        )
        for operator, _ in _FORMULAS:
            own_formulas.setdefault(operator, known[operator])


# `CustomOpDef.register_autocast`, which does the same, is not in torch 2.6
_LIBRARY = torch.library.Library("sparselib", "FRAGMENT")
_AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def _without_autocast(
    product: torch.library.CustomOpDef, device: str
) -> Function:
    """Return the operator as autocast of a device calls it."""

    def in_float32(argument: Operand) -> Operand | Tensor:
        if (
            isinstance(argument, Tensor)
            and argument.is_floating_point()
            and argument.device.type == device
            and argument.dtype != torch.float64
        ):
            return argument.float()
        return argument

    def call(*arguments: object) -> object:
        with torch.autocast(device, enabled=False):
            return product._opoverload(*map(in_float32, arguments))

    return call
