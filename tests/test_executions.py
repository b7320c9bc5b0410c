"""What several processes execute at once is all in the cache that the book is built from."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import build
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

PROCESSES = 4
EACH = 10


def keep_some(root: Path, process: int) -> None:
    """Keep pages of which no other process has any."""
    for number in range(EACH):
        page = new_notebook(cells=[new_code_cell(f"{process}, {number}")])
        path = root / f"{process}-{number}.ipynb"
        nbformat.write(page, path)
        build.keep(root, path, page, 0.0)


@pytest.mark.slow
def test_no_process_removes_what_another_keeps(tmp_path: Path) -> None:
    build.executions(tmp_path).list_cache_records()
    alone = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, alone) as pool:
        for done in [pool.submit(keep_some, tmp_path, process) for process in range(PROCESSES)]:
            done.result()
    pages = list(tmp_path.glob("*.ipynb"))
    assert len(pages) == PROCESSES * EACH
    assert all(build.is_executed(tmp_path, page) for page in pages)
