"""How the kernels see a convolution: as sums of stretches of the signals.

With the signals of a sample padded once and laid side by side, each weight reads one stretch,
``x[place + t]`` for every point t of the output. What is written here, the backends with kernels
share: where each weight's stretch begins, and how the input's gradient is such a sum too.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.nn import functional

from sparselib.csr import transpose
from sparselib.ops.backends import Indices, Sizes


@runtime_checkable
class Convolve(Protocol):
    """Adds stretches: y[s, o, t] = b[o] + sum of values[j] x[s][places[j] + t] over row o."""

    def __call__(
        self,
        values: Tensor,
        crow: Tensor,
        places: Tensor,
        x: Tensor,
        length: int,
        bias: Tensor | None = None,
        permutation: Tensor | None = None,
    ) -> Tensor:
        """Return y (samples, rows, length); see the backends."""


@runtime_checkable
class Correlate(Protocol):
    """Multiplies stretches: sum of dy[s, o, t] x[s][places[j] + t] for each j of row o."""

    def __call__(
        self, crow: Tensor, places: Tensor, dy: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return these sums, and those of dy; see the backends."""


@runtime_checkable
class Pad(Protocol):
    """Puts zeros before and after signals."""

    def __call__(self, x: Tensor, before: int, after: int) -> Tensor:
        """Return contiguous signals; negative numbers cut."""


def padded(x: Tensor, before: int, after: int) -> Tensor:
    """Put zeros before and after the signals; negative numbers cut them."""
    if before or after:
        x = functional.pad(x, (before, after))
    return x.contiguous()


def places(columns: Tensor, sizes: Sizes, length: int) -> Tensor:
    """Return how far from a point of the output, in one sample, each weight reads."""
    channel = columns // sizes.taps
    tap = columns % sizes.taps
    return channel * length + sizes.offset(tap)


def output(
    convolve: Convolve,
    pad: Pad,
    values: Tensor,
    indices: Indices,
    x: Tensor,
    sizes: Sizes,
    bias: Tensor | None,
) -> Tensor:
    """Return the output of a convolution."""
    signals = pad(x, sizes.before, sizes.after)
    starts = places(indices[1], sizes, signals.shape[2])
    return convolve(
        values, indices[0], starts, signals, sizes.length(x.shape[2]), bias
    )


def input_gradient(
    convolve: Convolve,
    pad: Pad,
    values: Tensor,
    indices: Indices,
    dy: Tensor,
    sizes: Sizes,
    time: int,
) -> Tensor:
    """Convolve the output's gradient with the kernels turned round, channels and filters changed.

    The transposed pattern is sorted by channel, then tap, so every `taps`-th pointer starts a
    channel.
    """
    if len(indices) == 5:
        crow, filters, permutation = indices[2:]
    else:
        crow, filters, permutation = transpose(
            indices[0], indices[1], sizes.channels * sizes.taps
        )
    last = sizes.extent - 1
    signals = pad(dy, last - sizes.before, last - sizes.after)
    tap = indices[1][permutation] % sizes.taps
    starts = filters * signals.shape[2] + (last - sizes.offset(tap))
    pointers = crow[:: sizes.taps].contiguous()
    return convolve(values, pointers, starts, signals, time, None, permutation)


def weight_gradient(
    correlate: Correlate,
    pad: Pad,
    indices: Indices,
    dy: Tensor,
    x: Tensor,
    sizes: Sizes,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of weights and biases."""
    signals = pad(x, sizes.before, sizes.after)
    starts = places(indices[1], sizes, signals.shape[2])
    return correlate(indices[0], starts, dy.contiguous(), signals)
