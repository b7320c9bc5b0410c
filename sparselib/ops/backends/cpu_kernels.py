"""Sparse products on the CPU: a vector type for numba, and the kernels written with it.

``Vector(n)`` is LLVM's ``<n x float>``, spread over as many registers as it needs. With 256 lanes
``sums = fma(w, load(x, i, 256), sums)`` in a loop is sixteen fused multiply-adds on AVX-512, each
reading memory, and nothing else. Activations are feature-major, (features, samples), so that a
weight meets many samples that lie side by side.

Kernels get one array of int64: two counters that all threads share, then addresses and sizes.
Nothing checks a bound in here; `sparselib.ops.backends.cpu` does. numba's cache sees changes of
this file and of no other, so whatever a kernel is made of stands here.
"""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.core.datamodel import PrimitiveModel, register_default
from numba.core.datamodel.manager import DataModelManager
from numba.core.dispatcher import Dispatcher
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from torch import Tensor

from sparselib._types import Function
from sparselib.ops.backends.cpu_cache import keep

if getattr(config, "DISABLE_JIT", False):
    raise ImportError(
        "NUMBA_DISABLE_JIT is set, and kernels exist compiled only"
    )

FLOAT = ir.FloatType()
INT = ir.IntType(32)
FLOATS = types.CPointer(types.float32)
INTS = types.CPointer(types.int32)
LONGS = types.CPointer(types.int64)

AVX512 = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]
LANES = 16 if AVX512 else 8  # of one register
WIDE = (
    256 if AVX512 else 64
)  # columns that a row of the result holds in registers
TILE = 64  # samples that walk through a whole network together
PACK = 32  # samples whose copy stays in the cache while a product reads it again and again
ZERO = np.float32(0)
ONE = np.float32(1)


class Vector(types.Type):
    """numba's type of n floats side by side."""

    def __init__(self, n: int) -> None:
        super().__init__(name=f"Vector({n})")
        self.n = n
        self.llvm = ir.VectorType(FLOAT, n)


@register_default(Vector)
class VectorModel(PrimitiveModel):
    """Defines for numba what a `Vector` is in LLVM."""

    def __init__(self, manager: DataModelManager, kind: Vector) -> None:
        super().__init__(manager, kind, kind.llvm)


def _load(b, pointer, i, n):  # type: ignore[no-untyped-def]
    vector = b.load(
        b.bitcast(b.gep(pointer, [i]), ir.VectorType(FLOAT, n).as_pointer())
    )
    vector.align = 4
    return vector


def _store(b, pointer, i, vector):  # type: ignore[no-untyped-def]
    place = b.bitcast(b.gep(pointer, [i]), vector.type.as_pointer())
    b.store(vector, place).align = 4


def _pick(b, first, second, lanes):  # type: ignore[no-untyped-def]
    return b.shuffle_vector(
        first, second, ir.Constant(ir.VectorType(INT, len(lanes)), list(lanes))
    )


def _splat(b, number, n):  # type: ignore[no-untyped-def]
    one = b.insert_element(
        ir.Constant(ir.VectorType(number.type, n), ir.Undefined), number, INT(0)
    )
    return _pick(b, one, one, [0] * n)


def _fma(b, x, y, z):  # type: ignore[no-untyped-def]
    name = f"llvm.fma.v{z.type.count}f32"
    kind = ir.FunctionType(z.type, [z.type] * 3)
    return b.call(
        cgutils.get_or_insert_function(b.module, kind, name), [x, y, z]
    )


@intrinsic(prefer_literal=True)
def splat(_, x, n):  # type: ignore[no-untyped-def]
    """Return x in each of n lanes."""
    k = n.literal_value
    return Vector(k)(types.float32, n), lambda ctx, b, sig, args: _splat(
        b, args[0], k
    )


@intrinsic(prefer_literal=True)
def load(_, p, i, n):  # type: ignore[no-untyped-def]
    """Return p[i : i + n]."""
    k = n.literal_value
    kind = Vector(k)(FLOATS, types.int64, n)
    return kind, lambda ctx, b, sig, args: _load(b, args[0], args[1], k)


@intrinsic(prefer_literal=True)
def gather(_, p, places, i, n):  # type: ignore[no-untyped-def]
    """Return p at the n places from the i-th on, by one load each: sooner than AVX2's own."""
    k = n.literal_value
    kind = Vector(k)(FLOATS, INTS, types.int64, n)

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        pointer, indices, first, _ = args
        place = b.bitcast(
            b.gep(indices, [first]), ir.VectorType(INT, k).as_pointer()
        )
        found = b.load(place)
        found.align = 4
        vector = ir.Constant(ir.VectorType(FLOAT, k), ir.Undefined)
        for lane in map(INT, range(k)):
            at = b.sext(b.extract_element(found, lane), ir.IntType(64))
            vector = b.insert_element(
                vector, b.load(b.gep(pointer, [at])), lane
            )
        return vector

    return kind, emit


