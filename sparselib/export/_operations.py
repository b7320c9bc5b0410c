"""What each operation of an exported program becomes in C."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, fx

from sparselib.export._writer import Buffer, Writer, shape_of, size_of


def _argument(node: fx.Node, place: int, name: str, default: object) -> object:
    if len(node.args) > place:
        return node.args[place]
    return node.kwargs.get(name, default)


def _single(value: object) -> int:
    number = value[0] if isinstance(value, list | tuple) else value
    assert isinstance(number, int)
    return number


def _alias(writer: Writer, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    writer.buffers[node] = writer.buffers[source]


def _source(writer: Writer, node: fx.Node) -> Buffer:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return writer.buffers[source]


def _unary(function: str) -> Callable[[Writer, fx.Node], None]:
    def write(writer: Writer, node: fx.Node) -> None:
        source = _source(writer, node)
        writer.call(function, source, writer.new(node), source.size)

    return write


def _spmm(writer: Writer, node: fx.Node) -> None:
    values, x, _, indices = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(indices, list | tuple)
    crow = writer.constant(indices[0])
    col = writer.constant(indices[1])
    samples = size_of(x) // shape_of(x)[-1]
    pointers, kind = writer.integers(crow)
    columns, kind_of_column = writer.integers(col)
    function = writer.typed("sparse_linear", kind, kind_of_column)
    writer.call(
        function,
        writer.floats(writer.constant(values)),
        pointers,
        columns,
        writer.buffers[x],
        writer.new(node),
        len(crow) - 1,
        shape_of(x)[-1],
        samples,
    )


def _sparse_convolution(writer: Writer, node: fx.Node) -> None:
    values, x, sizes, indices = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(indices, list | tuple)
    assert isinstance(sizes, list | tuple)
    crow = writer.constant(indices[0])
    pointers, kind = writer.integers(crow)
    columns, kind_of_column = writer.integers(writer.constant(indices[1]))
    function = writer.typed("sparse_convolution", kind, kind_of_column)
    _, taps, before, _, dilation, across, down = map(_single, sizes)
    writer.call(
        function,
        writer.floats(writer.constant(values)),
        pointers,
        columns,
        writer.buffers[x],
        writer.new(node),
        len(crow) - 1,
        taps,
        before,
        dilation,
        across,
        down,
        shape_of(x)[2],
        shape_of(node)[2],
    )


def _linear(writer: Writer, node: fx.Node) -> None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    weight = writer.constant(node.args[1])
    bias = _argument(node, 2, "bias", None)
    writer.call(
        "linear",
        writer.floats(weight),
        writer.floats(None if bias is None else writer.constant(bias)),
        writer.buffers[x],
        writer.new(node),
        weight.shape[0],
        weight.shape[1],
        size_of(x) // weight.shape[1],
    )


def _convolution(writer: Writer, node: fx.Node) -> None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    weight = writer.constant(node.args[1])
    bias = _argument(node, 2, "bias", None)
    padding = _argument(node, 4, "padding", 0)
    if isinstance(padding, str):
        raise ValueError(
            f"a convolution in C needs its padding as a number, not {padding!r}"
        )
    filters, channels, taps = weight.shape
    groups = _single(_argument(node, 6, "groups", 1))
    writer.call(
        "convolution",
        writer.floats(weight),
        writer.floats(None if bias is None else writer.constant(bias)),
        writer.buffers[x],
        writer.new(node),
        filters,
        channels,
        taps,
        filters // groups,
        _single(_argument(node, 3, "stride", 1)),
        _single(padding),
        _single(_argument(node, 5, "dilation", 1)),
        shape_of(x)[2],
        shape_of(node)[2],
    )


def _batch_norm(writer: Writer, node: fx.Node) -> None:
    x, weight, bias, mean, variance = node.args[:5]
    eps = node.args[7]
    assert isinstance(x, fx.Node)
    assert isinstance(eps, float)
    scale = (writer.constant(variance).double() + eps).rsqrt()
    if weight is not None:
        scale = scale * writer.constant(weight).double()
    shift = -writer.constant(mean).double() * scale
    if bias is not None:
        shift = shift + writer.constant(bias).double()
    channels = shape_of(x)[1]
    writer.call(
        "affine",
        writer.floats(scale.float()),
        writer.floats(shift.float()),
        writer.buffers[x],
        writer.new(node),
        channels,
        size_of(node) // channels,
    )


def _add(writer: Writer, node: fx.Node) -> None:
    if node.kwargs.get("alpha", 1) != 1:
        raise ValueError("a sum in C has no factor alpha")
    first, second = node.args[:2]
    size = size_of(node)
    if not isinstance(first, fx.Node) or first not in writer.buffers:
        first, second = second, first
    assert isinstance(first, fx.Node)
    other: Buffer | str
    if isinstance(second, fx.Node) and second in writer.buffers:
        if shape_of(first) != shape_of(second):
            raise ValueError(
                f"a sum in C is of equal shapes, not {shape_of(first)} and {shape_of(second)}"
            )
        other = writer.buffers[second]
        repeats = 1
    else:
        term = (
            writer.constant(second)
            if isinstance(second, fx.Node)
            else torch.tensor(float(str(second)))
        )
        term, repeats = _compact(term.float(), shape_of(node))
        other = writer.floats(term)
        if size_of(first) != size:
            raise ValueError(
                f"a sum in C keeps the shape {shape_of(first)}, not {shape_of(node)}"
            )
    writer.call(
        "add",
        writer.buffers[first],
        other,
        writer.new(node),
        size // repeats,
        repeats,
    )


def _compact(term: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, int]:
    """Return a term of a sum as it repeats along the last dimensions, and how often."""
    full = term.expand(shape).reshape(-1)
    repeats = 1
    for size in reversed(shape):
        blocks = full.view(-1, repeats * size)
        if not bool((blocks == blocks[:, :1]).all()):
            break
        repeats *= size
    return full[::repeats].contiguous(), repeats


def _pad(writer: Writer, node: fx.Node) -> None:
    x, padding = node.args[:2]
    mode = _argument(node, 2, "mode", "constant")
    value = _argument(node, 3, "value", None) or 0.0
    assert isinstance(x, fx.Node)
    assert isinstance(padding, list | tuple)
    if len(padding) not in (2, 4) or value != 0.0:
        raise ValueError(
            f"padding in C is of the last two dimensions and by zeros, not {padding} by {value}"
        )
    modes = ["constant", "replicate", "reflect", "circular"]
    before, _, above, _ = [*map(_single, padding), 0, 0][:4]
    height, width = shape_of(x)[-2:]
    writer.call(
        "pad",
        writer.buffers[x],
        writer.new(node),
        size_of(x) // (height * width),
        height,
        width,
        above,
        before,
        *shape_of(node)[-2:],
        modes.index(str(mode)),
    )


def _slice(writer: Writer, node: fx.Node) -> None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    shape = shape_of(x)
    place = _single(_argument(node, 1, "dim", 0)) % len(shape)
    start = _single(_argument(node, 2, "start", None) or 0)
    step = _single(_argument(node, 4, "step", 1))
    if step != 1:
        raise ValueError(f"a slice in C has a step of 1, not {step}")
    inner = math.prod(shape[place + 1 :])
    writer.call(
        "slice",
        writer.buffers[x],
        writer.new(node),
        math.prod(shape[:place]),
        shape[place] * inner,
        start % shape[place] * inner,
        shape_of(node)[place] * inner,
    )


def _adaptive_pool(writer: Writer, node: fx.Node) -> None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    length = shape_of(x)[-1]
    writer.call(
        "pool_mean",
        writer.buffers[x],
        writer.new(node),
        size_of(x) // length,
        length,
        shape_of(node)[-1],
    )


def _mean(writer: Writer, node: fx.Node) -> None:
    x, dims = node.args[:2]
    assert isinstance(x, fx.Node)
    assert isinstance(dims, list | tuple)
    rank = len(shape_of(x))
    trailing = sorted(_single(d) % rank for d in dims)
    if trailing != list(range(rank - len(trailing), rank)):
        raise ValueError(
            f"a mean in C is over the last dimensions, not over {dims} of {rank}"
        )
    size = size_of(node)
    writer.call(
        "pool_mean",
        writer.buffers[x],
        writer.new(node),
        size,
        size_of(x) // size,
        1,
    )


def _max_pool(writer: Writer, node: fx.Node) -> None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    kernel = _single(node.args[1])
    length = shape_of(x)[-1]
    if _single(_argument(node, 4, "dilation", 1)) != 1:
        raise ValueError("a pool in C has no dilation")
    writer.call(
        "pool_largest",
        writer.buffers[x],
        writer.new(node),
        size_of(x) // length,
        length,
        kernel,
        _single(_argument(node, 2, "stride", kernel) or kernel),
        _single(_argument(node, 3, "padding", 0)),
        shape_of(node)[-1],
    )


def _permute(writer: Writer, node: fx.Node) -> None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    rank = len(shape_of(x))
    order = list(range(rank))
    if str(node.target).startswith("aten.transpose"):
        first, second = (_single(d) % rank for d in node.args[1:3])
        order[first], order[second] = order[second], order[first]
    else:
        dims = node.args[1]
        assert isinstance(dims, list | tuple)
        order = [_single(d) % rank for d in dims]
    steps = torch.empty(shape_of(x), device="meta").stride()
    if rank > 6:
        raise ValueError(f"C knows at most 6 dimensions here, not {rank}")
    sizes = [1] * (6 - rank) + [shape_of(x)[d] for d in order]
    strides = [0] * (6 - rank) + [steps[d] for d in order]
    writer.call(
        "permute", writer.buffers[x], writer.new(node), *sizes, *strides
    )


OPERATIONS: dict[str, Callable[[Writer, fx.Node], None]] = {
    "sparselib.spmm.default": _spmm,
    "sparselib.conv1d.default": _sparse_convolution,
    "aten.linear.default": _linear,
    "aten.conv1d.default": _convolution,
    "aten.batch_norm.default": _batch_norm,
    "aten.add.Tensor": _add,
    "aten.add_.Tensor": _add,
    "aten.relu.default": _unary("rectify"),
    "aten.relu_.default": _unary("rectify"),
    "aten.sigmoid.default": _unary("sigmoid"),
    "aten.tanh.default": _unary("hyperbolic_tangent"),
    "aten.pad.default": _pad,
    "aten.slice.Tensor": _slice,
    "aten.adaptive_avg_pool1d.default": _adaptive_pool,
    "aten.max_pool1d.default": _max_pool,
    "aten.mean.dim": _mean,
    "aten.transpose.int": _permute,
    "aten.permute.default": _permute,
    **dict.fromkeys(
        [
            "aten.flatten.using_ints",
            "aten.unflatten.int",
            "aten.view.default",
            "aten.reshape.default",
            "aten.unsqueeze.default",
            "aten.squeeze.dim",
            "aten.contiguous.default",
            "aten.clone.default",
            "aten.to.dtype",
            "aten.dropout.default",
            "aten.alias.default",
            "aten.detach.default",
        ],
        _alias,
    ),
}
