"""How the work of the CPU's kernels is divided into pieces, and what of it is copied before.

Activations are feature-major, so that the samples of a feature lie a power of two from those of
the next in most batches, and meet in the same few places of a cache. What is read often is copied
first: some samples of all features, side by side.
"""

import functools
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from sparselib.ops.backends import cpu_buffers
from sparselib.ops.backends.cpu_arguments import PACK, PACKS, TILE

BLOCK = 128  # features of a tile: all of them fit the L1 of a core
PER_ROW = 8  # connections of a row in a block of features that pay for its costs' second reading
# copies for a product
COPIED_FROM = 256  # samples; those of fewer lie close together anyway
PER_FEATURE = 16  # connections that pay for the copy of a feature
MANY_FROM = 513  # samples, of which half as many connections as lanes pay
# copies of each thread for a weight gradient
PER_COPY = 24  # connections that pay for the copy of a feature
OFTEN_FROM = 384  # samples, of which fewer connections pay
PER_OFTEN = 4


class Product(NamedTuple):
    """How a product is divided, and its kernel's flag."""

    step: int  # rows of a piece
    pieces: int
    copied: int = 0  # rows of x that are copied for a piece; 0 for no copies
    room: int = 0  # numbers that are copied for a piece
    also: int = 0  # PACKS, or 0


class Samples(NamedTuple):
    """How a weight gradient is divided, where each row is one thread's."""

    step: int  # rows of a piece
    pieces: int
    block: int = 0  # features that are copied at once; 0 for no copies
    bounds: Tensor | None = None  # room for where blocks begin in each row
    room: int = 0  # numbers that are copied for a piece


def product(rows: int, columns: int, batch: int, nnz: int) -> Product:
    """Divide a product into blocks of samples that are copied, or into rows."""
    paying = PER_FEATURE if batch < MANY_FROM else _vectors().LANES // 2
    if batch < COPIED_FROM or nnz < paying * columns:
        return divided(rows, batch)
    # copying pays where each number is read several times, and all threads have something to do
    threads = torch.get_num_threads()
    if batch <= 2 * threads * PACK:
        # without copies, but sums have the same order, whatever the number of threads
        return divided(rows, batch)._replace(also=PACKS)
    room = columns * PACK
    return Product(rows, ceil(batch, PACK), columns, room, PACKS)


def divided(rows: int, columns: int) -> Product:
    """Divide a product into rows, so that each thread gets several pieces."""
    wide: int = _vectors().WIDE
    # a rest of a quarter is its neighbor's
    blocks = max(1, ceil(columns - wide // 4, wide))
    threads = torch.get_num_threads()
    if blocks >= 4 * threads:
        return Product(rows, blocks)
    step = max(1, ceil(rows * blocks, 4 * threads))
    return Product(step, blocks * ceil(rows, step))


def samples(rows: int, features: int, batch: int, nnz: int) -> Samples:
    """Divide a weight gradient into rows, with copies of some samples where these pay.

    All threads copy all features for themselves. Features are read in blocks where rows have so
    many connections that a block of samples stays close to the core.
    """
    threads = torch.get_num_threads()
    paying = PER_COPY if batch < OFTEN_FROM else PER_OFTEN
    if batch < 2 * TILE or nnz < paying * threads * features:
        return Samples(*owned(rows))
    blocks = min(ceil(features, BLOCK), max(1, nnz // (PER_ROW * rows)))
    step = ceil(rows, threads)
    block = ceil(features, blocks)
    bounds = None
    if blocks > 1:
        bounds = torch.empty((blocks + 1, rows), dtype=torch.int32)
    return Samples(step, ceil(rows, step), block, bounds, (block + step) * TILE)


def owned(rows: int) -> tuple[int, int]:
    """Return rows of a piece, and number of pieces, several for each of several threads."""
    threads = torch.get_num_threads()
    step = rows if threads == 1 else max(1, ceil(rows, 4 * threads))
    return step, ceil(rows, step)


def copies(room: int) -> Tensor | None:
    """Return room for so many numbers for each thread, or None."""
    if not room:
        return None
    return cpu_buffers.empty(torch.get_num_threads(), room)


@functools.cache
def _vectors() -> ModuleType:
    from sparselib.ops.backends import cpu_vectors

    return cpu_vectors


def ceil(number: int, divisor: int) -> int:
    """Return the quotient, rounded up."""
    return -(-number // divisor)
