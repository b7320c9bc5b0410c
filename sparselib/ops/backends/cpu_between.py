"""What a network does between its products: activations and normalizations, where the numbers are.

Activations are torch's, to a few units in the last place. The error function and the hyperbolic
tangent are quotients of polynomials, those of Eigen 3.4 (SpecialFunctionsImpl.h and
MathFunctionsImpl.h); the exponential function is Cody and Waite's reduction with the polynomial of
Cephes (Moshier, expf). NaN stays NaN.
"""

from collections.abc import Callable, Sequence

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sparselib._types import Function
from sparselib.ops.backends.cpu_arguments import (
    GELU,
    GELU_OF_TANH,
    LEAKY,
    NOTHING,
    RELU_ALONE,
    SILU,
    TANH,
    TILE,
)
from sparselib.ops.backends.cpu_vectors import (
    INT,
    LANES,
    ONE,
    ZERO,
    fma,
    fmas,
    inline,
    load,
    masked,
    relu,
    splat,
    store,
)

# of x / sqrt(2) within [-4, 4], where the error function is 1 to rounding; powers 1, 3, ... above
# the line and 0, 2, ... below it
ERF_LIMIT = 4.0
ERF_ABOVE = (
    -1.60960333262415e-02,
    -2.95459980854025e-03,
    -7.34990630326855e-04,
    -5.69250639462346e-05,
    -2.10102402082508e-06,
    2.77068142495902e-08,
    -2.72614225801306e-10,
)
ERF_BELOW = (
    -1.42647390514189e-02,
    -7.37332916720468e-03,
    -1.68282697438203e-03,
    -2.13374055278905e-04,
    -1.45660718464996e-05,
)
TANH_LIMIT = 7.90531110763549805
TANH_ABOVE = (
    4.89352455891786e-03,
    6.37261928875436e-04,
    1.48572235717979e-05,
    5.12229709037114e-08,
    -8.60467152213735e-11,
    2.00018790482477e-13,
    -2.76076847742355e-16,
)
TANH_BELOW = (
    4.89352518554385e-03,
    2.26843463243900e-03,
    1.18534705686654e-04,
    1.19825839466702e-06,
)
EXP_BELOW = (
    -104.0
)  # where exp is 0, and above the other where it is infinite, in float32
EXP_ABOVE = 89.0
EXP_TERMS = (
    5.0000001201e-1,
    1.6666665459e-1,
    4.1665795894e-2,
    8.3334519073e-3,
    1.3981999507e-3,
    1.9875691500e-4,
)
LOG2_E = 1.44269504088896341
LN_2_HIGH = (
    0.693359375  # few bits, so that its products with whole numbers are exact
)
LN_2_LOW = -2.12194440e-4
ROUNDER = 12582912.0  # 1.5 * 2^23: what is added to it loses its fraction
ROUNDER_BITS = 0x4B400000
EXPONENT_BIAS = 127
MANTISSA_BITS = 23
ROOT_HALF = 0.70710678118654752
ROOT_2_OVER_PI = 0.79788456080286536
ROOT_OF_2_PI = 2.50662827463100050
GELU_CUBE = 0.044715


def _all(v, number):  # type: ignore[no-untyped-def]
    """Return the number in as many lanes as v has."""
    return ir.Constant(v.type, [number] * v.type.count)


def _call(b, name, *args):  # type: ignore[no-untyped-def]
    """Call LLVM's function of this name on vectors of one type."""
    kind = args[0].type
    full = f"llvm.{name}.v{kind.count}f32"
    signature = ir.FunctionType(kind, [kind] * len(args))
    return b.call(
        cgutils.get_or_insert_function(b.module, signature, full), args
    )


