"""A page's parameters: declared once, in the cell tagged `parameters`, and checked by one function.

An annotation of that cell defines the values that a parameter takes. The words are Python's own:
``bool``, ``int``, ``float``, ``str``, ``list``, ``dict``; ``list[X]``; ``X | Y``; for choices
``Literal["a", "b"]``; for texts that a regular expression matches as a whole
``Annotated[str, "pattern"]``; and the ranges below. A list may be empty only if its default is.
"""

import ast
import difflib
import linecache
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

from .history import commit

PositiveInt = Annotated[int, "> 0"]
NonNegativeInt = Annotated[int, ">= 0"]
PositiveFloat = Annotated[float, "> 0"]
NonNegativeFloat = Annotated[float, ">= 0"]
Share = Annotated[float, "from 0 to 1"]
Device = Annotated[str, r"cpu|cuda(:\d+)?"]
# of parameters, by their names
Values = dict[str, Any]

PLACES = ("results", "folder")  # where files go: no fact about a run
INJECTED = "# Parameters"  # the first line of the cell that papermill adds

_TYPES: dict[str, type] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "list": list,
    "dict": dict,
}
_RANGES: dict[str, tuple[type, str, Callable[..., bool]]] = {
    "PositiveInt": (int, "an int above 0", lambda x: x > 0),
    "NonNegativeInt": (int, "an int from 0 on", lambda x: x >= 0),
    "PositiveFloat": (float, "a float above 0", lambda x: x > 0),
    "NonNegativeFloat": (float, "a float from 0 on", lambda x: x >= 0),
    "Share": (float, "a float from 0 to 1", lambda x: 0 <= x <= 1),
}
_PATTERNS: dict[str, str] = {"Device": r"cpu|cuda(:\d+)?"}
_UNFIT = object()


class Parameter(NamedTuple):
    """A line of the parameters cell: its annotation and its default."""

    annotation: ast.expr
    default: object

    @property
    def wanted(self) -> str:
        """The values it takes, in words."""
        return _words(self.annotation)


def declared(source: str) -> dict[str, Parameter]:
    """Read the parameters that a cell declares.

    Raises
    ------
    ValueError
        If the cell is no Python, a line of it is no literal assignment, a name stands twice, an
        annotation is not understood, or a default is not a value that its annotation allows.
    """
    try:
        lines = ast.parse(source).body
    except SyntaxError as error:
        place = f"{error.msg}, line {error.lineno}"
        raise ValueError(f"the parameters cell is no Python: {place}") from None
    found: dict[str, Parameter] = {}
    for line in lines:
        name, parameter = _declaration(line)
        if name in found:
            raise ValueError(f"the parameters cell declares {name!r} twice")
        found[name] = parameter
    for name, parameter in found.items():
        fitting(name, parameter.default, parameter)
    return found


def checked(
    values: Mapping[str, object],
    known: Mapping[str, Parameter],
    where: str = "the page",
) -> Values:
    """Return values for all parameters: those given, checked, and the defaults of the others.

    Raises
    ------
    ValueError
        If a name is none of them, or a value is not one that its annotation allows.
    """
    for name in values:
        if name not in known:
            raise ValueError(
                f"{where} has no parameter {name!r}{similar(name, known)}"
            )
    full = {
        name: parameter.default for name, parameter in known.items()
    } | dict(values)
    return {name: fitting(name, full[name], known[name]) for name in full}


