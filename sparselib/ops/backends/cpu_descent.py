"""How the kernel is called that trains a whole network, a tile of samples at a time."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

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
    COUNTERS,
    CROSS_ENTROPY,
    DESCENT,
    KINDS,
    LEVEL_SIZE,
    NOTHING,
    NOWHERE,
    OUT,
    OWN,
    PRODUCT,
    SQUARED_ERROR,
    TILE,
    Descent,
    Inward,
    Level,
    Outward,
    also,
    bits_of,
)
from sparselib.ops.backends.cpu_batch import Moments, Waiting
from sparselib.ops.backends.cpu_launch import ALONE, kernels_of, start

LOSSES = {"cross-entropy": CROSS_ENTROPY, "squared error": SQUARED_ERROR}
# weights and biases that stay in the cache while tile after tile walks through them, in a step of
# one call, and in one of two. Measured on Zen 5: with twice as many some networks lose
MOST_OF_STEP = 1 << 18
MOST_OF_PASSES = 1 << 17
# gradients of all tiles, or activations where all are kept at once, 64 MiB of them
MOST_WRITTEN = 1 << 24
# numbers of a tile where there are not as many tiles as threads
ALONE_AT_MOST = 1 << 17
# row pointers and columns of the transposed pattern, and which values are whose
Transposed = tuple[Tensor, Tensor, Tensor]


def descends(samples: int, numbers: int, most: int, features: int) -> bool:
    """Whether one call is faster than one for each product, if it is up to so many numbers.

    `features` are those of all tiles, where each has a buffer of its own; else 0.
    """
    tiles = cpu_work.ceil(samples, TILE)
    is_shared = tiles >= torch.get_num_threads() or numbers <= ALONE_AT_MOST
    written = tiles * max(numbers, features * TILE)
    return is_shared and numbers <= most and written <= MOST_WRITTEN


class Table(NamedTuple):
    """Layers as kernels of whole networks read them."""

    levels: list[Level]
    numbers: int  # of the gradients of all values and biases, scales and shifts
    features: (
        int  # that lie side by side: those in front, and all that is written
    )
    held: list[Tensor]  # has to outlive the call
    waiting: list[Waiting]  # in order


def drawn(
    layers: Sequence[Weights], after: Sequence[After], samples: int
) -> list[Tensor | None]:
    """Return what dropouts multiply the outputs of layers by, (features, samples), in order."""
    return [
        None
        if follows.draw is None
        else follows.draw(layer.crow.shape[0] - 1, samples)
        for layer, follows in zip(layers, after)
    ]


def table_of(
    layers: Sequence[tuple[Weights, Transposed | None]],
    after: Sequence[After],
    noises: Sequence[Tensor | None],
    known: Sequence[Tensor | None],
    place: int,
) -> Table:
    """Return layers and what follows each but the last, with outputs one behind the other.

    Noises are what dropouts have drawn for it, `known` is as from `cpu_batch.known_of`. Outputs
    begin at a place, and those of a normalization, and of an activation but ReLU, lie behind its
    layer's. Gradients of the values and biases of each layer lie behind those of the one
    before, and behind them all those of what normalized features are multiplied by, and shifted.
    """
    levels: list[Level] = []
    numbers = 0
    held: list[Tensor] = []
    behind = sum(parameters_of(layer) for layer, _ in layers)
    waiting: list[Waiting] = []
    for (
        (crow, col, values, bias, relu),
        transposed,
    ), follows, noise, batch in zip(
        layers, [*after, After()], [*noises, None], [*known, None]
    ):
        rows = crow.shape[0] - 1
        nnz = col.shape[0]
        turned: tuple[Tensor, ...] = ()
        if transposed is not None:
            tcrow, tcol, permutation = transposed
            turned = tcrow, tcol, values.index_select(0, permutation)
        addresses = [tensor.data_ptr() for tensor in turned] or [0, 0, 0]
        held += turned
        kind = PRODUCT if follows.kind == "relu" else KINDS[follows.kind]
        norm = follows.norm
        factors: tuple[Tensor, ...] = ()
        sums = place
        if norm is not None:
            factors = norm.scale.contiguous(), norm.shift.contiguous()
            place += rows
            place += 1 if batch is None else cpu_batch.parts(rows)
        scales = [tensor.data_ptr() for tensor in factors] or [0, 0]
        held += factors
        raw = place
        if kind not in (PRODUCT, NOTHING):
            place += rows
        levels.append(
            Level(
                rows=rows,
                crow=crow.data_ptr(),
                col=col.data_ptr(),
                values=values.data_ptr(),
                bias=0 if bias is None else bias.data_ptr(),
                also=also(bias, relu),
                kind=kind,
                number=bits_of(follows.number),
                noise=0 if noise is None else noise.data_ptr(),
                tcrow=addresses[0],
                tcol=addresses[1],
                tvalues=addresses[2],
                dvalues=numbers,
                dbias=numbers + nnz,
                scale=scales[0],
                shift=scales[1],
                epsilon=bits_of(0.0 if norm is None else norm.epsilon),
                dscale=behind,
                dshift=behind + rows,
                moments=0 if batch is None else batch.data_ptr(),
                sums=sums * TILE,
                raw=raw * TILE,
                place=place * TILE,
            )
        )
        if norm is not None and batch is not None:
            where = LEVEL_SIZE * (len(levels) - 1)
            waiting.append(Waiting(where, levels[-1], norm, batch))
        numbers += nnz + rows
        behind += 2 * rows if factors else 0
        place += rows
    return Table(levels, behind, place, held, waiting)


def parameters_of(layer: Weights) -> int:
    """Count the values of a layer, and a bias for each of its outputs."""
    return layer.col.shape[0] + layer.crow.shape[0] - 1


def shared_of(block: Descent | Outward | Inward, table: Table) -> "array[int]":
    """Return what a kernel is given: the counters, its arguments, and the layers."""
    shared = array("q", [0] * COUNTERS)
    shared.extend(block)
    for level in table.levels:
        shared.extend(level)
    return shared


def threads_for(samples: int, layers: Sequence[Weights]) -> int:
    """Return how many threads carry samples through: one where others would come too late."""
    weights = sum(layer.col.shape[0] for layer in layers)
    return torch.get_num_threads() if samples * weights >= ALONE else 1


def descend(
    layers: Sequence[tuple[Weights, Transposed | None]],
    after: Sequence[After],
    x: Tensor,
    labels: Tensor,
    loss: str,
    order: Tensor | None = None,
) -> tuple[Tensor, list[Moments]] | None:
    """Return the gradients of values and biases, layer by layer, and behind them the mean loss.

    Between them and the loss are those of each normalization, of its scale and its shift. Returned
    are the moments, too, that each batch normalization has found.

    The first layer needs no transposed pattern, as nobody asks for the gradient of x. The batch is
    all of x, or the samples whose numbers `order` holds. None if one of them is not there, or a
    label is the number of no class; no random number is drawn then. All tensors are contiguous, and
    x and the weights float32; there is at least one sample, and for a batch normalization another.
    """
    among, width = x.shape
    samples = among if order is None else order.shape[0]
    is_random = any(follows.draw for follows in after)
    state = torch.get_rng_state() if is_random else None
    noises = drawn([layer for layer, _ in layers], after, samples)
    known = cpu_batch.known_of(after)
    table = table_of(layers, after, noises, known, width)
    room = (table.features + OWN) * TILE
    tiles = cpu_work.ceil(samples, TILE)
    threads = threads_for(samples, [layer for layer, _ in layers])
    apart = len(table.waiting) > 0
    buffers = cpu_buffers.empty(tiles if apart else threads, room)
    gradients = cpu_buffers.empty(tiles, table.numbers + 1)
    block = Descent(
        way=OUT,
        begin=NOWHERE,
        apart=apart,
        strange=0,
        samples=samples,
        width=width,
        levels=len(layers),
        among=among,
        order=0 if order is None else order.data_ptr(),
        x=x.data_ptr(),
        labels=labels.data_ptr(),
        loss=LOSSES[loss],
        share=bits_of(1 / samples),
        gradients=gradients.data_ptr(),
        stride=table.numbers + 1,
        buffers=buffers.data_ptr(),
        room=room,
    )
    shared = shared_of(block, table)
    kernel = kernels_of("cpu_descent_kernels").descent
    start(kernel, shared.buffer_info()[0], threads)
    if shared[DESCENT.strange]:
        if state is not None:
            torch.set_rng_state(state)
        return None
    found = cpu_batch.further_out(
        kernel, shared, DESCENT, table.waiting, buffers, samples, threads
    )
    cpu_batch.further_back(
        kernel, shared, DESCENT, table.waiting, gradients, samples, threads
    )
    return gradients[0] if tiles == 1 else gradients.sum(0), found
