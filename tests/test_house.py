"""The rules of the house as tests: floors, sizes, names, and pages that point at code."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import nbformat
import pytest
import yaml
from apart import run

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "sparselib"
FLOORS = {
    0: [
        *("guarded", "compilation", "ranking", "init", "metrics", "comparison"),
        *("export", "atomic", "plot", "bitstream", "modes", "batches", "_types", "_version"),
    ],
    1: ["csr", "topology", "distribution", "checkpoint", "tables"],
    2: ["ops", "datasets"],
    3: ["nn", "sweep"],
    4: ["models", "cost", "evolution", "optimization", "timing"],
    5: ["descent"],
    6: ["training"],
    7: ["cuda_graphs", "saliency", "pruning"],
}
# named by a page of its own
NOT_ON_THE_PAGE = {"sparselib.masked_product", "sparselib.sigmoid_squared_error"}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
FILES = sorted(LIBRARY.rglob("*.py"))
PAPERS = sorted((ROOT / "book").glob("*/paper.ipynb"))


@cache
def trees() -> dict[Path, ast.Module]:
    """Return what each file of the library is made of."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def room(path: Path) -> str:
    """Top-level module or folder in which a file lives."""
    return path.relative_to(LIBRARY).with_suffix("").parts[0]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def dotted(node: ast.expr) -> str:
    """Last name of a dotted expression: ``Module`` for ``nn.Module``."""
    return ast.unparse(node).split("[")[0].split(".")[-1]


def imports(tree: ast.AST, path: Path) -> set[str]:
    """Full names of everything imported anywhere in a file."""
    package, found = path.relative_to(ROOT).parent.parts, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            parts = (*above, node.module) if node.module else above
            found |= {".".join((*parts, alias.name)) for alias in node.names}
    return found


def climbing(path: Path, tree: ast.AST) -> list[str]:
    """Imports within sparselib that do not point down."""
    ours = {full.split(".")[1] for full in imports(tree, path) if full.startswith("sparselib.")}
    own, top = room(path), max(FLOORS) + 1
    others = ours - {own, "__version__"}
    return [f"{own} imports {other}" for other in others if FLOOR.get(other, top) >= FLOOR[own]]


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in FILES} - {"__init__"} <= set(FLOOR)


def test_imports_point_down() -> None:
    faults = [f for p, tree in trees().items() if room(p) in FLOOR for f in climbing(p, tree)]
    assert faults == []


def test_floors_can_be_broken() -> None:
    for line in ("from sparselib.models.mlp import MLP", "from .models import MLP"):
        tree = ast.parse(line)
        assert climbing(LIBRARY / "csr.py", tree) == ["csr imports models"]
        assert climbing(LIBRARY / "saliency.py", tree) == []
    roof = ast.parse("from sparselib import MLP")
    assert climbing(LIBRARY / "saliency.py", roof) == ["saliency imports MLP"]
    sideways = ast.parse("from ..datasets import files")
    assert climbing(LIBRARY / "ops/cpu.py", sideways) == ["ops imports datasets"]


def test_no_room_without_a_name() -> None:
    assert [p for p in FILES if re.search(r"utils?|common|helpers?", p.stem)] == []


def is_abstract(node: ast.ClassDef) -> bool:
    """Whether a class declares that it has no instances of its own."""
    return any(dotted(base) in ("ABC", "Protocol", "TypedDict") for base in node.bases) or any(
        dotted(decorator) == "abstractmethod"
        for function in functions(node)
        for decorator in function.decorator_list
    )


def inherited_from_final(trees: list[ast.AST]) -> list[str]:
    """Classes of sparselib that derive from another that is not abstract."""
    classes = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    final = {node.name for node in classes if not is_abstract(node)}
    return [c.name for c in classes for base in c.bases if dotted(base) in final - {c.name}]


