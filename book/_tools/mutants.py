"""Break random lines of the library, and see that a test fails: ``python book/_tools/mutants.py``.

Each mutant is one change of one line, made in a copy of the tree. It is killed if a test that runs
its line fails, and survives if all pass. The same seed draws the same mutants. `covering` knows the
tests of a line. First come those of the files that have most of them, then the others, each time
the quickest first and every function before the second parameters of one, as many as take
`--budget` seconds. They run in a fork of this process, which has loaded torch and pytest, and
nothing of the library. A test fails, too, if it takes ten times as long as usual and 30 s of the
processor. In the end each test that killed has to pass with the library unbroken.
"""

import argparse
import ast
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import covering
import pytest

ROOT = covering.ROOT
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
LOADED = [
    *("torch._dynamo", "pytest", "hypothesis", "jaxtyping", "beartype", "nbformat", "pandas"),
    *("scipy.stats", "sklearn", "numba", "lightning"),
]
FIRST = 3  # files of tests that are tried before the others
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
    """A module with one change: its path in the tree, its line there and in the copy."""

    path: Path
    line: int
    copied: int
    what: str
    source: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.what}: {self.source}"


def draw(top: Path, modules: list[Path], count: int, seed: int) -> Iterator[Mutant]:
    """Choose mutants of modules of a copied tree, each as likely as any other."""
    trees = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in modules}
    every = [(path, n) for path, tree in trees.items() for n, _ in enumerate(changes(tree))]
    for path, number in random.Random(seed).sample(every, min(count, len(every))):
        text = (top / path).read_text(encoding="utf-8")
        tree = ast.parse(text)
        copied, what, change = list(changes(tree))[number]
        line = list(changes(trees[path]))[number][0]
        change()
        broken = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
        yield Mutant(path, line, copied, what, text.splitlines()[copied - 1].strip(), broken)


