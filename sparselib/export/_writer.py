"""What an exported program becomes: calls of C functions, tables of constants, and buffers."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sparselib.export._functions import FUNCTIONS

LARGEST = {"uint8_t": 2**8, "uint16_t": 2**16, "uint32_t": 2**32}
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


@final
class Writer:
    """Goes through an exported program node by node, and collects calls, tables and buffers.

    Parameters
    ----------
    program : ExportedProgram
        The network.
    name : str
        Of the C function.
    operations : mapping of str to callable
        What adds the calls of a node, by the name of its operation.
    """

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        name: str,
        operations: "Mapping[str, Callable[[Writer, fx.Node], None]]",
    ) -> None:
        self.name = name
        self.operations = operations
        self.constants: dict[fx.Node, object] = {}
        self.buffers: dict[fx.Node, Buffer] = {}
        self.tables: dict[str, str] = {}
        self.calls: list[tuple[str, list["Buffer | str | int"]]] = []
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

    def _distinct(self) -> list["Buffer"]:
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
                self.input = Buffer(size_of(node), fixed="x")
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
        self.output = Buffer(found.size, fixed="y")
        self.call("copy", found, self.output, found.size)

    def _translate(self, node: fx.Node) -> None:
        target = str(node.target)
        if target.startswith("aten._assert"):
            return
        if not any(arg in self.buffers for arg in node.all_input_nodes):
            self.constants[node] = self._computed(node)
            return
        operation = self.operations.get(target)
        if operation is None:
            raise ValueError(
                f"the operation {target} (node {node.name!r}) has no form in C; there are "
                f"{', '.join(sorted(self.operations))}"
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

    def call(self, function: str, *arguments: "Buffer | str | int") -> None:
        """Add a call; functions that stand in it are written once."""
        now = len(self.calls)
        for argument in arguments:
            if isinstance(argument, Buffer):
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

    def new(self, node: fx.Node) -> "Buffer":
        """Return room for what a node computes."""
        buffer = Buffer(size_of(node))
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


class Buffer:
    """Room for activations: from the call that writes it to the last that reads it."""

    def __init__(self, size: int, fixed: str = "") -> None:
        self.size = size
        self.fixed = fixed
        self.first = 1 << 30
        self.last = -1
        self.place = 0


def _place(buffers: Sequence[Buffer]) -> int:
    """Give buffers places, so that those in use at one time do not overlap; return the room."""
    placed: list[Buffer] = []
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


def _spelled(argument: Buffer | str | int) -> str:
    if isinstance(argument, Buffer):
        return argument.fixed or f"memory + {argument.place}"
    return str(argument)


def _number(number: float) -> str:
    text = f"{number:.9g}"
    is_whole = not set(text) & set(".e")
    return f"{text}.0f" if is_whole else f"{text}f"


def shape_of(node: object) -> tuple[int, ...]:
    """Return the shape of what a node computes."""
    assert isinstance(node, fx.Node)
    return tuple(node.meta["val"].shape)


def size_of(node: fx.Node) -> int:
    """Count the numbers that a node computes."""
    return int(torch.Size(shape_of(node)).numel())