@intrinsic
def store(_, p, i, v):  # type: ignore[no-untyped-def]
    """Set p[i : i + n] to v."""

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        _store(b, *args)
        return ctx.get_dummy_value()

    return types.void(FLOATS, types.int64, v), emit


@intrinsic
def fma(_, w, x, sums):  # type: ignore[no-untyped-def]
    """Return w * x + sums, with one number w."""
    kind = sums(types.float32, x, sums)
    return kind, lambda ctx, b, sig, a: _fma(
        b, _splat(b, a[0], sums.n), a[1], a[2]
    )


@intrinsic
def relu(_, v):  # type: ignore[no-untyped-def]
    """Return max(v, 0), where NaN stays NaN."""
    zero = ir.Constant(v.llvm, [0.0] * v.n)
    return v(v), lambda ctx, b, sig, a: b.select(
        b.fcmp_ordered("<", a[0], zero), zero, a[0]
    )


@intrinsic
def masked(_, v, p, i):  # type: ignore[no-untyped-def]
    """Return v where p[i : i + n] is positive or NaN, else 0: the derivative of `relu`."""

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        vector, pointer, start = args
        zero = ir.Constant(v.llvm, [0.0] * v.n)
        return b.select(
            b.fcmp_ordered("<=", _load(b, pointer, start, v.n), zero),
            zero,
            vector,
        )

    return v(v, FLOATS, types.int64), emit


@intrinsic
def blank(_, v, count):  # type: ignore[no-untyped-def]
    """Return v with zeros in its first `count` lanes."""
    lanes = ir.Constant(ir.VectorType(INT, v.n), list(range(v.n)))

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        keep = b.icmp_signed(">=", lanes, _splat(b, b.trunc(args[1], INT), v.n))
        return b.select(keep, args[0], ir.Constant(v.llvm, [0.0] * v.n))

    return v(v, types.int64), emit


@intrinsic
def partial(_, v, p, i):  # type: ignore[no-untyped-def]
    """Return v * p[i : i + n], summed to the lanes of one register."""
    k = min(v.n, LANES)

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        vector, pointer, start = args
        sums = None
        for q in range(0, v.n, k):
            part = _load(b, pointer, b.add(start, start.type(q)), k)
            mine = _pick(b, vector, vector, range(q, q + k))
            if sums is None:
                sums = b.fmul(mine, part)
            else:
                sums = _fma(b, mine, part, sums)
        return sums

    return Vector(k)(v, FLOATS, types.int64), emit


@intrinsic
def fmas(_, v, w, sums):  # type: ignore[no-untyped-def]
    """Return v * w + sums, lane by lane."""
    return v(v, w, sums), lambda ctx, b, sig, args: _fma(b, *args)


def _total(b, vector):  # type: ignore[no-untyped-def]
    name = f"llvm.vector.reduce.fadd.v{vector.type.count}f32"
    kind = ir.FunctionType(FLOAT, [FLOAT, vector.type])
    f = cgutils.get_or_insert_function(b.module, kind, name)
    return b.call(f, [FLOAT(0.0), vector], fastmath=("reassoc",))


@intrinsic
def total(_, v):  # type: ignore[no-untyped-def]
    """Sum of the lanes, as a tree."""
    return types.float32(v), lambda ctx, b, sig, args: _total(b, args[0])


@intrinsic
def totals(_, v, w, x, y):  # type: ignore[no-untyped-def]
    """Return the sums of the lanes of four vectors, side by side: sooner than one by one."""
    n = v.n
    quads = range(0, n, 4)

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        first, second, third, fourth = args

        def both(one, other, lanes):  # type: ignore[no-untyped-def]
            # lanes of each four; those from the fourth on are the other's
            at = [
                q + lane if lane < 4 else n + q + lane - 4
                for q in quads
                for lane in lanes
            ]
            return _pick(b, one, other, at)

        def halved(one, other):  # type: ignore[no-untyped-def]
            low = both(one, other, (0, 4, 1, 5))
            return b.fadd(low, both(one, other, (2, 6, 3, 7)))

        pair = halved(first, second)
        other = halved(third, fourth)
        low = both(pair, other, (0, 1, 4, 5))
        sums = b.fadd(low, both(pair, other, (2, 3, 6, 7)))
        while sums.type.count > 4:
            half = sums.type.count // 2
            sums = b.fadd(
                _pick(b, sums, sums, range(half)),
                _pick(b, sums, sums, range(half, 2 * half)),
            )
        return sums

    return Vector(4)(v, w, x, y), emit


