"""Break random lines of the library, and see that a test fails: ``python book/_tools/mutants.py``.

Each mutant is one change of one line, made in a copy of the tree. It is killed if a test that runs
its line fails, and survives if all pass. The same seed draws the same mutants.

`covering` knows the tests of a line. First come those of its module's own file and of the files
that have most of them, then the others: each time every function before a second parameter of one,
the quickest first, as many as take `--budget` seconds. A test fails, too, if it takes ten times as
long as usual and 30 s of the processor. It has to pass without the mutant, or proves nothing.

What tests run as Python is changed in a child of a process that has imported the library and all
tests, where functions get their new code. For what is compiled, or runs when it is imported, a
child imports everything anew, and has loaded torch and pytest only. What an error says, docstrings
and annotations are left alone.
"""

import argparse
import ast
import gc
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
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
ENDLESS = " (without an end)"
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


def batches(
    tests: set[str], seconds: dict[str, float], budget: float, own: str = ""
) -> list[list[str]]:
    """Choose from the tests of a line: from its own file and those with most, and the others."""
    size = Counter(file_of(test) for test in tests)
    first = {own, *(name for name, _ in size.most_common(FIRST))}
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


def ends_well(work: Callable[[], int], seconds: float) -> bool:
    """Whether a function returns 0 in a child of this process, in so many seconds."""
    child = os.fork()
    if not child:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        # a broken line may ask for all memory: then it is this process that is ended
        if (score := Path("/proc/self/oom_score_adj")).exists():
            score.write_text("1000", encoding="utf-8")
        code = 1
        try:
            code = work()
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def settle(top: Path) -> None:
    """Work in a copy of the tree from here on, as do the processes that tests start."""
    os.chdir(top)
    os.environ |= {"PYTHONPATH": str(top), "SPARSELIB_DATA": "", "CI": "true"}
    sys.path.insert(0, str(top))


def pytested(top: Path, files: list[str], plugin: object) -> int:
    """Collect files of tests for a plugin that runs them."""
    options = ["-q", "-s", "--tb=no", "--disable-warnings", "-n0", "-p", "no:cacheprovider"]
    return int(pytest.main([*options, f"--basetemp={top.parent / 'files'}", *files], [plugin]))


class Verdict(NamedTuple):
    """The test that kills a mutant, or nothing, and how many were chosen of those that run it."""

    test: str
    chosen: int
    every: int

    def __str__(self) -> str:
        return self.test or f"{self.chosen} of {self.every} tests"


class Trial:
    """Tests in an order of their own, until one fails, as a plugin of pytest.

    Parameters
    ----------
    tests : list of str
        Which, of all that pytest collects.
    seconds : dict
        How long they usually take.
    report : path
        Where the one that fails is written down.
    """

    def __init__(self, tests: list[str], seconds: dict[str, float], report: Path) -> None:
        self.tests = tests
        self.seconds = seconds
        self.report = report
        self.report.write_text("what imports it", encoding="utf-8")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run them, unless a file could not be loaded."""
        if not session.testsfailed:
            self.run(session)
        return True

    def run(self, session: pytest.Session) -> int:
        """Return 1 if a test fails; of those that do not end the processor's time is over."""
        every = {item.nodeid: item for item in session.items}
        items = [every[test] for test in self.tests if test in every]
        for item, following in zip(items, [*items[1:], None]):
            self.report.write_text(item.nodeid + ENDLESS, encoding="utf-8")
            signal.setitimer(signal.ITIMER_PROF, 10 * self.seconds[item.nodeid] + 30)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                self.report.write_text(item.nodeid, encoding="utf-8")
                return 1
        return 0


Run = Callable[[list[str], Mutant | None], str]


class Examiner:
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
        self.fit: set[str] = set()
        self.unfit: set[str] = set()
        shutil.copytree(tests.top, self.top)

    def is_patched(self, mutant: Mutant) -> bool:
        """Whether the change is in what tests run as Python, and nothing runs when imported."""
        path = self.tests.top / mutant.path
        if covering.is_compiled(path) or "" in self.tests.lines(path).get(mutant.copied, [""]):
            return False
        before = compile(path.read_text(encoding="utf-8"), str(path), "exec")
        after = compile(mutant.text, str(path), "exec")
        # a function can take the code of another only if that reads as many of its surroundings
        return [c.co_freevars for c in parts(before)] == [c.co_freevars for c in parts(after)]

    def tried(self, mutant: Mutant, run: Run) -> Verdict:
        """Put a mutant into the copy, and run its tests; a test that fails has to pass without."""
        every = self.tests.tests(self.tests.top / mutant.path, mutant.copied)
        while True:
            own = f"tests/test_{mutant.path.stem}.py"
            chosen = batches(every - self.unfit, self.tests.seconds, self.budget, own)
            test = next(filter(None, (run(part, mutant) for part in chosen)), "")
            name = test.removesuffix(ENDLESS)
            if name not in self.tests.seconds or name in self.fit or not run([name], None):
                self.fit.add(name)
                return Verdict(test, sum(map(len, chosen)), len(every))
            self.unfit.add(name)

    def fresh(self, tests: list[str], mutant: Mutant | None) -> str:
        """Return the test that fails in a process that imports the library, or nothing."""
        trial = Trial(tests, self.tests.seconds, self.top.parent / "report")
        files = list(dict.fromkeys(file_of(test) for test in tests))

        def work() -> int:
            settle(self.top)
            return pytested(self.top, files, trial)

        with self.broken(mutant):
            passed = ends_well(work, self.patience(tests))
        return "" if passed else trial.report.read_text(encoding="utf-8")

    @contextmanager
    def broken(self, mutant: Mutant | None) -> Iterator[None]:
        """Put a mutant into the copy, for a while; its kernels go with it."""
        if mutant:
            (self.top / mutant.path).write_text(mutant.text, encoding="utf-8")
        yield
        if mutant:
            shutil.rmtree(self.top / "sparselib")
            shutil.copytree(self.tests.top / "sparselib", self.top / "sparselib")

    def patience(self, tests: list[str]) -> float:
        """Seconds until a process is given up, on a busy machine too."""
        return 1800 + 10 * sum(self.tests.seconds[test] for test in tests)


