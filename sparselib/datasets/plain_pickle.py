"""Pickles of numbers, texts and numpy arrays, read as data: nothing in the file is called.

A pickle is a program. The standard `pickle` module carries it out, and imports and calls whatever
it names. Here its operations are taken one by one from a closed list, on containers of our own, and
the names that stand for an array (`_reconstruct`, `ndarray`, `dtype`) are only compared with texts.
"""

import pickletools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# exactly these pairs of module and name stand for a value; everything else is refused
NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "frombuffer",
    ("_codecs", "encode"): "encode",
}
NUMBER = re.compile(r"[iu][1248]|f[48]")
DEPTH = 8  # of containers one in another
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = (
    *(
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
    ),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
# texts of Python 2, which are bytes; `pickletools` gives them as latin-1
BYTES = ("STRING", "BINSTRING", "SHORT_BINSTRING")
EMPTY: dict[str, Callable[[], object]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
STORE = ("PUT", "BINPUT", "LONG_BINPUT")
FETCH = ("GET", "BINGET", "LONG_BINGET")
SILENT = ("PROTO", "FRAME")


class Refused(ValueError):
    """The pickle asks for something else than numbers, texts, arrays and containers of them."""


class _Name(NamedTuple):
    """One of `NAMES`, which is all that a pickle may refer to."""

    kind: str


class _Array:
    """An array, scalar or type that is announced first and filled by a later operation."""

    def __init__(self, kind: str, arguments: tuple[Any, ...]) -> None:
        self.kind = kind
        self.arguments = arguments
        self.state: tuple[Any, ...] | None = None


def read(data: bytes) -> object:
    """Return the object that a pickle describes, of any protocol.

    Parameters
    ----------
    data
        The bytes of the file.

    Returns
    -------
    object
        Dictionaries, lists, tuples, numbers, texts, bytes, and numpy arrays of numbers.

    Raises
    ------
    Refused
        If the pickle imports, calls or builds anything else.
    ValueError
        If it is cut short or damaged.
    """
    machine = _Machine()
    for operation, argument, position in pickletools.genops(data):
        try:
            if operation.name == "STOP":
                return _plain(machine.pop(), {})
            machine.step(operation.name, argument)
        except (LookupError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"operation {operation.name} at byte {position:,} does not fit ({error})"
            ) from error
    raise ValueError("it ends before its last operation")


class _Machine:
    """The stack of a pickle, its marks, and what it remembers for later."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memory: dict[object, object] = {}

    def pop(self) -> object:
        if not self.stack or (self.marks and self.marks[-1] >= len(self.stack)):
            raise ValueError("it takes a value where there is none")
        return self.stack.pop()

    def pop_to_mark(self) -> list[object]:
        if not self.marks:
            raise ValueError("it closes a group that was never opened")
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def step(self, name: str, argument: object) -> None:
        if name in SILENT:
            return
        if name in STORE or name == "MEMOIZE":
            self._remember(len(self.memory) if name == "MEMOIZE" else argument)
        elif name in FETCH:
            self.stack.append(self.memory[argument])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "POP":
            self.pop()
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"):
            self._fill(name)
        else:
            self.stack.append(self._value(name, argument))

    def _remember(self, place: object) -> None:
        top = self.pop()
        self.stack.append(top)
        self.memory[place] = top

    def _value(self, name: str, argument: object) -> object:
        """Return what an operation puts on the stack."""
        if name in LITERALS:
            return argument
        if name in BYTES:
            return (
                argument.encode("latin-1")
                if isinstance(argument, str)
                else argument
            )
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in EMPTY:
            return EMPTY[name]()
        if name in SHORT_TUPLES:
            return tuple(
                reversed([self.pop() for _ in range(SHORT_TUPLES[name])])
            )
        return self._composed(name, argument)

    def _composed(self, name: str, argument: object) -> object:
        if name == "TUPLE":
            return tuple(self.pop_to_mark())
        if name == "LIST":
            return self.pop_to_mark()
        if name == "DICT":
            return _filled({}, self.pop_to_mark())
        if name == "GLOBAL":
            return _named(*str(argument).split(" ", 1))
        if name == "STACK_GLOBAL":
            attribute = self.pop()
            return _named(self.pop(), attribute)
        if name == "REDUCE":
            arguments = self.pop()
            return _reduced(self.pop(), arguments)
        raise Refused(f"its operation {name} could run a program")

    def _fill(self, name: str) -> None:
        """Change the container, or the array, that lies below what is taken off."""
        if name == "BUILD":
            items = [self.pop()]
        elif name.endswith("S"):
            items = self.pop_to_mark()
        else:
            items = [self.pop() for _ in range(1 if name == "APPEND" else 2)][
                ::-1
            ]
        target = self.pop()
        self.stack.append(target)
        if name == "BUILD":
            _build(target, items[0])
        elif name.startswith("APPEND"):
            if type(target) is not list:
                raise ValueError("it appends to what is no list")
            target.extend(items)
        else:
            _filled(target, items)


def _filled(target: object, items: list[object]) -> dict[object, object]:
    if type(target) is not dict or len(items) % 2:
        raise ValueError("it sets items of what is no dictionary")
    for key, value in zip(items[::2], items[1::2]):
        if not isinstance(key, str | bytes | int):
            raise ValueError("a key of a dictionary is neither text nor number")
        target[key] = value
    return target


def _named(module: object, name: object) -> _Name:
    kind = (
        NAMES.get((module, name))
        if isinstance(module, str) and isinstance(name, str)
        else None
    )
    if kind is None:
        raise Refused(f"it asks for {module}.{name}")
    return _Name(kind)


def _reduced(function: object, arguments: object) -> object:
    if not isinstance(function, _Name) or type(arguments) is not tuple:
        raise Refused("it calls what is none of numpy's array functions")
    if function.kind != "encode":
        return _Array(function.kind, arguments)
    text, encoding = arguments
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"it asks for the encoding {encoding!r}")
    return text.encode("latin-1")


def _build(target: object, state: object) -> None:
    if type(target) is not _Array or type(state) is not tuple:
        raise Refused("it sets the state of what is no array")
    target.state = state


def _plain(value: object, known: dict[int, object], depth: int = 0) -> object:
    """Replace the arrays in what was read, in containers one in another, by numpy's."""
    if depth > DEPTH:
        raise ValueError(f"it holds containers more than {DEPTH} deep")
    if isinstance(value, _Name):
        raise Refused(f"it holds numpy's {value.kind} itself")
    if type(value) not in (_Array, dict, list, tuple):
        return value
    # what the pickle refers to twice is converted once
    if id(value) not in known:
        known[id(value)] = _converted(value, known, depth)
    return known[id(value)]


def _converted(value: object, known: dict[int, object], depth: int) -> object:
    if type(value) is _Array:
        return _array(value)
    if type(value) is dict:
        return {
            key: _plain(item, known, depth + 1) for key, item in value.items()
        }
    assert isinstance(value, list | tuple)
    return type(value)(_plain(item, known, depth + 1) for item in value)


def _array(found: _Array) -> object:
    if found.kind == "frombuffer":
        raw, described, shape, order = found.arguments
    elif found.kind == "reconstruct" and found.state is not None:
        _, shape, described, in_columns, raw = found.state
        order = "F" if in_columns else "C"
    elif found.kind == "scalar":
        described, raw = found.arguments
        return np.frombuffer(raw, _dtype(described))[0].item()
    else:
        raise ValueError(f"it holds an unfinished {found.kind}")
    if isinstance(raw, str):
        raw = raw.encode("latin-1")
    if not isinstance(raw, bytes | bytearray) or order not in ("C", "F"):
        raise ValueError("the values of an array are no bytes")
    return np.frombuffer(raw, _dtype(described)).reshape(shape, order=order)


def _dtype(found: object) -> np.dtype:
    if type(found) is not _Array or found.kind != "dtype":
        raise ValueError("an array has no type")
    name = found.arguments[0]
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    if not isinstance(name, str) or not NUMBER.fullmatch(name):
        raise Refused(f"it holds an array of {name!r}, not of numbers")
    order = (found.state or (3, "|"))[1]
    if isinstance(order, bytes):
        order = order.decode("latin-1")
    if order not in ("<", ">", "|", "="):
        raise ValueError(f"the byte order {order!r} is none")
    return np.dtype(order + name)
