"""Break random lines of the library, and see that a test fails: ``python book/_tools/mutants.py``.

Each mutant is one change of one line, made in a copy of the tree. It is killed if the tests of its
module fail, and survives if they pass. The same seed draws the same mutants.
"""

import argparse
import ast
import copy
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

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
OF_THE_BOOK = {"test_house.py", "test_book.py", "test_browser.py"}
MOST = 5  # files of tests for one mutant
Change = Callable[[], None]


def changes(tree: ast.Module) -> Iterator[tuple[int, str, Change]]:
    """Every mutation of a module: its line, what it does, and the function that makes it."""
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    errors = {id(n) for r in ast.walk(tree) if isinstance(r, ast.Raise) for n in ast.walk(r)}
    for node in ast.walk(tree):
        if id(node) not in texts | errors and (found := replacement(node)):
            yield (node.lineno, *found)
        for field in ("body", "orelse"):
            yield from removals(getattr(node, field, None))


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


def draw(
    modules: list[Path], count: int, seed: int
) -> Iterator[tuple[Path, int, str, str, ast.Module]]:
    """Choose mutants, each as likely as any other: file, line, what is done, the line, the tree."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in modules}
    every = [(path, n) for path, tree in trees.items() for n, _ in enumerate(changes(tree))]
    for path, number in random.Random(seed).sample(every, min(count, len(every))):
        tree = copy.deepcopy(trees[path])
        line, what, change = list(changes(tree))[number]
        source = path.read_text(encoding="utf-8").splitlines()[line - 1].strip()
        change()
        yield path, line, what, source, ast.fix_missing_locations(tree)


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


def killed(copy_of_tree: Path, tests: list[str], timeout: float) -> bool:
    """Whether one of the tests fails, or does not end."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not realdata and not browser"]
    env = os.environ | {"PYTHONPATH": str(copy_of_tree), "SPARSELIB_DATA": ""}
    command = [sys.executable, "-m", "pytest", *options, *tests]
    try:
        done = subprocess.run(
            command, cwd=copy_of_tree, env=env, capture_output=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def main() -> int:
    """Draw mutants, try each, and print those that survive."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", type=Path, help="files of sparselib; all by default")
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one mutant's tests")
    given = parser.parse_args()
    modules = [path.resolve() for path in given.modules] or sorted(ROOT.glob("sparselib/**/*.py"))
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder) / "tree"
        for name in SEEN:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, top / name)
        mutants = list(draw(modules, given.count, given.seed))
        for path, line, what, source, tree in mutants:
            place = top / path.relative_to(ROOT)
            original = place.read_text(encoding="utf-8")
            place.write_text(ast.unparse(tree), encoding="utf-8")
            dead = killed(top, covering(path), given.timeout)
            place.write_text(original, encoding="utf-8")
            survivors += not dead
            word = "killed  " if dead else "SURVIVED"
            print(f"{word} {path.relative_to(ROOT)}:{line} {what}: {source}", flush=True)
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants are killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
