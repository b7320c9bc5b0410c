"""Pin versions that fit together: ``python book/_tools/constraints.py book,test [--upgrade]``.

uv resolves the project with the extras that are named, for the oldest Python that it supports, and
installs nothing: what it would install becomes ``constraints.txt``. Pins that are there already
stay where they fit, unless the newest versions are asked for.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OF_A_DEVICE = ("nvidia-", "cuda-")  # come with the torch of some platforms, which pins them itself


def oldest_python() -> str:
    """The first version of Python that the project supports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["requires-python"].removeprefix(">=")


def install_uv(folder: Path) -> Path:
    """Return the program uv, which is installed into a folder unless it is there."""
    program = folder / "bin" / ("uv.exe" if sys.platform == "win32" else "uv")
    if not program.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "uv"]
        subprocess.run(pip, check=True)
    return program


def resolved(extras: list[str], before: str, upgrade: bool) -> str:
    """Requirements of an empty environment, one ``name==version`` a line."""
    with tempfile.TemporaryDirectory() as folder:
        uv = install_uv(Path(folder) / "tool")
        answer = Path(folder) / "constraints.txt"
        answer.write_text(before, encoding="utf-8")
        command = [uv, "pip", "compile", "--quiet", ROOT / "pyproject.toml"]
        command += [word for extra in extras for word in ("--extra", extra)]
        command += ["--python-version", oldest_python(), "--output-file", answer]
        command += ["--no-header", "--no-annotate", *["--upgrade"][:upgrade]]
        subprocess.run(command, check=True)
        return answer.read_text(encoding="utf-8")


def pins(requirements: str) -> list[str]:
    """One line a package, without those of a device, and the build that a version names."""
    lines = re.findall(r"(?m)^[\w.-]+==[^\s;+]+", requirements)
    return sorted(line for line in lines if not line.startswith(OF_A_DEVICE))


def changes(before: str, after: list[str]) -> list[str]:
    """New pins, in whatever spelling a package's name had before."""
    old = {re.sub(r"[-_.]+", "-", line).lower() for line in before.splitlines()}
    return [line for line in after if re.sub(r"[-_.]+", "-", line).lower() not in old]


def main() -> None:
    """Resolve, write, and print what is new."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("extras", type=lambda text: text.split(","))
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    given = parser.parse_args()
    path = ROOT / "constraints.txt"
    before = path.read_text(encoding="utf-8")
    lines = pins(resolved(given.extras, before, given.upgrade))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} pins in {path.name}; new: {', '.join(changes(before, lines)) or '-'}")


if __name__ == "__main__":
    main()
