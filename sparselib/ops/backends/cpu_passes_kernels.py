"""A batch through layers with ReLU between them, and its gradients back, one call for each way.

As in `sparselib.ops.backends.cpu_descent_kernels` a tile of samples walks through all layers while
it stays in the cache; but what the layers wrote is kept between the two calls, and not written
over, as autograd may go back more than once.
"""

from sparselib.ops.backends.cpu_arguments import (
    INWARD,
    INWARD_SIZE,
    LEVEL,
    LEVEL_SIZE,
    OUTWARD,
    OUTWARD_SIZE,
    TILE,
)
from sparselib.ops.backends.cpu_descent_kernels import (
    back,
    mask_of,
    onward,
    returned,
    summed,
)
from sparselib.ops.backends.cpu_kernels import flip, laid
from sparselib.ops.backends.cpu_norm_kernels import cut, put
from sparselib.ops.backends.cpu_vectors import (
    after,
    floats,
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
        laid(x, first, width, n, buffers, mine)
        read = after(buffers, mine)
        own = after(kept, tile * depth)
        for t in range(0, last, LEVEL_SIZE):
            onward(table, t, read, 0, own, 0, first, n, samples)
            read = after(own, table[t + LEVEL.place])
        base = outputs - table[last + LEVEL.place]
        onward(table, last, read, 0, buffers, base, first, n, samples)
        put(buffers, outputs, first, samples, classes, n, y)


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
    further = a[INWARD.dx]
    dx = floats(further)
    widest = a[INWARD.widest] * TILE
    buffers = floats(a[INWARD.buffers])
    table = after(a, INWARD_SIZE)
    classes = table[last + LEVEL.rows]
    mine = ticket(a, 1) * (2 * widest + width * TILE)
    beside = mine + 2 * widest
    while True:
        tile = ticket(a, 0)
        first = tile * TILE
        if first >= samples:
            break
        n = min(TILE, samples - first)
        costs = mine
        other = mine + widest
        cut(dy, first, samples, classes, n, buffers, costs)
        laid(x, first, width, n, buffers, beside)
        own = after(gradients, tile * stride)
        for t in range(last, -1, -LEVEL_SIZE):
            inputs = after(buffers, beside)
            rows = width
            before = t - LEVEL_SIZE
            if t:
                rows = table[before + LEVEL.rows]
                place = tile * depth + table[before + LEVEL.place]
                inputs = after(kept, place)
            summed(table, t, buffers, costs, inputs, 0, own)
            if t or further:
                also = mask_of(table, before) if t else 0
                mask = after(inputs, -other)  # is read where they are written
                back(table, t, rows, also, mask, buffers, costs, other)
                if t:
                    returned(
                        table,
                        before,
                        kept,
                        tile * depth,
                        buffers,
                        other,
                        own,
                        first,
                        n,
                        samples,
                    )
                costs, other = other, costs
        if further:
            flip(buffers, costs, TILE, dx, first * width, width, width, n)
