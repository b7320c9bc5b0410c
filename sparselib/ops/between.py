"""What stands between layers in training, and does by torch's operators, with all derivatives."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional

from sparselib.ops.backends import After, Norm
from sparselib.ops.backends.cpu_batch import Moments

# by the kinds of `After`; given it and its numbers
ACTIVATIONS: dict[str, Callable[[After, Tensor], Tensor]] = {
    "relu": lambda _, x: x.relu(),
    "leaky relu": lambda of, x: functional.leaky_relu(x, of.number),
    "gelu": lambda _, x: functional.gelu(x),
    "gelu of tanh": lambda _, x: functional.gelu(x, approximate="tanh"),
    "silu": lambda _, x: functional.silu(x),
    "tanh": lambda _, x: x.tanh(),
    "nothing": lambda _, x: x,
}


def normalized(x: Tensor, norm: Norm) -> Tensor:
    """Normalize (samples, features) by the layer or by the batch; nothing is kept."""
    scale, shift, epsilon, keep = norm
    if keep is None:
        return functional.layer_norm(x, x.shape[1:], scale, shift, epsilon)
    return functional.batch_norm(
        x, None, None, scale, shift, training=True, eps=epsilon
    )


def scales_of(after: Sequence[After]) -> list[Tensor]:
    """Return the scale and the shift of each normalization, in order."""
    return [
        tensor
        for of in after
        if of.norm is not None
        for tensor in (of.norm.scale, of.norm.shift)
    ]


def keep_moments(after: Sequence[After], moments: Sequence[Moments]) -> None:
    """Have batch normalizations keep the moments that they have found, one after the other."""
    left = iter(moments)
    for of in after:
        if of.norm is not None and of.norm.keep is not None:
            of.norm.keep(*next(left))


def with_scales(
    after: Sequence[After], tensors: Sequence[Tensor]
) -> list[After]:
    """Return what follows layers with these tensors in place of those that `scales_of` returns."""
    left = iter(tensors)
    return [
        of
        if of.norm is None
        else of._replace(norm=_scaled(of.norm, next(left), next(left)))
        for of in after
    ]


def _scaled(norm: Norm, scale: Tensor, shift: Tensor) -> Norm:
    return norm._replace(scale=scale, shift=shift)


def is_relu_alone(of: After) -> bool:
    """Whether the product itself does what follows, but for a dropout."""
    return of.kind == "relu" and of.norm is None


def features_apart(after: Sequence[After], rows: int, width: int) -> int:
    """Return how many features a tile has in a buffer of its own, if it waits for others."""
    is_waiting = any(of.is_of_batch for of in after)
    return width + 2 * rows if is_waiting else 0
