"""How nbval runs the pages: in kernels of our own, each page once for its test and for the book."""

import copy
import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT / "book" / "_tools"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that ``make pages`` gives."""
    parser.addoption(
        "--keep-executions",
        action="store_true",
        help="keep what pages show that pass, so that the book need not execute them again",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Prepare nbval, if it is to run."""
    if config.getoption("nbval", False):
        start_private_kernels(config)
        if config.getoption("keep_executions"):
            config.pluginmanager.register(Executions(), "executions")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let kernels be forks, if there are enough pages."""
    if session.config.getoption("nbval", False):
        import kernels

        kernels.fork_for(len({item.path for item in session.items}))


def start_private_kernels(config: pytest.Config) -> None:
    """Let nbval, which passes no configuration, start kernels that do not listen on TCP."""
    import kernels
    import nbval.kernel
    from jupyter_client import KernelManager

    folder = tempfile.TemporaryDirectory(prefix="kernels-")
    config.add_cleanup(folder.cleanup)

    @functools.wraps(KernelManager)
    def private(**options: object) -> KernelManager:
        return KernelManager(config=kernels.private(folder.name), **options)

    nbval.kernel.KernelManager = private


class Executions:
    """Puts each page of which every cell has passed into the cache that the book is built from."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}  # by cell that has passed

    def pytest_sessionstart(self) -> None:
        """Drop what is out of date, once, before the workers fill the cache."""
        import build

        if "PYTEST_XDIST_WORKER" not in os.environ:
            build.drop_stale_cache(ROOT)
            build.executions(ROOT).list_cache_records()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        """Note each cell that has passed."""
        report = yield
        if report.when == "call" and report.passed:
            self.seconds[item.nodeid] = report.duration
        return report

    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """After the last cell of a page, keep it."""
        page = item.parent
        is_last = nextitem is None or nextitem.parent is not page
        if is_last and page is not None and page.path.suffix == ".ipynb":
            self.keep(page)

    def keep(self, page: pytest.File) -> None:
        """Keep one page, if all of it was run."""
        import build

        cells = [item for item in page.session.items if item.parent is page]
        notebook = copy.deepcopy(page.nb)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        passed = [item for item in cells if item.nodeid in self.seconds]
        if len(passed) < len(code):
            return
        for item in passed:
            cell = code[item.cell_num]
            cell.execution_count = item.cell_num + 1
            cell.outputs = nbformat.from_dict(item.test_outputs)
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = cell.execution_count
        seconds = sum(self.seconds[item.nodeid] for item in passed)
        build.keep(ROOT, page.path, notebook, seconds)
