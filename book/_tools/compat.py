"""Test the library beside other versions of torch: ``python book/_tools/compat.py [name ...]``.

Each set of versions gets an environment of its own in ``.compat``, made by uv (which chooses and
unpacks in minutes what takes pip an hour; `UV_TORCH_BACKEND=cpu` asks for wheels without CUDA).
Its tests are those of the library: the book and its sweeps are tested with the pinned versions
only.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from constraints import install_uv

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".compat"
ENVIRONMENTS = {
    "oldest": ["torch==2.6.0", "numpy==2.0.*"],
    "newest": ["torch"],
    # the interpreter of Triton 3.6 fails with numpy 2.4
    "image": ["torch==2.11.0", "triton==3.6.0; platform_system == 'Linux'", "numpy==2.3.*"],
}
TESTS = ["pytest<9.2", "pytest-timeout", "pytest-xdist", "psutil", "hypothesis", "beartype"]
TESTS += ["expecttest", "safetensors", "setuptools"]
SHOWN = ["torch", "triton", "numpy", "numba", "pandas"]
BOOK = ["test_book.py", "test_browser.py", "test_house.py", "test_install.py", "test_sweep*.py"]
BOOK += ["test_clusters.py", "test_executions.py", "test_exercises.py", "test_interactive.py"]
BOOK += ["test_lab.py", "test_ledger.py", "test_mutants.py", "test_publishing.py", "test_forks.py"]
SHAPES = ["test_checking.py"]  # of checks that old tracers cannot follow, and that are off here


def python(name: str) -> Path:
    """Interpreter of an environment."""
    binaries = "Scripts" if sys.platform == "win32" else "bin"
    return FOLDER / name / binaries / "python"


def install(name: str) -> None:
    """Install the library into an environment beside the versions that it is to be tested with."""
    uv = install_uv(FOLDER / "tool")
    if not python(name).exists():
        made = [uv, "venv", "--quiet", "--python", sys.executable, FOLDER / name]
        subprocess.run(made, check=True)
    into = ["--python", python(name)]
    wanted = [*ENVIRONMENTS[name], *TESTS, "--editable", ROOT]
    subprocess.run([uv, "pip", "install", "--quiet", *into, *wanted], check=True)
    subprocess.run([uv, "pip", "check", "--quiet", *into], check=True)


def versions(name: str) -> str:
    """Name what an environment holds."""
    code = (
        "from importlib.metadata import version, PackageNotFoundError as none\n"
        f"for name in {SHOWN}:\n"
        "    try: print(name, version(name))\n"
        "    except none: pass"
    )
    command = [python(name), "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return ", ".join(answer.stdout.splitlines())


def passes(name: str, selection: list[str]) -> bool:
    """Run the library's tests in an environment."""
    ignored = [f"--ignore-glob={ROOT / 'tests' / test}" for test in (*BOOK, *SHAPES)]
    parallel = ["-n", "logical", "--maxprocesses", "8", "--dist", "loadgroup"]
    plain = ["-o", "addopts="]  # without checks of shapes
    options = ["-q", "-rs", *plain, *ignored, *parallel]
    command = [python(name), "-m", "pytest", *options, *(selection or ["tests"])]
    return subprocess.run(command, cwd=ROOT).returncode == 0


def main() -> int:
    """Install and test each environment; print which of them hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ENVIRONMENTS)}; all by default")
    parser.add_argument("--tests", nargs="+", help="files of tests, by default all of the library")
    given = parser.parse_args()
    if unknown := set(given.names) - set(ENVIRONMENTS):
        parser.error(f"no environment {', '.join(unknown)}; there are {', '.join(ENVIRONMENTS)}")
    results: dict[str, str] = {}
    for name in given.names or ENVIRONMENTS:
        try:
            install(name)
        except subprocess.CalledProcessError:  # uv has printed why
            results[name] = "could not be installed"
            continue
        print(f"{name}: {versions(name)}", flush=True)
        how = "passed" if passes(name, given.tests) else "failed"
        results[name] = f"{how}, with {versions(name)}"
    for name, result in results.items():
        print(f"{name}: {result}")
    return 0 if all(result.startswith("passed") for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
