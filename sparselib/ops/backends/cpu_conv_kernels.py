"""Sparse convolutions on the CPU, sample by sample, in memory that stays close to the core.

A sample's images are laid into a thread's own memory, their rows one behind the other with zeros
between them, so that every weight reads one stretch of it. What is computed between two rows is
left out where an output is copied to its place. Nothing checks a bound in here;
`sparselib.ops.backends.cpu_conv` does.
"""

from sparselib.ops.backends.cpu_arguments import CONVOLUTION, CORRELATION
from sparselib.ops.backends.cpu_kernels import (
    cleared,
    in_blocks,
    lane_gradient,
    one_gradient,
)
from sparselib.ops.backends.cpu_vectors import (
    LANES,
    ZERO,
    after,
    floats,
    inline,
    ints,
    kernel,
    load,
    store,
    ticket,
)


@inline
def blanked(p, n, end):  # type: ignore[no-untyped-def]
    """Write zeros from n to end."""
    for i in range(n, end):
        p[i] = ZERO


@inline
def copied(source, i, target, k, count):  # type: ignore[no-untyped-def]
    """Copy some numbers; the last of them overlap their neighbors."""
    if count < LANES:
        for m in range(count):
            target[k + m] = source[i + m]
    else:
        n = 0
        while n < count:
            n = min(n, count - LANES)
            store(target, k + n, load(source, i + n, LANES))
            n += LANES


@inline
def laid(  # type: ignore[no-untyped-def]
    images,
    channels,
    height,
    width,
    row,
    pitch,
    start,
    length,
    source,
    i,
    target,
    k,
):
    """Lay a channel's images `pitch` apart, and their rows `row`, from `start` on, among zeros."""
    for c in range(channels):
        n = 0
        for q in range(images):
            here = i + (q * channels + c) * height * width
            for h in range(height):
                there = start + q * pitch + h * row
                blanked(target, k + n, k + there)
                copied(source, here, target, k + there, width)
                here += width
                n = there + width
        blanked(target, k + n, k + length)
        k += length


@inline
def cut(n, end, height, width, row, pitch, source, i, target, k, sample):  # type: ignore[no-untyped-def]
    """Copy the rows of images among points n to end; n begins a row. Point 0 is source[i]."""
    per = pitch // row
    r = n // row
    while r * row < end:
        h = r % per
        if h < height:
            there = k + r // per * sample + h * width
            copied(source, i + r * row, target, there, width)
        r += 1


@inline
def summed(  # type: ignore[no-untyped-def]
    o,
    e,
    n,
    end,
    crow,
    places,
    w,
    bias,
    also,
    x,
    i,
    own,
    is_cut,
    height,
    width,
    row,
    pitch,
    here,
    y,
    k,
    sample,
):
    """Do points n to end of rows o < e: by way of `here` where other points lie between them."""
    count = end - n
    target = own if is_cut else y
    while o < e:
        there = here if is_cut else k + n
        in_blocks(
            o,
            o + 1,
            0,
            count,
            crow,
            places,
            1,
            w,
            bias,
            x,
            also,
            x,
            i + n,
            target,
            there - o * count,
            count,
        )
        if is_cut:
            cut(n, end, height, width, row, pitch, own, here - n, y, k, sample)
        k += height * width
        o += 1


