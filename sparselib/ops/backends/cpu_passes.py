"""How the kernels are called that carry a batch through layers, and its gradients back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparselib.ops.backends import (
    After,
    Weights,
    cpu_batch,
    cpu_buffers,
    cpu_work,
)
from sparselib.ops.backends.cpu_arguments import (
    BACK,
    INWARD,
    NOWHERE,
    OUT,
    OUTWARD,
    TILE,
    Inward,
    Outward,
)
from sparselib.ops.backends.cpu_batch import Moments
from sparselib.ops.backends.cpu_descent import (
    Transposed,
    shared_of,
    table_of,
    threads_for,
)
from sparselib.ops.backends.cpu_launch import kernels_of, start


def outward(
    layers: Sequence[Weights],
    after: Sequence[After],
    noises: Sequence[Tensor | None],
    known: Sequence[Tensor | None],
    x: Tensor,
) -> tuple[Tensor, Tensor, list[Moments]]:
    """Return the outputs of the last layer, and what the others wrote, by tiles of samples.

    Last are the moments that each batch normalization has found. What follows each but the last is
    given, and what dropouts have drawn for it; what is known of the batch is written. All tensors
    are contiguous, and x and the weights float32; there is at least one sample, and for a batch
    normalization another. The outputs have the samples of a feature side by side, as those of
    single layers have.
    """
    samples, width = x.shape
    steps = [(layer, None) for layer in layers]
    table = table_of(steps, after, noises, known, 0)
    rows = table.levels[-1].rows
    depth = table.features - rows
    threads = threads_for(samples, layers)
    y = cpu_buffers.empty(rows, samples)
    kept = cpu_buffers.empty(cpu_work.ceil(samples, TILE), depth * TILE)
    buffers = cpu_buffers.empty(threads, (width + rows) * TILE)
    block = Outward(
        way=OUT,
        begin=NOWHERE,
        samples=samples,
        width=width,
        levels=len(layers),
        x=x.data_ptr(),
        y=y.data_ptr(),
        kept=kept.data_ptr(),
        depth=depth,
        buffers=buffers.data_ptr(),
    )
    shared = shared_of(block, table)
    kernel = kernels_of("cpu_passes_kernels").outward
    start(kernel, shared.buffer_info()[0], threads)
    found = cpu_batch.further_out(
        kernel, shared, OUTWARD, table.waiting, kept, samples, threads
    )
    return y.t(), kept, found


def inward(
    layers: Sequence[tuple[Weights, Transposed | None]],
    after: Sequence[After],
    noises: Sequence[Tensor | None],
    known: Sequence[Tensor | None],
    x: Tensor,
    kept: Tensor,
    dy: Tensor,
) -> tuple[Tensor | None, Tensor]:
    """Return the gradient of x, and those of all parameters one behind the other.

    First those of the values and biases of each layer, then of the scale and shift of each `Norm`.

    The gradient of x is left out where the first layer has no transposed pattern. All tensors are
    as in `outward`, which returned `kept` and wrote `known`, and dy has the samples of a feature
    side by side.
    """
    samples, width = x.shape
    # another pass back may be under way
    own = [None if one is None else one.clone() for one in known]
    table = table_of(layers, after, noises, own, 0)
    widest = max(width, *(level.rows for level in table.levels))
    weights = [layer for layer, _ in layers]
    threads = threads_for(samples, weights)
    dx = None if layers[0][1] is None else torch.empty(samples, width)
    tiles = cpu_work.ceil(samples, TILE)
    gradients = cpu_buffers.empty(tiles, table.numbers)
    apart = len(table.waiting) > 0
    room = (2 * widest + width) * TILE
    buffers = cpu_buffers.empty(tiles if apart else threads, room)
    block = Inward(
        way=BACK,
        begin=NOWHERE,
        apart=apart,
        samples=samples,
        width=width,
        levels=len(layers),
        x=x.data_ptr(),
        kept=kept.data_ptr(),
        depth=kept.shape[1] // TILE,
        dy=dy.data_ptr(),
        dx=0 if dx is None else dx.data_ptr(),
        gradients=gradients.data_ptr(),
        stride=table.numbers,
        widest=widest,
        buffers=buffers.data_ptr(),
    )
    shared = shared_of(block, table)
    kernel = kernels_of("cpu_passes_kernels").inward
    start(kernel, shared.buffer_info()[0], threads)
    cpu_batch.further_back(
        kernel, shared, INWARD, table.waiting, gradients, samples, threads
    )
    return dx, gradients[0] if tiles == 1 else gradients.sum(0)
