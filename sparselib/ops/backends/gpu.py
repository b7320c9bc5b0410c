"""Sparse products on the GPU: Triton kernels and what starts them.

Activations are feature-major, (features, samples), so that a weight meets samples that lie side by
side. One program computes a tile of rows by samples: in each step every row of the tile adds its
next nonzero. Columns ascend within rows, so the rows of a tile walk through the columns side by
side, and what one of them reads lies in the cache for its neighbors.

Activations are float32, float16 or bfloat16; weights, biases, sums and their gradients float32.
With ``TRITON_INTERPRET=1`` before the first import the same kernels run on the CPU, slowly.
"""

import contextlib
import functools
import inspect
import math
from collections.abc import MutableMapping, Sequence
from types import ModuleType

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from triton.runtime import KernelInterface

from sparselib._types import Function
from sparselib.ops.backends import (
    Indices,
    Layout,
    Weights,
    stretches,
)
from sparselib.ops.backends.reference_extrema import extrema as extrema

# rows, samples and warps of a tile, the largest first: sixteen sums a thread, in vectors of four
TILES = (
    (256, 32, 16),
    (128, 64, 16),
    (64, 64, 8),
    (32, 64, 4),
    (16, 64, 2),
    (16, 32, 1),
)
# where four samples do not divide the batch nothing is read as a vector: four sums per thread
ODD_TILES = ((64, 32, 16), (32, 32, 8), (16, 32, 4))
PROGRAMS = 264  # two for each processor of the largest devices
GRADIENTS = 8  # nonzeros whose gradient a program of `sddmm` sums
NETWORK_TILE = (128, 32, 16)
NUMBERS = "M", "groups", "widest", "nnz", "samples", "stride", "length"
WIDEST = 1024  # features of a network whose tile stays in the cache from layer to layer


def kernel(function: Function) -> KernelInterface[Function]:
    """Compile for the GPU; a checker of types wrapped around the function is taken off."""
    # sizes differ from batch to batch and from layer to layer; one program serves them all
    return triton.jit(inspect.unwrap(function), do_not_specialize=NUMBERS)