@intrinsic
def totals_of_two(_, v, w):  # type: ignore[no-untyped-def]
    """Return the sums of the lanes of two vectors, side by side."""
    n = v.n

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        first, second = args
        low = _pick(b, first, second, [q + l for q in range(0, n, 4) for l in (0, n, 1, n + 1)])
        sums = b.fadd(low, _pick(b, first, second, [q + l for q in range(0, n, 4) for l in (2, n + 2, 3, n + 3)]))
        while sums.type.count > 2:
            half = sums.type.count // 2
            sums = b.fadd(
                _pick(b, sums, sums, range(half)),
                _pick(b, sums, sums, range(half, 2 * half)),
            )
        return sums

    return Vector(2)(v, w), emit


@intrinsic(prefer_literal=True)
def transpose(_, src, i, stride, dst, k, step, n):  # type: ignore[no-untyped-def]
    """dst[k + c * step + r] = src[i + r * stride + c] for r, c < n, by rounds of interleaving."""
    size = n.literal_value
    half = size // 2
    low = [lane for c in range(half) for lane in (c, size + c)]
    high = [lane + half for lane in low]

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        source, first, stride, target, place, step, _ = args
        at = [b.add(first, b.mul(stride, stride.type(r))) for r in range(size)]
        rows = [_load(b, source, i, size) for i in at]
        for _ in range(size.bit_length() - 1):
            rows = [
                _pick(b, rows[c], rows[c + half], x)
                for c in range(half)
                for x in (low, high)
            ]
        for r, row in enumerate(rows):
            _store(b, target, b.add(place, b.mul(step, step.type(r))), row)
        return ctx.get_dummy_value()

    long = types.int64
    return types.void(FLOATS, long, long, FLOATS, long, long, n), emit


@intrinsic
def ticket(_, a, i):  # type: ignore[no-untyped-def]
    """Return a[i] and add one to it, atomically, so that each thread gets another number."""
    one = ir.IntType(64)(1)
    return types.int64(
        LONGS, types.int64
    ), lambda ctx, b, sig, args: b.atomic_rmw(
        "add", b.gep(args[0], [args[1]]), one, "monotonic"
    )


def _pointer(kind: types.CPointer) -> Function:
    @intrinsic
    def cast(_, address):  # type: ignore[no-untyped-def]
        def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
            return b.inttoptr(args[0], ctx.get_value_type(kind))

        return kind(types.int64), emit

    return cast


@intrinsic
def after(_, p, i):  # type: ignore[no-untyped-def]
    """Return the pointer to p[i]."""
    return p(p, types.int64), lambda ctx, b, sig, args: b.gep(*args[:1], [args[1]])


floats = _pointer(FLOATS)
ints = _pointer(INTS)
longs = _pointer(LONGS)


def inline(function: Function) -> Dispatcher:
    """Compile a function that kernels call; a checker of types wrapped around it is taken off."""
    return njit(error_model="numpy")(inspect.unwrap(function))


def kernel(function: Callable[..., None]) -> Callable[[], CFunc]:
    """Make a C function of one int64 array, compiled on first use and kept on disk."""
    function = inspect.unwrap(function)

    @functools.cache
    def compiled() -> CFunc:
        made = CFunc(
            function, ((LONGS,), types.void), {}, {"error_model": "numpy"}
        )
        keep(made, function)
        made.compile()
        return made

    return compiled


# what a product takes on its way
BIAS = 1
RELU = 2
MASK = 4

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
    also: Argument  # sum of BIAS and RELU
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
    bounds: Argument  # int32 [blocks + 1, M] where there are several blocks, or 0
    copies: Argument  # float32 [threads, block + step, TILE], or 0


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
    also: Argument  # MASK, or 0
    copies: Argument  # float32 [threads, copied, PACK], or 0
    copied: Argument  # rows of dy that are copied for a piece; 0 for no copies


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
    """Arguments of `few`."""

    rows: Argument  # of the result
    columns: Argument  # of the matrix
    samples: Argument  # N, 1, 2, 4, 8 or 16
    crow: Argument  # int32 [rows + 1]
    col: Argument  # int32 [nnz]
    values: Argument  # float32 [nnz]
    bias: Argument  # float32 [rows], or 0
    also: Argument  # sum of BIAS and RELU
    x: Argument  # float32 [columns, N], or if there is a copy [N, columns]
    copy: Argument  # float32 [columns, N] to bring x into that order, or 0
    y: Argument  # float32 [rows, N]
    step: Argument  # rows of a piece


class FewThrough(NamedTuple):
    """Arguments of `few_through`; a `Row` for each layer follows them in the same array."""

    width: Argument  # features of x
    samples: Argument  # N: 1, 2, 4, 8 or 16
    layers: Argument  # number of layers
    x: Argument  # float32 [N, width]
    y: Argument  # float32 [rows of the last layer, N]
    buffers: Argument  # float32 [2, widest, N]
    widest: Argument  # most features of x or of any layer


class Row(NamedTuple):
    """What `network` and `few_through` read of one layer."""

    rows: Argument  # features that it writes
    crow: Argument  # int32 [rows + 1]
    col: Argument  # int32 [nnz]
    values: Argument  # float32 [nnz]
    bias: Argument  # float32 [rows], or 0
    also: Argument  # sum of BIAS and RELU


