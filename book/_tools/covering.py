"""Which tests run which lines of the library: one pass over the suite, kept until either changes.

Lines that no test runs as Python have no tests of their own: kernels, which numba compiles, and
what stands outside of functions. They get the tests of the lines that use what they define.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(__file__).resolve().parent
COPIED = [*("sparselib", "tests", "book", "data", "README.md", "pyproject.toml"), "constraints.txt"]
SKIPPED = ("test_house.py", "test_book.py", "test_browser.py")  # they read, and do not run
CHOSEN = "not realdata and not browser and not slow"
# a process that a test starts is of that test, and one that it forks saves what it saw, too
SETTINGS = """[run]
source_dirs = {library}
data_file = {folder}/seen
parallel = true
patch = _exit
context = ${{PYTEST_CURRENT_TEST-}}
"""
Scope = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
Lines = dict[int, list[str]]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """What runs from here on is of this test."""
    _switch(item.nodeid)
    result = yield
    _switch("")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Iterator[None]:
    """What a fixture of several tests runs is of all tests of its file."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    if fixturedef.scope != "function":
        _switch(test.partition("::")[0])
    result = yield
    _switch(test)
    return result


def _switch(context: str) -> None:
    running = coverage.Coverage.current()
    assert running
    running.switch_context(context)


