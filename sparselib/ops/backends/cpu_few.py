"""Sparse products of few samples on the CPU, where the call's own time counts."""

from numba.core.dispatcher import Dispatcher

from sparselib.ops.backends.cpu_arguments import (
    BIAS,
    FEW_SAMPLES,
    FEW_SIZE,
    PACK,
    PRODUCT,
    RELU,
    ROW,
    ROW_SIZE,
    SCALED,
    TILE,
)
from sparselib.ops.backends.cpu_between import activated, number_of, scaled
from sparselib.ops.backends.cpu_kernels import flip, pack_rows, tile_rows
from sparselib.ops.backends.cpu_vectors import (
    ONE,
    ZERO,
    floats,
    fma,
    fmas,
    gather,
    inline,
    ints,
    kernel,
    load,
    relu,
    splat,
    store,
    ticket,
    total,
    transpose,
)


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
    if N == 2:
        two_flip(x, columns, copy)
    elif N == 4:
        four_flip(x, columns, copy)
    elif N == 8:
        eight_flip(x, columns, copy)
    elif N == 16:
        sixteen_flip(x, columns, copy)
    elif N > 16:
        flip(x, 0, columns, copy, 0, N, N, columns)


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
    elif N == PACK:
        pack_rows(o, end, crow, col, N, w, bias, w, also, x, 0, y, 0, N)
    elif N == TILE:
        tile_rows(o, end, crow, col, N, w, bias, w, also, x, 0, y, 0, N)


@kernel
def few(a):  # type: ignore[no-untyped-def]
    """Carry N samples through layers and what is between them; see `Few`.

    One layer may be divided into pieces; several are one thread's, as is the copy that brings x
    into order. What follows a layer is done in place.
    """
    columns = a[FEW_SAMPLES.columns]
    N = a[FEW_SAMPLES.samples]
    steps = a[FEW_SAMPLES.steps]
    source = floats(a[FEW_SAMPLES.x])
    step = a[FEW_SAMPLES.step]
    buffers = a[FEW_SAMPLES.buffers]
    size = a[FEW_SAMPLES.size]
    layers = a[FEW_SAMPLES.layers]
    if a[FEW_SAMPLES.copy]:
        copy = floats(a[FEW_SAMPLES.copy])
        few_flip(N, source, columns, copy)
        source = copy
    number = 0
    for t in range(FEW_SIZE, FEW_SIZE + steps * ROW_SIZE, ROW_SIZE):
        kind = a[t + ROW.kind]
        rows = a[t + ROW.rows]
        w = floats(a[t + ROW.values])
        bias = floats(a[t + ROW.bias])
        if kind == SCALED:
            scaled(source, 0, rows, N, w, bias)
            continue
        if kind != PRODUCT:
            slope = number_of(a[t + ROW.also])
            activated(kind, slope, source, 0, source, 0, rows * N)
            continue
        target = floats(buffers + number % 2 * size)
        if number == layers - 1:
            target = floats(a[FEW_SAMPLES.y])
        if number:
            a[0] = 0
        while True:
            o = ticket(a, 0) * step
            if o >= rows:
                break
            few_rows(
                N,
                o,
                min(rows, o + step),
                ints(a[t + ROW.crow]),
                ints(a[t + ROW.col]),
                w,
                bias,
                a[t + ROW.also],
                source,
                target,
            )
        source = target
        number += 1