Block = TypeVar(
    "Block", Spmm, Sddmm, Gradients, Transposed, Network, Few, FewThrough
)


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
FEW_THROUGH = places(FewThrough)
ROW = Row(*range(len(Row._fields)))
ROW_SIZE = len(Row._fields)
FEW_THROUGH_SIZE = COUNTERS + len(FewThrough._fields)


def _rows_of_product(n: int) -> Dispatcher:
    # in few registers a sum would wait for itself; WIDE has none left for a second one
    two = n < WIDE

    @inline
    def rows(o, end, crow, col, ld, w, bias, mask, also, x, i, y, k, ldy):  # type: ignore[no-untyped-def]
        """y[k + o * ldy : + n] = sum_j w[j] x[i + col[j] * ld : + n] for rows o < end."""
        while o < end:
            sums = splat(bias[o] if also & BIAS else ZERO, n)  # [n]
            j = crow[o]
            last = crow[o + 1]
            if two:
                odd = splat(ZERO, n)  # [n]
                while j < last - 1:
                    sums = fma(w[j], load(x, i + col[j] * ld, n), sums)
                    odd = fma(w[j + 1], load(x, i + col[j + 1] * ld, n), odd)
                    j += 2
                sums = fma(ONE, odd, sums)
            while j < last:
                sums = fma(w[j], load(x, i + col[j] * ld, n), sums)
                j += 1
            if also & RELU:
                sums = relu(sums)
            if also & MASK:
                sums = masked(sums, mask, k + o * ldy)
            store(y, k + o * ldy, sums)
            o += 1

    return rows


wide_rows = _rows_of_product(WIDE)
lane_rows = _rows_of_product(LANES)
one_row = _rows_of_product(1)
tile_rows = _rows_of_product(TILE)
pack_rows = _rows_of_product(PACK)


@inline
def product(t, S, M, N, step, crow, col, ld, w, bias, mask, also, x, xs, y):  # type: ignore[no-untyped-def]
    """Do piece t of `spmm`: a block of columns for some rows of a sample."""
    blocks = (N + WIDE - 1) // WIDE
    chunks = (M + step - 1) // step
    o = t % chunks * step
    n = t // chunks % blocks * WIDE
    s = t // chunks // blocks
    e = min(M, o + step)
    end = min(N, n + WIDE)
    i = s * xs
    k = s * M * N
    while n < end:
        # a rest overlaps its neighbor: the same values, written twice
        if WIDE // 4 < end - n < WIDE <= N:
            n = end - WIDE
        elif LANES < end - n < TILE <= N:
            n = end - TILE
        elif end - n < LANES <= N:
            n = end - LANES
        if end - n >= WIDE:
            wide_rows(
                o, e, crow, col, ld, w, bias, mask, also, x, i + n, y, k + n, N
            )
            n += WIDE
        elif end - n >= TILE:
            tile_rows(
                o, e, crow, col, ld, w, bias, mask, also, x, i + n, y, k + n, N
            )
            n += TILE
        elif end - n >= LANES:
            lane_rows(
                o, e, crow, col, ld, w, bias, mask, also, x, i + n, y, k + n, N
            )
            n += LANES
        else:
            one_row(
                o, e, crow, col, ld, w, bias, mask, also, x, i + n, y, k + n, N
            )
            n += 1


@inline
def packed(t, M, N, columns, crow, col, w, bias, mask, also, x, y, copy, k):  # type: ignore[no-untyped-def]
    """Do piece t of `spmm` with S = 1: `PACK` samples for all rows, from a copy of them at k."""
    n = min(t * PACK, N - PACK)
    for c in range(columns):
        store(copy, k + c * PACK, load(x, c * N + n, PACK))  # [PACK]
    pack_rows(0, M, crow, col, PACK, w, bias, mask, also, copy, k, y, n, N)


@kernel
def spmm(a):  # type: ignore[no-untyped-def]
    """y[s, o, n] = relu(bias[o] + sum_j w[j] x[s * xs + col[j] * ld + n]) for n < N; see `Spmm`.

    A linear layer has S = 1, N = ld = samples. A convolution has S samples, N points in time,
    ld = 1, and in col the distance from a point of the output to the one it reads. A number of
    copied rows asks for pieces of `PACK` samples, and there is room for copies of them, one for
    each thread.
    """
    pieces = a[SPMM.pieces]
    S = a[SPMM.samples]
    M = a[SPMM.rows]
    N = a[SPMM.columns]
    step = a[SPMM.step]
    crow = ints(a[SPMM.crow])
    col = ints(a[SPMM.col])
    ld = a[SPMM.stride]
    w = floats(a[SPMM.values])
    bias = floats(a[SPMM.bias])
    also = a[SPMM.also]
    x = floats(a[SPMM.x])
    xs = a[SPMM.sample]
    y = floats(a[SPMM.y])
    copies = floats(a[SPMM.copies])
    columns = a[SPMM.copied]
    mine = ticket(a, 1) * columns * PACK
    while True:
        t = ticket(a, 0)
        if t >= pieces:
            break
        if columns:
            packed(
                t,
                M,
                N,
                columns,
                crow,
                col,
                w,
                bias,
                x,
                also,
                x,
                y,
                copies,
                mine,
            )
        else:
            product(t, S, M, N, step, crow, col, ld, w, bias, x, also, x, xs, y)


