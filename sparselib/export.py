"""A trained network as one C99 file, for devices of low resources: no library, no allocation.

The network is written down by ``torch.export``; each of its operations becomes a call of a small
C function, its constants become ``const`` tables, and its activations share one static array,
whose places are taken again when nothing reads them any more.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

LARGEST = {"uint8_t": 2**8, "uint16_t": 2**16, "uint32_t": 2**32}
KEYWORDS = frozenset(
    [
        *("auto", "break", "case", "char", "const", "continue", "default"),
        *("do", "double", "else", "enum", "extern", "float", "for"),
        *("goto", "if", "inline", "int", "long", "main", "register"),
        *(
            "restrict",
            "return",
            "short",
            "signed",
            "sizeof",
            "static",
            "struct",
        ),
        *(
            "switch",
            "typedef",
            "union",
            "unsigned",
            "void",
            "volatile",
            "while",
        ),
    ]
)
BYTES = {"float": 4, "uint8_t": 1, "uint16_t": 2, "uint32_t": 4}


class Source(NamedTuple):
    """A network in C.

    Attributes
    ----------
    text : str
        The file. It defines ``void NAME(const float *x, float *y)`` and the enumerators
        ``NAME_INPUTS`` and ``NAME_OUTPUTS``; x is one sample, y one result, both row by row. The
        function is not reentrant, since activations are static.
    inputs, outputs : int
        Numbers of a sample and of a result.
    flash : int
        Bytes of the constant tables.
    ram : int
        Bytes of the activations.
    """

    text: str
    inputs: int
    outputs: int
    flash: int
    ram: int


def c(model: nn.Module, example: Tensor, name: str = "network") -> Source:
    """Write a network as one C99 file.

    Parameters
    ----------
    model : nn.Module
        Computes with linear layers and one-dimensional convolutions, sparse or dense, batch
        normalization, ReLU, sigmoid, tanh, padding, pooling, means, sums of activations and
        changes of shape. It is written as it is in evaluation mode.
    example : Tensor, float32, shape (1, ...)
        One sample; the network is written for its shape.
    name : str
        Of the C function.

    Raises
    ------
    ValueError
        If an operation of the model has no form in C here, a weight is not finite, the example is
        not one sample of float32, or the name is no name in C.
    """
    is_name = isinstance(name, str) and name.isidentifier() and name.isascii()
    if not is_name or name in KEYWORDS:
        raise ValueError(f"a function in C cannot be called {name!r}")
    if not isinstance(example, Tensor):
        raise ValueError(
            f"the example is a tensor, one sample, not a {type(example).__name__}"
        )
    if example.dtype != torch.float32 or example.ndim < 2 or len(example) != 1:
        raise ValueError(
            f"the example is one sample of float32, (1, ...), not {tuple(example.shape)} of "
            f"{example.dtype}"
        )
    is_training = model.training
    try:
        program = torch.export.export(model.eval(), (example,), strict=False)
    finally:
        model.train(is_training)
    return _Writer(program, name).source()


@final
class _Writer:
    """Goes through an exported program node by node, and collects calls, tables and buffers."""

    def __init__(
        self, program: torch.export.ExportedProgram, name: str
    ) -> None:
        self.name = name
        self.constants: dict[fx.Node, object] = {}
        self.buffers: dict[fx.Node, _Buffer] = {}
        self.tables: dict[str, str] = {}
        self.calls: list[tuple[str, list["_Buffer | str | int"]]] = []
        self.functions: dict[str, str] = {}
        self.flash = 0
        self._read(program)

    def source(self) -> Source:
        """Return the file."""
        ram = _place(
            [buffer for buffer in self._distinct() if not buffer.fixed]
        )
        needs_math = bool(
            self.functions.keys() & {"sigmoid", "hyperbolic_tangent"}
        )
        inputs = self.input.size
        outputs = self.output.size
        lines = [
            f"/* {self.name}: {inputs} numbers in, {outputs} out; "
            f"{self.flash} bytes of tables, {4 * ram} of activations. */",
            "#include <stdint.h>",
            *(["#include <math.h>"] if needs_math else []),
            "",
            f"enum {{ {self.name}_INPUTS = {inputs}, {self.name}_OUTPUTS = {outputs} }};",
            "",
            *self.tables.values(),
            "",
            *self.functions.values(),
            f"static float memory[{max(ram, 1)}];",
            "",
            f"void {self.name}(const float *x, float *y);",
            f"void {self.name}(const float *x, float *y)",
            "{",
            *(
                f"    {function}({', '.join(map(_spelled, arguments))});"
                for function, arguments in self.calls
            ),
            "}",
            "",
        ]
        return Source("\n".join(lines), inputs, outputs, self.flash, 4 * ram)

    def _distinct(self) -> list["_Buffer"]:
        return list({id(b): b for b in self.buffers.values()}.values())

    def _read(self, program: torch.export.ExportedProgram) -> None:
        known = {
            **dict(program.named_parameters()),
            **dict(program.named_buffers()),
            **program.constants,
        }
        signature = {
            spec.arg.name: known.get(spec.target)
            for spec in program.graph_signature.input_specs
            if spec.target is not None
        }
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in signature:
                value = signature[node.name]
                self.constants[node] = (
                    value.detach() if isinstance(value, Tensor) else value
                )
            elif node.op == "placeholder":
                self.input = _Buffer(_size(node), fixed="x")
                self.buffers[node] = self.input
            elif node.op == "output":
                self._finish(node)
            else:
                self._translate(node)

    def _finish(self, node: fx.Node) -> None:
        results = node.all_input_nodes
        if len(results) != 1 or results[0] not in self.buffers:
            raise ValueError(
                f"a network in C has one result that depends on its input, not {len(results)}"
            )
        found = self.buffers[results[0]]
        self.output = _Buffer(found.size, fixed="y")
        self._call("copy", found, self.output, found.size)

    def _translate(self, node: fx.Node) -> None:
        target = str(node.target)
        if target.startswith("aten._assert"):
            return
        if not any(arg in self.buffers for arg in node.all_input_nodes):
            self.constants[node] = self._computed(node)
            return
        operation = OPERATIONS.get(target)
        if operation is None:
            raise ValueError(
                f"the operation {target} (node {node.name!r}) has no form in C; there are "
                f"{', '.join(sorted(OPERATIONS))}"
            )
        operation(self, node)

    def _computed(self, node: fx.Node) -> object:
        """Return what depends on constants alone."""
        assert callable(node.target)
        leaves, structure = pytree.tree_flatten((node.args, node.kwargs))
        filled = [
            self.constants[leaf] if isinstance(leaf, fx.Node) else leaf
            for leaf in leaves
        ]
        args, kwargs = pytree.tree_unflatten(filled, structure)
        return node.target(*args, **kwargs)

    def _call(self, function: str, *arguments: "_Buffer | str | int") -> None:
        now = len(self.calls)
        for argument in arguments:
            if isinstance(argument, _Buffer):
                argument.first = min(argument.first, now)
                argument.last = now
        if function not in self.functions:
            self.functions[function] = FUNCTIONS[function]
        self.calls.append((function, list(arguments)))

    def typed(self, template: str, pointer: str, column: str) -> str:
        """Return the name of a function that reads indices of these types."""
        name = f"{template}_{pointer}_{column}"
        text = FUNCTIONS[template].replace(template, name)
        text = text.replace("POINTER", pointer).replace("COLUMN", column)
        self.functions[name] = text
        return name

    def constant(self, node: object) -> Tensor:
        """Return a constant tensor that a node stands for."""
        assert isinstance(node, fx.Node)
        value = self.constants[node]
        assert isinstance(value, Tensor)
        return value

    def new(self, node: fx.Node) -> "_Buffer":
        """Return room for what a node computes."""
        buffer = _Buffer(_size(node))
        self.buffers[node] = buffer
        return buffer

    def floats(self, tensor: Tensor | None) -> str:
        """Return the name of a table of numbers, or 0."""
        if tensor is None:
            return "0"
        numbers = tensor.detach().flatten().tolist()
        if not torch.isfinite(tensor).all():
            raise ValueError("a weight of the network is not finite")
        return self._table("float", [_number(number) for number in numbers])

    def integers(self, tensor: Tensor) -> tuple[str, str]:
        """Return the name of a table of integers, and their type."""
        numbers = tensor.flatten().tolist()
        largest = max(numbers, default=0)
        kind = next(k for k, limit in LARGEST.items() if largest < limit)
        return self._table(kind, [str(number) for number in numbers]), kind

    def _table(self, kind: str, numbers: Sequence[str]) -> str:
        text = ", ".join(numbers) or "0"
        key = f"{kind} {text}"
        if key not in self.tables:
            name = f"table_{len(self.tables)}"
            self.tables[key] = (
                f"static const {kind} {name}[{max(len(numbers), 1)}] = {{{text}}};"
            )
            self.flash += BYTES[kind] * len(numbers)
        return self.tables[key].split()[3].split("[")[0]


class _Buffer:
    """Room for activations: from the call that writes it to the last that reads it."""

    def __init__(self, size: int, fixed: str = "") -> None:
        self.size = size
        self.fixed = fixed
        self.first = 1 << 30
        self.last = -1
        self.place = 0


def _place(buffers: Sequence[_Buffer]) -> int:
    """Give buffers places, so that those in use at one time do not overlap; return the room."""
    placed: list[_Buffer] = []
    for buffer in sorted(buffers, key=lambda b: -b.size):
        others = sorted(
            (
                other
                for other in placed
                if other.first <= buffer.last and buffer.first <= other.last
            ),
            key=lambda other: other.place,
        )
        for other in others:
            if buffer.place + buffer.size <= other.place:
                break
            buffer.place = max(buffer.place, other.place + other.size)
        placed.append(buffer)
    return max((b.place + b.size for b in buffers), default=0)


def _spelled(argument: _Buffer | str | int) -> str:
    if isinstance(argument, _Buffer):
        return argument.fixed or f"memory + {argument.place}"
    return str(argument)


def _number(number: float) -> str:
    text = f"{number:.9g}"
    is_whole = not set(text) & set(".e")
    return f"{text}.0f" if is_whole else f"{text}f"


def _shape(node: object) -> tuple[int, ...]:
    assert isinstance(node, fx.Node)
    return tuple(node.meta["val"].shape)


def _size(node: fx.Node) -> int:
    return int(torch.Size(_shape(node)).numel())


def _argument(node: fx.Node, place: int, name: str, default: object) -> object:
    if len(node.args) > place:
        return node.args[place]
    return node.kwargs.get(name, default)


def _single(value: object) -> int:
    number = value[0] if isinstance(value, list | tuple) else value
    assert isinstance(number, int)
    return number


def _alias(writer: _Writer, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    writer.buffers[node] = writer.buffers[source]


def _source(writer: _Writer, node: fx.Node) -> _Buffer:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return writer.buffers[source]


def _unary(function: str) -> Callable[[_Writer, fx.Node], None]:
    def write(writer: _Writer, node: fx.Node) -> None:
        source = _source(writer, node)
        writer._call(function, source, writer.new(node), source.size)

    return write


def _spmm(writer: _Writer, node: fx.Node) -> None:
    values, x, _, indices = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(indices, list | tuple)
    crow = writer.constant(indices[0])
    col = writer.constant(indices[1])
    samples = _size(x) // _shape(x)[-1]
    pointers, kind = writer.integers(crow)
    columns, kind_of_column = writer.integers(col)
    function = writer.typed("sparse_linear", kind, kind_of_column)
    writer._call(
        function,
        writer.floats(writer.constant(values)),
        pointers,
        columns,
        writer.buffers[x],
        writer.new(node),
        len(crow) - 1,
        _shape(x)[-1],
        samples,
    )


def _sparse_convolution(writer: _Writer, node: fx.Node) -> None:
    values, x, sizes, indices = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(indices, list | tuple)
    assert isinstance(sizes, list | tuple)
    crow = writer.constant(indices[0])
    pointers, kind = writer.integers(crow)
    columns, kind_of_column = writer.integers(writer.constant(indices[1]))
    function = writer.typed("sparse_convolution", kind, kind_of_column)
    _, taps, before, _, dilation, across, down = map(_single, sizes)
    writer._call(
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
        _shape(x)[2],
        _shape(node)[2],
    )


def _linear(writer: _Writer, node: fx.Node) -> None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    weight = writer.constant(node.args[1])
    bias = _argument(node, 2, "bias", None)
    writer._call(
        "linear",
        writer.floats(weight),
        writer.floats(None if bias is None else writer.constant(bias)),
        writer.buffers[x],
        writer.new(node),
        weight.shape[0],
        weight.shape[1],
        _size(x) // weight.shape[1],
    )


def _convolution(writer: _Writer, node: fx.Node) -> None:
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
    writer._call(
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
        _shape(x)[2],
        _shape(node)[2],
    )


def _batch_norm(writer: _Writer, node: fx.Node) -> None:
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
    channels = _shape(x)[1]
    writer._call(
        "affine",
        writer.floats(scale.float()),
        writer.floats(shift.float()),
        writer.buffers[x],
        writer.new(node),
        channels,
        _size(node) // channels,
    )


def _add(writer: _Writer, node: fx.Node) -> None:
    if node.kwargs.get("alpha", 1) != 1:
        raise ValueError("a sum in C has no factor alpha")
    first, second = node.args[:2]
    size = _size(node)
    if not isinstance(first, fx.Node) or first not in writer.buffers:
        first, second = second, first
    assert isinstance(first, fx.Node)
    other: _Buffer | str
    if isinstance(second, fx.Node) and second in writer.buffers:
        if _shape(first) != _shape(second):
            raise ValueError(
                f"a sum in C is of equal shapes, not {_shape(first)} and {_shape(second)}"
            )
        other = writer.buffers[second]
        repeats = 1
    else:
        term = (
            writer.constant(second)
            if isinstance(second, fx.Node)
            else torch.tensor(float(str(second)))
        )
        term, repeats = _compact(term.float(), _shape(node))
        other = writer.floats(term)
        if _size(first) != size:
            raise ValueError(
                f"a sum in C keeps the shape {_shape(first)}, not {_shape(node)}"
            )
    writer._call(
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


def _pad(writer: _Writer, node: fx.Node) -> None:
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
    height, width = _shape(x)[-2:]
    writer._call(
        "pad",
        writer.buffers[x],
        writer.new(node),
        _size(x) // (height * width),
        height,
        width,
        above,
        before,
        *_shape(node)[-2:],
        modes.index(str(mode)),
    )


def _slice(writer: _Writer, node: fx.Node) -> None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    shape = _shape(x)
    place = _single(_argument(node, 1, "dim", 0)) % len(shape)
    start = _single(_argument(node, 2, "start", None) or 0)
    step = _single(_argument(node, 4, "step", 1))
    if step != 1:
        raise ValueError(f"a slice in C has a step of 1, not {step}")
    inner = math.prod(shape[place + 1 :])
    writer._call(
        "slice",
        writer.buffers[x],
        writer.new(node),
        math.prod(shape[:place]),
        shape[place] * inner,
        start % shape[place] * inner,
        _shape(node)[place] * inner,
    )


def _adaptive_pool(writer: _Writer, node: fx.Node) -> None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    length = _shape(x)[-1]
    writer._call(
        "pool_mean",
        writer.buffers[x],
        writer.new(node),
        _size(x) // length,
        length,
        _shape(node)[-1],
    )


def _mean(writer: _Writer, node: fx.Node) -> None:
    x, dims = node.args[:2]
    assert isinstance(x, fx.Node)
    assert isinstance(dims, list | tuple)
    rank = len(_shape(x))
    trailing = sorted(_single(d) % rank for d in dims)
    if trailing != list(range(rank - len(trailing), rank)):
        raise ValueError(
            f"a mean in C is over the last dimensions, not over {dims} of {rank}"
        )
    size = _size(node)
    writer._call(
        "pool_mean",
        writer.buffers[x],
        writer.new(node),
        size,
        _size(x) // size,
        1,
    )


def _max_pool(writer: _Writer, node: fx.Node) -> None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    kernel = _single(node.args[1])
    length = _shape(x)[-1]
    if _single(_argument(node, 4, "dilation", 1)) != 1:
        raise ValueError("a pool in C has no dilation")
    writer._call(
        "pool_largest",
        writer.buffers[x],
        writer.new(node),
        _size(x) // length,
        length,
        kernel,
        _single(_argument(node, 2, "stride", kernel) or kernel),
        _single(_argument(node, 3, "padding", 0)),
        _shape(node)[-1],
    )


def _permute(writer: _Writer, node: fx.Node) -> None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    rank = len(_shape(x))
    order = list(range(rank))
    if str(node.target).startswith("aten.transpose"):
        first, second = (_single(d) % rank for d in node.args[1:3])
        order[first], order[second] = order[second], order[first]
    else:
        dims = node.args[1]
        assert isinstance(dims, list | tuple)
        order = [_single(d) % rank for d in dims]
    steps = torch.empty(_shape(x), device="meta").stride()
    if rank > 6:
        raise ValueError(f"C knows at most 6 dimensions here, not {rank}")
    sizes = [1] * (6 - rank) + [_shape(x)[d] for d in order]
    strides = [0] * (6 - rank) + [steps[d] for d in order]
    writer._call(
        "permute", writer.buffers[x], writer.new(node), *sizes, *strides
    )


OPERATIONS: dict[str, Callable[[_Writer, fx.Node], None]] = {
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


# what a network calls; those of sparse layers are written out for the types of their indices
FUNCTIONS: dict[str, str] = {
    "copy": """\
