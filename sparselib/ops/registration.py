"""What autograd and autocast want to know of an operator of our own."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparselib._types import Function


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
    for device in ("cpu", "cuda"):
        product.register_autocast(device, torch.float32)
