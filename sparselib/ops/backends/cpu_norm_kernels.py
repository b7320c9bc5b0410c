"""Normalizations of samples that lie feature by feature, as sparse products write them.

Layer normalization (Ba, Kiros and Hinton, 2016) of a tile of samples, `TILE` numbers of each
feature side by side, is sums of vectors: nothing is added across lanes but the gradients of what
features are multiplied by, and shifted. Batch normalization (Ioffe and Szegedy, 2015) goes feature
by feature, so that no sum depends on the number of threads.
"""

import math

import numpy as np

from sparselib.ops.backends.cpu_arguments import (
    NORM,
    NORM_PIECE,
    PARTS,
    TILE,
)
from sparselib.ops.backends.cpu_between import (
    activated,
    inverse_of_spread,
    mean_of,
    minus,
    number_of,
    plus,
    times,
    turned,
)
from sparselib.ops.backends.cpu_vectors import (
    LANES,
    ONE,
    ZERO,
    after,
    floats,
    fma,
    fmas,
    inline,
    kernel,
    load,
    relu,
    splat,
    store,
    ticket,
    total,
)


@inline
def standardized(x, i, rows, epsilon, n):  # type: ignore[no-untyped-def]
    """Bring n samples of a tile to mean 0 and variance 1; what they were divided by goes behind.

    Behind them stand then `TILE` numbers 1 / sigma. Absent samples, and theirs, become zero.
    """
    mean = mean_of(x, i, rows)
    inverse = inverse_of_spread(x, i, rows, mean, epsilon)
    for o in range(rows):
        here = i + o * TILE
        store(x, here, times(minus(load(x, here, TILE), mean), inverse))
    store(x, i + rows * TILE, inverse)
    if n < TILE:
        for here in range(i, i + (rows + 1) * TILE, TILE):
            for s in range(n, TILE):
                x[here + s] = ZERO


@inline
def affine(x, i, y, j, rows, scale, shift, is_relu):  # type: ignore[no-untyped-def]
    """Write scale[o] x[o] + shift[o] to y[o] for all features o of a tile, and ReLU of it."""
    for o in range(rows):
        v = fma(
            scale[o], load(x, i + o * TILE, TILE), splat(shift[o], TILE)
        )  # [TILE]
        if is_relu:
            v = relu(v)
        store(y, j + o * TILE, v)


@inline
def standardized_back(x, i, rows, scale, costs, j, dscale, dshift):  # type: ignore[no-untyped-def]
    r"""Turn gradients of what `affine` wrote into those of what `standardized` read.

    With g = gradient * scale and the standardized h they are (g - mean(g) - h mean(g h)) / sigma.
    The gradients of scale and shift are written, too.
    """
    share = splat(ONE / rows, TILE)  # [TILE]
    mean = splat(ZERO, TILE)  # [TILE]
    along = splat(ZERO, TILE)  # [TILE]
    for o in range(rows):
        cost = load(costs, j + o * TILE, TILE)  # [TILE]
        product = times(cost, load(x, i + o * TILE, TILE))
        dshift[o] = total(cost)
        dscale[o] = total(product)
        mean = fma(scale[o], cost, mean)
        along = fma(scale[o], product, along)
    mean = times(mean, share)
    along = times(along, share)
    inverse = load(x, i + rows * TILE, TILE)  # [TILE]
    for o in range(rows):
        here = j + o * TILE
        g = times(splat(scale[o], TILE), load(costs, here, TILE))
        across = times(load(x, i + o * TILE, TILE), along)
        store(costs, here, times(minus(minus(g, mean), across), inverse))


@inline
def gathered(x, i, rows, n):  # type: ignore[no-untyped-def]
    """Note behind the features of a tile the means of n samples, and sums of squares about them.

    Those of all tiles become the moments of the batch. Absent samples become the means.
    """
    means = i + rows * TILE
    for o in range(rows):
        here = i + o * TILE
        for s in range(n, TILE):
            x[here + s] = ZERO
        mean = np.float32(total(load(x, here, TILE)) / n)
        for s in range(n, TILE):
            x[here + s] = mean
        away = minus(load(x, here, TILE), splat(mean, TILE))
        x[means + o] = mean
        x[means + rows + o] = total(times(away, away))