static void copy(const float *x, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = x[i];
}
""",
    "sparse_linear": """\
static void sparse_linear(const float *w, const POINTER *crow, const COLUMN *col, const float *x,
                          float *y, int rows, int columns, int samples)
{
    for (int s = 0; s < samples; s++)
        for (int o = 0; o < rows; o++) {
            float sum = 0.0f;
            for (int j = (int)crow[o]; j < (int)crow[o + 1]; j++)
                sum += w[j] * x[s * columns + (int)col[j]];
            y[s * rows + o] = sum;
        }
}
""",
    "sparse_convolution": """\
static void sparse_convolution(const float *w, const POINTER *crow, const COLUMN *col,
                               const float *x, float *y, int filters, int taps, int before,
                               int dilation, int across, int down, int length, int out)
{
    for (int o = 0; o < filters; o++) {
        for (int t = 0; t < out; t++)
            y[o * out + t] = 0.0f;
        for (int j = (int)crow[o]; j < (int)crow[o + 1]; j++) {
            int tap = (int)col[j] % taps;
            int from = tap / across * down + tap % across * dilation - before;
            const float *row = x + (int)col[j] / taps * length;
            for (int t = from < 0 ? -from : 0; t < out && t + from < length; t++)
                y[o * out + t] += w[j] * row[t + from];
        }
    }
}
""",
    "linear": """\