def _wide_gradient(n: int) -> Dispatcher:
    @inline
    def rows(o, end, lo, hi, col, ld, g, k, ldg, x, i, dw, db, once):  # type: ignore[no-untyped-def]
        """Add n columns, which stay in registers while the connections lo to hi are read."""
        while o < end:
            costs = load(g, k + o * ldg, n)  # [n]
            j = lo[o]
            last = hi[o]
            while j + 4 <= last:
                four = totals(
                    partial(costs, x, i + col[j] * ld),
                    partial(costs, x, i + col[j + 1] * ld),
                    partial(costs, x, i + col[j + 2] * ld),
                    partial(costs, x, i + col[j + 3] * ld),
                )
                store(dw, j, fma(ONE, four, load(dw, j, 4)))
                j += 4
            if j + 2 <= last:
                pair = totals_of_two(
                    partial(costs, x, i + col[j] * ld),
                    partial(costs, x, i + col[j + 1] * ld),
                )
                store(dw, j, fma(ONE, pair, load(dw, j, 2)))
                j += 2
            if j < last:
                dw[j] += total(partial(costs, x, i + col[j] * ld))
            if once:
                db[o] += total(costs)
            o += 1

    return rows


wide_gradient = _wide_gradient(WIDE)
tile_gradient = wide_gradient if WIDE == TILE else _wide_gradient(TILE)


def _rows_of_gradient(n: int) -> Dispatcher:
    @inline
    def rows(o, end, count, crow, col, ld, g, k, ldg, x, i, dw, db):  # type: ignore[no-untyped-def]
        """Add `count` columns, n at a time, to the sums of rows o < end."""
        # the last n columns overlap their neighbors; lanes that were seen count zero
        last = count - n
        whole = count - count % n
        seen = whole - last
        while o < end:
            here = k + o * ldg
            rest = blank(load(g, here + last, n), seen)  # [n]
            for j in range(crow[o], crow[o + 1]):
                there = i + col[j] * ld
                sums = fmas(
                    rest, blank(load(x, there + last, n), seen), splat(ZERO, n)
                )  # [n]
                for m in range(0, whole, n):
                    sums = fmas(
                        load(g, here + m, n), load(x, there + m, n), sums
                    )
                dw[j] += total(sums)
            for m in range(0, whole, n):
                rest = fma(ONE, load(g, here + m, n), rest)
            db[o] += total(rest)
            o += 1

    return rows


lane_gradient = _rows_of_gradient(LANES)
one_gradient = _rows_of_gradient(1)


@inline
def sample(t, S, M, N, step, crow, col, ld, g, x, xs, dw, db):  # type: ignore[no-untyped-def]
    """Do piece t of `sddmm`: some rows, which one thread owns, so that sums have one order."""
    o = t * step
    e = min(M, (t + 1) * step)
    for j in range(crow[o], crow[e]):
        dw[j] = ZERO
    for row in range(o, e):
        db[row] = ZERO
    for s in range(S):
        n = 0
        k = s * M * N
        i = s * xs
        while N - n >= WIDE:
            wide_gradient(
                o,
                e,
                crow,
                after(crow, 1),
                col,
                ld,
                g,
                k + n,
                N,
                x,
                i + n,
                dw,
                db,
                1,
            )
            n += WIDE
        if n < N and N >= LANES:
            lane_gradient(
                o, e, N - n, crow, col, ld, g, k + n, N, x, i + n, dw, db
            )
        elif n < N:
            one_gradient(o, e, N, crow, col, ld, g, k, N, x, i, dw, db)


@inline
def bounded(o, end, M, crow, col, block, blocks, bounds):  # type: ignore[no-untyped-def]
    """bounds[c * M + row] = first connection of a row from feature c * block on, for c <= blocks."""
    while o < end:
        j = crow[o]
        last = crow[o + 1]
        bounds[o] = j
        for c in range(1, blocks):
            while j < last and col[j] < c * block:
                j += 1
            bounds[c * M + o] = j
        bounds[blocks * M + o] = last
        o += 1


@inline
def tiled(x, i, stride, first, end, n, seen, copy, k):  # type: ignore[no-untyped-def]
    """Copy `TILE` numbers from n on of rows first to end; the first that were seen become zero."""
    for row in range(first, end):
        numbers = load(x, i + row * stride + n, TILE)  # [TILE]
        if seen:
            numbers = blank(numbers, seen)
        store(copy, k, numbers)
        k += TILE