def _polynomial(b, x, coefficients: Sequence[float]):  # type: ignore[no-untyped-def]
    """Return the sum of coefficient k times x^k, by Horner's rule."""
    result = _all(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = _call(b, "fma", result, x, _all(x, coefficient))
    return result


def _limited(b, x, low, high):  # type: ignore[no-untyped-def]
    """Return x within two bounds; NaN stays NaN."""
    x = b.select(b.fcmp_ordered("<", x, _all(x, low)), _all(x, low), x)
    return b.select(b.fcmp_ordered(">", x, _all(x, high)), _all(x, high), x)


def _quotient(b, x, limit, above, below):  # type: ignore[no-untyped-def]
    """Return an odd function that is 1 or -1 from a limit on, as a quotient of polynomials."""
    inner = _limited(b, x, -limit, limit)
    square = b.fmul(inner, inner)
    upper = b.fmul(inner, _polynomial(b, square, above))
    inside = b.fdiv(upper, _polynomial(b, square, below))
    inside = b.select(
        b.fcmp_ordered(">=", x, _all(x, limit)), _all(x, 1.0), inside
    )
    return b.select(
        b.fcmp_ordered("<=", x, _all(x, -limit)), _all(x, -1.0), inside
    )


def _tanh(b, x):  # type: ignore[no-untyped-def]
    return _quotient(b, x, TANH_LIMIT, TANH_ABOVE, TANH_BELOW)


def _exp(b, x):  # type: ignore[no-untyped-def]
    """exp(x) = 2^n exp(r) with x = n ln 2 + r and abs(r) <= ln(2) / 2."""
    x = _limited(b, x, EXP_BELOW, EXP_ABOVE)
    rounded = _call(b, "fma", x, _all(x, LOG2_E), _all(x, ROUNDER))
    n = b.fsub(rounded, _all(x, ROUNDER))
    r = _call(b, "fma", n, _all(x, -LN_2_HIGH), x)
    r = _call(b, "fma", n, _all(x, -LN_2_LOW), r)
    terms = _polynomial(b, r, EXP_TERMS)
    result = _call(b, "fma", terms, b.fmul(r, r), b.fadd(r, _all(x, 1.0)))
    integers = ir.VectorType(INT, x.type.count)

    def whole(number):  # type: ignore[no-untyped-def]
        return ir.Constant(integers, [number] * x.type.count)

    # 2^n in two factors, as n may be beyond the exponents that there are
    power = b.sub(b.bitcast(rounded, integers), whole(ROUNDER_BITS))
    half = b.ashr(power, whole(1))
    for part in half, b.sub(power, half):
        bits = b.shl(b.add(part, whole(EXPONENT_BIAS)), whole(MANTISSA_BITS))
        result = b.fmul(result, b.bitcast(bits, x.type))
    return result


def _half_of_one_and(b, x, y):  # type: ignore[no-untyped-def]
    """Return x (1 + y) / 2."""
    return b.fmul(b.fmul(x, _all(x, 0.5)), b.fadd(_all(x, 1.0), y))


def _erf_of_half(b, x):  # type: ignore[no-untyped-def]
    """Return the error function of x / sqrt(2)."""
    scaled = b.fmul(x, _all(x, ROOT_HALF))
    return _quotient(b, scaled, ERF_LIMIT, ERF_ABOVE, ERF_BELOW)


def _gelu(b, x):  # type: ignore[no-untyped-def]
    return _half_of_one_and(b, x, _erf_of_half(b, x))


def _gelu_slope(b, x):  # type: ignore[no-untyped-def]
    """Return Phi(x) + x phi(x), of the normal distribution and its density."""
    square = b.fmul(b.fmul(x, x), _all(x, -0.5))
    density = b.fmul(_exp(b, square), _all(x, 1 / ROOT_OF_2_PI))
    half = _half_of_one_and(b, _all(x, 1.0), _erf_of_half(b, x))
    return _call(b, "fma", x, density, half)


def _tanh_in_gelu(b, x):  # type: ignore[no-untyped-def]
    cube = b.fmul(b.fmul(x, x), x)
    inner = _call(b, "fma", cube, _all(x, GELU_CUBE), x)
    return _tanh(b, b.fmul(inner, _all(x, ROOT_2_OVER_PI)))


def _gelu_of_tanh(b, x):  # type: ignore[no-untyped-def]
    return _half_of_one_and(b, x, _tanh_in_gelu(b, x))


def _gelu_of_tanh_slope(b, x):  # type: ignore[no-untyped-def]
    """Return (1 + t) / 2 + x (1 - t^2) t' / 2 of the hyperbolic tangent t in it."""
    t = _tanh_in_gelu(b, x)
    square = b.fmul(x, x)
    inner = _call(b, "fma", square, _all(x, 3 * GELU_CUBE), _all(x, 1.0))
    inner = b.fmul(inner, _all(x, ROOT_2_OVER_PI))
    rise = b.fmul(b.fmul(inner, _tanh_rise(b, t)), _all(x, 0.5))
    half = _half_of_one_and(b, _all(x, 1.0), t)
    return _call(b, "fma", x, rise, half)


def _tanh_rise(b, t):  # type: ignore[no-untyped-def]
    """Return the slope of the hyperbolic tangent where it is t."""
    return _call(b, "fma", b.fneg(t), t, _all(t, 1.0))


def _tanh_slope(b, x):  # type: ignore[no-untyped-def]
    return _tanh_rise(b, _tanh(b, x))


def _silu(b, x):  # type: ignore[no-untyped-def]
    return b.fdiv(x, b.fadd(_all(x, 1.0), _exp(b, b.fneg(x))))


def _sigmoid(b, x):  # type: ignore[no-untyped-def]
    return b.fdiv(_all(x, 1.0), b.fadd(_all(x, 1.0), _exp(b, b.fneg(x))))


def _silu_slope(b, x):  # type: ignore[no-untyped-def]
    """Return s (1 + x (1 - s)) of the sigmoid s."""
    s = _sigmoid(b, x)
    rest = b.fsub(_all(x, 1.0), s)
    return b.fmul(s, _call(b, "fma", x, rest, _all(x, 1.0)))


def _root_of_inverse(b, x):  # type: ignore[no-untyped-def]
    return b.fdiv(_all(x, 1.0), _call(b, "sqrt", x))


def _of_one(function: Callable[..., ir.Value]) -> Function:
    """Make a function of a vector, lane by lane."""

    @intrinsic
    def each(_, v):  # type: ignore[no-untyped-def]
        return v(v), lambda ctx, b, sig, args: function(b, *args)

    return each


def _of_two(function: Callable[..., ir.Value]) -> Function:
    """Make a function of two vectors, lane by lane."""

    @intrinsic
    def each(_, v, w):  # type: ignore[no-untyped-def]
        return v(v, w), lambda ctx, b, sig, args: function(b, *args)

    return each


def _of_three(function: Callable[..., ir.Value]) -> Function:
    """Make a function of three vectors, lane by lane."""

    @intrinsic
    def each(_, v, w, u):  # type: ignore[no-untyped-def]
        return v(v, w, u), lambda ctx, b, sig, args: function(b, *args)

    return each


gelu = _of_one(_gelu)
gelu_of_tanh = _of_one(_gelu_of_tanh)
silu = _of_one(_silu)
tanh = _of_one(_tanh)
gelu_slope = _of_one(_gelu_slope)
gelu_of_tanh_slope = _of_one(_gelu_of_tanh_slope)
silu_slope = _of_one(_silu_slope)
tanh_slope = _of_one(_tanh_slope)
exp = _of_one(_exp)
sigmoid = _of_one(_sigmoid)
root_of_inverse = _of_one(_root_of_inverse)
times = _of_two(lambda b, x, y: b.fmul(x, y))
minus = _of_two(lambda b, x, y: b.fsub(x, y))
plus = _of_two(lambda b, x, y: b.fadd(x, y))
over = _of_two(lambda b, x, y: b.fdiv(x, y))
# y where x is positive, and z elsewhere
positive = _of_three(
    lambda b, x, y, z: b.select(b.fcmp_ordered(">", x, _all(x, 0.0)), y, z)
)
larger = _of_two(lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))


