"""Which commit a row was made at, and whether what made it is in the history at all."""

import json
import subprocess
from functools import cache
from pathlib import Path

from sparselib._version import __version__

PACKAGE = Path(__file__).resolve().parents[1]
DIRTY = " dirty"


@cache
def commit() -> str:
    """Return the commit of the library's checkout, as it is when first asked.

    ``" dirty"`` follows it if the package's files are not those of the commit. A package that was
    installed without its history gives ``"version "`` and its version.
    """
    if _git(PACKAGE, "ls-files", "--error-unmatch", "__init__.py") is None:
        return f"version {__version__}"
    head = _git(PACKAGE, "rev-parse", "HEAD") or ""
    changed = _git(PACKAGE, "status", "--porcelain", "--", ".")
    return head.strip() + (DIRTY if changed else "")


def differs(notebook: Path) -> bool:
    """Whether the code of a notebook in the library's checkout is not that of the last commit."""
    ours = _git(PACKAGE, "rev-parse", "--show-toplevel")
    if (
        ours is None
        or _git(notebook.parent, "rev-parse", "--show-toplevel") != ours
    ):
        return False
    last = _git(notebook.parent, "show", f"HEAD:./{notebook.name}")
    return last is None or _code(last) != _code(
        notebook.read_text(encoding="utf-8")
    )


def check_clean(notebook: Path) -> None:
    """Refuse to make rows whose code no commit holds.

    Raises
    ------
    ValueError
        If the package or the notebook differs from the last commit.
    """
    changed = [str(PACKAGE)] if commit().endswith(DIRTY) else []
    changed += [str(notebook)] if differs(notebook) else []
    if changed:
        raise ValueError(
            f"{' and '.join(changed)} differs from the last commit, so that its rows could not be "
            f"made again: commit first, or give --allow-dirty, which marks the rows"
        )


def _code(page: str) -> list[str]:
    cells = json.loads(page)["cells"]
    return [
        "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
    ]


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None without git, outside of a checkout, or on an error."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
        )
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError):
        return None
    return done.stdout