@inline
def tiled_sample(
    t, M, N, step, crow, col, g, x, dw, db, features, block, bounds, copy, k
):  # type: ignore[no-untyped-def]
    """Do piece t of `sddmm` with S = 1, `TILE` samples at a time, from copies at k."""
    o = t * step
    e = min(M, o + step)
    for j in range(crow[o], crow[e]):
        dw[j] = ZERO
    for row in range(o, e):
        db[row] = ZERO
    blocks = (features + block - 1) // block
    if blocks > 1:
        bounded(o, e, M, crow, col, block, blocks, bounds)
    costs = k + block * TILE
    done = 0
    while N - done > LANES:
        n = min(done, N - TILE)
        source = copy
        from_ = costs - o * TILE
        stride = TILE
        if blocks > 1 or n < done:
            tiled(g, 0, N, o, e, n, done - n, copy, costs)
        else:
            source = g
            from_ = n
            stride = N
        for c in range(blocks):
            first = c * block
            tiled(x, 0, N, first, min(features, first + block), n, done - n, copy, k)
            lo = crow
            hi = after(crow, 1)
            if blocks > 1:
                lo = after(bounds, c * M)
                hi = after(bounds, c * M + M)
            tile_gradient(
                o,
                e,
                lo,
                hi,
                col,
                TILE,
                source,
                from_,
                stride,
                copy,
                k - first * TILE,
                dw,
                db,
                c == 0,
            )
        done = n + TILE
    if done < N:
        lane_gradient(o, e, N - done, crow, col, N, g, done, N, x, done, dw, db)


@kernel
def sddmm(a):  # type: ignore[no-untyped-def]
    """dw[j] = sum over s, n of g[s, o, n] x[s * xs + col[j] * ld + n]; db[o] = sum of g.

    See `Sddmm`.
    """
    pieces = a[SDDMM.pieces]
    S = a[SDDMM.samples]
    M = a[SDDMM.rows]
    N = a[SDDMM.columns]
    step = a[SDDMM.step]
    crow = ints(a[SDDMM.crow])
    col = ints(a[SDDMM.col])
    ld = a[SDDMM.stride]
    g = floats(a[SDDMM.dy])
    x = floats(a[SDDMM.x])
    xs = a[SDDMM.sample]
    dw = floats(a[SDDMM.dvalues])
    db = floats(a[SDDMM.dbias])
    features = a[SDDMM.features]
    block = a[SDDMM.block]
    bounds = ints(a[SDDMM.bounds])
    copies = floats(a[SDDMM.copies])
    mine = ticket(a, 1) * (block + step) * TILE
    while True:
        t = ticket(a, 0)
        if t >= pieces:
            break
        if block:
            tiled_sample(
                t,
                M,
                N,
                step,
                crow,
                col,
                g,
                x,
                dw,
                db,
                features,
                block,
                bounds,
                copies,
                mine,
            )
        else:
            sample(t, S, M, N, step, crow, col, ld, g, x, xs, dw, db)


@kernel
def gradients(a):  # type: ignore[no-untyped-def]
    """Both gradients of a linear layer at once: `sddmm`, then `spmm` of the transposed pattern.

    With `also` = MASK, x is what `relu` returned, and dx becomes the gradient of its argument. See
    `Gradients`.
    """
    samples = a[GRADIENTS.samples]
    pieces = a[GRADIENTS.pieces]
    N = a[GRADIENTS.columns]
    g = floats(a[GRADIENTS.dy])
    dw = floats(a[GRADIENTS.dvalues])
    db = floats(a[GRADIENTS.dbias])
    dx = floats(a[GRADIENTS.dx])
    M = a[GRADIENTS.rows]
    step = a[GRADIENTS.step]
    crow = ints(a[GRADIENTS.crow])
    col = ints(a[GRADIENTS.col])
    x = floats(a[GRADIENTS.x])
    features = a[GRADIENTS.features]
    chunk = a[GRADIENTS.chunk]
    tcrow = ints(a[GRADIENTS.tcrow])
    tcol = ints(a[GRADIENTS.tcol])
    w = floats(a[GRADIENTS.values])
    also = a[GRADIENTS.also]
    copies = floats(a[GRADIENTS.copies])
    rows = a[GRADIENTS.copied]
    mine = ticket(a, 1) * rows * PACK
    while True:
        t = ticket(a, 0)
        if t < samples:
            sample(t, 1, M, N, step, crow, col, N, g, x, 0, dw, db)
        elif t < pieces:
            t -= samples
            if rows:
                packed(
                    t,
                    features,
                    N,
                    rows,
                    tcrow,
                    tcol,
                    w,
                    w,
                    x,
                    also,
                    g,
                    dx,
                    copies,
                    mine,
                )
            else:
                product(
                    t,
                    1,
                    features,
                    N,
                    chunk,
                    tcrow,
                    tcol,
                    N,
                    w,
                    w,
                    x,
                    also,
                    g,
                    0,
                    dx,
                )
        else:
            break