@intrinsic
def number_of(_, bits):  # type: ignore[no-untyped-def]
    """Return the float64 of which an int64 has the bits, as a float32."""

    def emit(ctx, b, sig, args):  # type: ignore[no-untyped-def]
        return b.fptrunc(b.bitcast(args[0], ir.DoubleType()), ir.FloatType())

    return types.float32(types.int64), emit


@inline
def activated(kind, number, x, i, y, j, count):  # type: ignore[no-untyped-def]
    """Write the activation of x[i : i + count] to y from j on, and up to `LANES` - 1 beyond."""
    for k in range(0, count, LANES):
        v = load(x, i + k, LANES)  # [LANES]
        if kind == RELU_ALONE:
            v = relu(v)
        elif kind == LEAKY:
            v = positive(v, v, times(v, splat(number, LANES)))
        elif kind == GELU:
            v = gelu(v)
        elif kind == GELU_OF_TANH:
            v = gelu_of_tanh(v)
        elif kind == SILU:
            v = silu(v)
        elif kind == TANH:
            v = tanh(v)
        store(y, j + k, v)


@inline
def turned(kind, number, x, i, costs, j, count):  # type: ignore[no-untyped-def]
    """Multiply gradients from j on by the slopes of the activation of x[i : i + count]."""
    if kind == NOTHING:
        return
    for k in range(0, count, LANES):
        if kind == RELU_ALONE:
            cost = load(costs, j + k, LANES)  # [LANES]
            store(costs, j + k, masked(cost, x, i + k))
            continue
        v = load(x, i + k, LANES)  # [LANES]
        if kind == LEAKY:
            v = positive(v, splat(ONE, LANES), splat(number, LANES))
        elif kind == GELU:
            v = gelu_slope(v)
        elif kind == GELU_OF_TANH:
            v = gelu_of_tanh_slope(v)
        elif kind == SILU:
            v = silu_slope(v)
        elif kind == TANH:
            v = tanh_slope(v)
        store(costs, j + k, times(load(costs, j + k, LANES), v))


