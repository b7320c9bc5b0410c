"""A batch through layers with ReLU between them, and its gradients back, one call for each way.

As in `sparselib.ops.backends.cpu_descent_kernels` a tile of samples walks through all layers while
it stays in the cache; but what the layers wrote is kept between the two calls, and not written
over, as autograd may go back more than once. Where a batch normalization follows a layer
there is a call for each part of a way.
"""

from sparselib.ops.backends.cpu_arguments import (
    INWARD,
    INWARD_SIZE,
    LEVEL,
    LEVEL_SIZE,
    NOWHERE,
    OUTWARD,
    OUTWARD_SIZE,
    TILE,
)
from sparselib.ops.backends.cpu_descent_kernels import (
    back,
    followed,
    mask_of,
    multiplied,
    returned,
    settled,
    summed,
    waits,
)
from sparselib.ops.backends.cpu_kernels import flip, laid
from sparselib.ops.backends.cpu_norm_kernels import cut, put
from sparselib.ops.backends.cpu_vectors import (
    after,
    floats,
    inline,
    kernel,
    ticket,
)


@kernel
def outward(a):  # type: ignore[no-untyped-def]
    """Carry x through all layers to y, and keep what all but the last one wrote; see `Outward`."""
    samples = a[OUTWARD.samples]
    width = a[OUTWARD.width]
    last = (a[OUTWARD.levels] - 1) * LEVEL_SIZE
    x = floats(a[OUTWARD.x])
    y = floats(a[OUTWARD.y])
    kept = floats(a[OUTWARD.kept])
    depth = a[OUTWARD.depth] * TILE
    buffers = floats(a[OUTWARD.buffers])
    begin = a[OUTWARD.begin]
    table = after(a, OUTWARD_SIZE)
    classes = table[last + LEVEL.rows]
    mine = ticket(a, 1) * (width + classes) * TILE
    outputs = mine + width * TILE
    while True:
        tile = ticket(a, 0)
        first = tile * TILE
        if first >= samples:
            break
        n = min(TILE, samples - first)
        own = after(kept, tile * depth)
        if begin == NOWHERE:
            laid(x, first, width, n, buffers, mine)
        t = max(begin, 0)
        while True:
            if t != begin:
                read = after(buffers, mine)
                if t:
                    read = after(own, table[t - LEVEL_SIZE + LEVEL.place])
                written = own
                if t == last:
                    written = after(buffers, outputs - table[t + LEVEL.place])
                multiplied(table, t, read, 0, written, 0, n)
                if t == last or waits(table, t):
                    break
            followed(table, t, own, 0, first, n, samples)
            t += LEVEL_SIZE
        if t == last:
            put(buffers, outputs, first, samples, classes, n, y)


@inline
def backward(  # type: ignore[no-untyped-def]
    table,
    begin,
    x,
    width,
    kept,
    base,
    buffers,
    mine,
    widest,
    own,
    dx,
    first,
    n,
    samples,
):
    """Go back from a layer, of whose sums the gradients are there, until a tile waits.

    Gradients of one layer and of the one before it change places.
    """
    beside = mine + 2 * widest
    for t in range(begin, -1, -LEVEL_SIZE):
        before = t - LEVEL_SIZE
        costs = mine + (t // LEVEL_SIZE % 2) * widest
        written = 2 * mine + widest - costs
        inputs = after(buffers, beside)
        rows = width
        also = 0
        if t:
            inputs = after(kept, base + table[before + LEVEL.place])
            rows = table[before + LEVEL.rows]
            also = mask_of(table, before)
        else:
            laid(x, first, width, n, buffers, beside)
        summed(table, t, buffers, costs, inputs, 0, own)
        if t or dx:
            mask = after(inputs, -written)  # is read where they are written
            back(table, t, rows, also, mask, buffers, costs, written)
        if t:
            returned(
                table,
                before,
                kept,
                base,
                buffers,
                written,
                own,
                first,
                n,
                samples,
            )
            if waits(table, before):
                break
        elif dx:
            place = first * width
            flip(buffers, written, TILE, floats(dx), place, width, width, n)


@kernel
def inward(a):  # type: ignore[no-untyped-def]
    """Gradients of all parameters, by tiles, and of x; see `Inward`."""
    samples = a[INWARD.samples]
    width = a[INWARD.width]
    last = (a[INWARD.levels] - 1) * LEVEL_SIZE
    x = floats(a[INWARD.x])
    kept = floats(a[INWARD.kept])
    depth = a[INWARD.depth] * TILE
    dy = floats(a[INWARD.dy])
    gradients = floats(a[INWARD.gradients])
    stride = a[INWARD.stride]
    widest = a[INWARD.widest] * TILE
    buffers = floats(a[INWARD.buffers])
    table = after(a, INWARD_SIZE)
    begin = a[INWARD.begin]
    classes = table[last + LEVEL.rows]
    thread = ticket(a, 1)
    while True:
        tile = ticket(a, 0)
        first = tile * TILE
        if first >= samples:
            break
        n = min(TILE, samples - first)
        base = tile * depth
        mine = tile if a[INWARD.apart] else thread
        mine *= 2 * widest + width * TILE
        reached = last if begin == NOWHERE else begin
        costs = mine + (reached // LEVEL_SIZE % 2) * widest
        if begin == NOWHERE:
            cut(dy, first, samples, classes, n, buffers, costs)
        else:
            settled(table, begin, kept, base, buffers, costs, n)
        backward(
            table,
            reached,
            x,
            width,
            kept,
            base,
            buffers,
            mine,
            widest,
            after(gradients, tile * stride),
            a[INWARD.dx],
            first,
            n,
            samples,
        )