@inline
def flip(src, s, stride, dst, d, step, rows, columns):  # type: ignore[no-untyped-def]
    """dst[d + c * step + r] = src[s + r * stride + c] for r < rows, c < columns."""
    whole_rows = rows - rows % LANES
    whole_columns = columns - columns % LANES
    for r in range(0, whole_rows, LANES):
        for c in range(0, whole_columns, LANES):
            transpose(
                src,
                s + r * stride + c,
                stride,
                dst,
                d + c * step + r,
                step,
                LANES,
            )
    for r in range(rows):
        for c in range(whole_columns if r < whole_rows else 0, columns):
            dst[d + c * step + r] = src[s + r * stride + c]


@kernel
def transposed(a):  # type: ignore[no-untyped-def]
    """Write y (columns, rows) = x (rows, columns)^T; see `Transposed`."""
    rows = a[TRANSPOSED.rows]
    columns = a[TRANSPOSED.columns]
    x = floats(a[TRANSPOSED.x])
    y = floats(a[TRANSPOSED.y])
    while True:
        r = ticket(a, 0) * 64
        if r >= rows:
            break
        flip(x, r * columns, columns, y, r, rows, min(64, rows - r), columns)


def _few_rows(n: int) -> Dispatcher:
    @inline
    def rows(o, end, crow, col, w, bias, also, x, y):  # type: ignore[no-untyped-def]
        """y[o, : n] = sum_j w[j] x[col[j], : n] for rows o < end: four sums, so that none waits."""
        while o < end:
            first = splat(bias[o] if also & BIAS else ZERO, n)  # [n]
            j = crow[o]
            last = crow[o + 1]
            if j + 4 <= last:
                second = splat(ZERO, n)  # [n]
                third = splat(ZERO, n)  # [n]
                fourth = splat(ZERO, n)  # [n]
                while j + 4 <= last:
                    first = fma(w[j], load(x, col[j] * n, n), first)
                    second = fma(w[j + 1], load(x, col[j + 1] * n, n), second)
                    third = fma(w[j + 2], load(x, col[j + 2] * n, n), third)
                    fourth = fma(w[j + 3], load(x, col[j + 3] * n, n), fourth)
                    j += 4
                first = fma(ONE, second, first)
                third = fma(ONE, fourth, third)
                first = fma(ONE, third, first)
            while j < last:
                first = fma(w[j], load(x, col[j] * n, n), first)
                j += 1
            if also & RELU:
                first = relu(first)
            store(y, o * n, first)
            o += 1

    return rows


def _few_flip(n: int) -> Dispatcher:
    @inline
    def flip_few(x, columns, copy):  # type: ignore[no-untyped-def]
        """copy[c, : n] = x[: n, c]."""
        whole = columns - columns % n
        for c in range(0, whole, n):
            transpose(x, c, columns, copy, c * n, n, n)
        for c in range(whole, columns):
            for r in range(n):
                copy[c * n + r] = x[r * columns + c]

    return flip_few


@inline
def one_few(o, end, crow, col, w, bias, also, x, y):  # type: ignore[no-untyped-def]
    """y[o] = sum_j w[j] x[col[j]] for rows o < end: connections side by side, not samples."""
    while o < end:
        all_of_row = bias[o] if also & BIAS else ZERO
        j = crow[o]
        last = crow[o + 1]
        if j + 16 <= last:
            first = splat(ZERO, 8)  # [8]
            second = splat(ZERO, 8)  # [8]
            while j + 16 <= last:
                first = fmas(load(w, j, 8), gather(x, col, j, 8), first)
                second = fmas(
                    load(w, j + 8, 8), gather(x, col, j + 8, 8), second
                )
                j += 16
            all_of_row += total(fma(ONE, second, first))
        if j + 4 <= last:
            third = splat(ZERO, 4)  # [4]
            while j + 4 <= last:
                third = fmas(load(w, j, 4), gather(x, col, j, 4), third)
                j += 4
            all_of_row += total(third)
        while j < last:
            all_of_row += w[j] * x[col[j]]
            j += 1
        sums = splat(all_of_row, 1)  # [1]
        if also & RELU:
            sums = relu(sums)
        store(y, o, sums)
        o += 1


two_few = _few_rows(2)
four_few = _few_rows(4)
eight_few = _few_rows(8)
sixteen_few = _few_rows(16)
two_flip = _few_flip(2)
four_flip = _few_flip(4)
eight_flip = _few_flip(8)
sixteen_flip = _few_flip(16)