class Chosen:
    """The tests to run, in their order, as a plugin of pytest that writes down which one fails."""

    def __init__(self, tests: list[str], seconds: dict[str, float], report: Path) -> None:
        self.place = {test: place for place, test in enumerate(tests)}
        self.seconds = seconds
        self.report = report

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out the others."""
        chosen = [item for item in items if item.nodeid in self.place]
        items[:] = sorted(chosen, key=lambda item: self.place[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Expect the worst: only a test that ends is reported."""
        # of the processor, since the machine may be busy; the signal ends the process
        signal.setitimer(signal.ITIMER_PROF, 10 * self.seconds[nodeid] + 30)
        self.report.write_text(f"{nodeid} (without an end)", encoding="utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """It ended."""
        if report.failed:
            self.report.write_text(report.nodeid, encoding="utf-8")


def batches(tests: set[str], seconds: dict[str, float], budget: float) -> list[list[str]]:
    """Choose from the tests of a line: from the files with most of them, and from the others."""
    size = Counter(file_of(test) for test in tests)
    first = {name for name, _ in size.most_common(FIRST)}
    near = {test for test in tests if file_of(test) in first}
    parts = [within(part, seconds, budget / 2) for part in (near, tests - near)]
    return [part for part in parts if part]


def within(tests: set[str], seconds: dict[str, float], budget: float) -> list[str]:
    """As many tests as take so many seconds, or the quickest."""
    order = []
    seen: Counter[str] = Counter()
    for test in sorted(tests, key=lambda test: (seconds[test], test)):
        function = test.partition("[")[0]
        order.append((seen[function], seconds[test], test))
        seen[function] += 1
    chosen: list[str] = []
    for _, took, test in sorted(order):
        budget -= took
        if budget >= 0 or not chosen:
            chosen.append(test)
    return chosen


def file_of(test: str) -> str:
    """The file of a test."""
    return test.partition("::")[0]


def failing(top: Path, tests: list[str], seconds: dict[str, float]) -> str:
    """Return the first test that fails in a copy of the tree, or nothing if all pass."""
    report = top.parent / "report"
    report.write_text("what imports it", encoding="utf-8")
    child = os.fork()
    if not child:
        os.setsid()
        os._exit(run_tests(top, tests, Chosen(tests, seconds, report)))
    end = time.monotonic() + 1800 + 10 * sum(seconds[test] for test in tests)
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            # 5: no test is left
            passed = os.waitstatus_to_exitcode(status) in (0, 5)
            return "" if passed else report.read_text(encoding="utf-8")
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return report.read_text(encoding="utf-8")


def run_tests(top: Path, tests: list[str], plugin: Chosen) -> int:
    """Run tests in this process, which then has to end."""
    # a broken line may ask for all memory: then it is this process that is ended
    if (score := Path("/proc/self/oom_score_adj")).exists():
        score.write_text("1000", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.chdir(top)
    os.environ |= {"PYTHONPATH": str(top), "SPARSELIB_DATA": "", "CI": "true"}
    sys.path.insert(0, str(top))
    options = [
        "-x",
        "-q",
        "--tb=no",
        "-n0",
        "-p",
        "no:cacheprovider",
        f"--basetemp={top.parent / 'files'}",
    ]
    files = dict.fromkeys(file_of(test) for test in tests)
    return int(pytest.main([*options, *files], plugins=[plugin]))


class Verdict(NamedTuple):
    """The test that kills a mutant, or nothing, and how many were chosen of those that run it."""

    test: str
    chosen: int
    every: int

    def __str__(self) -> str:
        return self.test or f"{self.chosen} of {self.every} tests"


class Judge:
    """Tries mutants in a copy of a tree.

    Parameters
    ----------
    tests : Covering
        The tests of each line.
    folder : path
        Where the copy is made.
    budget : float
        Seconds that the tests of one mutant take.
    """

    def __init__(self, tests: covering.Covering, folder: Path, budget: float) -> None:
        self.tests = tests
        self.top = folder / "tree"
        self.budget = budget
        shutil.copytree(tests.top, self.top)

    def tried(self, mutant: Mutant) -> Verdict:
        """Put a mutant into the copy, and run its tests."""
        every = self.tests.tests(self.tests.top / mutant.path, mutant.copied)
        chosen = batches(every, self.tests.seconds, self.budget)
        (self.top / mutant.path).write_text(mutant.text, encoding="utf-8")
        failed = (failing(self.top, part, self.tests.seconds) for part in chosen)
        test = next(filter(None, failed), "")
        self.mend()
        return Verdict(test, sum(map(len, chosen)), len(every))

    def mend(self) -> None:
        """Make the library whole again, with the kernels that were compiled."""
        shutil.rmtree(self.top / "sparselib")
        shutil.copytree(self.tests.top / "sparselib", self.top / "sparselib")

    def unfit(self, killers: set[str]) -> set[str]:
        """Tests that fail without a mutant."""
        found = set()
        left = sorted(killers & self.tests.seconds.keys())
        while failed := left and failing(self.top, left, self.tests.seconds):
            test = failed.removesuffix(" (without an end)")
            # where the files do not even load, no test fits
            found |= {test} if test in left else set(left)
            left = [test for test in left if test not in found]
        return found


def main() -> int:
    """Draw mutants, try each, and print those that survive."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", type=Path, help="files of sparselib; all by default")
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=60, help="seconds of tests for a mutant")
    parser.add_argument("--map", type=Path, default=ROOT / "_build/mutants", help="kept folder")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="of the map's pass")
    given = parser.parse_args()
    modules = [path.resolve() for path in given.modules] or sorted(ROOT.glob("sparselib/**/*.py"))
    tests = covering.recorded(ROOT, given.map.resolve(), given.processes)
    for name in LOADED:
        importlib.import_module(name)
    drawn: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    killers: dict[str, list[Mutant]] = {}
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(tests, Path(folder), given.budget)
        paths = [path.relative_to(ROOT) for path in modules]
        for mutant in draw(tests.top, paths, given.count, given.seed):
            begun = time.monotonic()
            verdict = judge.tried(mutant)
            drawn[str(mutant.path)] += 1
            if verdict.test:
                killed[str(mutant.path)] += 1
                killers.setdefault(verdict.test, []).append(mutant)
            word = "killed  " if verdict.test else "SURVIVED"
            took = time.monotonic() - begun
            print(f"{word} {mutant}  {took:.0f} s  {verdict}", flush=True)
        for test in judge.unfit(set(killers)):
            for mutant in killers[test]:
                killed[str(mutant.path)] -= 1
                print(f"SURVIVED {mutant}  {test} fails without it, too")
    for module, count in sorted(drawn.items()):
        print(f"{module}: {killed[module]} of {count}")
    print(f"{killed.total()} of {drawn.total()} mutants are killed, in {given.budget:.0f} s each")
    return 0 if killed == drawn else 1


if __name__ == "__main__":
    sys.exit(main())
