"""Sparse products on the CPU, forward and backward, and whole networks.

Activations are feature-major, (features, samples), so that a weight meets many samples that lie
side by side. Kernels get one array of int64, see `sparselib.ops.backends.cpu_arguments`. Nothing
checks a bound in here; `sparselib.ops.backends.cpu` does.
"""

from numba.core.dispatcher import Dispatcher

from sparselib.ops.backends.cpu_arguments import (
    BIAS,
    GRADIENTS,
    LINE,
    MASK,
    NETWORK,
    NORMALIZED,
    PACK,
    PACKS,
    PRODUCT,
    RELU,
    ROW,
    ROW_SIZE,
    SCALED,
    SDDMM,
    SPMM,
    TILE,
    TRANSPOSED,
)
from sparselib.ops.backends.cpu_between import (
    activated,
    normalized,
    number_of,
    scaled,
)
from sparselib.ops.backends.cpu_vectors import (
    LANES,
    ONE,
    WIDE,
    ZERO,
    after,
    blank,
    floats,
    fma,
    fmas,
    inline,
    ints,
    kernel,
    load,
    longs,
    masked,
    partial,
    relu,
    splat,
    store,
    ticket,
    total,
    totals,
    totals_of_two,
    transpose,
)


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
def overlapped(n, end, N):  # type: ignore[no-untyped-def]
    """Return where to begin, so that a rest overlaps its neighbor, which is then written again."""
    if WIDE // 4 < end - n < WIDE <= N:
        return end - WIDE
    if LANES < end - n < TILE <= N:
        return end - TILE
    if LANES < end - n < PACK <= N:
        return end - PACK
    if end - n < LANES <= N:
        return end - LANES
    return n


@inline
def in_packs(  # type: ignore[no-untyped-def]
    o, e, n, end, crow, col, ld, w, bias, mask, also, x, i, y, k, N
):
    """Do columns n to end of rows o to e, `PACK` at a time; the last ones overlap."""
    while n < end:
        n = min(n, end - PACK)
        pack_rows(
            o, e, crow, col, ld, w, bias, mask, also, x, i + n, y, k + n, N
        )
        n += PACK