@kernel
def product(  # type: ignore[no-untyped-def]
    crow, col, values, permutation, bias, x, ld, o_m, m_m, o_n, m_n,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Sums [ROWS, BLOCK] of values[j] x[col[j] * ld + n] over the nonzeros j of each row.

    =================  =======================================================
    crow, col          int32 [M + 1] and [nnz], the pattern
    values             float32 [nnz], or in another order with `permutation`
    permutation        int32 [nnz], or None
    bias               float32 [M], or None
    x, ld              activations, and numbers from one feature to the next
    o_m, m_m           rows of the tile [ROWS], and which of them exist
    o_n, m_n           columns of the tile [BLOCK], and which of them exist
    UNROLL             nonzeros of a row in one step
    =================  =======================================================
    """
    first = tl.load(crow + o_m, mask=m_m, other=0)  # [ROWS]
    count = tl.load(crow + o_m + 1, mask=m_m, other=0) - first
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    for k in range(0, tl.max(count, axis=0), UNROLL):
        for i in tl.static_range(UNROLL):
            there = k + i < count
            j = first + k + i
            c = tl.load(col + j, mask=there, other=0).to(tl.int64)
            if permutation is not None:
                j = tl.load(permutation + j, mask=there, other=0)
            w = tl.load(values + j, mask=there, other=0.0)
            p_x = x + (c * ld)[:, None] + o_n[None, :]
            b_x = tl.load(
                p_x, mask=there[:, None] & m_n[None, :], other=0.0
            )  # [ROWS, BLOCK]
            sums += b_x.to(tl.float32) * w[:, None]
    if bias is not None:
        sums += tl.load(bias + o_m, mask=m_m, other=0.0)[:, None]
    if RELU:
        sums = tl.maximum(sums, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return sums


@kernel
def spmm_kernel(  # type: ignore[no-untyped-def]
    crow, col, values, permutation, bias, order, x, y, M, groups,
    UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
    RELU: tl.constexpr,
):  # fmt: skip
    """y[m, n] = act(bias[m] + sum_j values[j] x[col[j], n]) for n < groups * UNIT.

    The rows of a tile take as many steps as the longest of them, so rows come in order of length.

    =================  =======================================================
    crow ... bias      as in `product`
    order              int32 [M], rows from long to short
    x                  activations [columns, N]
    y                  activations [M, N]
    groups             N / UNIT, where the batch N is known to divide by UNIT
    ROWS, BLOCK        rows and samples of a tile, one program each
    =================  =======================================================
    """
    N = groups * UNIT
    o_m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_m = o_m < M
    m_n = o_n < N
    o_m = tl.load(order + o_m, mask=m_m, other=0)
    sums = product(
        crow,
        col,
        values,
        permutation,
        bias,
        x,
        N,
        o_m,
        m_m,
        o_n,
        m_n,
        ROWS,
        BLOCK,
        UNROLL,
        RELU,
    )
    p_y = y + (o_m.to(tl.int64) * N)[:, None] + o_n[None, :]
    tl.store(p_y, sums.to(y.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


@kernel
def sddmm_kernel(  # type: ignore[no-untyped-def]
    crow, col, dy, x, dvalues, dbias, groups,
    UNIT: tl.constexpr, BLOCK: tl.constexpr, GRADIENTS: tl.constexpr,
):  # fmt: skip
    """dvalues[j] = sum_n dy[row of j, n] x[col[j], n]; dbias[m] = sum_n dy[m, n].

    The programs (row, part) of a row take `GRADIENTS` of its nonzeros in turn; each sum is one
    program's, over the samples in order, so its value is always the same.

    =================  =======================================================
    crow, col          int32 [M + 1] and [nnz], the pattern
    dy                 activations [M, N]
    x                  activations [columns, N]
    dvalues            float32 [nnz]
    dbias              float32 [M]
    groups             N / UNIT
    BLOCK              samples that are read in one step
    =================  =======================================================
    """
    N = groups * UNIT
    row = tl.program_id(0)
    part = tl.program_id(1)
    first = tl.load(crow + row)
    end = tl.load(crow + row + 1)
    o_n = tl.arange(0, BLOCK)
    p_dy = dy + row.to(tl.int64) * N + o_n
    for k in range(
        first + part * GRADIENTS, end, tl.num_programs(1) * GRADIENTS
    ):
        j = k + tl.arange(0, GRADIENTS)
        c = tl.load(col + j, mask=j < end, other=0).to(tl.int64)
        p_x = x + (c * N)[:, None] + o_n[None, :]
        sums = tl.zeros((GRADIENTS, BLOCK), tl.float32)
        for n in range(0, N, BLOCK):
            m_n = n + o_n < N
            b_dy = tl.load(p_dy + n, mask=m_n, other=0.0).to(
                tl.float32
            )  # [BLOCK]
            b_x = tl.load(
                p_x + n, mask=(j < end)[:, None] & m_n[None, :], other=0.0
            )
            sums += b_x.to(tl.float32) * b_dy[None, :]  # [GRADIENTS, BLOCK]
        tl.store(dvalues + j, tl.sum(sums, axis=1), mask=j < end)
    if part == 0:
        total = tl.zeros((BLOCK,), tl.float32)
        for n in range(0, N, BLOCK):
            total += tl.load(p_dy + n, mask=n + o_n < N, other=0.0).to(
                tl.float32
            )
        tl.store(dbias + row, tl.sum(total, axis=0))


@kernel
def network_kernel(  # type: ignore[no-untyped-def]
    layers, x, y, scratch, groups, widest,
    UNIT: tl.constexpr, RELUS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Carry `BLOCK` samples a program through all layers: (crow, col, values, bias, order, rows).

    Between layers the samples lie in the program's own part of scratch, [2, widest, BLOCK].

    =================  =======================================================
    layers             tuple of (crow, col, values, bias, order, rows)
    x                  activations [features, N]
    y                  activations [rows of the last layer, N]
    scratch            activations [programs, 2, widest, BLOCK]
    groups             N / UNIT
    RELUS              for each layer, whether max(., 0) follows
    =================  =======================================================
    """
    N = groups * UNIT
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < N
    mine = scratch + tl.program_id(0).to(tl.int64) * 2 * widest * BLOCK
    o_here = tl.arange(0, BLOCK)
    for i in tl.static_range(len(RELUS)):
        crow, col, values, bias, order, M = layers[i]
        for m in range(0, M, ROWS):
            o_m = m + tl.arange(0, ROWS)
            m_m = o_m < M
            o_m = tl.load(order + o_m, mask=m_m, other=0)
            if i == 0:
                sums = product(
                    crow, col, values, None, bias, x, N,
                    o_m, m_m, o_n, m_n, ROWS, BLOCK, UNROLL, RELUS[i],
                )  # fmt: skip
            else:
                sums = product(
                    crow, col, values, None, bias, mine + (i - 1) % 2 * widest * BLOCK, BLOCK,
                    o_m, m_m, o_here, m_n, ROWS, BLOCK, UNROLL, RELUS[i],
                )  # fmt: skip
            if i == len(RELUS) - 1:
                p_y = y + (o_m.to(tl.int64) * N)[:, None] + o_n[None, :]
            else:
                p_y = (
                    mine
                    + i % 2 * widest * BLOCK
                    + (o_m * BLOCK)[:, None]
                    + o_here[None, :]
                )
            tl.store(
                p_y,
                sums.to(y.dtype.element_ty),
                mask=m_m[:, None] & m_n[None, :],
            )
        tl.debug_barrier()


INTERPRETED = bool(triton.knobs.runtime.interpret)

# rows by length, with the version of the row pointers that they were sorted for
_orders: MutableMapping[Tensor, tuple[Tensor, int]] = WeakTensorKeyDictionary()


def by_length(crow: Tensor) -> Tensor:
    """Return the rows from long to short; kept, and sorted anew in place once the rows changed."""
    version = 0 if crow.is_inference() else crow._version
    order, known = _orders.get(crow, (None, None))
    if order is None or version != known:
        with torch.inference_mode(False):
            fresh = torch.sort(
                crow.diff(), descending=True, stable=True
            ).indices.to(torch.int32)
            order = fresh if order is None else order.copy_(fresh)
        _orders[crow] = order, version
    return order


def refresh() -> None:
    """Sort the rows of every pattern that changed: a graph that replays does not look."""
    for crow in list(_orders):
        by_length(crow)


def divisor(samples: int) -> int:
    """Return what the kernels may take for granted to divide the batch: 8, 4 or 1."""
    return math.gcd(samples, 8) if samples % 4 == 0 else 1


def tile(rows: int, samples: int) -> tuple[int, int, int]:
    """Return rows, samples and warps of a tile: the largest that leaves no processor idle."""
    tiles = (
        [t for t in TILES if t[1] == 32 or samples > 32]
        if samples % 4 == 0
        else ODD_TILES
    )
    for shape in tiles:
        if (
            triton.cdiv(rows, shape[0]) * triton.cdiv(samples, shape[1])
            >= PROGRAMS
        ):
            return shape
    return tiles[-1]


def options(warps: int) -> dict[str, int | bool]:
    """Return the compiler's options: registers for two programs of 16 warps or three of 8."""
    return {
        "num_warps": warps,
        "maxnreg": 64 if warps == 16 else 80,
        "enable_fp_fusion": True,
    }


def unroll(warps: int) -> int:
    """Count the nonzeros of a row in one step of `spmm`: as many as registers have room for."""
    return 1 if warps == 16 else 2


def unroll_network(unit: int) -> int:
    """Count them for `network`: numbers that are read one by one need more registers."""
    return 1 if unit == 1 else 2


def spmm(
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    x: Tensor,
    bias: Tensor | None = None,
    permutation: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Y = act(X W^T + b) for W (out, in) in CSR and X (batch, in); Y has the type of X.

    With a permutation the weight of nonzero j is ``values[permutation[j]]``.
    """
    rows = crow.numel() - 1
    samples = x.shape[0]
    x = features_first(x)
    bias = bias if bias is None else bias.contiguous()
    y = x.new_empty(rows, samples)
    if not y.numel():
        return y.t()
    row_tile, block, warps = tile(rows, samples)
    grid = triton.cdiv(rows, row_tile), triton.cdiv(samples, block)
    values = values.contiguous()
    unit = divisor(samples)
    with device_of(x):
        spmm_kernel[grid](
            crow, col, values, permutation, bias, by_length(crow), x, y, rows, samples // unit,
            UNIT=unit, ROWS=row_tile, BLOCK=block, UNROLL=unroll(warps),
            RELU=relu, **options(warps),
        )  # fmt: skip
    return y.t()


def sddmm(
    crow: Tensor, col: Tensor, dy: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Entries of dY^T X at the nonzeros, and the sums of dY over the batch; both float32."""
    rows = dy.shape[1]
    samples = dy.shape[0]
    dvalues = dy.new_empty(col.numel(), dtype=torch.float32)
    dbias = dy.new_empty(rows, dtype=torch.float32)
    if not rows * samples:
        return dvalues.zero_(), dbias.zero_()
    dy = features_first(dy)
    x = features_first(x)
    block = 64 if samples > 32 else 32
    unit = divisor(samples)
    parts = max(1, triton.cdiv(col.numel(), rows * GRADIENTS))
    with device_of(x):
        sddmm_kernel[rows, parts](
            crow, col, dy, x, dvalues, dbias, samples // unit,
            UNIT=unit, BLOCK=block, GRADIENTS=GRADIENTS, **options(1),
        )  # fmt: skip
    return dvalues, dbias


def gradients(
    values: Tensor, indices: Indices, dy: Tensor, x: Tensor, relu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`sddmm`, and dX = dY W by the transposed pattern; with `relu`, X is what a ReLU returned."""
    crow, col, tcrow, tcol, permutation = indices
    dx = spmm(values, tcrow, tcol, dy, permutation=permutation)
    return *sddmm(crow, col, dy, x), dx.masked_fill_(
        x <= 0, 0.0
    ) if relu else dx


def network(layers: Sequence[Weights], x: Tensor) -> Tensor:
    """Carry a batch through all layers, in one kernel where a tile of it stays in the cache."""
    samples = x.shape[0]
    rows = [len(crow) - 1 for crow, *_ in layers]
    row_tile, block, warps = NETWORK_TILE
    tiles = triton.cdiv(samples, block)
    widest = max(rows)
    if (
        max(widest, x.shape[1]) > WIDEST
        or 2 * tiles < PROGRAMS
        or len(layers) == 1
    ):
        for crow, col, values, bias, relu in layers:
            x = spmm(values, crow, col, x, bias, relu=relu)
        return x
    x = features_first(x)
    unit = divisor(samples)
    y = x.new_empty(rows[-1], samples)
    scratch = x.new_empty(tiles * 2 * widest * block)
    held = tuple(
        (
            *(
                crow,
                col,
                values.contiguous(),
                bias if bias is None else bias.contiguous(),
            ),
            *(by_length(crow), out),
        )
        for (crow, col, values, bias, _), out in zip(layers, rows)
    )
    with device_of(x):
        network_kernel[(tiles,)](
            held, x, y, scratch, samples // unit, widest,
            UNIT=unit, RELUS=tuple(relu for *_, relu in layers),
            ROWS=row_tile, BLOCK=block, UNROLL=unroll_network(unit), **options(warps),
        )  # fmt: skip
    return y.t()


def fuses(samples: int, weights: int, cells: int) -> bool:
    """Whether `network` is faster than one product after the other: taken to be so, unmeasured."""
    return samples > 0


def features_first(x: Tensor) -> Tensor:
    """Return the contiguous (features, batch) of a (batch, features); no copy where it is one."""
    return x.t().contiguous()


def convolve(
    values: Tensor,
    indices: Indices,
    x: Tensor,
    layout: Layout,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the output of a convolution, of the type of x."""
    passage = stretches.forward(layout)
    y = _convolutions().convolve(
        values,
        indices[0],
        stretches.places(indices[1], layout.sizes, passage.length),
        stretches.laid(x, passage),
        passage.written,
        bias,
    )
    return stretches.cut(y, passage)


def convolve_t(
    values: Tensor, indices: Indices, dy: Tensor, layout: Layout
) -> Tensor:
    """Gradient of a convolution's inputs, of the type of dy."""
    passage = stretches.backward(layout)
    turned = stretches.turned(indices, layout, passage.length)
    dx = _convolutions().convolve(
        values,
        turned.crow,
        turned.places,
        stretches.laid(dy, passage),
        passage.written,
        None,
        turned.permutation,
    )
    return stretches.cut(dx, passage)


def correlate(
    indices: Indices, dy: Tensor, x: Tensor, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Gradients of a convolution's weights and biases; both float32."""
    passage = stretches.forward(layout)
    starts = stretches.places(indices[1], layout.sizes, passage.length)
    signals = stretches.laid(x, passage)
    costs = stretches.laid(dy, stretches.across(layout))
    dvalues, dbias = _convolutions().correlate(
        indices[0], starts, costs, signals
    )
    return dvalues, dbias


@functools.cache
def _convolutions() -> ModuleType:
    # it needs what stands above
    from sparselib.ops.backends import gpu_conv

    return gpu_conv


def device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Launch on the device of x; the interpreter has none."""
    return (
        torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
    )