def check(unused: Mapping[str, bool] | None = None) -> Values:
    """Check the parameters of the page that is running, and return their values by name.

    The first call of a page behind its parameters. Declarations are read from the parameters cell,
    what papermill put in from the cell that it added, and values from the notebook; so the check is
    the same for papermill alone, for a sweep, and for JupyterLab.

    Parameters
    ----------
    unused : mapping of str to bool, optional
        Parameters that nothing reads if the condition beside their name holds. A value other than
        the default is then an error, as it would change nothing.

    Raises
    ------
    ValueError
        If a name is no parameter, a value is not one that its annotation allows, `scale` names
        no reduction, or a parameter that nothing reads was given.
    RuntimeError
        Outside a notebook.
    """
    from IPython.core.getipython import get_ipython

    shell = get_ipython()  # type: ignore[no-untyped-call, unused-ignore]
    if shell is None:
        raise RuntimeError(
            "parameters are read from the cells of a notebook: run the page by papermill, by "
            "python -m sparselib.sweep, or in JupyterLab"
        )
    known, injected = _read(_cells(list(shell.user_ns["In"])))
    values = {name: shell.user_ns[name] for name in [*known, *injected]}
    full = checked(values, known)
    check_scale(full.get("scale", ""))
    for name, idle in (unused or {}).items():
        if idle and full[name] != known[name].default:
            raise ValueError(
                f"{name} = {full[name]!r} would change nothing, as nothing reads it here; leave "
                f"it at {known[name].default!r}"
            )
    commit()  # that of now: files may change while a long run goes on with the old code
    shell.user_ns.update(full)
    return full


def check_scale(scale: str) -> None:
    """Refuse a scale that is neither "paper" nor "reduced: <what>"."""
    if scale != "paper" and not re.match("reduced: .", scale):
        raise ValueError(
            f"scale must be 'paper' or 'reduced: <what>', not {scale!r}"
        )


def fitting(name: str, value: object, parameter: Parameter) -> object:
    """Return a value as its annotation has it: a whole number given for a float becomes one."""
    found = _fit(parameter.annotation, value)
    if found is _UNFIT:
        raise ValueError(f"{name} = {value!r} {_reason(value, parameter)}")
    if found == [] and parameter.default:
        raise ValueError(f"{name} = [] is empty; it needs {parameter.wanted}")
    return found


def similar(key: object, known: Iterable[str]) -> str:
    """Suggest the known name that was meant, or list all."""
    names = list(known)
    close = difflib.get_close_matches(str(key), names, n=1)
    return (
        f"; did you mean {close[0]!r}?"
        if close
        else f"; it has {', '.join(sorted(names))}"
    )


def _cells(history: list[str]) -> list[str]:
    """Return the sources of the cells that ran: a front-end's history, which papermill keeps.

    One without a history, such as nbval, puts nothing in; there they are what tracebacks read.
    """
    kept = [entry[2] for entry in linecache.cache.values() if len(entry) == 4]
    return (
        history
        if any(map(_declares, history))
        else ["".join(lines) for lines in kept]
    )


def _read(cells: list[str]) -> tuple[dict[str, Parameter], list[str]]:
    """Find the last declarations among the cells that ran, and the names put in behind them."""
    place = max(
        (i for i, cell in enumerate(cells) if _declares(cell)), default=-1
    )
    if place < 0:
        raise ValueError(
            "no cell with the parameters 'results' and 'scale' has run"
        )
    added = [cell for cell in cells[place + 1 :] if cell.startswith(INJECTED)]
    lines = [line for cell in added for line in ast.parse(cell).body]
    return declared(cells[place]), [_target(line) or "" for line in lines]


def _declares(cell: str) -> bool:
    try:
        lines = ast.parse(cell).body
    except SyntaxError:  # a magic of IPython
        return False
    return not cell.startswith(INJECTED) and {"results", "scale"} <= {
        _target(x) for x in lines
    }


def _target(line: ast.stmt) -> str | None:
    if isinstance(line, ast.AnnAssign):
        target: ast.expr = line.target
    elif isinstance(line, ast.Assign) and len(line.targets) == 1:
        target = line.targets[0]
    else:
        return None
    return target.id if isinstance(target, ast.Name) else None


def _declaration(line: ast.stmt) -> tuple[str, Parameter]:
    name = _target(line)
    if name is None or not isinstance(line, ast.Assign | ast.AnnAssign):
        raise ValueError(
            f"the parameters cell holds more than assignments: {ast.unparse(line)}"
        )
    try:
        default = ast.literal_eval(line.value or ast.Constant(None))
    except ValueError:
        raise ValueError(
            f"the default of {name} is no literal: {ast.unparse(line)}"
        ) from None
    if isinstance(line, ast.AnnAssign):
        annotation = line.annotation
    else:
        annotation = ast.Name(type(default).__name__)
    _words(annotation)  # understood?
    return name, Parameter(annotation, default)


