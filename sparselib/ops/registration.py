"""What autograd and autocast want to know of an operator of our own."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from sparselib._types import Function

Operand = TypeVar("Operand")


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
