"""Loss and gradients of a whole network in one call, a tile of samples at a time.

What a small network costs in training is calls, not products: forward, loss and backward by torch
are some forty. Here a tile walks forward through all layers, meets its loss, and walks back, while
its activations stay in the cache. Gradients of a tile are added to nothing: those of all tiles are
summed afterwards, in their order, so that results do not depend on the number of threads.

Where a batch normalization follows a layer, a tile waits there: the kernel is called again when all
tiles have come so far, and the moments of the batch are known, or on the way back the means of
gradients.
"""

import math

from sparselib.ops.backends.cpu_arguments import (
    CROSS_ENTROPY,
    DESCENT,
    DESCENT_SIZE,
    LEVEL,
    LEVEL_SIZE,
    LINE,
    MASK,
    NOWHERE,
    OUT,
    OWN,
    PRODUCT,
    TILE,
)
from sparselib.ops.backends.cpu_between import (
    activated,
    exp,
    larger,
    minus,
    number_of,
    over,
    plus,
    sigmoid,
    times,
    turned,
)
from sparselib.ops.backends.cpu_kernels import (
    only_tile_gradient,
    tile_rows,
)
from sparselib.ops.backends.cpu_norm_kernels import (
    affine,
    gathered,
    standardized,
    standardized_back,
    standardized_back_by,
    standardized_by,
    summed_back,
)
from sparselib.ops.backends.cpu_vectors import (
    LANES,
    ONE,
    ZERO,
    after,
    floats,
    inline,
    ints,
    kernel,
    load,
    longs,
    splat,
    store,
    ticket,
    transpose_rows,
)


@inline
def entropy(x, i, rows, n, labels, share, scratch):  # type: ignore[no-untyped-def]
    """Turn outputs into gradients of share times the cross-entropy; return the sum of the losses.

    `scratch` has room for two numbers of each sample.
    """
    most = scratch
    sums = scratch + TILE
    for k in range(0, TILE, LANES):
        highest = load(x, i + k, LANES)  # [LANES]
        for o in range(1, rows):
            highest = larger(highest, load(x, i + o * TILE + k, LANES))
        store(x, most + k, highest)
    losses = 0.0
    for s in range(n):
        losses += x[most + s] - x[i + labels[s] * TILE + s]
    for k in range(0, TILE, LANES):
        highest = load(x, most + k, LANES)
        total = splat(ZERO, LANES)
        for o in range(rows):
            here = i + o * TILE + k
            part = exp(minus(load(x, here, LANES), highest))
            total = plus(total, part)
            store(x, here, part)
        store(x, sums + k, total)
        factor = over(splat(share, LANES), total)
        for o in range(rows):
            here = i + o * TILE + k
            store(x, here, times(load(x, here, LANES), factor))
    for s in range(n):
        losses += math.log(x[sums + s])
        x[i + labels[s] * TILE + s] -= share
    return losses


@inline
def squared_error(x, i, rows, n, labels, share):  # type: ignore[no-untyped-def]
    """Turn outputs into gradients of share times half the squared error of their sigmoids.

    With d = s - t of a sigmoid s and its target t, 0 or 1, the gradient d s (1 - s) is
    d |d| (1 - |d|). Returns the sum of the losses.
    """
    for k in range(0, rows * TILE, LANES):
        store(x, i + k, sigmoid(load(x, i + k, LANES)))
    for s in range(n):
        x[i + labels[s] * TILE + s] -= ONE
    losses = 0.0
    for o in range(rows):
        for s in range(i + o * TILE, i + o * TILE + n):
            losses += 0.5 * x[s] * x[s]
    for k in range(0, rows * TILE, LANES):
        d = load(x, i + k, LANES)
        size = larger(d, minus(splat(ZERO, LANES), d))
        slope = times(
            size, minus(splat(share, LANES), times(splat(share, LANES), size))
        )
        store(x, i + k, times(d, slope))
    return losses


@inline
def drawn(order, among, width, labels, classes, first, n, starts, known):  # type: ignore[no-untyped-def]
    """Note where n samples begin, and their classes; return whether all are there."""
    strange = 0
    for s in range(n):
        i = first + s
        if order:
            i = longs(order)[i]
        is_there = 0 <= i < among
        label = labels[i] if is_there else -1
        if label < 0 or label >= classes:
            strange += 1
        starts[s] = i * width
        known[s] = label
    return strange == 0


@inline
def laid(x, starts, width, n, buffers, here):  # type: ignore[no-untyped-def]
    """Lay n samples of x feature by feature, `TILE` of each; those that are absent are zero."""
    if n < TILE:
        for i in range(here, here + width * TILE):
            buffers[i] = ZERO
    whole_samples = n - n % LANES
    whole_columns = width - width % LANES
    # as in `flip`, a line of the cache is written as a whole
    for first in range(0, whole_samples, LINE):
        for c in range(0, whole_columns, LANES):
            for s in range(first, min(first + LINE, whole_samples), LANES):
                place = here + c * TILE + s
                transpose_rows(x, starts, s, c, buffers, place, TILE, LANES)
    for s in range(n):
        for c in range(whole_columns if s < whole_samples else 0, width):
            buffers[here + c * TILE + s] = x[starts[s] + c]


