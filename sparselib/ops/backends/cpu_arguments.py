"""What the CPU's kernels are given: one array of int64, and where in it each argument stands.

The array begins with two counters that all threads share; addresses and sizes follow.
"""

from typing import NamedTuple, TypeVar

from torch import Tensor

TILE = 64  # samples that walk through a whole network together
PACK = 32  # samples whose copy stays in the cache while a product reads it again and again

# what a product takes on its way
BIAS = 1
RELU = 2
MASK = 4
PACKS = 8  # by `PACK` columns, as from copies, so that sums are added in the same order

Argument = int | Tensor | None  # tensors travel as addresses, None as 0
COUNTERS = 2  # shared by all threads, at the head of a kernel's array


class Spmm(NamedTuple):
    """Arguments of `spmm`."""

    pieces: Argument  # of work, which threads draw one by one
    samples: Argument  # S; 1 for a linear layer
    rows: Argument  # M, of the result
    columns: (
        Argument  # N, of the result: samples of a linear layer, points in time
    )
    step: Argument  # rows of a piece
    crow: Argument  # int32 [M + 1]
    col: Argument  # int32 [nnz]: rows of x, or places in it
    stride: Argument  # from one row of x to the next: N, or 1 where col holds places
    values: Argument  # float32 [nnz]
    bias: Argument  # float32 [M], or 0
    also: Argument  # sum of BIAS, RELU and PACKS
    x: Argument  # float32 [S, sample]
    sample: Argument  # numbers of x from one sample to the next
    y: Argument  # float32 [S, M, N]
    copies: Argument  # float32 [threads, copied, PACK], or 0
    copied: Argument  # rows of x that are copied for a piece of `PACK` columns; 0 for no copies


class Sddmm(NamedTuple):
    """Arguments of `sddmm`."""

    pieces: Argument  # of work
    samples: Argument  # S
    rows: Argument  # M, of dy
    columns: Argument  # N, of dy
    step: Argument  # rows of a piece
    crow: Argument  # int32 [M + 1]
    col: Argument  # int32 [nnz]
    stride: Argument  # from one row of x to the next
    dy: Argument  # float32 [S, M, N]
    x: Argument  # float32 [S, sample]
    sample: Argument  # numbers of x from one sample to the next
    dvalues: Argument  # float32 [nnz]
    dbias: Argument  # float32 [M]
    features: Argument  # rows of x, where samples are copied
    block: Argument  # features that are copied at once; 0 for no copies
    bounds: (
        Argument  # int32 [blocks + 1, M] where there are several blocks, or 0
    )
    copies: Argument  # float32 [threads, room], or 0
    room: Argument  # (block + step) * WIDE, or 0


class Gradients(NamedTuple):
    """Arguments of `gradients`."""

    samples: Argument  # pieces of work on dvalues and dbias
    pieces: Argument  # these, and those on dx
    columns: Argument  # N, samples of the batch
    dy: Argument  # float32 [rows, N]
    dvalues: Argument  # float32 [nnz]
    dbias: Argument  # float32 [rows]
    dx: Argument  # float32 [features, N]
    rows: Argument  # of dy
    step: Argument  # rows of dy in a piece
    crow: Argument  # int32 [rows + 1]
    col: Argument  # int32 [nnz]
    x: Argument  # float32 [features, N]
    features: Argument  # rows of x and dx
    chunk: Argument  # rows of dx in a piece
    tcrow: Argument  # int32 [features + 1]
    tcol: Argument  # int32 [nnz]
    values: Argument  # float32 [nnz], in the order of the transposed pattern
    also: Argument  # sum of MASK and PACKS
    copied: Argument  # rows of dy that are copied for a piece of dx; 0 for no copies
    block: Argument  # features that are copied at once for dvalues; 0 for no copies
    bounds: Argument  # int32 [blocks + 1, rows] where there are several blocks, or 0
    copies: Argument  # float32 [threads, room], or 0
    room: Argument  # at least copied * PACK and (block + step) * WIDE


class Transposed(NamedTuple):
    """Arguments of `transposed`."""

    rows: Argument  # of x
    columns: Argument  # of x
    x: Argument  # float32 [rows, columns]
    y: Argument  # float32 [columns, rows]


class Network(NamedTuple):
    """Arguments of `network`."""

    samples: Argument  # of the batch
    width: Argument  # features of x
    layers: Argument  # number of layers
    x: Argument  # float32 [samples, width]
    y: Argument  # float32 [samples, rows of the last layer]
    buffers: Argument  # float32 [threads, 2, widest, TILE]
    widest: Argument  # most features of x or of any layer
    table: Argument  # int64 [layers, len(Row)], a `Row` for each layer


class Few(NamedTuple):
    """Arguments of `few`; a `Row` for each layer follows them in the same array."""

    columns: int  # features of x
    samples: int  # N: 1, 2, 4, 8 or 16
    layers: int  # number of layers
    x: int  # float32 [columns, N], or if there is a copy [N, columns]
    copy: int  # float32 [columns, N] to bring x into that order, or 0
    y: int  # float32 [rows of the last layer, N]
    buffers: int  # float32 [2, most features of a layer, N] where there are several, or 0
    size: int  # bytes of one of the two
    step: int  # rows of a piece; with several layers as many as any has


class Row(NamedTuple):
    """What `network` and `few` read of one layer."""

    rows: int  # features that it writes
    crow: int  # int32 [rows + 1]
    col: int  # int32 [nnz]
    values: int  # float32 [nnz]
    bias: int  # float32 [rows], or 0
    also: int  # sum of BIAS and RELU


Block = TypeVar("Block", Spmm, Sddmm, Gradients, Transposed, Network, Few)


def places(block: type[Block]) -> Block:
    """Return where each argument stands in a kernel's array, behind the shared counters."""
    return block(*range(COUNTERS, COUNTERS + len(block._fields)))


# kernels and host read these tables alike: a[SPMM.rows] is what the host gave as Spmm(rows=...)
SPMM = places(Spmm)
SDDMM = places(Sddmm)
GRADIENTS = places(Gradients)
TRANSPOSED = places(Transposed)
NETWORK = places(Network)
FEW_SAMPLES = places(Few)
ROW = Row(*range(len(Row._fields)))
ROW_SIZE = len(Row._fields)
FEW_SIZE = COUNTERS + len(Few._fields)