static void linear(const float *w, const float *b, const float *x, float *y, int rows,
                   int columns, int samples)
{
    for (int s = 0; s < samples; s++)
        for (int o = 0; o < rows; o++) {
            float sum = b ? b[o] : 0.0f;
            for (int i = 0; i < columns; i++)
                sum += w[o * columns + i] * x[s * columns + i];
            y[s * rows + o] = sum;
        }
}
""",
    "convolution": """\
static void convolution(const float *w, const float *b, const float *x, float *y, int filters,
                        int channels, int taps, int group, int stride, int before, int dilation,
                        int length, int out)
{
    for (int o = 0; o < filters; o++)
        for (int t = 0; t < out; t++) {
            float sum = b ? b[o] : 0.0f;
            for (int c = 0; c < channels; c++)
                for (int k = 0; k < taps; k++) {
                    int i = t * stride + k * dilation - before;
                    if (i >= 0 && i < length)
                        sum += w[(o * channels + c) * taps + k]
                               * x[(o / group * channels + c) * length + i];
                }
            y[o * out + t] = sum;
        }
}
""",
    "affine": """\
static void affine(const float *scale, const float *shift, const float *x, float *y,
                   int channels, int length)
{
    for (int c = 0; c < channels; c++)
        for (int t = 0; t < length; t++)
            y[c * length + t] = x[c * length + t] * scale[c] + shift[c];
}
""",
    "add": """\
