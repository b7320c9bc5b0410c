"""What autograd, autocast and torch.func want to know of an operator of our own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def own(result: Tensor) -> Tensor:
    """Return the same numbers, no view: what an operator returns may then be changed in place."""
    return result.data


def differentiable(
    product: torch.library.CustomOpDef, save: Callable[..., None], backward: Callable[..., Any]
) -> None:
    """Register the gradients of an operator, and that autocast computes it in float32."""
    product.register_autograd(backward, setup_context=save)
    for device in ("cpu", "cuda"):
        product.register_autocast(device, torch.float32)


def transformed() -> bool:
    """Whether torch.func transforms the call: neither our operators nor our functions bear it."""
    compiling = torch.compiler.is_compiling()
    return not compiling and torch._C._functorch.maybe_current_level() is not None


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on where x is."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
