"""What the CPU's kernels are given: one array of int64, and where in it each argument stands.

The array begins with two counters that all threads share; addresses and sizes follow.
"""

import struct
from typing import NamedTuple, TypeVar

from torch import Tensor

TILE = 64  # samples that walk through a whole network together
LINE = 16  # numbers of a line of a cache
PACK = 32  # samples whose copy stays in the cache while a product reads it again and again

# what a product takes on its way
BIAS = 1
RELU = 2
MASK = 4
PACKS = 8  # by `PACK` columns, as from copies, so that sums are added in the same order

# kinds of what a network does, one after the other
PRODUCT = 0
RELU_ALONE = 1
GELU = 2
GELU_OF_TANH = 3
SILU = 4
TANH = 5
SCALED = 6
NORMALIZED = 7
LEAKY = 8
NOTHING = 9
KINDS = {
    "relu": RELU_ALONE,
    "leaky relu": LEAKY,
    "gelu": GELU,
    "gelu of tanh": GELU_OF_TANH,
    "silu": SILU,
    "tanh": TANH,
    "scaled": SCALED,
    "normalized": NORMALIZED,
    "nothing": NOTHING,
}

# which way kernels of whole networks go, and where they begin if nowhere between
OUT = 0
BACK = 1
NOWHERE = -1

# numbers for each sample that `descent` notes: two float32, and two int64
OWN = 6

NORM_PIECE = 4  # features that a thread normalizes at once

NOISE_PIECE = 4096  # numbers that a thread draws at once, a multiple of 4

# losses of a whole step
CROSS_ENTROPY = 0
SQUARED_ERROR = 1  # half of it, of sigmoids

Argument = int | Tensor | None  # tensors travel as addresses, None as 0
COUNTERS = 2  # shared by all threads, at the head of a kernel's array


class Spmm(NamedTuple):
    """Arguments of `spmm`."""

    pieces: Argument  # of work, which threads draw one by one
    rows: Argument  # M, of the result
    columns: Argument  # N, of the result: samples of the batch
    step: Argument  # rows of a piece
    crow: Argument  # int32 [M + 1]
    col: Argument  # int32 [nnz]
    values: Argument  # float32 [nnz]
    bias: Argument  # float32 [M], or 0
    also: Argument  # sum of BIAS, RELU and PACKS
    x: Argument  # float32 [columns of the matrix, N]
    y: Argument  # float32 [M, N]
    copies: Argument  # float32 [threads, copied, PACK], or 0
    copied: Argument  # rows of x that are copied for a piece of `PACK` columns; 0 for no copies


class Sddmm(NamedTuple):
    """Arguments of `sddmm`."""

    pieces: Argument  # of work
    rows: Argument  # M, of dy
    columns: Argument  # N, of dy
    step: Argument  # rows of a piece
    crow: Argument  # int32 [M + 1]
    col: Argument  # int32 [nnz]
    dy: Argument  # float32 [M, N]
    x: Argument  # float32 [features, N]
    dvalues: Argument  # float32 [nnz]
    dbias: Argument  # float32 [M]
    features: Argument  # rows of x
    block: Argument  # features that are copied at once; 0 for no copies
    bounds: (
        Argument  # int32 [blocks + 1, M] where there are several blocks, or 0
    )
    copies: Argument  # float32 [threads, room], or 0
    room: Argument  # (block + step) * TILE, or 0


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
    room: Argument  # at least copied * PACK and (block + step) * TILE


class Transposed(NamedTuple):
    """Arguments of `transposed`."""

    rows: Argument  # of x
    columns: Argument  # of x
    step: Argument  # columns of a piece
    x: Argument  # float32 [rows, columns]
    y: Argument  # float32 [columns, rows]


class Network(NamedTuple):
    """Arguments of `network`."""

    samples: Argument  # of the batch
    width: Argument  # features of x
    steps: Argument  # number of layers and of what is between them
    x: Argument  # float32 [samples, width]
    y: Argument  # float32 [samples, rows of the last layer]
    buffers: Argument  # float32 [threads, 2, widest, TILE]
    widest: Argument  # most features of x or of any layer
    table: Argument  # int64 [steps, len(Row)], a `Row` for each step


class Descent(NamedTuple):
    """Arguments of `descent`; a `Level` for each layer follows them in the same array."""

    way: int  # OUT or BACK
    begin: int  # the level behind whose sums it goes on, times LEVEL_SIZE; NOWHERE for the input
    apart: int  # 1 where each tile of samples has a buffer, 0 where each thread has
    strange: int  # becomes 1 where a sample is not there, or has the number of no class
    samples: int  # of the batch
    width: int  # features of x
    levels: int  # number of layers
    among: int  # samples that the batch is drawn from
    order: int  # int64 [samples], which these are; 0 for all as they lie
    x: int  # float32 [among, width]
    labels: int  # int64 [among]
    loss: int  # CROSS_ENTROPY or SQUARED_ERROR
    share: int  # the bits of one over the number of samples, a float64
    gradients: int  # float32 [tiles of samples, stride]
    stride: int  # numbers of a tile: gradients of all parameters, and the loss
    buffers: int  # float32 [threads or tiles of samples, room]
    room: int  # (width + features of all layers + OWN) * TILE


