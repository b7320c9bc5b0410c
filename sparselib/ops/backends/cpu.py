"""The products by the kernels of `sparselib.ops.backends.cpu_kernels`, and how they are called."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sparselib.ops.backends import (
    Between,
    Indices,
    Weights,
    cpu_buffers,
    cpu_work,
)
from sparselib.ops.backends.cpu_arguments import (
    KINDS,
    LINE,
    MASK,
    PRODUCT,
    TILE,
    Gradients,
    Network,
    Row,
    Sddmm,
    Spmm,
    Transposed,
    also,
    bits_of,
)
from sparselib.ops.backends.cpu_conv import convolve as convolve
from sparselib.ops.backends.cpu_conv import convolve_t as convolve_t
from sparselib.ops.backends.cpu_conv import correlate as correlate
from sparselib.ops.backends.cpu_launch import (
    ALONE,
    kernels,
    kernels_of,
    launch,
    start,
)

FEW = 16  # samples
FEW_OF_SMALL = 64  # samples, of layers whose products one thread sums
SMALL = 512  # features, read and written, of which a tile stays in the L1
WALKING = (
    512  # samples of so few features that need not be laid feature by feature
)
NARROW = 2048  # features, read and written, of which a tile stays in the L2
WALKING_FAR = 4096  # samples, for so many features
SPARE = 16  # numbers behind a result that an activation may write
# samples that are computed, by samples that there are
LANES_OF = [0, 1, 2, 4, 4, 8, 8, 8, 8] + [16] * 8 + [32] * 16 + [64] * 32
COPIED = 4  # products that take as long as a number takes to be copied
LINES = 128  # features that are laid at once, a line of the cache of each sample otherwise
CLOSE = 192  # samples, so few that what they write stays in the cache
MANY = 1 << 17  # weights: as many as the L2 of a core holds with their places


def spmm(
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    x: Tensor,
    bias: Tensor | None = None,
    permutation: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Y = X W^T + b for W (out, in) in CSR and X (batch, in), or max(Y, 0); float32.

    With a permutation the weight of nonzero j is ``values[permutation[j]]``.
    """
    rows = crow.numel() - 1
    batch = x.shape[0]
    values = (
        values.contiguous()
        if permutation is None
        else values.index_select(0, permutation)
    )
    bias = bias if bias is None else bias.contiguous()
    if rows and are_few(batch, col.shape[0]):
        return few(values, crow, col, x, bias, relu)
    columns = x.shape[1]
    if _walks(x, rows, col.shape[0]):
        return network([Weights(crow, col, values, bias, relu)], x)
    x = _feature_major(x)
    y = cpu_buffers.empty(rows, batch)
    if not (rows and batch):
        return y.t()
    work = cpu_work.product(rows, columns, batch, col.numel())
    block = Spmm(
        pieces=work.pieces,
        rows=rows,
        columns=batch,
        step=work.step,
        crow=crow,
        col=col,
        values=values,
        bias=bias,
        also=also(bias, relu) | work.also,
        x=x,
        y=y,
        copies=cpu_work.copies(work.room),
        copied=work.copied,
    )
    launch(kernels().spmm, block, batch * col.numel())
    return y.t()


def few(
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    x: Tensor,
    bias: Tensor | None,
    relu: bool = False,
) -> Tensor:
    """`spmm` of contiguous values for so few samples that a call's own time counts."""
    rows = crow.shape[0] - 1
    samples, columns = x.shape
    if LANES_OF[samples] != samples:
        return _cut(few(values, crow, col, _in_lanes(x), bias, relu), samples)
    threads = torch.get_num_threads()
    if threads > 1 and samples * col.shape[0] < ALONE:
        threads = 1
    copy = None
    if samples > 1 and x.stride() != (1, samples):
        x = x.contiguous() if threads == 1 else features_first(x).t()
        copy = torch.empty(columns, samples) if threads == 1 else None
    elif samples == 1:
        x = x.contiguous()
    y = torch.empty_strided((samples, rows), (1, samples))
    # the counters, and the fields of `Few` and `Row` in order; to name them takes a microsecond
    shared = array(
        "q",
        (
            0,
            0,
            columns,
            samples,
            1,
            x.data_ptr(),
            0 if copy is None else copy.data_ptr(),
            y.data_ptr(),
            0,
            0,
            rows if threads == 1 else max(1, cpu_work.ceil(rows, 4 * threads)),
            1,
            PRODUCT,
            rows,
            crow.data_ptr(),
            col.data_ptr(),
            values.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            also(bias, relu),
        ),
    )
    start(kernels_of("cpu_few").few, shared.buffer_info()[0], threads)
    return y


