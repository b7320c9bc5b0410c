"""A vector type for numba, the operations that kernels are written with, and how they compile.

``Vector(n)`` is LLVM's ``<n x float>``, spread over as many registers as it needs. With 256 lanes
``sums = fma(w, load(x, i, 256), sums)`` in a loop is sixteen fused multiply-adds on AVX-512, each
reading memory, and nothing else. The same source gives registers of 128, 256 and 512 bits.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

from sparselib._types import Function
from sparselib.ops.backends.cpu_cache import keep, stamps

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
# a compiled kernel on disk is of these files as they are
SOURCES = stamps(sorted(Path(__file__).parent.glob("cpu_*.py")))
LANES = 16 if AVX512 else 8  # of one register
WIDE = (
    256 if AVX512 else 64
)  # columns that a row of the result holds in registers
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
        mine = _pick(b, vector, vector, range(k))
        sums = b.fmul(mine, _load(b, pointer, start, k))
        for q in range(k, v.n, k):
            mine = _pick(b, vector, vector, range(q, q + k))
            part = _load(b, pointer, b.add(start, start.type(q)), k)
            sums = _fma(b, mine, part, sums)
        return sums

    return Vector(k)(v, FLOATS, types.int64), emit


@intrinsic
def fmas(_, v, w, sums):  # type: ignore[no-untyped-def]
    """Return v * w + sums, lane by lane."""
    return v(v, w, sums), lambda ctx, b, sig, args: _fma(b, *args)


def _interleaved(b, first, second, lanes):  # type: ignore[no-untyped-def]
    """Return these lanes of each four of two vectors; from 4 on they are the second's."""
    n = first.type.count
    at = [
        quad + (lane if lane < 4 else n + lane - 4)
        for quad in range(0, n, 4)
        for lane in lanes
    ]
    return _pick(b, first, second, at)


def _pairs(b, first, second):  # type: ignore[no-untyped-def]
    """Sum the lanes of each four two by two: first, second, first, second."""
    low = _interleaved(b, first, second, (0, 4, 1, 5))
    return b.fadd(low, _interleaved(b, first, second, (2, 6, 3, 7)))