class Outward(NamedTuple):
    """Arguments of `outward`; a `Level` for each layer follows them in the same array."""

    way: int  # OUT
    begin: int  # as in `Descent`
    samples: int  # of the batch
    width: int  # features of x
    levels: int  # number of layers, two at least
    x: int  # float32 [samples, width]
    y: int  # float32 [rows of the last layer, samples]
    kept: int  # float32 [tiles of samples, depth, TILE]: what the others wrote
    depth: int  # features of all layers but the last
    buffers: int  # float32 [threads, width + rows of the last layer, TILE]


class Inward(NamedTuple):
    """Arguments of `inward`; a `Level` for each layer follows them in the same array."""

    way: int  # BACK
    begin: int  # as in `Descent`, NOWHERE for the outputs
    apart: int  # as in `Descent`
    samples: int  # of the batch
    width: int  # features of x
    levels: int  # number of layers
    x: int  # float32 [samples, width]
    kept: int  # float32 [tiles of samples, depth, TILE]: what all layers but the last wrote
    depth: int  # features of these
    dy: int  # float32 [rows of the last layer, samples]
    dx: int  # float32 [samples, width], or 0
    gradients: int  # float32 [tiles of samples, stride]
    stride: int  # numbers of a tile: gradients of all parameters
    widest: int  # most features of any layer, and of x
    buffers: (
        int  # float32 [threads or tiles of samples, 2 * widest + width, TILE]
    )


class Normalized(NamedTuple):
    """Arguments of the kernels of normalizations, and of the activations behind them."""

    rows: int  # features
    samples: int  # of the batch
    x: int  # float32 [rows, samples]
    y: int  # float32 [rows, samples]; the gradients of it, on the way back
    dx: int  # float32 [rows, samples], on the way back
    scale: int  # float32 [rows]
    shift: int  # float32 [rows]
    epsilon: int  # the bits of what is added to a variance, a float64
    kind: int  # of the activation, or NOTHING
    number: int  # the bits of `After.number`, a float64
    kept: int  # float32 [tiles of samples, rows + 1, TILE] or [rows, 2]; see the kernels
    gradients: int  # float32 [tiles of samples, 2, rows] or [2, rows], of scale and shift
    buffers: int  # float32 [threads, room]
    room: int


class Parts(NamedTuple):
    """Arguments of the kernels that put together what tiles of samples know of a batch."""

    rows: int  # features
    samples: int  # of the batch
    parts: int  # float32 [tiles of samples, stride], of which the first 2 * rows are read
    stride: int  # numbers of a tile
    epsilon: int  # the bits of what is added to a variance, a float64
    known: int  # float32 [2, rows], is written
    found: int  # float32 [2, rows], of `moments`, is written


class Few(NamedTuple):
    """Arguments of `few`; a `Row` for each step follows them in the same array."""

    columns: int  # features of x
    samples: int  # N: 1, 2, 4, 8, 16, 32 or 64
    steps: int  # number of layers and of what is between them
    x: int  # float32 [columns, N], or if there is a copy [N, columns]
    copy: int  # float32 [columns, N] to bring x into that order, or 0
    y: int  # float32 [rows of the last layer, N]
    buffers: int  # float32 [2, most features of a layer, N] where there are several, or 0
    size: int  # bytes of one of the two
    step: int  # rows of a piece; with several layers as many as any has
    layers: int  # number of layers alone


class Noise(NamedTuple):
    """Arguments of `noise`."""

    numbers: int  # how many
    seed: int  # of their sequence
    kept: int  # of 2^16, how many are not 0
    scale: int  # the bits of what these are, a float64
    y: int  # float32 [numbers]


class Convolution(NamedTuple):
    """Arguments of `convolution`."""

    pieces: Argument  # of work
    chunks: Argument  # pieces of a stack of samples
    step: Argument  # rows of a piece
    samples: Argument  # of x
    stack: Argument  # samples that are laid one behind the other
    channels: Argument  # of x
    rows: Argument  # M, channels of y
    height: Argument  # rows of an image of x; 1 for signals
    width: Argument  # points of such a row
    row: Argument  # points from a row to the next, as laid
    pitch: Argument  # points from an image to the next, a multiple of row
    start: Argument  # points before the first row
    length: Argument  # points of a channel, zeros included
    down: Argument  # rows of an image of y
    across: Argument  # points of such a row
    written: Argument  # points of y, those between its rows included
    band: Argument  # points that all rows do before the next ones
    crow: Argument  # int32 [M + 1]
    places: Argument  # int32 [nnz]: where each weight's stretch begins
    values: Argument  # float32 [nnz]
    bias: Argument  # float32 [M], or 0
    also: Argument  # BIAS, or 0
    x: Argument  # float32 [samples, channels, height, width]
    y: Argument  # float32 [samples, M, down, across]
    own: Argument  # float32 [threads, room]
    room: Argument  # numbers that a thread lays, and one band of y