def few_through(
    steps: Sequence[
        tuple[Tensor, Tensor, Tensor, Tensor | None, bool] | Between
    ],
    x: Tensor,
) -> Tensor:
    """Carry few samples through layers (crow, col, contiguous values, bias, relu).

    A layer comes first. What may be between others, or after them, is an activation, or scaled.
    """
    samples, columns = x.shape
    if LANES_OF[samples] != samples:
        return _cut(few_through(steps, _in_lanes(x)), samples)
    x = x.contiguous()
    table: list[int] = []
    widest = 0
    rows = 0
    layers = 0
    for step in steps:
        # the fields of `Row` in their order
        if isinstance(step, Between):
            table += _between(step, rows)
            continue
        crow, col, values, bias, relu = step
        rows = crow.shape[0] - 1
        widest = max(widest, rows)
        layers += 1
        table += (
            PRODUCT,
            rows,
            crow.data_ptr(),
            col.data_ptr(),
            values.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            also(bias, relu),
        )
    size = 4 * widest * samples
    # x in order, and what each other layer writes in turn
    scratch = torch.empty((2 * widest + columns) * samples + SPARE)
    address = scratch.data_ptr()
    if isinstance(step, Between):
        room = torch.empty(rows * samples + SPARE)
        y = room.as_strided((samples, rows), (1, samples))
    else:
        y = torch.empty_strided((samples, rows), (1, samples))
    # the counters, the fields of `Few` in their order, and the table behind them
    block = (
        0,
        0,
        columns,
        samples,
        len(steps),
        x.data_ptr(),
        address + 2 * size if samples > 1 else 0,
        y.data_ptr(),
        address,
        size,
        widest,
        layers,
        *table,
    )
    shared = array("q", block)
    start(kernels_of("cpu_few").few, shared.buffer_info()[0], 1)
    return y


def _in_lanes(x: Tensor) -> Tensor:
    """Return as many samples as `LANES_OF` says, which begin with these; the others are zero."""
    samples = x.shape[0]
    return functional.pad(x, (0, 0, 0, LANES_OF[samples] - samples))


def _cut(y: Tensor, samples: int) -> Tensor:
    """Return the first samples, stored feature-major."""
    return y[:samples].t().contiguous().t()