class Durations:
    """The seconds of each test that passes, which the first process of the run writes down."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the time of a phase of a test."""
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        passed = {n: s for n, s in self.seconds.items() if n not in self.failed}
        self.file.write_text(json.dumps(passed, indent=0), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Take the times down, except in workers."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(Durations(Path(os.environ["DURATIONS"])))


def copied(source: Path, top: Path) -> None:
    """Copy what tests read, and write each module as `ast.unparse` does.

    So a mutant differs by nothing but its change, and a statement is one line.
    """
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, top / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (source / name).exists():
            shutil.copy(source / name, top / name)
    for path in (top / "sparselib").rglob("*.py"):
        path.write_text(plain(path), encoding="utf-8")


def plain(path: Path) -> str:
    """A module without comments, each statement on a line of its own."""
    return ast.unparse(ast.parse(path.read_text(encoding="utf-8"))) + "\n"


def digest(source: Path) -> str:
    """What changes with any file of the library or its tests."""
    files = sorted(
        path for part in ("sparselib", "tests") for path in (source / part).rglob("*.py")
    )
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def recorded(source: Path, folder: Path, processes: int, marks: str = CHOSEN) -> "Covering":
    """Return the tests of each line, after a pass over the suite unless it was made already.

    Parameters
    ----------
    source : path
        The library with its tests.
    folder : path
        Where what was found is kept, with a copy of the tree.
    processes : int
        How many run the tests.
    marks : str
        Which tests, as pytest's option `-m` takes it.
    """
    done = folder / "digest"
    state = f"{digest(source)} {marks}"
    if not done.exists() or done.read_text(encoding="utf-8") != state:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tree").mkdir(parents=True)
        copied(source, folder / "tree")
        record(folder / "tree", folder, processes, marks)
        done.write_text(state, encoding="utf-8")
    return Covering(folder / "tree", folder)


def record(top: Path, folder: Path, processes: int, marks: str) -> None:
    """Run the suite in a copy of the tree, and write down who runs what for how long."""
    settings = folder / "coverage.ini"
    text = SETTINGS.format(library=top / "sparselib", folder=folder)
    settings.write_text(text, encoding="utf-8")
    (folder / "site").mkdir()
    begin = "import coverage\ncoverage.process_startup()\n"
    (folder / "site/sitecustomize.py").write_text(begin, encoding="utf-8")
    paths = [str(top), str(folder / "site"), str(TOOLS)]
    environment = os.environ | {
        "COVERAGE_PROCESS_START": str(settings),
        "DURATIONS": str(folder / "durations.json"),
        "PYTHONPATH": os.pathsep.join(paths),
        "SPARSELIB_DATA": "",
        "CI": "true",
    }
    environment.pop("PYTEST_CURRENT_TEST", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "covering", "-p", "no:cacheprovider"]
    options = ["-n", str(processes), "--dist", "loadfile", "-m", marks, "tests"]
    skipped = [f"--ignore=tests/{name}" for name in SKIPPED]
    subprocess.run([*command, *options, *skipped], cwd=top, env=environment)
    whole = coverage.Coverage(data_file=str(folder / "coverage"))
    whole.combine([str(path) for path in folder.glob("seen.*")])
    whole.save()


class Use(NamedTuple):
    """A line that uses a name."""

    path: Path
    line: int


class Covering:
    """The tests of the lines of a tree.

    Parameters
    ----------
    top : path
        The tree.
    folder : path
        Where `record` wrote.
    """

    def __init__(self, top: Path, folder: Path) -> None:
        self.top = top
        self.seconds = json.loads((folder / "durations.json").read_text(encoding="utf-8"))
        self.data = coverage.CoverageData(str(folder / "coverage"))
        self.data.read()
        self.lines: Callable[[Path], Lines] = cache(self._lines)
        self.scopes: Callable[[Path], dict[int, list[Scope]]] = cache(scopes)
        self.of_file = defaultdict(list)
        for test in self.seconds:
            self.of_file[test.partition("::")[0]].append(test)

    def tests(self, path: Path, line: int) -> set[str]:
        """Tests that run a line; else those that run its function, or use what it defines.

        What is compiled is kept on disk: few tests run its lines, and all that use it count.
        """
        found = self._of_line(path, line)
        if not found or is_compiled(path):
            found |= self._of_names(path, line) or self._of_module(path)
        return found

    def _lines(self, path: Path) -> Lines:
        return self.data.contexts_by_lineno(str(path))

    def _of_line(self, path: Path, line: int) -> set[str]:
        """Tests that run a line in a function; an import is of nobody."""
        if not any(_holds(scope, line) for scope in self.scopes(path)[line]):
            return set()
        found = set()
        for context in self.lines(path).get(line, ()):
            test = re.sub(r" \((setup|call|teardown)\)$", "", context)
            found.update(self.of_file.get(test, [test]))
        return found & self.seconds.keys()

    def _of_names(self, path: Path, line: int) -> set[str]:
        """Tests of the lines that use what a line defines, at the fewest steps from it."""
        found: set[str] = set()
        seen: set[str] = set()
        todo = {Use(path, line)}
        users = uses(self.top)
        while todo and not found:
            names = set()
            for use in todo:
                for scope in self.scopes(use.path)[use.line]:
                    names |= named(scope)
                    if not is_compiled(use.path):
                        found |= self._of_lines(use.path, scope)
            todo = {use for name in names - seen for use in users[name]}
            seen |= names
            for use in todo:
                if not is_compiled(use.path):
                    found |= self._of_line(*use)
        return found

    def _of_lines(self, path: Path, scope: Scope) -> set[str]:
        lines = range(scope.lineno, (scope.end_lineno or scope.lineno) + 1)
        return set().union(*(self._of_line(path, line) for line in lines))

    def _of_module(self, path: Path) -> set[str]:
        return set().union(*(self._of_line(path, line) for line in self.scopes(path)))


@cache
def is_compiled(path: Path) -> bool:
    """Whether a module imports a compiler of kernels."""
    text = path.read_text(encoding="utf-8")
    return re.search(r"^(from|import) (numba|triton)\b", text, re.MULTILINE) is not None


def scopes(path: Path) -> dict[int, list[Scope]]:
    """The definitions that each line of a module is part of, the innermost first."""
    found: dict[int, list[Scope]] = defaultdict(list)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign):
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            for line in range(first, (node.end_lineno or first) + 1):
                found[line].insert(0, node)
    return found


def _holds(scope: Scope, line: int) -> bool:
    """Whether a line is in the body of a function."""
    return isinstance(scope, ast.FunctionDef) and line >= scope.body[0].lineno


def named(scope: Scope) -> set[str]:
    """The names that a definition gives."""
    if isinstance(scope, ast.FunctionDef | ast.ClassDef):
        return {scope.name}
    targets = scope.targets if isinstance(scope, ast.Assign) else [scope.target]
    return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


@cache
def uses(top: Path) -> dict[str, set[Use]]:
    """The lines of a tree that use each name of a module or an attribute, imports aside."""
    found = defaultdict(set)
    for path in (top / "sparselib").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        known = bound(tree)
        inside = scopes(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                found[node.attr].add(Use(path, node.lineno))
            elif isinstance(node, ast.Name) and node.id in known:
                around = [s for s in inside[node.lineno] if _holds(s, node.lineno)]
                if not any(node.id in bound(scope) for scope in around):
                    found[node.id].add(Use(path, node.lineno))
    return found


@cache
def bound(scope: ast.AST) -> set[str]:
    """The names that a module or a function gives itself."""
    found = set()
    todo = list(ast.iter_child_nodes(scope))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
        todo += ast.iter_child_nodes(node)
    return found
