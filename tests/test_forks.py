"""Kernels that are forks differ from others in nothing but the time that they take to start."""

import os
import sys
from pathlib import Path

import forks
import pytest
from apart import run


@pytest.mark.slow
@pytest.mark.skipif(not forks.IS_FORKED, reason="kernels are forks on Linux only")
def test_forks_are_kernels_like_others() -> None:
    pytest.importorskip("ipykernel")
    # in a process of its own, whose forks no other test has begun
    plain = ["-vv", "-p", "no:cacheprovider", "-o", "addopts="]
    path = os.pathsep.join([str(Path(forks.__file__).parent), os.environ["PYTHONPATH"]])
    tests = Path(__file__).with_name("forked.py")
    answer = run(
        "-m", "pytest", "--noconftest", *plain, tests, env=os.environ | {"PYTHONPATH": path}
    )
    assert answer.returncode == 0, answer.stdout[-5000:]
    print(answer.stdout.splitlines()[-1])


def test_a_fresh_python_looks_for_modules_where_it_says(tmp_path, monkeypatch) -> None:
    assert str(Path(os.__file__).parent) in forks.path_at_start(".")
    assert str(Path(sys.argv[0]).parent) not in forks.path_at_start(".")
    monkeypatch.setenv("PYTHONPATH", "relative")
    assert str(tmp_path / "relative") in forks.path_at_start(str(tmp_path))