@inline
def noised(noise, samples, first, n, x, i, rows):  # type: ignore[no-untyped-def]
    """Multiply n samples of a tile, the first of them given, by what a dropout drew for them."""
    for o in range(rows):
        here = i + o * TILE
        there = o * samples + first
        if n == TILE:
            for k in range(0, TILE, LANES):
                drawn_here = load(noise, there + k, LANES)  # [LANES]
                store(x, here + k, times(load(x, here + k, LANES), drawn_here))
        else:
            for s in range(n):
                x[here + s] *= noise[there + s]


@inline
def multiplied(table, t, x, read, y, base, n):  # type: ignore[no-untyped-def]
    """Write the sums of the layer at t, which reads n samples of a tile from x[read] on.

    The places of the layer in y are counted from y[base] on.
    """
    rows = table[t + LEVEL.rows]
    sums = base + table[t + LEVEL.sums]
    tile_rows(
        0,
        rows,
        ints(table[t + LEVEL.crow]),
        ints(table[t + LEVEL.col]),
        TILE,
        floats(table[t + LEVEL.values]),
        floats(table[t + LEVEL.bias]),
        x,
        table[t + LEVEL.also],
        x,
        read,
        y,
        sums,
        TILE,
    )
    if waits(table, t):
        gathered(y, sums, rows, n)


@inline
def waits(table, t):  # type: ignore[no-untyped-def]
    """Whether what follows the layer at t needs the whole batch."""
    return table[t + LEVEL.moments] != 0


@inline
def followed(table, t, y, base, first, n, samples):  # type: ignore[no-untyped-def]
    """Do what follows the layer at t, whose places in y are counted from y[base] on."""
    rows = table[t + LEVEL.rows]
    sums = base + table[t + LEVEL.sums]
    raw = base + table[t + LEVEL.raw]
    written = base + table[t + LEVEL.place]
    kind = table[t + LEVEL.kind]
    scale = table[t + LEVEL.scale]
    if scale:
        if waits(table, t):
            standardized_by(y, sums, rows, floats(table[t + LEVEL.moments]))
        else:
            standardized(y, sums, rows, number_of(table[t + LEVEL.epsilon]), n)
        shift = floats(table[t + LEVEL.shift])
        is_relu = kind == PRODUCT
        affine(y, sums, y, raw, rows, floats(scale), shift, is_relu)
    if written != raw:
        number = number_of(table[t + LEVEL.number])
        activated(kind, number, y, raw, y, written, rows * TILE)
    noise = table[t + LEVEL.noise]
    if noise:
        noised(floats(noise), samples, first, n, y, written, rows)


@inline
def summed(table, t, buffers, costs, x, read, own):  # type: ignore[no-untyped-def]
    """Write the gradients of the values and biases of the layer at t, which read x[read]."""
    crow = ints(table[t + LEVEL.crow])
    only_tile_gradient(
        0,
        table[t + LEVEL.rows],
        crow,
        after(crow, 1),
        ints(table[t + LEVEL.col]),
        TILE,
        buffers,
        costs,
        TILE,
        x,
        read,
        after(own, table[t + LEVEL.dvalues]),
        after(own, table[t + LEVEL.dbias]),
        True,
    )


@inline
def back(table, t, rows, also, mask, buffers, costs, written):  # type: ignore[no-untyped-def]
    """Write the gradients of what the layer at t read; with MASK, where that is positive.

    It stands in `mask` where they are written.
    """
    w = floats(table[t + LEVEL.tvalues])
    tile_rows(
        0,
        rows,
        ints(table[t + LEVEL.tcrow]),
        ints(table[t + LEVEL.tcol]),
        TILE,
        w,
        w,
        mask,
        also,
        buffers,
        costs,
        buffers,
        written,
        TILE,
    )


@inline
def mask_of(table, t):  # type: ignore[no-untyped-def]
    """Return MASK if nothing but ReLU and a dropout follow the layer at t, else 0."""
    return MASK if table[t + LEVEL.kind] == PRODUCT else 0


@inline
def returned(table, t, x, base, costs, i, own, first, n, samples):  # type: ignore[no-untyped-def]
    """Turn gradients of what follows the layer at t into those of its sums.

    The places of the layer in x are counted from x[base] on. The slope of ReLU is no part of it, as
    `mask_of` has done that. Gradients of a normalization's parameters are written to `own`; where
    it is that of a batch, those of the sums wait for `settled`.
    """
    rows = table[t + LEVEL.rows]
    raw = table[t + LEVEL.raw]
    if table[t + LEVEL.place] != raw:
        kind = table[t + LEVEL.kind]
        number = number_of(table[t + LEVEL.number])
        turned(kind, number, x, base + raw, costs, i, rows * TILE)
    noise = table[t + LEVEL.noise]
    if noise:
        noised(floats(noise), samples, first, n, costs, i, rows)
    scale = table[t + LEVEL.scale]
    if scale:
        sums = base + table[t + LEVEL.sums]
        dscale = after(own, table[t + LEVEL.dscale])
        dshift = after(own, table[t + LEVEL.dshift])
        if waits(table, t):
            summed_back(x, sums, rows, costs, i, dscale, dshift)
        else:
            standardized_back(
                x, sums, rows, floats(scale), costs, i, dscale, dshift
            )


