"""A sweep file: which notebook, over which grid, into which table."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sparselib.datasets import files

from .notebook import Notebook, Run, parameters, run_key
from .parameters import Parameter, check_scale, checked, similar
from .parameters import Values as Point

# what a sweep file holds, by its keys
Spec = Mapping[str, Any]
Kind = TypeVar("Kind")

KEYS = (
    "notebook",
    "results",
    "scale",
    "grid",
    "fixed",
    "data",
    "resources",
    "timeout",
)
TIMEOUT = 6 * 3600  # seconds that a cell may take, so that a hang ends
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
        """Describe a run by the parameters that vary."""
        return " ".join(
            f"{name}={_text(run.parameters[name])}" for name in self.varied
        )


def read(
    file: str | Path,
    folder: str | Path = "runs",
    fetch: bool = True,
    results: str | Path | None = None,
) -> Sweep:
    """Read a sweep file and check every value against the notebook's parameters.

    Parameters
    ----------
    file : path
        YAML; its paths are relative to itself. `grid` is a list of blocks; a block is the product
        of its `product` (every combination), its `zip` (side by side) and its `points` (one by
        one), with `fixed` for all of them. `data` names the files behind each value of `dataset`.
    folder : path
        Where executed notebooks go, in a folder named after the notebook.
    fetch : bool
        Fetch what is named under `data` and lies nowhere.
    results : path, optional
        The table, instead of the one that the file names: runs on another machine have another.

    Raises
    ------
    ValueError
        If the file or its notebook cannot be read, a key or a parameter is unknown or stands twice,
        a value is not allowed, columns of a zip differ in length, or two points are the same.
    DataUnavailable
        If a file named under `data` lies nowhere.
    """
    file = Path(file).resolve()
    spec = _load(file)
    path = (file.parent / spec["notebook"]).resolve()
    page = _page(path)
    known = parameters(page)
    if not {"results", "scale"} <= known.keys():
        raise ValueError(
            f"{path.name} needs the parameters 'results' and 'scale' to be swept"
        )
    common = {"scale": spec["scale"]} | _part(spec, "fixed", dict)
    given = [
        common | point
        for block in _part(spec, "grid", list)
        for point in expand(block)
    ]
    if not given:
        raise ValueError(
            f"{file.name}: the grid is empty, so that nothing would run"
        )
    points = [_complete(point, known, file.name) for point in given]
    for point in points:
        check_scale(point["scale"])
    checksums = _data(spec, points, fetch)
    home = Path(folder).resolve() / f"{path.parent.name}-{path.stem}"
    keys = [
        run_key(page, point, checksums.get(str(point.get("dataset")), {}))
        for point in points
    ]
    _check_distinct(keys, given, file.name)
    timeout = _timeout(spec)
    runs = [
        Run(key, path, point, home, timeout) for key, point in zip(keys, points)
    ]
    table = Path(results or file.parent / spec["results"]).resolve()
    if table.is_dir():
        raise ValueError(
            f"{file.name}: results names a folder, {table}, not a file"
        )
    return Sweep(file, table, runs, _varied(points), _resources(spec))


def expand(block: object) -> list[Point]:
    """Expand one block of the grid into its points."""
    _check_keys(block, BLOCK, "a block of the grid")
    assert isinstance(block, dict)
    product = _part(block, "product", dict)
    columns = _part(block, "zip", dict)
    for name, values in (product | columns).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{name} needs a list of values, not {values!r}")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"the columns of a zip must be equally long, not {lengths}"
        )
    combined = [
        dict(zip(product, values))
        for values in itertools.product(*product.values())
    ]
    beside = [
        dict(zip(columns, values)) for values in zip(*columns.values())
    ] or [{}]
    points = _part(block, "points", list) or [{}]
    if strange := [point for point in points if not isinstance(point, dict)]:
        raise ValueError(
            f"a point must hold keys and values, not {strange[0]!r}"
        )
    fixed = _part(block, "fixed", dict)
    return [fixed | a | b | c for a in combined for b in beside for c in points]


def _load(file: Path) -> Spec:
    """Read the YAML of a sweep and check its keys and the texts that it must have."""
    import yaml

    try:
        with file.open(encoding="utf-8") as stream:
            spec = yaml.load(stream, _loader())
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{file.name} is no YAML: {told}") from None
    _check_keys(spec, KEYS, file.name)
    for name in ("notebook", "results", "scale", "grid"):
        if name not in spec:
            raise ValueError(f"{file.name} lacks the key {name!r}")
    for name in ("notebook", "results", "scale"):
        if not isinstance(spec[name], str) or not spec[name]:
            raise ValueError(
                f"{file.name}: {name} must be a text, not {spec[name]!r}"
            )
    return dict(spec)


@cache
def _loader() -> type:
    """Return YAML's safe loader, which takes the last of two equal keys, as one that refuses."""
    import yaml

    class Strict(yaml.SafeLoader):
        """Refuses a key that stands twice, and numbers that are not what they look like."""

    def mapping(
        loader: yaml.SafeLoader, node: yaml.MappingNode
    ) -> dict[object, object]:
        loader.flatten_mapping(node)
        keys = [
            loader.construct_object(key, deep=True) for key, _ in node.value
        ]
        for number, key in enumerate(keys):
            if not isinstance(key, str | int | float):
                place = node.start_mark.line + 1
                raise yaml.YAMLError(
                    f"line {place} has the key {key!r}, which is no text"
                )
            if key in keys[:number]:
                place = node.value[number][0].start_mark.line + 1
                raise yaml.YAMLError(
                    f"the key {key!r} stands twice in a block, at line {place}"
                )
        values = [
            loader.construct_object(value, deep=True) for _, value in node.value
        ]
        return dict(zip(keys, values))

    def number(loader: Any, node: Any) -> int | float:
        if re.fullmatch(
            r"[-+]?(0[0-7_]+|[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?)", node.value
        ):
            place = node.start_mark.line + 1
            raise yaml.YAMLError(
                f"YAML reads {node.value} at line {place} as octal, or as hours and minutes; "
                f"write the decimal number, or quote it as a text"
            )
        if node.tag.endswith(":int"):
            return int(loader.construct_yaml_int(node))
        return float(loader.construct_yaml_float(node))

    Strict.add_constructor(
        yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping
    )
    for kind in ("int", "float"):
        Strict.add_constructor(f"tag:yaml.org,2002:{kind}", number)
    return Strict