@inline
def in_blocks(  # type: ignore[no-untyped-def]
    o, e, n, end, crow, col, ld, w, bias, mask, also, x, i, y, k, N
):
    """Do columns n to end of rows o to e, as many at a time as there are; a rest may overlap."""
    while n < end:
        n = overlapped(n, end, N)
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
        elif end - n >= PACK:
            pack_rows(
                o, e, crow, col, ld, w, bias, mask, also, x, i + n, y, k + n, N
            )
            n += PACK
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
def product(t, M, N, step, crow, col, w, bias, mask, also, x, y):  # type: ignore[no-untyped-def]
    """Do piece t of `spmm`: a block of columns for some rows."""
    # a short rest is its neighbor's, so that one thread writes what both compute
    blocks = max(1, (N - WIDE // 4 + WIDE - 1) // WIDE)
    chunks = (M + step - 1) // step
    o = t % chunks * step
    block = t // chunks
    n = block * WIDE
    e = min(M, o + step)
    end = N if block == blocks - 1 else n + WIDE
    if also & PACKS:
        in_packs(o, e, n, end, crow, col, N, w, bias, mask, also, x, 0, y, 0, N)
    else:
        in_blocks(
            o, e, n, end, crow, col, N, w, bias, mask, also, x, 0, y, 0, N
        )


@inline
def packed(t, M, N, columns, crow, col, w, bias, mask, also, x, y, copy, k):  # type: ignore[no-untyped-def]
    """Do piece t of `spmm`: `PACK` samples for all rows, from a copy of them at k."""
    n = min(t * PACK, N - PACK)
    for c in range(columns):
        store(copy, k + c * PACK, load(x, c * N + n, PACK))  # [PACK]
    pack_rows(0, M, crow, col, PACK, w, bias, mask, also, copy, k, y, n, N)


@kernel
def spmm(a):  # type: ignore[no-untyped-def]
    """y[o, n] = relu(bias[o] + sum_j w[j] x[col[j], n]) for n < N; see `Spmm`.

    A number of copied rows asks for pieces of `PACK` samples, and there is room for copies of
    them, one for each thread.
    """
    pieces = a[SPMM.pieces]
    M = a[SPMM.rows]
    N = a[SPMM.columns]
    step = a[SPMM.step]
    crow = ints(a[SPMM.crow])
    col = ints(a[SPMM.col])
    w = floats(a[SPMM.values])
    bias = floats(a[SPMM.bias])
    also = a[SPMM.also]
    x = floats(a[SPMM.x])
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
            product(t, M, N, step, crow, col, w, bias, x, also, x, y)


def _gradient_of_tile(is_alone: bool) -> Dispatcher:
    @inline
    def tile(o, end, start, stop, col, ld, g, k, ldg, x, i, dw, db, first):  # type: ignore[no-untyped-def]
        """Add `TILE` columns, which stay in registers while a row's connections are read.

        More columns would need fewer sums of lanes, but so many of all features do not fit the L1.
        Columns that are alone begin the sums, others add to them.

        A row's connections here are those from start to stop; where it is the first time that its
        columns are read, they are summed.
        """
        while o < end:
            costs = load(g, k + o * ldg, TILE)  # [TILE]
            j = start[o]
            last = stop[o]
            while j + 4 <= last:
                four = totals(
                    partial(costs, x, i + col[j] * ld),
                    partial(costs, x, i + col[j + 1] * ld),
                    partial(costs, x, i + col[j + 2] * ld),
                    partial(costs, x, i + col[j + 3] * ld),
                )
                if not is_alone:
                    four = fma(ONE, four, load(dw, j, 4))
                store(dw, j, four)
                j += 4
            if j + 2 <= last:
                pair = totals_of_two(
                    partial(costs, x, i + col[j] * ld),
                    partial(costs, x, i + col[j + 1] * ld),
                )
                if not is_alone:
                    pair = fma(ONE, pair, load(dw, j, 2))
                store(dw, j, pair)
                j += 2
            if j < last:
                one = total(partial(costs, x, i + col[j] * ld))
                dw[j] = one if is_alone else dw[j] + one
            if first:
                sums = total(costs)
                db[o] = sums if is_alone else db[o] + sums
            o += 1

    return tile


tile_gradient = _gradient_of_tile(is_alone=False)
only_tile_gradient = _gradient_of_tile(is_alone=True)


@inline
def four_sums(count, g, k, x, first, second, third, fourth, dw, j):  # type: ignore[no-untyped-def]
    """Add `count` columns, `LANES` at a time, to the sums of four connections of a row."""
    whole = count - count % LANES
    a = splat(ZERO, LANES)  # [LANES]
    b = splat(ZERO, LANES)  # [LANES]
    c = splat(ZERO, LANES)  # [LANES]
    d = splat(ZERO, LANES)  # [LANES]
    for m in range(0, whole, LANES):
        costs = load(g, k + m, LANES)  # [LANES]
        a = fmas(costs, load(x, first + m, LANES), a)
        b = fmas(costs, load(x, second + m, LANES), b)
        c = fmas(costs, load(x, third + m, LANES), c)
        d = fmas(costs, load(x, fourth + m, LANES), d)
    if whole < count:
        # the last ones overlap their neighbors; lanes that were seen count zero
        m = count - LANES
        seen = whole - m
        costs = blank(load(g, k + m, LANES), seen)
        a = fmas(costs, blank(load(x, first + m, LANES), seen), a)
        b = fmas(costs, blank(load(x, second + m, LANES), seen), b)
        c = fmas(costs, blank(load(x, third + m, LANES), seen), c)
        d = fmas(costs, blank(load(x, fourth + m, LANES), seen), d)
    store(dw, j, fma(ONE, totals(a, b, c, d), load(dw, j, 4)))


@inline
def one_sum(count, g, k, x, i):  # type: ignore[no-untyped-def]
    """Return the sum of the products of `count` columns, `LANES` at a time."""
    whole = count - count % LANES
    sums = splat(ZERO, LANES)  # [LANES]
    for m in range(0, whole, LANES):
        sums = fmas(load(g, k + m, LANES), load(x, i + m, LANES), sums)
    if whole < count:
        m = count - LANES
        costs = blank(load(g, k + m, LANES), whole - m)
        rest = blank(load(x, i + m, LANES), whole - m)
        sums = fmas(costs, rest, sums)
    return total(sums)


@inline
def sum_of_costs(count, g, k):  # type: ignore[no-untyped-def]
    """Return the sum of `count` numbers, `LANES` at a time."""
    whole = count - count % LANES
    sums = splat(ZERO, LANES)  # [LANES]
    for m in range(0, whole, LANES):
        sums = fma(ONE, load(g, k + m, LANES), sums)
    if whole < count:
        m = count - LANES
        sums = fma(ONE, blank(load(g, k + m, LANES), whole - m), sums)
    return total(sums)


@inline
def lane_gradient(o, end, count, crow, col, ld, g, k, ldg, x, i, dw, db):  # type: ignore[no-untyped-def]
    """Add `count` columns, at least `LANES` of a matrix that has these, to rows o < end."""
    while o < end:
        here = k + o * ldg
        j = crow[o]
        last = crow[o + 1]
        while j + 4 <= last:
            first = i + col[j] * ld
            second = i + col[j + 1] * ld
            third = i + col[j + 2] * ld
            fourth = i + col[j + 3] * ld
            four_sums(count, g, here, x, first, second, third, fourth, dw, j)
            j += 4
        while j < last:
            dw[j] += one_sum(count, g, here, x, i + col[j] * ld)
            j += 1
        db[o] += sum_of_costs(count, g, here)
        o += 1


@inline
def one_gradient(o, end, count, crow, col, ld, g, k, ldg, x, i, dw, db):  # type: ignore[no-untyped-def]
    """Add fewer columns than `LANES`, one by one, to the sums of rows o < end."""
    while o < end:
        here = k + o * ldg
        for j in range(crow[o], crow[o + 1]):
            there = i + col[j] * ld
            sums = ZERO
            for m in range(count):
                sums += g[here + m] * x[there + m]
            dw[j] += sums
        for m in range(count):
            db[o] += g[here + m]
        o += 1


@inline
def cleared(o, end, crow, dw, db):  # type: ignore[no-untyped-def]
    """Begin the sums of rows o < end."""
    for j in range(crow[o], crow[end]):
        dw[j] = ZERO
    for row in range(o, end):
        db[row] = ZERO


@inline
def sample(t, M, N, step, crow, col, g, x, dw, db):  # type: ignore[no-untyped-def]
    """Do piece t of `sddmm`: some rows, which one thread owns, so that sums have one order."""
    o = t * step
    e = min(M, (t + 1) * step)
    cleared(o, e, crow, dw, db)
    n = 0
    while N - n >= TILE:
        tile_gradient(
            o,
            e,
            crow,
            after(crow, 1),
            col,
            N,
            g,
            n,
            N,
            x,
            n,
            dw,
            db,
            True,
        )
        n += TILE
    if n < N and N >= LANES:
        lane_gradient(o, e, N - n, crow, col, N, g, n, N, x, n, dw, db)
    elif n < N:
        one_gradient(o, e, N, crow, col, N, g, 0, N, x, 0, dw, db)


@inline
def bounded(o, end, M, crow, col, block, blocks, bounds):  # type: ignore[no-untyped-def]
    """bounds[c * M + row] = a row's first connection from feature c * block on, c <= blocks."""
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
def tiled(x, N, n, first, end, copy, k):  # type: ignore[no-untyped-def]
    """Copy `TILE` numbers from n on of rows first to end."""
    for row in range(first, end):
        store(copy, k, load(x, row * N + n, TILE))
        k += TILE


@inline
def tiled_sample(  # type: ignore[no-untyped-def]
    t, M, N, step, crow, col, g, x, dw, db, features, block, bounds, copy, k
):
    """Do piece t of `sddmm`, `TILE` samples at a time, from copies of them at k.

    Copies lie side by side, where the cache holds them all; a block of features is read by all
    rows before the next one. The sums are those of `sample`, in the same order.
    """
    o = t * step
    e = min(M, o + step)
    cleared(o, e, crow, dw, db)
    blocks = (features + block - 1) // block
    if blocks > 1:
        bounded(o, e, M, crow, col, block, blocks, bounds)
    costs = k + block * TILE
    n = 0
    while N - n >= TILE:
        source = g
        here = n
        ldg = N
        if blocks > 1:
            tiled(g, N, n, o, e, copy, costs)
            source = copy
            here = costs - o * TILE
            ldg = TILE
        for c in range(blocks):
            first = c * block
            tiled(x, N, n, first, min(features, first + block), copy, k)
            there = k - first * TILE
            start = crow
            stop = after(crow, 1)
            if blocks > 1:
                start = after(bounds, c * M)
                stop = after(bounds, (c + 1) * M)
            tile_gradient(
                o,
                e,
                start,
                stop,
                col,
                TILE,
                source,
                here,
                ldg,
                copy,
                there,
                dw,
                db,
                c == 0,
            )
        n += TILE
    if n < N:
        lane_gradient(o, e, N - n, crow, col, N, g, n, N, x, n, dw, db)


@kernel
def sddmm(a):  # type: ignore[no-untyped-def]
    """dw[j] = sum over n of g[o, n] x[col[j], n]; db[o] = sum of g.

    See `Sddmm`.
    """
    pieces = a[SDDMM.pieces]
    M = a[SDDMM.rows]
    N = a[SDDMM.columns]
    step = a[SDDMM.step]
    crow = ints(a[SDDMM.crow])
    col = ints(a[SDDMM.col])
    g = floats(a[SDDMM.dy])
    x = floats(a[SDDMM.x])
    dw = floats(a[SDDMM.dvalues])
    db = floats(a[SDDMM.dbias])
    features = a[SDDMM.features]
    block = a[SDDMM.block]
    bounds = ints(a[SDDMM.bounds])
    copies = floats(a[SDDMM.copies])
    mine = ticket(a, 1) * a[SDDMM.room]
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
            sample(t, M, N, step, crow, col, g, x, dw, db)


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
    block = a[GRADIENTS.block]
    bounds = ints(a[GRADIENTS.bounds])
    copies = floats(a[GRADIENTS.copies])
    rows = a[GRADIENTS.copied]
    mine = ticket(a, 1) * a[GRADIENTS.room]
    while True:
        t = ticket(a, 0)
        if t < samples and block:
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
        elif t < samples:
            sample(t, M, N, step, crow, col, g, x, dw, db)
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
                    features,
                    N,
                    chunk,
                    tcrow,
                    tcol,
                    w,
                    w,
                    x,
                    also,
                    g,
                    dx,
                )
        else:
            break


@inline
def flip(src, s, stride, dst, d, step, rows, columns):  # type: ignore[no-untyped-def]
    """dst[d + c * step + r] = src[s + r * stride + c] for r < rows, c < columns."""
    whole_rows = rows - rows % LANES
    whole_columns = columns - columns % LANES
    # a line of the cache is written as a whole, before others push it out
    for first in range(0, whole_rows, LINE):
        for c in range(0, whole_columns, LANES):
            for r in range(first, min(first + LINE, whole_rows), LANES):
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


@inline
def laid(x, first, width, n, buffers, here):  # type: ignore[no-untyped-def]
    """Lay n samples of x feature by feature, `TILE` of each; those that are absent are zero."""
    if n < TILE:
        for i in range(here, here + width * TILE):
            buffers[i] = ZERO
    flip(x, first * width, width, buffers, here, TILE, n, width)


@kernel
def transposed(a):  # type: ignore[no-untyped-def]
    """Write y (columns, rows) = x (rows, columns)^T; see `Transposed`."""
    rows = a[TRANSPOSED.rows]
    columns = a[TRANSPOSED.columns]
    step = a[TRANSPOSED.step]
    x = floats(a[TRANSPOSED.x])
    y = floats(a[TRANSPOSED.y])
    while True:
        c = ticket(a, 0) * step
        if c >= columns:
            break
        flip(x, c, columns, y, c * rows, rows, rows, min(step, columns - c))


@kernel
def network(a):  # type: ignore[no-untyped-def]
    """Y (samples, out) from x (samples, in) through all steps, `TILE` samples at a time.

    The activations of a tile stay in the cache: two buffers for each thread, written in turn by
    layers, and in place by what is between them. See `Network` and `Row`.
    """
    samples = a[NETWORK.samples]
    width = a[NETWORK.width]
    steps = a[NETWORK.steps]
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
        laid(x, first, width, n, buffers, here)
        for t in range(0, ROW_SIZE * steps, ROW_SIZE):
            kind = table[t + ROW.kind]
            rows = table[t + ROW.rows]
            w = floats(table[t + ROW.values])
            bias = floats(table[t + ROW.bias])
            also = table[t + ROW.also]
            if kind == PRODUCT:
                b = buffers
                tile_rows(
                    0,
                    rows,
                    ints(table[t + ROW.crow]),
                    ints(table[t + ROW.col]),
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
            elif kind == SCALED:
                scaled(buffers, here, rows, TILE, w, bias)
            elif kind == NORMALIZED:
                normalized(buffers, here, rows, w, bias, number_of(also))
            else:
                number = number_of(also)
                activated(
                    kind, number, buffers, here, buffers, here, rows * TILE
                )
        flip(buffers, here, TILE, y, first * rows, rows, rows, n)