def sddmm(
    crow: Tensor, col: Tensor, dy: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Entries of dY^T X at the nonzeros, and the sums of dY over the batch; float32."""
    batch, rows = dy.shape
    dvalues = dy.new_empty(col.numel())
    dbias = dy.new_empty(rows)
    if not rows * batch:
        return dvalues.zero_(), dbias.zero_()
    work = cpu_work.samples(rows, x.shape[1], batch, col.numel())
    block = Sddmm(
        pieces=work.pieces,
        rows=rows,
        columns=batch,
        step=work.step,
        crow=crow,
        col=col,
        dy=_feature_major(dy),
        x=_feature_major(x),
        dvalues=dvalues,
        dbias=dbias,
        features=x.shape[1],
        block=work.block,
        bounds=work.bounds,
        copies=cpu_work.copies(work.room),
        room=work.room,
    )
    launch(kernels().sddmm, block, batch * col.numel())
    return dvalues, dbias


def gradients(
    values: Tensor, indices: Indices, dy: Tensor, x: Tensor, relu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`sddmm`, and dX = dY W by the transposed pattern, as one piece of work; float32.

    With `relu` X is what a ReLU returned, and the gradient is that of its argument.
    """
    crow, col, tcrow, tcol, permutation = indices
    batch, rows = dy.shape
    features = x.shape[1]
    dvalues = dy.new_empty(col.numel())
    dbias = dy.new_empty(rows)
    dx = cpu_buffers.empty(features, batch)
    if not rows * features * batch:
        return dvalues.zero_(), dbias.copy_(dy.sum(0)), dx.zero_().t()
    sums = cpu_work.samples(rows, features, batch, col.numel())
    product = cpu_work.product(features, rows, batch, col.numel())
    room = max(sums.room, product.room)
    block = Gradients(
        samples=sums.pieces,
        pieces=sums.pieces + product.pieces,
        columns=batch,
        dy=_feature_major(dy),
        dvalues=dvalues,
        dbias=dbias,
        dx=dx,
        rows=rows,
        step=sums.step,
        crow=crow,
        col=col,
        x=_feature_major(x),
        features=features,
        chunk=product.step,
        tcrow=tcrow,
        tcol=tcol,
        values=values.index_select(0, permutation),
        also=(MASK if relu else 0) | product.also,
        copied=product.copied,
        block=sums.block,
        bounds=sums.bounds,
        copies=cpu_work.copies(room),
        room=room,
    )
    launch(kernels().gradients, block, 2 * batch * col.numel())
    return dvalues, dbias, dx.t()


def extrema(s: Tensor, distance: int, signed: bool, across: bool) -> Tensor:
    """Mark the extrema that are kept; float32 or float64."""
    from sparselib.ops.backends import cpu_extrema

    return cpu_extrema.greedy(s, distance, signed, across)


def network(steps: Sequence[Weights | Between], x: Tensor) -> Tensor:
    """Carry a batch through all steps at once, some samples at a time; float32, no gradient.

    What is between layers has scale and shift, where it has any of the two, contiguous.
    """
    samples, width = x.shape
    # what is copied to be contiguous has to outlive the call
    held = [
        step if isinstance(step, Between) else contiguous(step)
        for step in steps
    ]
    table: list[int] = []
    rows = width
    widest = width
    weights = 0
    for step in held:
        if isinstance(step, Between):
            table += _between(step, rows)
            continue
        rows = step.crow.shape[0] - 1
        widest = max(widest, rows)
        weights += step.col.shape[0]
        table += _row(step)
    y = x.new_empty(samples, rows)
    if not y.numel():
        return y
    block = Network(
        samples=samples,
        width=width,
        steps=len(steps),
        x=x.contiguous(),
        y=y,
        buffers=x.new_empty(torch.get_num_threads() * 2 * widest * TILE),
        widest=widest,
        table=torch.tensor(table),
    )
    launch(kernels().network, block, samples * weights)
    return y


def _walks(x: Tensor, rows: int, weights: int) -> bool:
    """Whether samples that lie one behind the other go through a layer tile by tile.

    They then need not be laid feature by feature before. It takes many of them, and so few features
    and weights that a tile and they stay in the cache. Measured on Zen 5.
    """
    samples, columns = x.shape
    features = columns + rows
    return (
        samples >= (WALKING if features <= SMALL else WALKING_FAR)
        and features <= NARROW
        and x.stride() == (columns, 1)
        and _stay_close(weights, rows * columns)
    )


def contiguous(layer: Weights) -> Weights:
    """Return a layer whose numbers lie side by side."""
    bias = layer.bias if layer.bias is None else layer.bias.contiguous()
    return layer._replace(values=layer.values.contiguous(), bias=bias)


def _row(layer: Weights) -> Row:
    return Row(
        kind=PRODUCT,
        rows=layer.crow.shape[0] - 1,
        crow=layer.crow.data_ptr(),
        col=layer.col.data_ptr(),
        values=layer.values.data_ptr(),
        bias=0 if layer.bias is None else layer.bias.data_ptr(),
        also=also(layer.bias, layer.relu),
    )


def _between(step: Between, rows: int) -> Row:
    return Row(
        kind=KINDS[step.kind],
        rows=rows,
        crow=0,
        col=0,
        values=0 if step.scale is None else step.scale.data_ptr(),
        bias=0 if step.shift is None else step.shift.data_ptr(),
        also=bits_of(step.number),
    )


def fuses(samples: int, weights: int, cells: int) -> bool:
    """Whether `network` is faster than one product after the other.

    It needs enough samples for all threads, or so little to do that one is enough; and not so many
    weights that a few samples at a time cannot walk through them.
    """
    tiles = cpu_work.ceil(samples, TILE)
    is_shared = samples >= TILE and tiles >= torch.get_num_threads()
    is_little = samples > FEW and samples * weights < ALONE
    return (is_shared or is_little) and _stay_close(weights, cells)


def _stay_close(weights: int, cells: int) -> bool:
    """Whether tile after tile of samples can walk through so many weights."""
    return weights < MANY or 4 * weights < cells


def are_few(samples: int, weights: int) -> bool:
    """Whether a call's own time counts, for so many samples and weights."""
    return 0 < samples <= FEW or (
        0 < samples <= FEW_OF_SMALL and samples * weights < ALONE
    )


def features_first(x: Tensor) -> Tensor:
    """Return the contiguous (features, batch) of a (batch, features); no copy where it is one."""
    view = x.t()
    if view.is_contiguous():
        return view
    x = x.contiguous()
    rows, columns = x.shape
    y = cpu_buffers.empty(columns, rows)
    if y.numel():
        step = LINES if rows <= CLOSE else LINE
        block = Transposed(rows, columns, step, x, y)
        launch(kernels().transposed, block, COPIED * y.numel())
    return y


def _feature_major(x: Tensor) -> Tensor:
    """Return a tensor whose memory holds (features, batch), without the call's cost if it is x."""
    return x if x.stride() == (1, x.shape[0]) else features_first(x)