class Functions:
    """The functions of a library that this process has imported, by file, name and line."""

    def __init__(self, top: Path) -> None:
        self.found = defaultdict(list)
        for function in gc.get_objects():
            if type(function) is FunctionType:
                code = function.__code__
                if code.co_filename.startswith(str(top / "sparselib")):
                    self.found[place_of(code)].append(function)

    def change(self, path: Path, text: str) -> None:
        """Give each function of a file the code that it has in another text."""
        (module,) = (m for m in sys.modules.values() if getattr(m, "__file__", "") == str(path))
        for code in parts(module.__loader__.source_to_code(text.encode(), str(path))):
            for function in self.found[place_of(code)]:
                function.__code__ = code


def parts(code: CodeType) -> Iterator[CodeType]:
    """The code of a module or a function, and of all functions in it."""
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from parts(part)


def place_of(code: CodeType) -> tuple[str, str, int]:
    """Where a function is defined."""
    return code.co_filename, code.co_qualname, code.co_firstlineno


class Live:
    """Tries mutants where pytest would run tests, as a plugin of it.

    Parameters
    ----------
    examiner : Examiner
        What chooses the tests.
    mutants : list of Mutant
        All in functions.
    tell : callable
        What takes each verdict.
    """

    def __init__(
        self,
        examiner: Examiner,
        mutants: list[Mutant],
        tell: Callable[[Mutant, Callable[[], Verdict]], None],
    ) -> None:
        self.examiner = examiner
        self.mutants = mutants
        self.tell = tell

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try one after the other."""
        functions = Functions(self.examiner.top)
        gc.freeze()

        def run(tests: list[str], mutant: Mutant | None) -> str:
            trial = Trial(tests, self.examiner.tests.seconds, self.examiner.top.parent / "report")

            def work() -> int:
                if mutant:
                    functions.change(self.examiner.top / mutant.path, mutant.text)
                return trial.run(session)

            with self.examiner.broken(mutant):
                passed = ends_well(work, self.examiner.patience(tests))
            return "" if passed else trial.report.read_text(encoding="utf-8")

        for mutant in self.mutants:
            self.tell(mutant, partial(self.examiner.tried, mutant, run))
        return True


class Table:
    """Prints verdicts, and counts them by module."""

    def __init__(self) -> None:
        self.drawn: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()

    def tell(self, mutant: Mutant, examined: Callable[[], Verdict]) -> None:
        """Take the time of a trial, and print what comes out."""
        begun = time.monotonic()
        verdict = examined()
        took = time.monotonic() - begun
        word = "killed  " if verdict.test else "SURVIVED"
        self.drawn[str(mutant.path)] += 1
        self.killed[str(mutant.path)] += bool(verdict.test)
        print(f"{word} {mutant}  {took:.0f} s  {verdict}", flush=True)

    def conclude(self, budget: float) -> None:
        """Print how many are killed of each module, and of all."""
        for module, count in sorted(self.drawn.items()):
            print(f"{module}: {self.killed[module]} of {count}")
        total = f"{self.killed.total()} of {self.drawn.total()} mutants are killed"
        print(f"{total}, each by tests of {budget:.0f} s at most")


def main() -> int:
    """Draw mutants, try each, and print those that survive."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", type=Path, help="files of sparselib; all by default")
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=60, help="seconds of tests for a mutant")
    parser.add_argument("--map", type=Path, default=ROOT / "_build/mutants", help="kept folder")
    parser.add_argument("--marks", default=covering.CHOSEN, help="which tests, as for pytest -m")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="of the map's pass")
    given = parser.parse_args()
    modules = [path.resolve() for path in given.modules] or sorted(ROOT.glob("sparselib/**/*.py"))
    tests = covering.recorded(ROOT, given.map.resolve(), given.processes, given.marks)
    for name in LOADED:
        importlib.import_module(name)
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        examiner = Examiner(tests, Path(folder).resolve(), given.budget)
        paths = [path.relative_to(ROOT) for path in modules]
        mutants = list(draw(tests.top, paths, given.count, given.seed))
        patched = [mutant for mutant in mutants if examiner.is_patched(mutant)]
        for mutant in mutants:
            if mutant not in patched:
                table.tell(mutant, partial(examiner.tried, mutant, examiner.fresh))
        settle(examiner.top)
        pytested(examiner.top, ["tests"], Live(examiner, patched, table.tell))
    table.conclude(given.budget)
    return 0 if table.killed == table.drawn else 1


if __name__ == "__main__":
    sys.exit(main())
