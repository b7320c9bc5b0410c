"""The 1-D convolution with few weights on the GPU: Triton kernels and what starts them.

They are the products of `sparselib.ops.backends.gpu` along time: a weight adds a stretch of one
channel to a stretch of one filter's output. Taps shift stretches by single numbers, so nothing is
aligned for loads of sixteen bytes; the 32 lanes of a warp read 32 numbers side by side instead. A
warp has a
row of its own and keeps several such stretches of it in registers, so that place and value of a
weight are read once for all of them. The rows of a tile walk through the channels side by side,
and what one warp reads lies in the cache for its neighbors.

Signals are float32, float16 or bfloat16; weights, biases, sums and their gradients float32. No sum
depends on the order in which programs run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparselib.ops.backends.gpu import (
    PROGRAMS,
    by_length,
    device_of,
    kernel,
    options,
)

LANES = tl.constexpr(32)
# Triton fills a tile with warps along the dimension that it holds to be the more contiguous. Rows
# and stretches are equal in this, and its versions choose either; the hint decides for rows, and
# has no other effect, because vectors are loaded along the first dimension of all, the lanes.
WARPS_FIRST = tl.constexpr(2)
# rows, stretches of 32 points and warps of a tile, the largest first: up to sixteen sums a thread
TILES = ((32, 8, 16), (16, 8, 8), (16, 4, 8), (8, 4, 8), (8, 2, 8))
GRADIENTS = 8  # nonzeros of a row whose gradient a program of `correlate` sums
ROWS = 8  # rows of such a program, a warp for each
MOST_PARTS = 65_535  # programs side by side in the second direction of a grid
STRETCHES = 2  # stretches of time that it reads in one step


@kernel
def convolve_kernel(  # type: ignore[no-untyped-def]
    crow, places, values, permutation, bias, order, x, y, M, stride, length,
    ROWS: tl.constexpr, STRETCHES: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """y[s, m, t] = bias[m] + sum_j values[j] x[s * stride + places[j] + t] for t < length.

    The last tile of a signal overlaps the one before: both write the same numbers.

    =================  =======================================================
    crow               int32 [M + 1]
    places             int32 [nnz], where in a sample each weight begins to read
    values             float32 [nnz], or in another order with `permutation`
    permutation        int32 [nnz], or None
    bias               float32 [M], or None
    order              int32 [M], rows from long to short, or None
    x, stride          signals [samples, stride]
    y                  signals [samples, M, length]
    ROWS, STRETCHES    rows of a tile, and stretches of 32 points
    SHORT              whether a signal is shorter than a tile
    =================  =======================================================
    """
    tiles = tl.cdiv(M, ROWS)
    steps = tl.cdiv(length, STRETCHES * LANES)
    o_m = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(0) // tiles % steps * STRETCHES * LANES
    sample = (tl.program_id(0) // tiles // steps).to(tl.int64)
    if not SHORT:
        start = tl.minimum(start, length - STRETCHES * LANES)
    lane = tl.arange(0, LANES)[None, None, :]
    o_t = (
        start + tl.arange(0, STRETCHES)[:, None, None] * LANES + lane
    )  # [STRETCHES, 1, LANES]
    m_m = o_m < M
    if order is not None:
        o_m = tl.load(order + o_m, mask=m_m, other=0)
    j = tl.load(crow + o_m, mask=m_m, other=0)  # [ROWS]
    end = tl.load(crow + o_m + 1, mask=m_m, other=0)
    p_x = x + sample * stride
    sums = tl.zeros((STRETCHES, ROWS, LANES), tl.float32)
    for _ in range(0, tl.max(end - j, axis=0)):
        there = j < end
        place = tl.max_contiguous(
            tl.load(places + j, mask=there, other=0), WARPS_FIRST
        )
        if permutation is None:
            w = tl.load(values + j, mask=there, other=0.0)
        else:
            i = tl.load(permutation + j, mask=there, other=0)
            w = tl.load(values + i, mask=there, other=0.0)
        m_x = there[None, :, None]
        if SHORT:
            m_x = m_x & (o_t < length)
        b_x = tl.load(p_x + place[None, :, None] + o_t, mask=m_x, other=0.0)
        sums += b_x.to(tl.float32) * w[None, :, None]
        j += 1
    if bias is not None:
        sums += tl.load(bias + o_m, mask=m_m, other=0.0)[None, :, None]
    m_y = m_m[None, :, None]
    if SHORT:
        m_y = m_y & (o_t < length)
    row = tl.max_contiguous((sample * M + o_m) * length, WARPS_FIRST)
    p_y = y + row[None, :, None] + o_t
    tl.store(p_y, sums.to(y.dtype.element_ty), mask=m_y)


@kernel
def correlate_kernel(  # type: ignore[no-untyped-def]
    crow, places, order, dy, x, dvalues, dbias, M, nnz, samples, stride, length,
    ROWS: tl.constexpr, STRETCHES: tl.constexpr, GRADIENTS: tl.constexpr,
):  # fmt: skip
    """dvalues[i, j] = sum over s, t of dy[s, row of j, t] x[s * stride + places[j] + t].

    dbias[i, m] is the sum of dy[s, m, t]. The programs (tile, part, i) take every so many-th
    `GRADIENTS` nonzeros of each row of the tile, and every so many-th sample s, from i on.

    =================  =======================================================
    crow, order        int32 [M + 1] and [M], rows from long to short
    places             int32 [nnz], where in a sample each weight begins to read
    dy                 signals [samples, M, length]
    x, stride          signals [samples, stride]
    dvalues            float32 [splits, nnz]
    dbias              float32 [splits, M]
    =================  =======================================================
    """
    o_m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_m = o_m < M
    o_m = tl.load(order + o_m, mask=m_m, other=0)
    first = tl.load(crow + o_m, mask=m_m, other=0)  # [ROWS]
    count = tl.load(crow + o_m + 1, mask=m_m, other=0) - first
    lane = tl.arange(0, LANES)
    split = tl.program_id(2)
    # the first part runs once even where no row has a nonzero: it sums the biases' gradients
    most = tl.maximum(tl.max(count, axis=0), 1)
    for k in range(
        tl.program_id(1) * GRADIENTS, most, tl.num_programs(1) * GRADIENTS
    ):
        here = k + tl.arange(0, GRADIENTS)[:, None]  # [GRADIENTS, 1]
        there = here < count[None, :]  # [GRADIENTS, ROWS]
        j = first[None, :] + here  # [GRADIENTS, ROWS]
        place = tl.load(places + j, mask=there, other=0)
        place = tl.max_contiguous(place, (1, WARPS_FIRST))
        sums = tl.zeros((GRADIENTS, ROWS, LANES), tl.float32)
        total = tl.zeros((ROWS, LANES), tl.float32)
        for s in range(split, samples, tl.num_programs(2)):
            p_dy = dy + (s * tl.cast(M, tl.int64) + o_m) * length
            p_x = x + s * tl.cast(stride, tl.int64)
            for t in range(0, length, STRETCHES * LANES):
                for i in tl.static_range(STRETCHES):
                    o_t = t + i * LANES + lane
                    m_t = o_t < length
                    # rows that do not exist read the first one, and store nothing
                    b_dy = tl.load(
                        p_dy[:, None] + o_t[None, :],
                        mask=m_t[None, :],
                        other=0.0,
                    ).to(tl.float32)  # [ROWS, LANES]
                    b_x = tl.load(
                        p_x + (place[:, :, None] + o_t[None, None, :]),
                        mask=there[:, :, None] & m_t[None, None, :],
                        other=0.0,
                    ).to(tl.float32)
                    sums += b_x * b_dy[None, :, :]
                    total += b_dy
        p_dvalues = dvalues + split.to(tl.int64) * nnz + j
        tl.store(p_dvalues, tl.sum(sums, axis=2), mask=there)
        if k == 0:
            tl.store(dbias + split * M + o_m, tl.sum(total, axis=1), mask=m_m)


def tile(rows: int, length: int, samples: int) -> tuple[int, int, int]:
    """Return rows, stretches and warps of a tile: the largest that leaves no processor idle."""
    for shape in TILES[:-1]:
        tiles = triton.cdiv(rows, shape[0]) * triton.cdiv(length, 32 * shape[1])
        if 32 * shape[1] <= length and samples * tiles >= PROGRAMS:
            return shape
    return TILES[-1]


def convolve(
    values: Tensor,
    crow: Tensor,
    places: Tensor,
    x: Tensor,
    length: int,
    bias: Tensor | None = None,
    permutation: Tensor | None = None,
) -> Tensor:
    """y[s, o, t] = b[o] + sum of values[j] x[s][places[j] + t] over row o, for t < length.

    With a permutation the weight of nonzero j is ``values[permutation[j]]``, and the rows are
    taken as they come: their pointers were made for this call, so sorting them never pays.
    """
    samples = x.shape[0]
    rows = crow.numel() - 1
    y = x.new_empty(samples, rows, length)
    if not y.numel():
        return y
    row_tile, stretches, warps = tile(rows, length, samples)
    programs = (
        triton.cdiv(rows, row_tile)
        * triton.cdiv(length, 32 * stretches)
        * samples
    )
    order = by_length(crow) if permutation is None else None
    x = x.contiguous()
    values = values.contiguous()
    bias = bias if bias is None else bias.contiguous()
    with device_of(x):
        convolve_kernel[(programs,)](
            crow, places, values, permutation, bias, order, x, y, rows, x[0].numel(), length,
            ROWS=row_tile, STRETCHES=stretches, SHORT=length < 32 * stretches, **options(warps),
        )  # fmt: skip
    return y


def correlate(
    crow: Tensor, places: Tensor, dy: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of dy[s, o, t] x[s][places[j] + t] over s and t for each j of row o, and of dy; float32.

    Where there are few nonzeros the samples are split among programs, and their sums are added.
    """
    samples, rows, length = dy.shape
    nnz = places.numel()
    tiles = triton.cdiv(rows, ROWS)
    if not dy.numel():
        return dy.new_zeros(nnz, dtype=torch.float32), dy.new_zeros(
            rows, dtype=torch.float32
        )
    parts = min(MOST_PARTS, max(1, triton.cdiv(nnz, rows * GRADIENTS)))
    splits = max(1, min(samples, triton.cdiv(8 * PROGRAMS, tiles * parts)))
    dvalues = dy.new_empty(splits, nnz, dtype=torch.float32)
    dbias = dy.new_empty(splits, rows, dtype=torch.float32)
    dy = dy.contiguous()
    x = x.contiguous()
    with device_of(x):
        correlate_kernel[tiles, parts, splits](
            crow, places, by_length(crow), dy, x, dvalues, dbias,
            rows, nnz, samples, x[0].numel(), length,
            ROWS=ROWS, STRETCHES=STRETCHES, GRADIENTS=GRADIENTS, **options(ROWS),
        )  # fmt: skip
    return (
        (dvalues[0], dbias[0])
        if splits == 1
        else (dvalues.sum(0), dbias.sum(0))
    )