@kernel
def moments(a):  # type: ignore[no-untyped-def]
    r"""Mean and 1 / sigma of a batch, by what `gathered` has noted, and its mean and variance.

    With the means m_t of the n_t samples of tiles and their sums of squares S_t about them, n times
    the variance is the sum of S_t + n_t (m_t - m)^2 (Chan, Golub and LeVeque, 1983). The variance
    that is kept is divided by n - 1.
    """
    rows = a[PARTS.rows]
    samples = a[PARTS.samples]
    parts = floats(a[PARTS.parts])
    stride = a[PARTS.stride]
    epsilon = number_of(a[PARTS.epsilon])
    known = floats(a[PARTS.known])
    found = floats(a[PARTS.found])
    tiles = -(-samples // TILE)
    for o in range(rows):
        mean = 0.0
        for tile in range(tiles):
            n = min(TILE, samples - tile * TILE)
            mean += n * parts[tile * stride + o]
        mean /= samples
        squares = 0.0
        for tile in range(tiles):
            n = min(TILE, samples - tile * TILE)
            away = parts[tile * stride + o] - mean
            squares += parts[tile * stride + rows + o] + n * away * away
        known[o] = mean
        known[rows + o] = 1 / math.sqrt(squares / samples + epsilon)
        found[o] = mean
        found[rows + o] = squares / (samples - 1)


@kernel
def means(a):  # type: ignore[no-untyped-def]
    """Means over a batch of what tiles have summed."""
    samples = a[PARTS.samples]
    parts = floats(a[PARTS.parts])
    known = floats(a[PARTS.known])
    tiles = -(-samples // TILE)
    for o in range(2 * a[PARTS.rows]):
        total_of_tiles = 0.0
        for tile in range(tiles):
            total_of_tiles += parts[tile * a[PARTS.stride] + o]
        known[o] = total_of_tiles / samples


@inline
def standardized_by(x, i, rows, moments):  # type: ignore[no-untyped-def]
    """Bring each feature of a tile to mean 0 and variance 1 in the batch."""
    for o in range(rows):
        here = i + o * TILE
        away = minus(load(x, here, TILE), splat(moments[o], TILE))
        store(x, here, times(away, splat(moments[rows + o], TILE)))


@inline
def summed_back(x, i, rows, costs, j, dscale, dshift):  # type: ignore[no-untyped-def]
    """Write the gradients of scale and shift, of a tile."""
    for o in range(rows):
        cost = load(costs, j + o * TILE, TILE)  # [TILE]
        dshift[o] = total(cost)
        dscale[o] = total(times(cost, load(x, i + o * TILE, TILE)))


@inline
def standardized_back_by(x, i, rows, scale, moments, costs, j, n):  # type: ignore[no-untyped-def]
    r"""Turn gradients of what `affine` wrote into those of what `standardized_by` read.

    They are scale (gradient - mean(gradient) - h mean(gradient h)) / sigma with the standardized h
    and means over the batch; those of absent samples are zero.
    """
    for o in range(rows):
        here = j + o * TILE
        factor = splat(scale[o] * moments[rows + o], TILE)
        along = splat(moments[2 * rows + o], TILE)
        across = times(load(x, i + o * TILE, TILE), along)
        mean = splat(moments[3 * rows + o], TILE)
        cost = minus(load(costs, here, TILE), mean)
        store(costs, here, times(factor, minus(cost, across)))
        for s in range(n, TILE):
            costs[here + s] = ZERO


@inline
def copied(x, i, n, y, j):  # type: ignore[no-untyped-def]
    """Write x[i : i + n] to y from j on."""
    whole = n - n % LANES
    for k in range(0, whole, LANES):
        store(y, j + k, load(x, i + k, LANES))
    for s in range(whole, n):
        y[j + s] = x[i + s]


@inline
def cut(x, first, samples, rows, n, y, j):  # type: ignore[no-untyped-def]
    """Lay n samples of x, which lie feature by feature, side by side; the absent ones are zero."""
    for o in range(rows):
        here = j + o * TILE
        copied(x, o * samples + first, n, y, here)
        for s in range(n, TILE):
            y[here + s] = ZERO


@inline
def put(x, i, first, samples, rows, n, y):  # type: ignore[no-untyped-def]
    """Write n samples of a tile where `cut` read them."""
    for o in range(rows):
        copied(x, i + o * TILE, n, y, o * samples + first)


@kernel
def layer_outward(a):  # type: ignore[no-untyped-def]
    """Write activation(scale h + shift) of the standardized samples h, which `kept` then holds."""
    rows = a[NORM.rows]
    samples = a[NORM.samples]
    scale = floats(a[NORM.scale])
    shift = floats(a[NORM.shift])
    epsilon = number_of(a[NORM.epsilon])
    number = number_of(a[NORM.number])
    buffers = floats(a[NORM.buffers])
    mine = ticket(a, 1) * a[NORM.room]
    while True:
        tile = ticket(a, 0)
        first = tile * TILE
        if first >= samples:
            break
        n = min(TILE, samples - first)
        kept = after(floats(a[NORM.kept]), tile * (rows + 1) * TILE)
        cut(floats(a[NORM.x]), first, samples, rows, n, kept, 0)
        standardized(kept, 0, rows, epsilon, n)
        affine(kept, 0, buffers, mine, rows, scale, shift, False)
        count = rows * TILE
        activated(a[NORM.kind], number, buffers, mine, buffers, mine, count)
        put(buffers, mine, first, samples, rows, n, floats(a[NORM.y]))


@kernel
def layer_inward(a):  # type: ignore[no-untyped-def]
    """Gradients of what `layer_outward` read, and of scale and shift, by tiles of samples."""
    rows = a[NORM.rows]
    samples = a[NORM.samples]
    scale = floats(a[NORM.scale])
    shift = floats(a[NORM.shift])
    number = number_of(a[NORM.number])
    buffers = floats(a[NORM.buffers])
    costs = ticket(a, 1) * a[NORM.room]
    read = costs + rows * TILE
    while True:
        tile = ticket(a, 0)
        first = tile * TILE
        if first >= samples:
            break
        n = min(TILE, samples - first)
        kept = after(floats(a[NORM.kept]), tile * (rows + 1) * TILE)
        own = after(floats(a[NORM.gradients]), tile * 2 * rows)
        cut(floats(a[NORM.y]), first, samples, rows, n, buffers, costs)
        affine(kept, 0, buffers, read, rows, scale, shift, False)
        count = rows * TILE
        turned(a[NORM.kind], number, buffers, read, buffers, costs, count)
        standardized_back(
            kept, 0, rows, scale, buffers, costs, own, after(own, rows)
        )
        put(buffers, costs, first, samples, rows, n, floats(a[NORM.dx]))


@inline
def padded(x, i, n, y, j, pad):  # type: ignore[no-untyped-def]
    """Write x[i : i + n] to y from j on, and `pad` up to a multiple of `LANES`; return that."""
    count = -(-n // LANES) * LANES
    copied(x, i, n, y, j)
    for s in range(n, count):
        y[j + s] = pad
    return count


@inline
def summed_lanes(x, i, count):  # type: ignore[no-untyped-def]
    """Return the sum of x[i : i + count], a multiple of `LANES`."""
    sums = splat(ZERO, LANES)  # [LANES]
    for k in range(0, count, LANES):
        sums = plus(sums, load(x, i + k, LANES))
    return total(sums)


@inline
def centered(x, i, count, mean):  # type: ignore[no-untyped-def]
    """Take the mean from x[i : i + count]; return the sum of the squares."""
    sums = splat(ZERO, LANES)  # [LANES]
    for k in range(0, count, LANES):
        v = minus(load(x, i + k, LANES), splat(mean, LANES))
        store(x, i + k, v)
        sums = fmas(v, v, sums)
    return total(sums)


@inline
def scaled_lanes(x, i, count, factor, shift, y, j):  # type: ignore[no-untyped-def]
    """Write factor x + shift to y."""
    for k in range(0, count, LANES):
        v = fma(factor, load(x, i + k, LANES), splat(shift, LANES))
        store(y, j + k, v)


@kernel
def batch_outward(a):  # type: ignore[no-untyped-def]
    """Write activation(scale h + shift) of standardized features h; keep mean and variance."""
    rows = a[NORM.rows]
    samples = a[NORM.samples]
    scale = floats(a[NORM.scale])
    shift = floats(a[NORM.shift])
    epsilon = number_of(a[NORM.epsilon])
    number = number_of(a[NORM.number])
    x = floats(a[NORM.x])
    y = floats(a[NORM.y])
    kept = floats(a[NORM.kept])
    buffers = floats(a[NORM.buffers])
    share = np.float32(ONE / samples)
    mine = ticket(a, 1) * a[NORM.room]
    while True:
        first = ticket(a, 0) * NORM_PIECE
        if first >= rows:
            break
        for o in range(first, min(rows, first + NORM_PIECE)):
            here = o * samples
            count = padded(x, here, samples, buffers, mine, ZERO)
            mean = np.float32(summed_lanes(buffers, mine, count) * share)
            for s in range(samples, count):
                buffers[mine + s] = mean
            squares = centered(buffers, mine, count, mean)
            variance = np.float32(squares * share)
            factor = np.float32(scale[o] / math.sqrt(variance + epsilon))
            scaled_lanes(buffers, mine, count, factor, shift[o], buffers, mine)
            kind = a[NORM.kind]
            activated(kind, number, buffers, mine, buffers, mine, count)
            copied(buffers, mine, samples, y, here)
            kept[2 * o] = mean
            kept[2 * o + 1] = variance


@kernel
def batch_inward(a):  # type: ignore[no-untyped-def]
    """Gradients of what `batch_outward` read, and of scale and shift."""
    rows = a[NORM.rows]
    samples = a[NORM.samples]
    scale = floats(a[NORM.scale])
    shift = floats(a[NORM.shift])
    epsilon = number_of(a[NORM.epsilon])
    number = number_of(a[NORM.number])
    x = floats(a[NORM.x])
    dy = floats(a[NORM.y])
    dx = floats(a[NORM.dx])
    kept = floats(a[NORM.kept])
    gradients = floats(a[NORM.gradients])
    buffers = floats(a[NORM.buffers])
    share = np.float32(ONE / samples)
    away = ticket(a, 1) * a[NORM.room]
    read = away + a[NORM.room] // 3
    costs = read + a[NORM.room] // 3
    while True:
        first = ticket(a, 0) * NORM_PIECE
        if first >= rows:
            break
        for o in range(first, min(rows, first + NORM_PIECE)):
            here = o * samples
            mean = kept[2 * o]
            inverse = np.float32(ONE / math.sqrt(kept[2 * o + 1] + epsilon))
            count = padded(x, here, samples, buffers, away, mean)
            centered(buffers, away, count, mean)
            scaled_lanes(buffers, away, count, inverse, ZERO, buffers, away)
            scaled_lanes(
                buffers, away, count, scale[o], shift[o], buffers, read
            )
            padded(dy, here, samples, buffers, costs, ZERO)
            kind = a[NORM.kind]
            turned(kind, number, buffers, read, buffers, costs, count)
            along = splat(ZERO, LANES)  # [LANES]
            for k in range(0, count, LANES):
                cost = load(buffers, costs + k, LANES)  # [LANES]
                along = fmas(cost, load(buffers, away + k, LANES), along)
            dscale = total(along)
            dshift = summed_lanes(buffers, costs, count)
            gradients[o] = dscale
            gradients[rows + o] = dshift
            factor = np.float32(scale[o] * inverse)
            mean_along = splat(np.float32(dscale * share), LANES)
            mean_cost = splat(np.float32(dshift * share), LANES)
            for k in range(0, count, LANES):
                v = minus(load(buffers, costs + k, LANES), mean_cost)
                across = times(load(buffers, away + k, LANES), mean_along)
                v = times(splat(factor, LANES), minus(v, across))
                store(buffers, costs + k, v)
            copied(buffers, costs, samples, dx, here)
