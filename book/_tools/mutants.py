"""Break random lines of the library, and see that a test fails: ``python book/_tools/mutants.py``.

Each mutant is one change of one line, made in a copy of the tree. It is killed if a test of its
module fails, and survives if all pass. The same seed draws the same mutants. Each is tried in a
fork of this process, which has loaded torch and pytest, and nothing of the library; one file of
tests follows the other, the module's own first, until one fails.
"""

import argparse
import ast
import copy
import importlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SEEN = [*("sparselib", "tests", "book", "data", "README.md", "pyproject.toml"), "constraints.txt"]
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
LOADED = ("torch", "pytest", "hypothesis", "jaxtyping", "beartype", "nbformat", "pandas", "scipy")
OF_THE_BOOK = {"test_house.py", "test_book.py", "test_browser.py"}
MOST = 5  # files of tests for one mutant
Change = Callable[[], None]


def changes(tree: ast.Module) -> Iterator[tuple[int, str, Change]]:
    """Every mutation of a module: its line, what it does, and the function that makes it."""
    spared = {id(node) for part in words_and_types(tree) for node in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) not in spared and (found := replacement(node)):
            yield (node.lineno, *found)
        for field in ("body", "orelse"):
            yield from removals(getattr(node, field, None))


def words_and_types(tree: ast.Module) -> Iterator[ast.AST]:
    """Docstrings, what errors say, and annotations."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and is_text(node)):
            yield node
        for name in ("annotation", "returns"):
            if isinstance(part := getattr(node, name, None), ast.AST):
                yield part


def replacement(node: ast.AST) -> tuple[str, Change] | None:
    """Another operator, condition or number in the place of a node's own."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        return "comparison", put(node, "ops", [SWAPS[type(node.ops[0])](), *node.ops[1:]])
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
        return "operator", put(node, "op", SWAPS[type(node.op)]())
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        return "negated", put(node, "test", ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        other = not node.value if node.value is True or node.value is False else node.value + 1
        return f"{node.value} becomes {other}", put(node, "value", other)
    return None


def removals(block: object) -> Iterator[tuple[int, str, Change]]:
    """What can be left out of a block without its names going missing."""
    for place, statement in enumerate(block if isinstance(block, list) else []):
        if isinstance(statement, ast.AugAssign | ast.Expr) and not is_text(statement):
            yield statement.lineno, "removed", remove(block, place)


def is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def put(node: ast.AST, name: str, value: object) -> Change:
    """Replace a field of a node."""
    return lambda: setattr(node, name, value)


def remove(block: list[ast.stmt], place: int) -> Change:
    """Replace a statement by ``pass``."""
    return lambda: block.__setitem__(place, ast.copy_location(ast.Pass(), block[place]))


class Mutant(NamedTuple):
    """A module with one change."""

    path: Path
    line: int
    what: str
    source: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} {self.what}: {self.source}"


def draw(modules: list[Path], count: int, seed: int) -> Iterator[Mutant]:
    """Choose mutants, each as likely as any other."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in modules}
    every = [(path, n) for path, tree in trees.items() for n, _ in enumerate(changes(tree))]
    for path, number in random.Random(seed).sample(every, min(count, len(every))):
        tree = copy.deepcopy(trees[path])
        line, what, change = list(changes(tree))[number]
        source = path.read_text(encoding="utf-8").splitlines()[line - 1].strip()
        change()
        text = ast.unparse(ast.fix_missing_locations(tree))
        yield Mutant(path, line, what, source, text)


def covering(module: Path) -> list[str]:
    """Files of tests that use what a module defines: its own, then those that name most of it."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    names = {module.stem, *(name for name in defined if name[0] != "_")} - {"__init__"}
    mentions = {}
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        words = re.findall(r"\w+", path.read_text(encoding="utf-8"))
        if path.name not in OF_THE_BOOK and names & set(words):
            mentions[path] = sum(word in names for word in words)
    own = ROOT / f"tests/test_{module.stem}.py"
    chosen = sorted(mentions, key=lambda path: (path != own, -mentions[path]))[:MOST]
    return [str(path.relative_to(ROOT)) for path in chosen] or ["tests"]


def killer(top: Path, tests: list[str], timeout: float) -> str:
    """Return the file of tests of which one fails, or that does not end; or nothing."""
    for test in tests:
        if not passes(top, test, timeout):
            return test
    return ""


def passes(top: Path, test: str, timeout: float) -> bool:
    """Whether a file of tests passes in a copy of the tree."""
    child = os.fork()
    if not child:
        os.setsid()
        os._exit(run_tests(top, test))
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            # 5: no test was chosen
            return os.waitstatus_to_exitcode(status) in (0, 5)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def run_tests(top: Path, test: str) -> int:
    """Run a file of tests in this process, which then has to end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.chdir(top)
    os.environ |= {"PYTHONPATH": str(top), "SPARSELIB_DATA": "", "CI": "true"}
    sys.path.insert(0, str(top))
    import pytest

    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider"]
    chosen = "not realdata and not browser and not slow"
    return int(pytest.main([*options, "-m", chosen, test]))


def copy_of_tree(folder: Path) -> Path:
    """Copy what tests read."""
    top = folder / "tree"
    for name in SEEN:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, top / name)
    return top


def tried(mutant: Mutant, top: Path, timeout: float) -> str:
    """Put a mutant into the copy of the tree, and return the file of tests that kills it."""
    place = top / mutant.path.relative_to(ROOT)
    original = place.read_text(encoding="utf-8")
    place.write_text(mutant.text, encoding="utf-8")
    try:
        return killer(top, covering(mutant.path), timeout)
    finally:
        place.write_text(original, encoding="utf-8")


def main() -> int:
    """Draw mutants, try each, and print those that survive."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", type=Path, help="files of sparselib; all by default")
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for a file of tests")
    given = parser.parse_args()
    modules = [path.resolve() for path in given.modules] or sorted(ROOT.glob("sparselib/**/*.py"))
    for name in LOADED:
        importlib.import_module(name)
    drawn: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        top = copy_of_tree(Path(folder))
        for mutant in draw(modules, given.count, given.seed):
            test = tried(mutant, top, given.timeout)
            module = str(mutant.path.relative_to(ROOT))
            drawn[module] += 1
            survived[module] += not test
            print(f"{'killed  ' if test else 'SURVIVED'} {mutant}  {test}", flush=True)
    for module, count in sorted(drawn.items()):
        print(f"{module}: {count - survived[module]} of {count}")
    print(f"{drawn.total() - survived.total()} of {drawn.total()} mutants are killed")
    return 1 if survived.total() else 0


if __name__ == "__main__":
    sys.exit(main())