@inline
def scaled(x, i, rows, n, scale, shift):  # type: ignore[no-untyped-def]
    """x[o, : n] = scale[o] x[o, : n] + shift[o] for all rows o, from i on."""
    for o in range(rows):
        for k in range(i + o * n, i + o * n + n):
            x[k] = x[k] * scale[o] + shift[o]


@inline
def mean_of(x, i, rows):  # type: ignore[no-untyped-def]
    """Return the means of `TILE` samples over their features."""
    mean = splat(ZERO, TILE)  # [TILE]
    for o in range(rows):
        mean = plus(mean, load(x, i + o * TILE, TILE))
    return times(mean, splat(ONE / rows, TILE))


@inline
def inverse_of_spread(x, i, rows, mean, epsilon):  # type: ignore[no-untyped-def]
    """Return one over the root of the variances of `TILE` samples and an epsilon."""
    variance = splat(ZERO, TILE)  # [TILE]
    for o in range(rows):
        away = minus(load(x, i + o * TILE, TILE), mean)
        variance = fmas(away, away, variance)
    share = splat(ONE / rows, TILE)
    return root_of_inverse(fmas(variance, share, splat(epsilon, TILE)))


@inline
def normalized(x, i, rows, scale, shift, epsilon):  # type: ignore[no-untyped-def]
    """Bring `TILE` samples, of `rows` features each, to mean 0 and variance 1, then as `scaled`."""
    mean = mean_of(x, i, rows)
    inverse = inverse_of_spread(x, i, rows, mean, epsilon)
    for o in range(rows):
        away = minus(load(x, i + o * TILE, TILE), mean)
        store(
            x,
            i + o * TILE,
            fma(scale[o], times(away, inverse), splat(shift[o], TILE)),
        )