def test_classes_are_abstract_or_final() -> None:
    assert inherited_from_final(list(trees().values())) == []
    broken = ast.parse("class Layer(Module): pass\nclass Special(Layer): pass")
    assert inherited_from_final([broken]) == ["Special"]


def test_modules_do_not_have_the_name_of_a_function_of_theirs() -> None:
    """In the package the function would hide the module."""
    same = {
        name(path)
        for path, tree in trees().items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == path.stem
    }
    assert same == set()


def test_public_names_are_one_page() -> None:
    library = importlib.import_module("sparselib")
    tree = trees()[LIBRARY / "__init__.py"]
    aliases = [a for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names]
    # ruff (RUF022) holds the order of __all__
    assert sorted(library.__all__) == sorted(alias.asname or alias.name for alias in aliases)
    assert [key for key in library.__all__ if not getattr(library, key).__doc__] == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_public_things_say_what_they_are(path: Path) -> None:
    tree = trees()[path]
    kinds = ast.FunctionDef | ast.ClassDef
    things = [node for node in tree.body if isinstance(node, kinds) and node.name[0] != "_"]
    assert ast.get_docstring(tree) or not tree.body
    assert [node.name for node in things if not ast.get_docstring(node)] == []


def test_kernel_compilers_stay_in_ops() -> None:
    heavy = {
        (room(path), full.split(".")[0])
        for path, tree in trees().items()
        for full in imports(tree, path)
    }
    allowed = {("ops", "numba"), ("ops", "triton"), ("nn", "numba"), ("nn", "triton")}
    assert {pair for pair in heavy if pair[1] in ("numba", "triton")} <= allowed


