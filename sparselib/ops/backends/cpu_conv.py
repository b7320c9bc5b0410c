"""Convolutions by the kernels of `sparselib.ops.backends.cpu_conv_kernels`."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparselib.ops.backends import (
    Indices,
    Layout,
    cpu_buffers,
    cpu_work,
    reference,
    stretches,
)
from sparselib.ops.backends.cpu_arguments import (
    BIAS,
    Convolution,
    Correlation,
)
from sparselib.ops.backends.cpu_launch import kernels_of, launch

GROUPS = 32  # of samples, whose gradients of the weights are added in the end
STACKED = 128  # points of small images, which are laid one behind the other
BAND = 1 << 16  # points of all channels that stay close to a core


class Stack(NamedTuple):
    """Several small images that are convolved as one, so that their rows are not too short.

    Attributes
    ----------
    images : int
        How many, whatever the number of threads, so that sums have one order.
    pitch : int
        Points from one to the next: whole rows, and as many as keep them apart.
    band : int
        Points that all rows of a product do before the next ones.
    """

    images: int
    pitch: int
    band: int

    @property
    def more(self) -> int:
        """Points that the others have beside one image."""
        return (self.images - 1) * self.pitch


def convolve(
    values: Tensor,
    indices: Indices,
    x: Tensor,
    layout: Layout,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the output of a convolution; float32."""
    passage = stretches.forward(layout)
    stack = _stack(layout, x.shape[0], x.shape[1])
    length = passage.length + stack.more
    starts = stretches.places(indices[1], layout.sizes, length)
    return _product(
        values.contiguous(), indices[0], starts, x, passage, stack, bias
    )


def convolve_t(
    values: Tensor, indices: Indices, dy: Tensor, layout: Layout
) -> Tensor:
    """Gradient of a convolution's inputs; float32."""
    passage = stretches.backward(layout)
    stack = _stack(layout, dy.shape[0], dy.shape[1])
    turned = stretches.turned(indices, layout, passage.length + stack.more)
    values = values.index_select(0, turned.permutation)
    return _product(values, turned.crow, turned.places, dy, passage, stack)


def _product(
    values: Tensor,
    crow: Tensor,
    places: Tensor,
    x: Tensor,
    passage: stretches.Passage,
    stack: Stack,
    bias: Tensor | None = None,
) -> Tensor:
    """Add the stretches of what is laid out, and cut the results."""
    samples, channels, _ = x.shape
    rows = crow.shape[0] - 1
    height, width = passage.output
    memory = cpu_buffers.empty(samples * rows, height * width)
    y = memory.view(samples, rows, height * width)
    if not y.numel():
        return y
    pieces = cpu_work.ceil(samples, stack.images)
    step, chunks = _divided(rows, pieces)
    length = passage.length + stack.more
    room = channels * length + stack.band
    block = Convolution(
        pieces=pieces * chunks,
        chunks=chunks,
        step=step,
        samples=samples,
        stack=stack.images,
        channels=channels,
        rows=rows,
        height=passage.points[0],
        width=passage.points[1],
        row=passage.row,
        pitch=stack.pitch,
        start=passage.start,
        length=length,
        down=height,
        across=width,
        written=passage.written,
        band=stack.band,
        crow=crow,
        places=places,
        values=values,
        bias=bias if bias is None else bias.contiguous(),
        also=0 if bias is None else BIAS,
        x=x.contiguous(),
        y=y,
        own=cpu_work.copies(room),
        room=room,
    )
    launch(
        kernels_of("cpu_conv_kernels").convolution,
        block,
        y.numel() // rows * places.numel(),
    )
    return y


def correlate(
    indices: Indices, dy: Tensor, x: Tensor, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Gradients of a convolution's weights and biases; float32."""
    crow, col = indices[:2]
    nnz = col.shape[0]
    samples, filters, _ = dy.shape
    channels = x.shape[1]
    if not dy.numel():
        return dy.new_zeros(nnz), dy.new_zeros(filters)
    stack = _stack(layout, samples, channels + filters)
    group = _group(samples, stack.images, dy.numel() // max(1, nnz))
    groups = cpu_work.ceil(samples, group)
    step, chunks = _divided(filters, groups)
    read = layout.read + stack.more
    written = layout.written + stack.more
    room = channels * read + filters * written
    # by numpy, whose sums are one thread's
    dvalues = np.empty((groups, nnz), np.float32)
    dbias = np.empty((groups, filters), np.float32)
    block = Correlation(
        pieces=groups * chunks,
        chunks=chunks,
        step=step,
        samples=samples,
        group=group,
        stack=stack.images,
        channels=channels,
        filters=filters,
        height=layout.points[0],
        width=layout.points[1],
        row=layout.row,
        pitch=stack.pitch,
        start=layout.start,
        read=read,
        down=layout.output[0],
        across=layout.output[1],
        written=written,
        band=stack.band,
        crow=crow,
        places=stretches.places(col, layout.sizes, read),
        x=x.contiguous(),
        dy=dy.contiguous(),
        dvalues=torch.from_numpy(dvalues),
        dbias=torch.from_numpy(dbias),
        own=cpu_work.copies(room),
        room=room,
    )
    launch(
        kernels_of("cpu_conv_kernels").correlation,
        block,
        dy.numel() // filters * nnz,
    )
    found = dvalues.sum(0)
    between = layout.output[0] > 1 or stack.images > 1
    if between and not np.isfinite(found).all():
        # the zeros between rows have met infinities
        return reference.correlate(indices, dy, x, layout)
    return torch.from_numpy(found), torch.from_numpy(dbias.sum(0))


def _stack(layout: Layout, samples: int, channels: int) -> Stack:
    """Decide how many images are laid at once, and how many of their points are done at once."""
    row = layout.row
    # no output reads two images, and no gradient of an input two gradients of outputs
    apart = max(
        layout.read - layout.start,
        layout.start + layout.held,
        layout.written,
    )
    pitch = cpu_work.ceil(apart, row) * row
    count = max(1, min(samples, STACKED // pitch))
    points = max(layout.written, layout.held)
    if count > 1:
        return Stack(count, pitch, (count - 1) * pitch + points)
    few = max(256, BAND // channels)
    if max(layout.points[0], layout.output[0]) == 1:
        return Stack(1, pitch, min(few, points))
    rows = min(cpu_work.ceil(points, row), max(1, few // row))
    return Stack(1, pitch, rows * row)


def _group(samples: int, stack: int, most: int) -> int:
    """Return how many samples a group has: whole stacks, and no more groups than `most`."""
    groups = max(1, min(GROUPS, most))
    return cpu_work.ceil(cpu_work.ceil(samples, groups), stack) * stack


def _divided(rows: int, pieces: int) -> tuple[int, int]:
    """Return rows of a piece and the number of pieces that others are cut into by them."""
    threads = torch.get_num_threads()
    if threads == 1 or pieces >= 4 * threads:
        return rows, 1
    step = cpu_work.ceil(rows, cpu_work.ceil(2 * threads, pieces))
    return step, cpu_work.ceil(rows, step)