static void add(const float *x, const float *z, float *y, int n, int repeats)
{
    for (int i = 0; i < n; i++)
        for (int r = 0; r < repeats; r++)
            y[i * repeats + r] = x[i * repeats + r] + z[i];
}
""",
    "rectify": """\
static void rectify(const float *x, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = x[i] < 0.0f ? 0.0f : x[i];
}
""",
    "sigmoid": """\
static void sigmoid(const float *x, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = 1.0f / (1.0f + expf(-x[i]));
}
""",
    "hyperbolic_tangent": """\
static void hyperbolic_tangent(const float *x, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = tanhf(x[i]);
}
""",
    "pad": """\
/* the point of a signal that stands at a place outside of it, or -1 for a zero */
static int within(int i, int length, int mode)
{
    if (i >= 0 && i < length)
        return i;
    if (mode == 1)
        return i < 0 ? 0 : length - 1;
    if (mode == 2)
        return i < 0 ? -i : 2 * (length - 1) - i;
    if (mode == 3)
        return i < 0 ? i + length : i - length;
    return -1;
}

static void pad(const float *x, float *y, int count, int height, int width, int above,
                int before, int rows, int columns, int mode)
{
    for (int n = 0; n < count; n++)
        for (int r = 0; r < rows; r++)
            for (int t = 0; t < columns; t++) {
                int i = within(r - above, height, mode);
                int j = within(t - before, width, mode);
                y[(n * rows + r) * columns + t] =
                    i < 0 || j < 0 ? 0.0f : x[(n * height + i) * width + j];
            }
}
""",
    "slice": """\