@kernel
def convolution(a):  # type: ignore[no-untyped-def]
    """y[s, o] = bias[o] + sum_j w[j] (x[s], laid)[places[j] :], cut; see `Convolution`."""
    pieces = a[CONVOLUTION.pieces]
    chunks = a[CONVOLUTION.chunks]
    step = a[CONVOLUTION.step]
    samples = a[CONVOLUTION.samples]
    stack = a[CONVOLUTION.stack]
    channels = a[CONVOLUTION.channels]
    M = a[CONVOLUTION.rows]
    height = a[CONVOLUTION.height]
    width = a[CONVOLUTION.width]
    row = a[CONVOLUTION.row]
    pitch = a[CONVOLUTION.pitch]
    start = a[CONVOLUTION.start]
    length = a[CONVOLUTION.length]
    down = a[CONVOLUTION.down]
    across = a[CONVOLUTION.across]
    N = a[CONVOLUTION.written]
    band = a[CONVOLUTION.band]
    x = floats(a[CONVOLUTION.x])
    own = floats(a[CONVOLUTION.own])
    room = a[CONVOLUTION.room]
    mine = ticket(a, 1) * room
    is_cut = stack > 1 or (down > 1 and row > across)
    is_laid = stack > 1 or length > height * width
    while True:
        t = ticket(a, 0)
        if t >= pieces:
            break
        s = t // chunks * stack
        o = t % chunks * step
        images = min(stack, samples - s)
        i = s * channels * height * width
        source = x
        if is_laid:
            laid(
                images,
                channels,
                height,
                width,
                row,
                pitch,
                start,
                length,
                x,
                i,
                own,
                mine,
            )
            source = own
            i = mine
        points = (images - 1) * pitch + N
        for n in range(0, points, band):
            summed(
                o,
                min(M, o + step),
                n,
                min(points, n + band),
                ints(a[CONVOLUTION.crow]),
                ints(a[CONVOLUTION.places]),
                floats(a[CONVOLUTION.values]),
                floats(a[CONVOLUTION.bias]),
                a[CONVOLUTION.also],
                source,
                i,
                own,
                is_cut,
                down,
                across,
                row,
                pitch,
                mine + room - band,
                floats(a[CONVOLUTION.y]),
                (s * M + o) * down * across,
                M * down * across,
            )


@inline
def correlated(o, e, N, band, crow, places, g, k, x, i, dw, db):  # type: ignore[no-untyped-def]
    """Add N points to the sums of rows o < e."""
    if N < LANES:
        one_gradient(o, e, N, crow, places, 1, g, k, N, x, i, dw, db)
    else:
        for n in range(0, N, band):
            lane_gradient(
                o,
                e,
                min(band, N - n),
                crow,
                places,
                1,
                g,
                k + n,
                N,
                x,
                i + n,
                dw,
                db,
            )


@kernel
def correlation(a):  # type: ignore[no-untyped-def]
    """dw[g, j] = sum over n and a group's s of (dy[s], laid)[n] (x[s], laid)[places[j] + n].

    Rows belong to one piece, so that sums have one order. See `Correlation`.
    """
    pieces = a[CORRELATION.pieces]
    chunks = a[CORRELATION.chunks]
    step = a[CORRELATION.step]
    samples = a[CORRELATION.samples]
    group = a[CORRELATION.group]
    stack = a[CORRELATION.stack]
    channels = a[CORRELATION.channels]
    M = a[CORRELATION.filters]
    height = a[CORRELATION.height]
    width = a[CORRELATION.width]
    row = a[CORRELATION.row]
    pitch = a[CORRELATION.pitch]
    start = a[CORRELATION.start]
    read = a[CORRELATION.read]
    down = a[CORRELATION.down]
    across = a[CORRELATION.across]
    N = a[CORRELATION.written]
    band = a[CORRELATION.band]
    crow = ints(a[CORRELATION.crow])
    places = ints(a[CORRELATION.places])
    x = floats(a[CORRELATION.x])
    dy = floats(a[CORRELATION.dy])
    own = floats(a[CORRELATION.own])
    mine = ticket(a, 1) * a[CORRELATION.room]
    while True:
        t = ticket(a, 0)
        if t >= pieces:
            break
        g = t // chunks
        o = t % chunks * step
        e = min(M, o + step)
        dw = after(floats(a[CORRELATION.dvalues]), g * crow[M])
        db = after(floats(a[CORRELATION.dbias]), g * M)
        cleared(o, e, crow, dw, db)
        for s in range(g * group, min(samples, (g + 1) * group), stack):
            images = min(stack, samples - s)
            i = s * channels * height * width
            k = s * M * down * across
            source = x
            costs = dy
            if stack > 1 or read > height * width:
                laid(
                    images,
                    channels,
                    height,
                    width,
                    row,
                    pitch,
                    start,
                    read,
                    x,
                    i,
                    own,
                    mine,
                )
                source = own
                i = mine
            if stack > 1 or down * across < N:
                there = mine + channels * read
                laid(
                    images,
                    M,
                    down,
                    across,
                    row,
                    pitch,
                    0,
                    N,
                    dy,
                    k,
                    own,
                    there,
                )
                costs = own
                k = there
            correlated(o, e, N, band, crow, places, costs, k, source, i, dw, db)
