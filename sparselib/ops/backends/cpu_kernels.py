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
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel, register_default
from numba.core.registry import cpu_target
from numba.extending import intrinsic

FLOAT, INT = ir.FloatType(), ir.IntType(32)
FLOATS, INTS, LONGS = (types.CPointer(t) for t in (types.float32, types.int32, types.int64))

AVX512 = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]
LANES = 16 if AVX512 else 8  # of one register
WIDE = 256 if AVX512 else 64  # columns that a row of the result holds in registers
TILE = 64  # samples that walk through a whole network together
PACK = 32  # samples whose copy stays in the cache while a product reads it again and again
ZERO, ONE = np.float32(0), np.float32(1)


class Vector(types.Type):
    """numba's type of n floats side by side."""

    def __init__(self, n: int) -> None:
        super().__init__(name=f"Vector({n})")
        self.n, self.llvm = n, ir.VectorType(FLOAT, n)


@register_default(Vector)
class VectorModel(PrimitiveModel):
    """Tells numba what a `Vector` is in LLVM."""

    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, kind.llvm)


def _load(b, pointer, i, n):  # type: ignore[no-untyped-def]
    vector = b.load(b.bitcast(b.gep(pointer, [i]), ir.VectorType(FLOAT, n).as_pointer()))
    vector.align = 4
    return vector


def _store(b, pointer, i, vector):  # type: ignore[no-untyped-def]
    place = b.bitcast(b.gep(pointer, [i]), vector.type.as_pointer())
    b.store(vector, place).align = 4


def _pick(b, first, second, lanes):  # type: ignore[no-untyped-def]
    return b.shuffle_vector(first, second, ir.Constant(ir.VectorType(INT, len(lanes)), list(lanes)))


def _splat(b, number, n):  # type: ignore[no-untyped-def]
    one = b.insert_element(ir.Constant(ir.VectorType(number.type, n), ir.Undefined), number, INT(0))
    return _pick(b, one, one, [0] * n)


def _fma(b, x, y, z):  # type: ignore[no-untyped-def]
    name, kind = f"llvm.fma.v{z.type.count}f32", ir.FunctionType(z.type, [z.type] * 3)
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), [x, y, z])


@intrinsic(prefer_literal=True)
def splat(_, x, n):  # type: ignore[no-untyped-def]
    """Return x in each of n lanes."""
    k = n.literal_value
    return Vector(k)(types.float32, n), lambda ctx, b, sig, args: _splat(b, args[0], k)


@intrinsic(prefer_literal=True)
def load(_, p, i, n):  # type: ignore[no-untyped-def]
    """Return p[i : i + n]."""
    k = n.literal_value
    kind = Vector(k)(FLOATS, types.int64, n)
    return kind, lambda ctx, b, sig, args: _load(b, args[0], args[1], k)


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
    return kind, lambda ctx, b, sig, a: _fma(b, _splat(b, a[0], sums.n), a[1], a[2])


@intrinsic
def relu(_, v):  # type: ignore[no-untyped-def]
    """Return max(v, 0), where NaN stays NaN."""
    zero = ir.Constant(v.llvm, [0.0] * v.n)
    return v(v), lambda ctx, b, sig, a: b.select(b.fcmp_ordered("<", a[0], zero), zero, a[0])