@inline
def settled(table, t, x, base, costs, i, n):  # type: ignore[no-untyped-def]
    """Turn gradients of a batch normalization into those of the sums of the layer at t."""
    standardized_back_by(
        x,
        base + table[t + LEVEL.sums],
        table[t + LEVEL.rows],
        floats(table[t + LEVEL.scale]),
        floats(table[t + LEVEL.moments]),
        costs,
        i,
        n,
    )


@inline
def forward(table, begin, last, buffers, mine, first, n, samples):  # type: ignore[no-untyped-def]
    """Carry a tile through layers, from behind the sums of one or from the input, until it waits.

    Returns the layer whose sums it has then; the last one's are its outputs.
    """
    t = max(begin, 0)
    while True:
        if t != begin:
            read = mine
            if t:
                read += table[t - LEVEL_SIZE + LEVEL.place]
            multiplied(table, t, buffers, read, buffers, mine, n)
            if t == last or waits(table, t):
                return t
        followed(table, t, buffers, mine, first, n, samples)
        t += LEVEL_SIZE


@inline
def gradient_of_loss(kind, x, i, rows, n, labels, share, scratch):  # type: ignore[no-untyped-def]
    """Turn outputs into gradients, of absent samples zero; return the sum of the losses."""
    if kind == CROSS_ENTROPY:
        losses = entropy(x, i, rows, n, labels, share, scratch)
    else:
        losses = squared_error(x, i, rows, n, labels, share)
    if n < TILE:
        for o in range(i, i + rows * TILE, TILE):
            for s in range(o + n, o + TILE):
                x[s] = ZERO
    return losses


@inline
def backward(table, begin, buffers, mine, own, first, n, samples):  # type: ignore[no-untyped-def]
    """Write the gradients of a tile to `own`, and those of its activations over these.

    It goes back from a layer, of whose sums the gradients are there, until it waits.
    """
    for t in range(begin, -1, -LEVEL_SIZE):
        costs = mine + table[t + LEVEL.place]
        inputs = mine
        if t:
            inputs = mine + table[t - LEVEL_SIZE + LEVEL.place]
        summed(table, t, buffers, costs, buffers, inputs, own)
        if t:
            before = t - LEVEL_SIZE
            rows = table[before + LEVEL.rows]
            also = mask_of(table, before)
            back(table, t, rows, also, buffers, buffers, costs, inputs)
            returned(
                table,
                before,
                buffers,
                mine,
                buffers,
                inputs,
                own,
                first,
                n,
                samples,
            )
            if waits(table, before):
                break


@kernel
def descent(a):  # type: ignore[no-untyped-def]
    """Gradients of values and biases of all layers, and the loss, by tiles; see `Descent`."""
    samples = a[DESCENT.samples]
    width = a[DESCENT.width]
    levels = a[DESCENT.levels]
    among = a[DESCENT.among]
    order = a[DESCENT.order]
    x = floats(a[DESCENT.x])
    labels = longs(a[DESCENT.labels])
    kind = a[DESCENT.loss]
    share = number_of(a[DESCENT.share])
    gradients = floats(a[DESCENT.gradients])
    stride = a[DESCENT.stride]
    buffers = floats(a[DESCENT.buffers])
    room = a[DESCENT.room]
    begin = a[DESCENT.begin]
    table = after(a, DESCENT_SIZE)
    last = (levels - 1) * LEVEL_SIZE
    classes = table[last + LEVEL.rows]
    thread = ticket(a, 1)
    while True:
        tile = ticket(a, 0)
        first = tile * TILE
        if first >= samples:
            break
        n = min(TILE, samples - first)
        mine = (tile if a[DESCENT.apart] else thread) * room
        scratch = mine + room - OWN * TILE
        # behind two numbers of four bytes for each sample, two of eight
        starts = longs(a[DESCENT.buffers] + 4 * (scratch + 2 * TILE))
        known = after(starts, TILE)
        own = after(gradients, tile * stride)
        if a[DESCENT.way] == OUT:
            if begin == NOWHERE:
                if not drawn(
                    order,
                    among,
                    width,
                    labels,
                    classes,
                    first,
                    n,
                    starts,
                    known,
                ):
                    a[DESCENT.strange] = 1
                    break
                laid(x, starts, width, n, buffers, mine)
            reached = forward(
                table, begin, last, buffers, mine, first, n, samples
            )
            if reached < last:
                continue
            costs = mine + table[last + LEVEL.place]
            losses = gradient_of_loss(
                kind, buffers, costs, classes, n, known, share, scratch
            )
            own[stride - 1] = losses * share
        else:
            reached = begin
            costs = mine + table[begin + LEVEL.place]
            settled(table, begin, buffers, mine, buffers, costs, n)
        backward(table, reached, buffers, mine, own, first, n, samples)