def _fit(node: ast.expr, value: object) -> object:
    """Return the value as an annotation has it, or a mark if it is none of its values."""
    if isinstance(node, ast.BinOp):
        found = _fit(node.left, value)
        return _fit(node.right, value) if found is _UNFIT else found
    if isinstance(node, ast.Subscript):
        return _fit_subscript(node, value)
    name = ast.unparse(node)
    if name in _PATTERNS:
        return _matching(_PATTERNS[name], value)
    kind, _, within = _RANGES.get(name, (_TYPES.get(name), "", lambda _: True))
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        return _UNFIT
    return value if within(value) else _UNFIT


def _fit_subscript(node: ast.Subscript, value: object) -> object:
    outer = ast.unparse(node.value)
    if outer == "list":
        items = (
            [_fit(node.slice, item) for item in value]
            if type(value) is list
            else [_UNFIT]
        )
        return (
            _UNFIT
            if any(item is _UNFIT or item == [] for item in items)
            else items
        )
    choices = _constants(node)
    if outer == "Literal":
        same = [
            choice
            for choice in choices
            if type(choice) is type(value) and choice == value
        ]
        return value if same else _UNFIT
    return _matching(str(choices[0]), value)


def _matching(pattern: str, value: object) -> object:
    return (
        value if type(value) is str and re.fullmatch(pattern, value) else _UNFIT
    )


def _constants(node: ast.Subscript) -> list[object]:
    inner = (
        node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    )
    return [item.value for item in inner if isinstance(item, ast.Constant)]


def _words(node: ast.expr) -> str:
    """Describe the values that an annotation allows."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return f"{_words(node.left)} or {_words(node.right)}"
    if isinstance(node, ast.Subscript):
        outer = ast.unparse(node.value)
        constants = _constants(node)
        if outer == "list":
            return f"a list, each of it {_words(node.slice)}"
        if outer == "Literal" and constants:
            return ", ".join(map(str, constants))
        if outer == "Annotated" and len(constants) == 1:
            _check_pattern(constants[0])
            return f"a text like {constants[0]}"
    name = ast.unparse(node)
    if name in _PATTERNS:
        return f"a text like {_PATTERNS[name]}"
    if name in _RANGES:
        return _RANGES[name][1]
    if name in _TYPES:
        return name
    raise ValueError(
        f"the parameters cell has the annotation {name}, which nothing here reads"
    )


def _check_pattern(pattern: Any) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"the parameters cell has the pattern {pattern!r}, which is no regular expression "
            f"({error})"
        ) from None


def _kinds(node: ast.expr) -> set[type]:
    """Types of the values that an annotation allows."""
    if isinstance(node, ast.BinOp):
        return _kinds(node.left) | _kinds(node.right)
    if isinstance(node, ast.Subscript):
        if ast.unparse(node.value) == "list":
            return {list}
        return {type(constant) for constant in _constants(node)}
    name = ast.unparse(node)
    if name in _PATTERNS:
        return {str}
    return {_RANGES[name][0] if name in _RANGES else _TYPES[name]}


def _reason(value: object, parameter: Parameter) -> str:
    kinds = _kinds(parameter.annotation)
    if type(value) in kinds or (type(value) is int and float in kinds):
        return f"is not allowed; it takes {parameter.wanted}" + _spelling(value)
    wanted = parameter.wanted
    return f"is of type {type(value).__name__}, not {wanted}" + _spelling(value)


def _spelling(value: object) -> str:
    """Show how YAML has to be given a number that it took for text."""
    for text in value if isinstance(value, list) else [value]:
        match = re.fullmatch(r"([+-]?\d*)(\.\d*)?[eE]([+-]?)(\d+)", str(text))
        if match and type(text) is str:
            whole, fraction, sign, exponent = match.groups()
            right = f"{whole or 0}{fraction or '.0'}e{sign or '+'}{exponent}"
            return f"; YAML takes {text} for text, write {right}"
    return ""
