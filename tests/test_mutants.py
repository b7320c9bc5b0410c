"""Broken lines are noticed: by the tests that run them, wherever they run."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mutants
import pytest
from hypothesis import given
from hypothesis import strategies as st

TOOLS = Path(__file__).resolve().parent.parent / "book" / "_tools"
LIBRARY = '''
"""Sums."""

from sparselib import kernels

STEP = 3  # what is counted


def total(values):
    """Sum up."""
    return sum(values) * STEP


def doubled(number):
    return kernels.twice(number)


def spelled(number):
    return "many" if number else "none"


def halved(number):
    return number // 2


def made():
    return [5]


def forgotten() -> int:
    return 1
'''
KERNELS = """
from numba import njit


@njit
def twice(number):
    return 2 * number
"""
TESTS = """
import inspect
import os
import subprocess
import sys

import pytest

from sparselib import sums


@pytest.fixture(scope="module")
def five():
    return sums.made()


def test_that_a_fixture_is_there(five):
    assert five


def test_what_a_fixture_made(five):
    assert five == [5]


@pytest.mark.parametrize("last", [2, 3])
def test_total(last):
    assert sums.total([1, last]) == 3 + 3 * last


def test_of_compiled_code():
    assert sums.doubled(5) == 10


def test_of_another_process():
    code = "from sparselib import sums; assert sums.spelled(0) == 'none'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_of_a_child():
    child = os.fork()
    if not child:
        os._exit(sums.halved(6))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_that_reads_the_source():
    assert "# what is counted" in inspect.getsource(sums)
"""
FORKS = pytest.mark.skipif(sys.platform == "win32", reason="mutants are tried in forks")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the tool prints of a library of one module."""
    top = tmp_path_factory.mktemp("project")
    for folder in ("sparselib", "tests", "book/_tools"):
        (top / folder).mkdir(parents=True)
    for name in ("mutants.py", "covering.py"):
        shutil.copy(TOOLS / name, top / "book/_tools")
    (top / "sparselib/__init__.py").touch()
    (top / "sparselib/sums.py").write_text(LIBRARY, encoding="utf-8")
    (top / "sparselib/kernels.py").write_text(KERNELS, encoding="utf-8")
    (top / "tests/test_sums.py").write_text(TESTS, encoding="utf-8")
    (top / "pyproject.toml").write_text("[tool.pytest.ini_options]\n", encoding="utf-8")
    code = "import mutants; mutants.LOADED = ['numba']; raise SystemExit(mutants.main())"
    command = [sys.executable, "-c", code, "--count", "99", "--processes", "0"]
    # its own pytest is no worker of the one that runs this test
    environment = {name: os.environ[name] for name in os.environ if name[:7] != "PYTEST_"}
    environment["PYTHONPATH"] = str(top / "book/_tools")
    done = subprocess.run(command, cwd=top, env=environment, text=True, capture_output=True)
    assert done.returncode == 1, done.stderr
    return done.stdout


@pytest.mark.slow
@FORKS
@pytest.mark.parametrize(
    ("line", "test"),
    [
        ("return sum(values) * STEP", "test_total"),
        ("STEP = 3", "test_total"),
        ("return 2 * number", "test_of_compiled_code"),
        ("if number else", "test_of_another_process"),
        ("return number // 2", "test_of_a_child"),
        ("return [5]", "test_what_a_fixture_made"),
    ],
)
def test_a_broken_line_is_killed_by_a_test_that_runs_it(line: str, test: str, output: str) -> None:
    tried = [printed for printed in output.splitlines() if re.search(" s  .*test", printed)]
    found = [printed for printed in tried if line in printed]
    assert found
    for printed in found:
        assert printed.startswith("killed")
        assert test in printed


@pytest.mark.slow
@FORKS
def test_a_broken_line_survives_where_no_test_runs_it(output: str) -> None:
    survivors = [line for line in output.splitlines() if line.startswith("SURVIVED")]
    assert len(survivors) == 1
    assert "return 1 " in survivors[0]
    assert "8 of 9 mutants are killed" in output


@given(
    st.dictionaries(
        st.builds("t.py::{}[{}]".format, st.sampled_from("abc"), st.integers(0, 9)),
        st.floats(0.01, 9),
        min_size=1,
    ),
    st.floats(0, 30),
)
def test_a_budget_holds_and_every_function_comes_before_a_second_parameter(
    seconds: dict[str, float], budget: float
) -> None:
    chosen = mutants.within(set(seconds), seconds, budget)
    assert sum(seconds[test] for test in chosen) <= budget or len(chosen) == 1
    functions = [test.partition("[")[0] for test in chosen]
    if len(chosen) == len(seconds):
        count = len(set(functions))
        assert len(set(functions[:count])) == count


def test_every_change_is_another_program_and_leaves_words_and_types_alone() -> None:
    text = ast.unparse(ast.parse(LIBRARY))
    count = len(list(mutants.changes(ast.parse(text))))
    changed = set()
    for number in range(count):
        tree = ast.parse(text)
        line, _, change = list(mutants.changes(tree))[number]
        assert "Sum" not in text.splitlines()[line - 1]
        change()
        changed.add(ast.unparse(ast.fix_missing_locations(tree)))
    assert len(changed) == count
    assert text not in changed
