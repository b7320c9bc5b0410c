"""Build the book strictly, from the current folder: ``python book/_tools/build.py``.

Executed notebooks are cached by their code alone, so the cache is dropped as soon as anything else
that a page reads has changed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import yaml
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

READ_BY_PAGES = ["sparselib/**/*.py", "data/results/**/*", "book/**/*.yml", "constraints.txt"]
STRICT = ["-W", "-n", "--keep-going", "--all"]


def fingerprint(root: Path) -> str:
    """Hash the content of everything that pages read beside their own code."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted({p for pattern in READ_BY_PAGES for p in root.glob(pattern)}):
        if path.is_file():
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def drop_stale_cache(root: Path) -> bool:
    """Remove the cached executions if a page may now say something else; say whether it was so."""
    stamp, now = root / "_build/.inputs.sha256", fingerprint(root)
    if stamp.exists() and stamp.read_text() == now:
        return False
    shutil.rmtree(root / "_build/.jupyter_cache", ignore_errors=True)
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(now)
    return True


def pages(root: Path) -> list[Path]:
    """Files of the table of contents, in reading order."""

    def walk(node: object) -> list[str]:
        if isinstance(node, list):
            return [name for item in node for name in walk(item)]
        if not isinstance(node, dict):
            return []
        own = [node[key] for key in ("root", "file") if key in node]
        return own + [name for value in node.values() for name in walk(value)]

    names = walk(yaml.safe_load((root / "_toc.yml").read_text()))
    found = [root / f"{name}{end}" for name in names for end in (".ipynb", ".md")]
    return [path for path in found if path.exists()]


def execute(root: Path, page: Path) -> None:
    """Run one notebook where it lies and cache its outputs, unless they are cached already."""
    cache = get_cache(root / "_build/.jupyter_cache")
    load_executor("local-serial", cache).run_and_cache(filter_uris=[str(page)], timeout=300)


def execute_ahead(root: Path) -> None:
    """Fill the cache, a few notebooks at once; one that fails here fails again in the build."""
    cache = get_cache(root / "_build/.jupyter_cache")
    notebooks = [page for page in pages(root) if page.suffix == ".ipynb"]
    for notebook in notebooks:
        cache.add_nb_to_project(str(notebook))
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(execute, repeat(root), notebooks))


def main() -> int:
    """Drop what is stale, execute, build; return the builder's exit status."""
    root = Path.cwd()
    drop_stale_cache(root)
    execute_ahead(root)
    program = Path(sys.executable).with_name("jupyter-book")
    status = subprocess.run([program, "build", root, *STRICT], stdin=subprocess.DEVNULL).returncode
    if status == 0:
        print(f"\nThe book is built. Open file://{root}/_build/html/index.html")
    return status


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
