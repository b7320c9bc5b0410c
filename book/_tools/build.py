"""Build the book strictly, from the current folder: ``python book/_tools/build.py``.

Executed notebooks are cached by their code alone, so the cache is dropped as soon as anything else
that a page reads has changed. ``make pages`` fills the same cache with the pages that it has run
and found right.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import distributions
from pathlib import Path

import kernels
import nbformat
import yaml
from filelock import FileLock
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

READ_BY_PAGES = ["sparselib/**/*.py", "data/**/*", "book/**/*.yml", "constraints.txt"]
READ_BY_PAGES += ["book/[!_]*/*.py"]
DOWNLOADS = Path("data/raw")  # pages live on what the repository holds
CACHE = "_build/.jupyter_cache"
LOCK = "_build/.jupyter_cache.lock"
STRICT = ["-W", "-n", "--keep-going", "--all"]


def installed() -> list[str]:
    """List name and version of everything that a page could import."""
    return sorted({f"{found.name}=={found.version}" for found in distributions()})


def fingerprint(root: Path) -> str:
    """Hash all that decides what a page prints, besides its own code."""
    digest = hashlib.sha256(f"{sys.version}\0{installed()}".encode())
    for path in sorted({p for pattern in READ_BY_PAGES for p in root.glob(pattern)}):
        name = path.relative_to(root)
        if path.is_file() and not name.is_relative_to(DOWNLOADS):
            digest.update(f"{name}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def drop_stale_cache(root: Path) -> bool:
    """Remove the cached executions if a page may now print something else; return whether."""
    stamp = root / "_build/.inputs.sha256"
    now = fingerprint(root)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == now:
        return False
    shutil.rmtree(root / CACHE, ignore_errors=True)
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(now, encoding="utf-8")
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

    names = walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")))
    found = [root / f"{name}{end}" for name in names for end in (".ipynb", ".md")]
    return [path for path in found if path.exists()]


def executions(root: Path) -> JupyterCacheAbstract:
    """Open the cache from which the builder takes what pages show."""
    return get_cache(root / CACHE)


def is_executed(root: Path, page: Path) -> bool:
    """Whether the outputs of a page, as its code is now, are in the cache."""
    try:
        executions(root).match_cache_notebook(nbformat.read(page, as_version=4))
    except KeyError:
        return False
    return True


def keep(root: Path, page: Path, executed: nbformat.NotebookNode, seconds: float) -> None:
    """Put an executed page into the cache.

    Only one process at a time: while it limits its size, jupyter-cache removes each page that
    another process adds.
    """
    bundle = CacheBundleIn(executed, str(page), data={"execution_seconds": seconds})
    with FileLock(root / LOCK):
        executions(root).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def execute(root: Path, page: Path) -> str:
    """Run one notebook where it lies and cache its outputs; return what went wrong, if it did."""
    notebook = nbformat.read(page, as_version=4)
    start = time.perf_counter()
    try:
        kernels.run(notebook, page.parent)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return f"{page.relative_to(root)} failed:\n{error}"
    keep(root, page, notebook, time.perf_counter() - start)
    return ""


def execute_all(root: Path) -> Iterator[str]:
    """Fill the cache, a few notebooks at once, and yield what went wrong."""
    notebooks = [page for page in pages(root) if page.suffix == ".ipynb"]
    executions(root).list_cache_records()  # makes the data base before several processes ask
    left = [page for page in notebooks if not is_executed(root, page)]
    print(f"{len(notebooks) - len(left)} of {len(notebooks)} pages are executed already")
    processes = min(4, os.cpu_count() or 1)
    with ProcessPoolExecutor(processes, None, kernels.fork_for, (len(left),)) as pool:
        start = time.perf_counter()
        running = {pool.submit(execute, root, page): page for page in left}
        for done in as_completed(running):
            name = running[done].relative_to(root)
            print(f"{time.perf_counter() - start:4.0f} s  {name}", flush=True)
            if fault := done.result():
                yield fault


def main() -> int:
    """Drop what is stale, execute, build; return the builder's exit status."""
    root = Path.cwd()
    drop_stale_cache(root)
    faults = list(execute_all(root))
    if faults:
        print("\n\n".join(faults))
        return 1
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", "-q", root, *STRICT]
    status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    if status == 0:
        print(f"\nThe book is built. Open file://{root}/_build/html/index.html")
    return status


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