def _folded(b, vector, lanes):  # type: ignore[no-untyped-def]
    """Add the upper half of the lanes to the lower until at most so many are left."""
    while (n := vector.type.count) > lanes:
        low = _pick(b, vector, vector, range(n // 2))
        vector = b.fadd(low, _pick(b, vector, vector, range(n // 2, n)))
    return vector


def _total(b, vector):  # type: ignore[no-untyped-def]
    vector = _folded(b, vector, LANES)
    if vector.type.count >= 4:
        # in each four the order is that of `totals`: (0 + 2) + (1 + 3)
        for lanes in (2, 3, 2, 3), (1, 1, 1, 1):
            vector = b.fadd(vector, _interleaved(b, vector, vector, lanes))
        vector = _folded(b, vector, 4)
    else:
        vector = _folded(b, vector, 1)
    return b.extract_element(vector, INT(0))


@intrinsic
def total(_, v):  # type: ignore[no-untyped-def]
    """Sum of the lanes, added in the same order as by `totals`."""
    return types.float32(v), lambda ctx, b, sig, args: _total(b, args[0])


@intrinsic
def totals(_, v, w, x, y):  # type: ignore[no-untyped-def]
    """Return the sums of the lanes of four vectors, side by side: sooner than one by one."""

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        pairs = _pairs(b, *args[:2])
        other = _pairs(b, *args[2:])
        low = _interleaved(b, pairs, other, (0, 1, 4, 5))
        high = _interleaved(b, pairs, other, (2, 3, 6, 7))
        return _folded(b, b.fadd(low, high), 4)

    return Vector(4)(v, w, x, y), emit


@intrinsic
def totals_of_two(_, v, w):  # type: ignore[no-untyped-def]
    """Return the sums of the lanes of two vectors, side by side."""

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        pairs = _pairs(b, *args)
        high = _interleaved(b, pairs, pairs, (2, 3, 2, 3))
        sums = _folded(b, b.fadd(pairs, high), 4)
        return _pick(b, sums, sums, (0, 1))

    return Vector(2)(v, w), emit


@intrinsic(prefer_literal=True)
def transpose(_, src, i, stride, dst, k, step, n):  # type: ignore[no-untyped-def]
    """dst[k + c * step + r] = src[i + r * stride + c] for r, c < n, by rounds of interleaving."""
    size = n.literal_value

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        source, first, stride, target, place, step, _ = args
        at = [b.add(first, b.mul(stride, stride.type(r))) for r in range(size)]
        _store_transposed(b, source, at, target, place, step)
        return ctx.get_dummy_value()

    long = types.int64
    return types.void(FLOATS, long, long, FLOATS, long, long, n), emit


@intrinsic(prefer_literal=True)
def transpose_rows(_, src, starts, i, c, dst, k, step, n):  # type: ignore[no-untyped-def]
    """dst[k + m * step + r] = src[starts[i + r] + c + m] for r, m < n."""
    size = n.literal_value

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        source, starts, first, column, target, place, step, _ = args
        at = [
            b.add(b.load(b.gep(starts, [b.add(first, first.type(r))])), column)
            for r in range(size)
        ]
        _store_transposed(b, source, at, target, place, step)
        return ctx.get_dummy_value()

    long = types.int64
    return types.void(FLOATS, LONGS, long, long, FLOATS, long, long, n), emit


def _store_transposed(b, source, at, target, place, step):  # type: ignore[no-untyped-def]
    """Read a row from each place, and write the columns `step` apart."""
    size = len(at)
    half = size // 2
    low = [lane for c in range(half) for lane in (c, size + c)]
    high = [lane + half for lane in low]
    rows = [_load(b, source, i, size) for i in at]
    for _ in range(size.bit_length() - 1):
        rows = [
            _pick(b, rows[c], rows[c + half], x)
            for c in range(half)
            for x in (low, high)
        ]
    for r, row in enumerate(rows):
        _store(b, target, b.add(place, b.mul(step, step.type(r))), row)


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
    return p(p, types.int64), lambda ctx, b, sig, args: b.gep(
        args[0], [args[1]]
    )


floats = _pointer(FLOATS)
ints = _pointer(INTS)
longs = _pointer(LONGS)


def inline(function: Function) -> Dispatcher:
    """Compile a function that kernels call; a checker of types wrapped around it is taken off."""
    # neither Python nor C calls it, and what they would need takes a sixth of the time
    options: dict[str, Any] = {
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
    }
    compiled: Dispatcher = njit(error_model="numpy", **options)(
        _told_apart(inspect.unwrap(function))
    )
    return compiled


def _told_apart(function: Function) -> Function:
    """Give a function that closes over numbers a name that tells them, and return it.

    Machine code calls functions by their names, and numba numbers those of one name in the order
    in which a process compiles them. Two kernels on disk may come from two processes, and where
    both hold another function by the same name and number, the first that is loaded counts for
    both.
    """
    closed = inspect.getclosurevars(function).nonlocals
    for name, value in closed.items():
        if not isinstance(value, int):
            raise TypeError(
                f"{function.__qualname__} closes over {name}, which is no number, so that its "
                f"name cannot tell it from others"
            )
        function.__qualname__ += f"_{name}_{int(value)}"
    return function


def kernel(function: Callable[..., None]) -> Callable[[], CFunc]:
    """Make a C function of one int64 array, compiled on first use and kept on disk."""
    function = inspect.unwrap(function)

    @functools.cache
    def compiled() -> CFunc:
        made = CFunc(
            function, ((LONGS,), types.void), {}, {"error_model": "numpy"}
        )
        keep(made, function, SOURCES)
        made.compile()
        return made

    return compiled