@pytest.mark.slow
def test_import_is_light() -> None:
    code = (
        "import sys, time, torch; before = set(sys.modules); start = time.perf_counter()\n"
        "import sparselib; print(round(time.perf_counter() - start, 3))\n"
        "print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    seconds, modules = answer.stdout.splitlines()
    print(f"import sparselib takes {seconds} s beyond torch")
    assert set(modules.split()) & {"triton", "numba", "pandas", "sklearn", "matplotlib"} == set()


def without_encoding(tree: ast.AST) -> list[str]:
    """Calls that read or write text in whatever encoding the machine prefers."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        words = ast.unparse(call.func).split(".")
        named = any(keyword.arg == "encoding" for keyword in call.keywords)
        mode = [argument for argument in call.args[:2] if isinstance(argument, ast.Constant)]
        is_binary = any("b" in str(argument.value) for argument in mode)
        is_other = words[0] in ("atomic", "os", "gzip", "Image")
        is_open = words[-1] == "open" and not is_binary
        if not named and not is_other and (is_open or words[-1] in ("read_text", "write_text")):
            found.append(ast.unparse(call))
    return found


def test_text_is_read_and_written_in_a_named_encoding() -> None:
    sources = [*FILES, *(ROOT / "tests").glob("*.py"), *(ROOT / "book").rglob("*.py")]
    trees = {name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sources}
    assert {path: calls for path, tree in trees.items() if (calls := without_encoding(tree))} == {}
    assert without_encoding(ast.parse("open(path)")) == ["open(path)"]
    assert without_encoding(ast.parse("path.write_text('é')")) == ["path.write_text('é')"]
    assert without_encoding(ast.parse("open(path, 'rb'), path.open('wb')")) == []


def test_workflows_and_pages_call_targets_that_the_makefile_has() -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    steps = [
        step.get("run", "")
        for path in workflows
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
        for step in job["steps"]
    ]
    prose = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "book/contributing.md"]
    texts = steps + [path.read_text(encoding="utf-8") for path in prose]
    called = re.findall(r"(?m)(?:^|`)make ([a-z]+)", "\n".join(texts))
    assert {"unit", "book", "quick"} <= set(called) <= targets


def test_api_page_shows_what_a_user_calls_and_no_more() -> None:
    text = (ROOT / "book/api.md").read_text(encoding="utf-8")
    entries = re.findall(r"auto(?:function|class):: (\S+)", text)
    members = [m for line in re.findall(r":members: (.+)", text) for m in line.split(", ")]
    assert dead_names(set(entries)) == []
    assert len(entries) + len(members) <= 120
    library = importlib.import_module("sparselib")
    things = {key for key in library.__all__ if callable(getattr(library, key))}
    assert {f"sparselib.{key}" for key in things} - set(entries) == NOT_ON_THE_PAGE


def pointers(page: Path) -> list[tuple[str, str]]:
    """Pairs (function, test) of the table "equation | function | test" on a page."""
    cells = nbformat.read(page, as_version=4).cells
    lines = "\n".join(c.source for c in cells if c.cell_type == "markdown").splitlines()
    rows = [line for line in lines if line.lstrip().startswith("|")]
    tables = re.split(r"(?m)^(?=\|\s*equation\b)", "\n".join(rows), flags=re.I)[1:]
    body = [row for table in tables for row in table.splitlines()[2:]]
    return [
        (function, test)
        for row in body
        for function in re.findall(r"`(sparselib\.[\w.]+)`", row)
        for test in re.findall(r"`tests/(test_\w+\.py::\w+)`", row) or [""]
    ]


def resolve(path: str) -> object:
    """Object behind a dotted name: the deepest module, then attributes."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            found = getattr(found, attribute)
        return found
    raise AttributeError(path)


def dead_pointers(pairs: list[tuple[str, str]]) -> list[str]:
    """Functions and tests that a page names and that are not there."""
    dead = []
    for function, test in pairs:
        try:
            resolve(function)
        except AttributeError:
            dead.append(function)
        file, _, case = test.partition("::")
        path = ROOT / "tests" / (file or "none")
        cases = (
            {f.name for f in functions(ast.parse(path.read_text(encoding="utf-8")))}
            if path.is_file()
            else ()
        )
        if case not in cases:
            dead.append(f"{function}: {test or 'no test'}")
    return dead


def named(page: Path) -> set[str]:
    """Dotted names of sparselib that a page writes as code."""
    if page.suffix == ".ipynb":
        cells = nbformat.read(page, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    else:
        text = page.read_text(encoding="utf-8")
    return set(re.findall(r"`(sparselib(?:\.\w+)+)`", text))


def test_pages_name_what_exists() -> None:
    pages = sorted(p for end in ("md", "ipynb") for p in (ROOT / "book").rglob(f"[!.]*.{end}"))
    assert len(pages) > 30
    dead = {name(page): sorted(dead_names(named(page))) for page in pages}
    assert {page: names for page, names in dead.items() if names} == {}
    assert dead_names({"sparselib.nowhere", "sparselib.csr"}) == ["sparselib.nowhere"]


def dead_names(names: set[str]) -> list[str]:
    """Those of some dotted names behind which there is nothing."""
    dead = []
    for dotted_name in names:
        try:
            resolve(dotted_name)
        except AttributeError:
            dead.append(dotted_name)
    return dead


@pytest.mark.parametrize("page", PAPERS, ids=name)
def test_pages_point_at_code(page: Path) -> None:
    pairs = pointers(page)
    assert pairs, "no table 'equation | function | test' with backticked names"
    assert dead_pointers(pairs) == []


def test_dead_pointers_are_seen() -> None:
    alive = ("sparselib.csr", "test_house.py::test_dead_pointers_are_seen")
    assert dead_pointers([alive]) == []
    assert dead_pointers([("sparselib.nowhere", alive[1])]) == ["sparselib.nowhere"]
    gone = "test_house.py::test_gone"
    assert dead_pointers([("sparselib.csr", gone)]) == [f"sparselib.csr: {gone}"]
    assert dead_pointers([("sparselib.csr", "")]) == ["sparselib.csr: no test"]


BRITISH = re.compile(
    r"neighbour|colour|behaviour|favour|tumour|labelled|labelling|modelled|modelling|\bgrey|learnt"
    r"|\bcentre|_centre|centred|artefact|catalogue|towards|licence|judgement|fulfil\b"
    r"|(normal|local|standard|initial|optim|recogn|organ|general|regular|summar|visual|minim|maxim"
    r"|quant|binar|serial|vector|special|util|emphas|character|parameter|parallel|synchron|penal)"
    r"is(e[ds]?|ing|er|ation)\b",
    re.IGNORECASE,
)
QUOTED = (  # words of others
    "Xavier initialisation",
    "initialising these new weights",
    "connections initialised",
    "Feature Extraction Behaviour",
)


def british(text: str) -> list[str]:
    """Words in British spelling, without those of papers."""
    for words in QUOTED:
        text = text.replace(words, "")
    return [match.group() for match in BRITISH.finditer(text)]


def prose(path: Path) -> str:
    """What a file says: of a notebook its cells, with alt texts, not its pictures."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n".join("".join(cell["source"]) + json.dumps(cell["metadata"]) for cell in cells)


def test_words_are_spelled_as_pytorch_spells_them() -> None:
    kinds = (".py", ".md", ".ipynb", ".yml", ".toml", ".sh")
    folders = [ROOT / name for name in ("sparselib", "tests", "book", "data")]
    paths = [path for folder in folders for path in folder.rglob("*") if path.suffix in kinds]
    paths += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pyproject.toml"]
    found = {name(path): british(prose(path)) for path in paths if path != Path(__file__)}
    assert {path: words for path, words in found.items() if words} == {}
    assert british("Normalised colours; Xavier initialisation") == ["Normalised", "colour"]


def test_columns_of_stored_rows_are_spelled_so() -> None:
    tables = sorted((ROOT / "data/results").glob("*.csv"))
    heads = [path.open(encoding="utf-8").readline() for path in tables]
    assert [head for head in heads if british(head) or private(head)] == []


PRIVATE = re.compile(  # words of our own where the field has one; beside each what to write
    r"\bjudg(?:e|ed|es)(?:\b|_)"  # evaluator, evaluated
    r"|\bbirths?\b|\bborn\b"  # initialization, initialized
    r"|\bby lot\b|\bcoins\b"  # at random, Bernoulli
    r"|\bsaid_|, said\b"  # predicted
    r"|\bmade[- ]up\b"  # synthetic
    r"|\bby heart\b"  # memorized
    r"|receiver's curve"  # ROC curve
    r"|times faster",  # speedup
    re.IGNORECASE,
)


def private(text: str) -> list[str]:
    """Words that nobody searches for, where the field has a term."""
    return [match.group() for match in PRIVATE.finditer(text)]


def test_words_are_the_field_s() -> None:
    kinds = (".py", ".md", ".ipynb", ".yml", ".js", ".svg")
    folders = [ROOT / "sparselib", ROOT / "book"]
    paths = [path for folder in folders for path in folder.rglob("*") if path.suffix in kinds]
    paths += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "data/README.md"]
    found = {name(path): private(prose(path)) for path in paths}
    assert {path: words for path, words in found.items() if words} == {}
    assert private("the judge said_rates, born by lot") == ["judge", "said_", "born", "by lot"]


@pytest.mark.xdist_group("house")
def test_a_group_of_tests_stays_in_one_process(request: pytest.FixtureRequest) -> None:
    """Whoever distributes tests reads their group from the id, which not every pytest lets him."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@house")


@pytest.mark.slow
def test_tests_and_pages_are_collected_together() -> None:
    """Whoever runs ``pytest --nbval`` without a path asks for both."""
    pytest.importorskip("nbval")
    options = ["--collect-only", "-q", "-n", "0", "-o", "addopts=", "--nbval"]
    asked = [ROOT / "tests/test_atomic.py", ROOT / "book/csr/paper.ipynb"]
    done = run("-m", "pytest", *options, *asked, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "test_atomic.py::" in done.stdout
    assert "paper.ipynb::" in done.stdout
