"""What stands between layers in training, by torch's operators, which have all derivatives."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from sparselib.ops.backends import After, Norm

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