@intrinsic
def masked(_, v, p, i):  # type: ignore[no-untyped-def]
    """Return v where p[i : i + n] is positive or NaN, else 0: the derivative of `relu`."""

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        vector, pointer, start = args
        zero = ir.Constant(v.llvm, [0.0] * v.n)
        return b.select(b.fcmp_ordered("<=", _load(b, pointer, start, v.n), zero), zero, vector)

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
def dot(_, v, p, i):  # type: ignore[no-untyped-def]
    """Sum of v * p[i : i + n]: a quarter of the lanes at a time, then as a tree."""
    k = max(v.n // 4, min(v.n, 16))

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        vector, pointer, start = args
        sums = ir.Constant(ir.VectorType(FLOAT, k), [0.0] * k)
        for q in range(0, v.n, k):
            part = _load(b, pointer, b.add(start, start.type(q)), k)
            sums = _fma(b, _pick(b, vector, vector, range(q, q + k)), part, sums)
        return _total(b, sums)

    return types.float32(v, FLOATS, types.int64), emit


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
            rows = [_pick(b, rows[c], rows[c + half], x) for c in range(half) for x in (low, high)]
        for r, row in enumerate(rows):
            _store(b, target, b.add(place, b.mul(step, step.type(r))), row)
        return ctx.get_dummy_value()

    long = types.int64
    return types.void(FLOATS, long, long, FLOATS, long, long, n), emit


@intrinsic
def ticket(_, a, i):  # type: ignore[no-untyped-def]
    """Return a[i] and add one to it, atomically, so that each thread gets another number."""
    one = ir.IntType(64)(1)
    return types.int64(LONGS, types.int64), lambda ctx, b, sig, args: b.atomic_rmw(
        "add", b.gep(args[0], [args[1]]), one, "monotonic"
    )


def _pointer(kind: Any) -> Any:
    @intrinsic
    def cast(_, address):  # type: ignore[no-untyped-def]
        emit = lambda ctx, b, sig, args: b.inttoptr(args[0], ctx.get_value_type(kind))  # noqa: E731
        return kind(types.int64), emit

    return cast


floats, ints, longs = _pointer(FLOATS), _pointer(INTS), _pointer(LONGS)


def inline(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels call; a checker of types wrapped around it is taken off."""
    return njit(error_model="numpy")(inspect.unwrap(function))


def kernel(function: Callable[..., None]) -> Callable[[], Any]:
    """Make a C function of one int64 array, compiled on first use and kept on disk."""
    function = inspect.unwrap(function)

    @functools.cache
    def compiled() -> Any:
        kind = types.void(LONGS)
        try:
            return cfunc(kind, cache=True, error_model="numpy")(function)
        except RuntimeError:  # nowhere to keep it
            return cfunc(kind, error_model="numpy")(function)

    return compiled


# what a product takes on its way
BIAS, RELU, MASK = 1, 2, 4


def _rows_of_product(n: int) -> Any:
    # in few registers a sum would wait for itself; WIDE has none left for a second one
    two = n < WIDE

    @inline
    def rows(o, end, crow, col, ld, w, bias, mask, also, x, i, y, k, ldy):  # type: ignore[no-untyped-def]
        while o < end:
            sums, j, last = splat(bias[o] if also & BIAS else ZERO, n), crow[o], crow[o + 1]
            if two:
                odd = splat(ZERO, n)
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


wide_rows, lane_rows, one_row = map(_rows_of_product, (WIDE, LANES, 1))
tile_rows, pack_rows = map(_rows_of_product, (TILE, PACK))


@inline
def product(t, S, M, N, step, crow, col, ld, w, bias, mask, also, x, xs, y):  # type: ignore[no-untyped-def]
    """Do piece t of `spmm`: a block of columns for some rows of a sample."""
    blocks, chunks = (N + WIDE - 1) // WIDE, (M + step - 1) // step
    o, n, s = t % chunks * step, t // chunks % blocks * WIDE, t // chunks // blocks
    e, end, i, k = min(M, o + step), min(N, n + WIDE), s * xs, s * M * N
    while n < end:
        # a rest overlaps its neighbour: the same values, written twice
        if WIDE // 4 < end - n < WIDE <= N:
            n = end - WIDE
        elif LANES < end - n < TILE <= N:
            n = end - TILE
        elif end - n < LANES <= N:
            n = end - LANES
        if end - n >= WIDE:
            wide_rows(o, e, crow, col, ld, w, bias, mask, also, x, i + n, y, k + n, N)
            n += WIDE
        elif end - n >= TILE:
            tile_rows(o, e, crow, col, ld, w, bias, mask, also, x, i + n, y, k + n, N)
            n += TILE
        elif end - n >= LANES:
            lane_rows(o, e, crow, col, ld, w, bias, mask, also, x, i + n, y, k + n, N)
            n += LANES
        else:
            one_row(o, e, crow, col, ld, w, bias, mask, also, x, i + n, y, k + n, N)
            n += 1


@inline
def packed(t, M, N, columns, crow, col, w, bias, mask, also, x, y, copy, k):  # type: ignore[no-untyped-def]
    """Do piece t of `spmm` with S = 1: `PACK` samples for all rows, from a copy of them at k."""
    n = min(t * PACK, N - PACK)
    for c in range(columns):
        store(copy, k + c * PACK, load(x, c * N + n, PACK))
    pack_rows(0, M, crow, col, PACK, w, bias, mask, also, copy, k, y, n, N)


@kernel
def spmm(a):  # type: ignore[no-untyped-def]
    """y[s, o, n] = relu(bias[o] + sum_j w[j] x[s * xs + col[j] * ld + n]) for n < N.

    A linear layer has S = 1, N = ld = samples. A convolution has S samples, N points in time,
    ld = 1, and in col the distance from a point of the output to the one it reads. A number of
    columns asks for pieces of `PACK` samples, and there is room for copies of them, one a thread.
    """
    pieces, S, M, N, step = a[2], a[3], a[4], a[5], a[6]
    crow, col, ld, w, bias, also = ints(a[7]), ints(a[8]), a[9], floats(a[10]), floats(a[11]), a[12]
    x, xs, y, copies, columns = floats(a[13]), a[14], floats(a[15]), floats(a[16]), a[17]
    mine = ticket(a, 1) * columns * PACK
    while True:
        t = ticket(a, 0)
        if t >= pieces:
            break
        if columns:
            packed(t, M, N, columns, crow, col, w, bias, x, also, x, y, copies, mine)
        else:
            product(t, S, M, N, step, crow, col, ld, w, bias, x, also, x, xs, y)


@inline
def wide_gradient(o, end, crow, col, ld, g, k, ldg, x, i, dw, db):  # type: ignore[no-untyped-def]
    """Add `WIDE` columns, which stay in registers while a row's numbers are read."""
    while o < end:
        costs = load(g, k + o * ldg, WIDE)
        for j in range(crow[o], crow[o + 1]):
            dw[j] += dot(costs, x, i + col[j] * ld)
        db[o] += total(costs)
        o += 1


def _rows_of_gradient(n: int) -> Any:
    @inline
    def rows(o, end, count, crow, col, ld, g, k, ldg, x, i, dw, db):  # type: ignore[no-untyped-def]
        # the last n columns overlap their neighbours; lanes that were seen count zero
        last, whole = count - n, count - count % n
        seen = whole - last
        while o < end:
            here = k + o * ldg
            rest = blank(load(g, here + last, n), seen)
            for j in range(crow[o], crow[o + 1]):
                there = i + col[j] * ld
                sums = fmas(rest, blank(load(x, there + last, n), seen), splat(ZERO, n))
                for m in range(0, whole, n):
                    sums = fmas(load(g, here + m, n), load(x, there + m, n), sums)
                dw[j] += total(sums)
            for m in range(0, whole, n):
                rest = fma(ONE, load(g, here + m, n), rest)
            db[o] += total(rest)
            o += 1

    return rows


lane_gradient, one_gradient = map(_rows_of_gradient, (LANES, 1))


@inline
def sample(t, S, M, N, step, crow, col, ld, g, x, xs, dw, db):  # type: ignore[no-untyped-def]
    """Do piece t of `sddmm`: some rows, which one thread owns, so that sums have one order."""
    o, e = t * step, min(M, (t + 1) * step)
    for j in range(crow[o], crow[e]):
        dw[j] = ZERO
    for row in range(o, e):
        db[row] = ZERO
    for s in range(S):
        n, k, i = 0, s * M * N, s * xs
        while N - n >= WIDE:
            wide_gradient(o, e, crow, col, ld, g, k + n, N, x, i + n, dw, db)
            n += WIDE
        if N >= LANES:
            lane_gradient(o, e, N - n, crow, col, ld, g, k + n, N, x, i + n, dw, db)
        else:
            one_gradient(o, e, N, crow, col, ld, g, k, N, x, i, dw, db)


@kernel
def sddmm(a):  # type: ignore[no-untyped-def]
    """dw[j] = sum over s, n of g[s, o, n] x[s * xs + col[j] * ld + n]; db[o] = sum of g."""
    pieces, S, M, N, step = a[2], a[3], a[4], a[5], a[6]
    crow, col, ld = ints(a[7]), ints(a[8]), a[9]
    g, x, xs, dw, db = floats(a[10]), floats(a[11]), a[12], floats(a[13]), floats(a[14])
    while True:
        t = ticket(a, 0)
        if t >= pieces:
            break
        sample(t, S, M, N, step, crow, col, ld, g, x, xs, dw, db)


@kernel
def gradients(a):  # type: ignore[no-untyped-def]
    """Both gradients of a linear layer at once: `sddmm`, then `spmm` of the transposed pattern.

    With `also` = MASK, x is what `relu` returned, and dx becomes the gradient of its argument.
    """
    samples, pieces, N, g, dw, db, dx = a[2], a[3], a[4], floats(a[5]), a[6], a[7], floats(a[8])
    M, step, crow, col, x = a[9], a[10], ints(a[11]), ints(a[12]), floats(a[13])
    columns, chunk, tcrow, tcol, w = a[14], a[15], ints(a[16]), ints(a[17]), floats(a[18])
    also, copies, rows = a[19], floats(a[20]), a[21]
    mine = ticket(a, 1) * rows * PACK
    while True:
        t = ticket(a, 0)
        if t < samples:
            sample(t, 1, M, N, step, crow, col, N, g, x, 0, floats(dw), floats(db))
        elif t < pieces:
            t -= samples
            if rows:
                packed(t, columns, N, rows, tcrow, tcol, w, w, x, also, g, dx, copies, mine)
            else:
                product(t, 1, columns, N, chunk, tcrow, tcol, N, w, w, x, also, g, 0, dx)
        else:
            break


@inline
def flip(src, s, stride, dst, d, step, rows, columns):  # type: ignore[no-untyped-def]
    """dst[d + c * step + r] = src[s + r * stride + c] for r < rows, c < columns."""
    whole_rows, whole_columns = rows - rows % LANES, columns - columns % LANES
    for r in range(0, whole_rows, LANES):
        for c in range(0, whole_columns, LANES):
            transpose(src, s + r * stride + c, stride, dst, d + c * step + r, step, LANES)
    for r in range(rows):
        for c in range(whole_columns if r < whole_rows else 0, columns):
            dst[d + c * step + r] = src[s + r * stride + c]


@kernel
def transposed(a):  # type: ignore[no-untyped-def]
    """Write y (columns, rows) = x (rows, columns)^T."""
    rows, columns, x, y = a[2], a[3], floats(a[4]), floats(a[5])
    while True:
        r = ticket(a, 0) * 64
        if r >= rows:
            break
        flip(x, r * columns, columns, y, r, rows, min(64, rows - r), columns)


@kernel
def network(a):  # type: ignore[no-untyped-def]
    """Y (samples, out) from x (samples, in) through all layers, `TILE` samples at a time.

    The activations of a tile stay in the cache: two buffers a thread, written in turn. `table` has
    six numbers a layer: rows, where crow, col, weights and biases are, and `also`.
    """
    samples, width, layers, x, y = a[2], a[3], a[4], floats(a[5]), floats(a[6])
    buffers, widest, table = floats(a[7]), a[8], longs(a[9])
    here = ticket(a, 1) * 2 * widest * TILE
    there = here + widest * TILE
    while True:
        first = ticket(a, 0) * TILE
        if first >= samples:
            break
        n, rows = min(TILE, samples - first), width
        if n < TILE:
            for i in range(width * TILE):
                buffers[here + i] = ZERO
        flip(x, first * width, width, buffers, here, TILE, n, width)
        for t in range(0, 6 * layers, 6):
            rows, also = table[t], table[t + 5]
            crow, col, w = ints(table[t + 1]), ints(table[t + 2]), floats(table[t + 3])
            bias, b = floats(table[t + 4]), buffers
            tile_rows(0, rows, crow, col, TILE, w, bias, b, also, b, here, b, there, TILE)
            here, there = there, here
        flip(buffers, here, TILE, y, first * rows, rows, rows, n)
