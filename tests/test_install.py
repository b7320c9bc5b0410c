"""A wheel of the tree, installed by pip into an empty environment, does what the README says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SOURCES = ["sparselib", "pyproject.toml", "README.md", "LICENSE"]


def run(*command: object, folder: Path) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=folder, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(root: Path, folder: Path) -> Path:
    """Build from a copy, so that nothing is left in the tree."""
    tree = folder / "tree"
    tree.mkdir()
    for name in SOURCES:
        source = root / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tree / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "--wheel-dir", folder, tree, folder=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_environment(folder: Path) -> Path:
    """Make an environment with the dependencies of this one, and no package of the project."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder.parent)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-I", "-c", code, folder=folder).strip())
    # the files *.pth of these folders, such as that of an editable install, are not read
    beside = [entry for entry in sys.path if Path(entry).name == "site-packages"]
    (site / "dependencies.pth").write_text("\n".join(beside) + "\n", encoding="utf-8")
    return python


def test_a_wheel_in_an_empty_environment_does_what_the_readme_says(
    root: Path, tmp_path: Path
) -> None:
    wheel = build_wheel(root, tmp_path)
    python = make_environment(tmp_path / "an environment")
    # this environment's own sparselib is in sight by its metadata: pip must not be content with it
    pip = [sys.executable, "-m", "pip", "--python", python, "install"]
    run(*pip, "--no-deps", "--no-index", "--ignore-installed", wheel, folder=tmp_path)
    readme = (root / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert "epochs=20" in program
    program = program.replace("epochs=20", "epochs=5")  # the rest is to install and to compile
    program += "print(sl.__file__)\nfrom importlib.resources import files\n"
    program += "print(files('sparselib').joinpath('py.typed').is_file())\n"
    accuracy, place, typed = run(python, "-I", "-c", program, folder=tmp_path).splitlines()[-3:]
    assert re.fullmatch(r"9\d\.\d% with [\d,]+ parameters", accuracy)
    assert Path(place).is_relative_to(tmp_path / "an environment")
    assert typed == "True"