static void slice(const float *x, float *y, int count, int length, int start, int out)
{
    for (int n = 0; n < count; n++)
        for (int t = 0; t < out; t++)
            y[n * out + t] = x[n * length + start + t];
}
""",
    "pool_mean": """\
static void pool_mean(const float *x, float *y, int rows, int length, int out)
{
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < out; t++) {
            int first = t * length / out;
            int end = ((t + 1) * length + out - 1) / out;
            float sum = 0.0f;
            for (int i = first; i < end; i++)
                sum += x[r * length + i];
            y[r * out + t] = sum / (float)(end - first);
        }
}
""",
    "pool_largest": """\
static void pool_largest(const float *x, float *y, int rows, int length, int kernel, int stride,
                         int before, int out)
{
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < out; t++) {
            int first = t * stride - before;
            int end = first + kernel < length ? first + kernel : length;
            int i = first < 0 ? 0 : first;
            float largest = x[r * length + i];
            for (; i < end; i++)
                if (x[r * length + i] > largest)
                    largest = x[r * length + i];
            y[r * out + t] = largest;
        }
}
""",
    "permute": """\
static void permute(const float *x, float *y, int a, int b, int c, int d, int e, int f, int p,
                    int q, int r, int s, int t, int u)
{
    for (int h = 0; h < a; h++)
        for (int i = 0; i < b; i++)
            for (int j = 0; j < c; j++)
                for (int k = 0; k < d; k++)
                    for (int l = 0; l < e; l++)
                        for (int m = 0; m < f; m++)
                            *y++ = x[h * p + i * q + j * r + k * s + l * t + m * u];
}
""",
}
