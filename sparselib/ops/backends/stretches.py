"""How the kernels see a convolution: as sums of stretches of what is laid out.

With the rows of a sample laid side by side, and zeros between them, each weight reads one stretch,
``x[place + t]`` for every point t of the output. What is written here, the backends with kernels
share: where each weight's stretch begins, and how the input's gradient is such a sum too.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sparselib.csr import transpose
from sparselib.ops.backends import Indices, Layout, Sizes


class Passage(NamedTuple):
    """A sum of stretches: what is laid out for it, and what is cut out of its result.

    Attributes
    ----------
    points : (int, int)
        Height and width of what is read.
    output : (int, int)
        Height and width of what is written.
    row : int
        Points from a row to the next one, of both.
    start : int
        Zeros before the first point that is read.
    length : int
        Points of a channel as it is laid, zeros included.
    """

    points: tuple[int, int]
    output: tuple[int, int]
    row: int
    start: int
    length: int

    @property
    def written(self) -> int:
        """Points of a result, those between its rows included."""
        return (self.output[0] - 1) * self.row + self.output[1]


def forward(layout: Layout) -> Passage:
    """Return the passage from inputs to outputs."""
    return Passage(
        layout.points, layout.output, layout.row, layout.start, layout.read
    )


def backward(layout: Layout) -> Passage:
    """Return the passage from the outputs' gradient to that of the inputs."""
    return Passage(
        layout.output, layout.points, layout.row, layout.before, layout.span
    )


def across(layout: Layout) -> Passage:
    """Return how the outputs' gradient is laid beside the inputs, for that of the weights."""
    return Passage(layout.output, layout.output, layout.row, 0, layout.written)


class Turned(NamedTuple):
    """A convolution's input gradient as a convolution of the output's gradient.

    Attributes
    ----------
    crow : Tensor, int32, shape (channels + 1,)
        Where the connections of each channel begin.
    places : Tensor, int32, shape (nnz,)
        How far from point 0 of an input, in one sample, each of them reads.
    permutation : Tensor, int32, shape (nnz,)
        Takes values to this order.
    """

    crow: Tensor
    places: Tensor
    permutation: Tensor


def places(columns: Tensor, sizes: Sizes, length: int) -> Tensor:
    """Return how far from a point of the output, in one sample, each weight reads."""
    # memory that a CUDA graph records belongs to the graph: nothing of a GPU is kept
    find = _kept_starts if columns.is_cpu else _starts
    return find(sizes, length, columns.device).index_select(0, columns)


def _starts(sizes: Sizes, length: int, device: torch.device) -> Tensor:
    """Return where the stretch of each column begins."""
    taps = torch.arange(sizes.taps, dtype=torch.int32, device=device)
    channels = torch.arange(sizes.channels, dtype=torch.int32, device=device)
    return (channels[:, None] * length + sizes.offset(taps)).flatten()


# a step of training asks for the same ones as the step before
_kept_starts = functools.lru_cache(maxsize=256)(_starts)


def turned(indices: Indices, layout: Layout, span: int) -> Turned:
    """Turn the kernels round, and change channels and filters.

    The gradient of the output is laid `layout.before` points from the begin of each `span`, and
    that of the input begins at its first point. The transposed pattern is sorted by channel, then
    tap, so every `taps`-th pointer starts a channel.
    """
    sizes = layout.sizes
    if len(indices) == 5:
        crow, filters, permutation = indices[2:]
    else:
        crow, filters, permutation = transpose(
            indices[0], indices[1], sizes.channels * sizes.taps
        )
    first = layout.before + layout.start
    offsets = places(indices[1], sizes, 0).index_select(0, permutation)
    starts = filters * span + (first - offsets)
    return Turned(crow[:: sizes.taps].contiguous(), starts, permutation)


def laid(x: Tensor, passage: Passage) -> Tensor:
    """Lay the rows of (samples, channels, height * width) among zeros.

    No copy is made where there are none.
    """
    (height, width), _, row, start, length = passage
    samples, channels, size = x.shape
    if start == 0 and length == size:
        return x.contiguous()
    if height == 1:
        return functional.pad(x, (start, length - start - width))
    count = samples * channels
    signals = x.new_empty(count, length)
    end = start + (height - 1) * row + width
    signals[:, :start] = 0
    signals[:, end:] = 0
    between = (count, height - 1, row - width)
    signals.as_strided(between, (length, row, 1), start + width).zero_()
    shape = (samples, channels, height, width)
    inside = (channels * length, length, row, 1)
    signals.as_strided(shape, inside, start).copy_(x.view(shape))
    return signals.view(samples, channels, length)


def cut(signals: Tensor, passage: Passage) -> Tensor:
    """Take (samples, channels, height * width) out of what was written."""
    height, width = passage.output
    row = passage.row
    samples, channels, length = signals.shape
    if height == 1 or row == width:
        return signals
    images = signals.new_empty(samples, channels, height, width)
    strides = (channels * length, length, row, 1)
    images.copy_(signals.as_strided(images.shape, strides))
    return images.view(samples, channels, height * width)