class Correlation(NamedTuple):
    """Arguments of `correlation`."""

    pieces: Argument  # of work
    chunks: Argument  # pieces of a group of samples
    step: Argument  # filters of a piece
    samples: Argument  # of x
    group: Argument  # samples whose sums are added in their order, whole stacks
    stack: Argument  # samples that are laid one behind the other
    channels: Argument  # of x
    filters: Argument  # M, channels of dy
    height: Argument  # rows of an image of x; 1 for signals
    width: Argument  # points of such a row
    row: Argument  # points from a row to the next, as laid
    pitch: Argument  # points from an image to the next, a multiple of row
    start: Argument  # points before the first row of x
    read: Argument  # points of a channel of x, zeros included
    down: Argument  # rows of an image of dy
    across: Argument  # points of such a row
    written: Argument  # N, points of dy, zeros between its rows included
    band: Argument  # points that all rows do before the next ones
    crow: Argument  # int32 [M + 1]
    places: Argument  # int32 [nnz]: where each weight's stretch begins
    x: Argument  # float32 [samples, channels, height, width]
    dy: Argument  # float32 [samples, M, down, across]
    dvalues: Argument  # float32 [groups, nnz]
    dbias: Argument  # float32 [groups, M]
    own: Argument  # float32 [threads, room]
    room: Argument  # numbers that a thread lays


class Row(NamedTuple):
    """What `network` and `few` read of one layer, or of what follows it."""

    kind: int  # PRODUCT, or what is done where the numbers are
    rows: int  # features that it writes
    crow: int  # int32 [rows + 1], of a layer
    col: int  # int32 [nnz], of a layer
    values: int  # float32 [nnz], of a layer; [rows], what others multiply by
    bias: int  # float32 [rows], or 0
    also: int  # sum of BIAS and RELU, of a layer; else the bits of `Between.number`, a float64


class Level(NamedTuple):
    """What `descent`, `outward` and `inward` read of one layer, and where they write."""

    rows: int  # features that it writes
    crow: int  # int32 [rows + 1]
    col: int  # int32 [nnz]
    values: int  # float32 [nnz]
    bias: int  # float32 [rows], or 0
    also: int  # sum of BIAS and RELU
    kind: (
        int  # of the activation that follows; PRODUCT where none does, or ReLU
    )
    number: int  # the bits of `After.number`, a float64
    noise: int  # float32 [rows, samples], what activations are multiplied by then, or 0
    tcrow: int  # int32 [features that it reads + 1]
    tcol: int  # int32 [nnz]
    tvalues: int  # float32 [nnz], in the order of the transposed pattern
    dvalues: int  # where the gradients of values begin among those of a tile
    dbias: int  # where those of biases do
    scale: int  # float32 [rows], of a normalization, or 0 where none follows
    shift: int  # float32 [rows]
    epsilon: int  # the bits of what it adds to a variance, a float64
    dscale: int  # where the gradients of scale begin among those of a tile
    dshift: int  # where those of shift do
    moments: int  # float32 [4, rows], of the batch, if it normalizes that; see `cpu_batch`; or 0
    sums: int  # where sums begin in a buffer, or in what is kept of a tile; normalized there
    raw: int  # where what the activation reads does: the sums, or normalized and scaled
    place: int  # where its outputs do: over what it reads, for ReLU and where there is none


Block = TypeVar(
    "Block",
    Spmm,
    Sddmm,
    Gradients,
    Transposed,
    Network,
    Few,
    Noise,
    Descent,
    Outward,
    Inward,
    Normalized,
    Parts,
    Convolution,
    Correlation,
)


def also(bias: Tensor | None, relu: bool) -> int:
    """Return the flags of what is fused into a product."""
    if bias is None:
        return RELU if relu else 0
    return BIAS | RELU if relu else BIAS


def bits_of(number: float) -> int:
    """Return a float64 as the int64 with its bits, as it stands in a kernel's array."""
    bits: int = struct.unpack("q", struct.pack("d", number))[0]
    return bits


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
DESCENT = places(Descent)
OUTWARD = places(Outward)
INWARD = places(Inward)
NOISE = places(Noise)
NORM = places(Normalized)
PARTS = places(Parts)
CONVOLUTION = places(Convolution)
CORRELATION = places(Correlation)
ROW = Row(*range(len(Row._fields)))
ROW_SIZE = len(Row._fields)
LEVEL = Level(*range(len(Level._fields)))
LEVEL_SIZE = len(Level._fields)
DESCENT_SIZE = COUNTERS + len(Descent._fields)
OUTWARD_SIZE = COUNTERS + len(Outward._fields)
INWARD_SIZE = COUNTERS + len(Inward._fields)
FEW_SIZE = COUNTERS + len(Few._fields)
