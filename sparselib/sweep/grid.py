"""A sweep file: which notebook, over which grid, into which table."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sparselib.datasets import files

from .notebook import Run, parameters, run_key
from .parameters import Parameter, checked, similar

Point = dict[str, Any]

KEYS = ("notebook", "results", "scale", "grid", "fixed", "data", "resources", "timeout")
BLOCK = ("product", "zip", "points", "fixed")


class Sweep(NamedTuple):
    """A sweep file, read and checked.

    `varied` are the names of the parameters in which its runs differ; `resources` is what a run
    claims of a dask worker, such as ``{"GPU": 1}``.
    """

    file: Path
    results: Path
    runs: list[Run]
    varied: list[str]
    resources: dict[str, float]

    def describe(self, run: Run) -> str:
        """Tell a run from the others."""
        return " ".join(f"{name}={_text(run.parameters[name])}" for name in self.varied)


def read(file: str | Path, folder: str | Path = "runs") -> Sweep:
    """Read a sweep file and check every value against the notebook's parameters.

    Parameters
    ----------
    file : path
        YAML; its paths are relative to itself. `grid` is a list of blocks; a block is the product
        of its `product` (every combination), its `zip` (side by side) and its `points` (one by
        one), with `fixed` for all of them. `data` names the files behind each value of `dataset`.
    folder : path
        Where executed notebooks go, in a folder named after the notebook.

    Raises
    ------
    ValueError
        If a key or a parameter is unknown, a value has the wrong type, columns of a zip differ in
        length, or two points are the same.
    DataUnavailable
        If a file named under `data` lies nowhere.
    """
    import yaml

    file = Path(file).resolve()
    spec = yaml.safe_load(file.read_text(encoding="utf-8"))
    _check_keys(spec, KEYS, file.name)
    for name in ("notebook", "results", "scale", "grid"):
        if name not in spec:
            raise ValueError(f"{file.name} lacks the key {name!r}")
    path = (file.parent / spec["notebook"]).resolve()
    page = json.loads(path.read_text(encoding="utf-8"))
    known = parameters(page)
    if not {"results", "scale"} <= known.keys():
        raise ValueError(f"{path.name} needs the parameters 'results' and 'scale' to be swept")
    common = {"scale": spec["scale"]} | _part(spec, "fixed", dict)
    given = [common | point for block in _part(spec, "grid", list) for point in expand(block)]
    points = [_complete(point, known, file.name) for point in given]
    checksums = {name: _checksums(names) for name, names in _part(spec, "data", dict).items()}
    home = Path(folder).resolve() / f"{path.parent.name}-{path.stem}"
    timeout = spec.get("timeout")
    keys = [run_key(page, point, checksums.get(point.get("dataset"), {})) for point in points]
    _check_distinct(keys, given, file.name)
    runs = [Run(key, path, point, home, timeout) for key, point in zip(keys, points)]
    table = (file.parent / spec["results"]).resolve()
    return Sweep(file, table, runs, _varied(points), _part(spec, "resources", dict))


def expand(block: Any) -> list[Point]:
    """Expand one block of the grid into its points."""
    _check_keys(block, BLOCK, "a block of the grid")
    product, columns = _part(block, "product", dict), _part(block, "zip", dict)
    for name, values in (product | columns).items():
        if not isinstance(values, list):
            raise ValueError(f"{name} needs a list of values, not {values!r}")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of a zip must be equally long, not {lengths}")
    combined = [dict(zip(product, values)) for values in itertools.product(*product.values())]
    beside = [dict(zip(columns, values)) for values in zip(*columns.values())] or [{}]
    points = _part(block, "points", list) or [{}]
    if strange := [point for point in points if not isinstance(point, dict)]:
        raise ValueError(f"a point must hold keys and values, not {strange[0]!r}")
    fixed = _part(block, "fixed", dict)
    return [fixed | a | b | c for a in combined for b in beside for c in points]


def _complete(point: Point, known: Mapping[str, Parameter], name: str) -> Point:
    """Check a point's values and add the defaults of the other parameters."""
    swept = {key: parameter for key, parameter in known.items() if key != "results"}
    try:
        return checked(point, swept, "the notebook")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _check_keys(spec: Any, known: Iterable[str], name: str) -> None:
    if not isinstance(spec, dict):
        raise ValueError(f"{name} must hold keys and values, not {spec!r}")
    for key in spec:
        if key not in known:
            raise ValueError(f"{name}: unknown key {key!r}{similar(key, known)}")


def _part(spec: Mapping[str, Any], key: str, kind: type) -> Any:
    value = spec.get(key, kind())
    if not isinstance(value, kind):
        wanted = "a list" if kind is list else "keys and values"
        raise ValueError(f"{key} must hold {wanted}, not {value!r}")
    return value


def _check_distinct(keys: list[str], points: list[Point], name: str) -> None:
    seen: dict[str, Point] = {}
    for key, point in zip(keys, points):
        if key in seen:
            raise ValueError(f"{name}: the grid holds this point twice: {point}")
        seen[key] = point


def _checksums(names: Iterable[str]) -> dict[str, str]:
    sums = {}
    for name in names:
        with files.find(*name.split("/", 1)).open("rb") as file:
            sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _varied(points: list[Point]) -> list[str]:
    names = [name for name in (points[0] if points else {}) if name != "scale"]
    return [name for name in names if len({json.dumps(point[name]) for point in points}) > 1]


def _text(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)