def _page(path: Path) -> Notebook:
    """Read a notebook in Python."""
    if not path.is_file():
        raise ValueError(f"the notebook {path} is not there")
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
        languages = (
            page.get("metadata", {})
            .get("kernelspec", {})
            .get("language", "python")
        )
        cells = [
            (cell["cell_type"], "".join(cell["source"]), list(tags))
            for cell in page["cells"]
            for tags in [cell["metadata"].get("tags", [])]
        ]
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        raise ValueError(f"{path} is no notebook of nbformat 4") from None
    if languages != "python" or not cells:
        raise ValueError(f"{path} is no notebook in Python, but in {languages}")
    return dict(page)


def _timeout(spec: Spec) -> int:
    value = spec.get("timeout", TIMEOUT)
    if type(value) is not int or not 0 < value < 1e9:
        raise ValueError(
            f"timeout must be the whole seconds that a cell may take, not {value!r}"
        )
    return value


def _resources(spec: Spec) -> dict[str, float]:
    claims = _part(spec, "resources", dict)
    for name, value in claims.items():
        if type(value) not in (int, float) or not 0 < value < 1e9:
            raise ValueError(
                f"resources: {name} needs a number above 0, not {value!r}"
            )
    return {str(name): float(value) for name, value in claims.items()}


def _data(
    spec: Spec, points: list[Point], fetch: bool
) -> dict[str, dict[str, str]]:
    """Return the checksums of the files behind each value of `dataset`."""
    used = {point.get("dataset") for point in points}
    files_of = _part(spec, "data", dict)
    for name, paths in files_of.items():
        if name not in used:
            raise ValueError(
                f"data: no run has dataset = {name!r}, so nothing would read its files"
            )
        for path in paths if isinstance(paths, list) else [None]:
            parts = path.split("/") if isinstance(path, str) else []
            if len(parts) < 2 or {"", ".", ".."} & set(parts):
                raise ValueError(
                    f"data: {name} needs a list of files, such as [mnist/images.gz], not {paths!r}"
                )
    return {name: _checksums(paths, fetch) for name, paths in files_of.items()}


def _complete(point: Point, known: Mapping[str, Parameter], name: str) -> Point:
    """Check a point's values and add the defaults of the other parameters."""
    swept = {
        key: parameter for key, parameter in known.items() if key != "results"
    }
    try:
        return checked(point, swept, "the notebook")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _check_keys(spec: object, known: Iterable[str], name: str) -> None:
    if not isinstance(spec, dict):
        raise ValueError(f"{name} must hold keys and values, not {spec!r}")
    for key in spec:
        if key not in known:
            raise ValueError(
                f"{name}: unknown key {key!r}{similar(key, known)}"
            )


def _part(spec: Spec, key: str, kind: type[Kind]) -> Kind:
    value = spec.get(key, kind())
    if not isinstance(value, kind):
        wanted = "a list" if kind is list else "keys and values"
        raise ValueError(f"{key} must hold {wanted}, not {value!r}")
    return value


def _check_distinct(keys: list[str], points: list[Point], name: str) -> None:
    seen: dict[str, Point] = {}
    for key, point in zip(keys, points):
        if key in seen:
            raise ValueError(
                f"{name}: the grid holds this point twice: {point}"
            )
        seen[key] = point


def _checksums(names: Iterable[str], fetch: bool) -> dict[str, str]:
    sums = {}
    for name in names:
        dataset, rest = name.split("/", 1)
        if not fetch and files.locate(dataset, rest) is None:
            raise files.DataUnavailable(
                f"{name} lies in no folder of data; a sweep would fetch it, --dry-run does not"
            )
        with files.find(dataset, rest).open("rb") as file:
            sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _varied(points: list[Point]) -> list[str]:
    names = [name for name in (points[0] if points else {}) if name != "scale"]
    return [
        name
        for name in names
        if len({json.dumps(point[name]) for point in points}) > 1
    ]


def _text(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)
