"""Pin the newest versions that fit together: ``python book/_tools/constraints.py book,test``.

pip resolves the project with the extras that are named, as if nothing were installed, and installs
nothing; what it would install becomes ``constraints.txt``.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OF_A_DEVICE = ("nvidia-", "cuda-")  # come with the torch of some platforms, which pins them itself


def resolved(extras: str) -> dict[str, str]:
    """Versions by name, as pip chooses them for an empty environment."""
    options = ["--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command = [sys.executable, "-m", "pip", "install", *options, f"{ROOT}[{extras}]"]
    report = subprocess.run(command, capture_output=True, check=True).stdout
    packages = [item["metadata"] for item in json.loads(report)["install"]]
    return {package["name"]: package["version"] for package in packages}


def pins(versions: dict[str, str]) -> list[str]:
    """One line a package, without ours, those of a device, and the build that a version names."""
    return sorted(
        (
            f"{name}=={version.partition('+')[0]}"
            for name, version in versions.items()
            if name != "sparselib" and not name.startswith(OF_A_DEVICE)
        ),
        key=str.casefold,
    )


if __name__ == "__main__":
    lines = pins(resolved(sys.argv[1]))
    path = ROOT / "constraints.txt"
    before = set(path.read_text(encoding="utf-8").splitlines())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} pins in {path.name}; new: {', '.join(sorted(set(lines) - before)) or '-'}")