@inline
def few_flip(N, x, columns, copy):  # type: ignore[no-untyped-def]
    """copy[c, : N] = x[: N, c]."""
    if N == 1:
        for c in range(columns):
            copy[c] = x[c]
    elif N == 2:
        two_flip(x, columns, copy)
    elif N == 4:
        four_flip(x, columns, copy)
    elif N == 8:
        eight_flip(x, columns, copy)
    elif N == 16:
        sixteen_flip(x, columns, copy)


@inline
def few_rows(N, o, end, crow, col, w, bias, also, x, y):  # type: ignore[no-untyped-def]
    """Do rows o to end for N samples."""
    if N == 1:
        one_few(o, end, crow, col, w, bias, also, x, y)
    elif N == 2:
        two_few(o, end, crow, col, w, bias, also, x, y)
    elif N == 4:
        four_few(o, end, crow, col, w, bias, also, x, y)
    elif N == 8:
        eight_few(o, end, crow, col, w, bias, also, x, y)
    elif N == 16:
        sixteen_few(o, end, crow, col, w, bias, also, x, y)


@kernel
def few(a):  # type: ignore[no-untyped-def]
    """Y (rows, N) = relu(W X + bias) for N = 1, 2, 4, 8 or 16 samples; see `Few`.

    With room for a copy, X is brought into order first, which only one thread may do.
    """
    M = a[FEW_SAMPLES.rows]
    columns = a[FEW_SAMPLES.columns]
    N = a[FEW_SAMPLES.samples]
    crow = ints(a[FEW_SAMPLES.crow])
    col = ints(a[FEW_SAMPLES.col])
    w = floats(a[FEW_SAMPLES.values])
    bias = floats(a[FEW_SAMPLES.bias])
    also = a[FEW_SAMPLES.also]
    x = floats(a[FEW_SAMPLES.x])
    y = floats(a[FEW_SAMPLES.y])
    step = a[FEW_SAMPLES.step]
    if a[FEW_SAMPLES.copy]:
        copy = floats(a[FEW_SAMPLES.copy])
        few_flip(N, x, columns, copy)
        x = copy
    while True:
        o = ticket(a, 0) * step
        if o >= M:
            break
        few_rows(N, o, min(M, o + step), crow, col, w, bias, also, x, y)


@kernel
def few_through(a):  # type: ignore[no-untyped-def]
    """Y (rows, N) from x (N, width) through all layers, by one thread; see `FewThrough`."""
    width = a[FEW_THROUGH.width]
    N = a[FEW_THROUGH.samples]
    layers = a[FEW_THROUGH.layers]
    buffers = a[FEW_THROUGH.buffers]
    size = 4 * a[FEW_THROUGH.widest] * N
    few_flip(N, floats(a[FEW_THROUGH.x]), width, floats(buffers))
    for number in range(layers):
        t = FEW_THROUGH_SIZE + number * ROW_SIZE
        source = floats(buffers + number % 2 * size)
        target = floats(buffers + (number + 1) % 2 * size)
        if number == layers - 1:
            target = floats(a[FEW_THROUGH.y])
        few_rows(
            N,
            0,
            a[t + ROW.rows],
            ints(a[t + ROW.crow]),
            ints(a[t + ROW.col]),
            floats(a[t + ROW.values]),
            floats(a[t + ROW.bias]),
            a[t + ROW.also],
            source,
            target,
        )


@kernel
def network(a):  # type: ignore[no-untyped-def]
    """Y (samples, out) from x (samples, in) through all layers, `TILE` samples at a time.

    The activations of a tile stay in the cache: two buffers for each thread, written in turn. See
    `Network` and `Row`.
    """
    samples = a[NETWORK.samples]
    width = a[NETWORK.width]
    layers = a[NETWORK.layers]
    x = floats(a[NETWORK.x])
    y = floats(a[NETWORK.y])
    buffers = floats(a[NETWORK.buffers])
    widest = a[NETWORK.widest]
    table = longs(a[NETWORK.table])
    here = ticket(a, 1) * 2 * widest * TILE
    there = here + widest * TILE
    while True:
        first = ticket(a, 0) * TILE
        if first >= samples:
            break
        n = min(TILE, samples - first)
        rows = width
        if n < TILE:
            for i in range(width * TILE):
                buffers[here + i] = ZERO
        flip(x, first * width, width, buffers, here, TILE, n, width)
        for t in range(0, ROW_SIZE * layers, ROW_SIZE):
            rows = table[t + ROW.rows]
            crow = ints(table[t + ROW.crow])
            col = ints(table[t + ROW.col])
            w = floats(table[t + ROW.values])
            bias = floats(table[t + ROW.bias])
            also = table[t + ROW.also]
            b = buffers
            tile_rows(
                0,
                rows,
                crow,
                col,
                TILE,
                w,
                bias,
                b,
                also,
                b,
                here,
                b,
                there,
                TILE,
            )
            here, there = there, here
        flip(buffers, here, TILE, y, first * rows, rows, rows, n)
