"""One run: a notebook, its parameters, and the executed copy that it leaves."""

import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sparselib import atomic

from .history import DIRTY, commit, differs
from .parameters import PLACES, Parameter, Values, declared
from .rows import SOURCE, Row, columns, write

# of nbformat 4, as JSON
Notebook = Mapping[str, Any]


class Run(NamedTuple):
    """What a worker needs to know; `key` is also the name of the files it leaves in `folder`."""

    key: str
    notebook: Path
    parameters: Values
    folder: Path
    timeout: int | None = None

    @property
    def executed(self) -> Path:
        """The executed notebook; it is there only if the run is complete."""
        return self.folder / f"{self.key}.ipynb"

    @property
    def failed(self) -> Path:
        """The partial notebook of a failed run."""
        return self.folder / f"{self.key}.failed.ipynb"

    @property
    def row(self) -> Path:
        """The row of results."""
        return self.folder / f"{self.key}.json"


# executes the page of a run: leaves the executed page and its row at the two paths, and returns
# the seconds that it took
Perform = Callable[[Run, Path, Path], float]


class BadRowError(Exception):
    """A page wrote no row of results, or not that of its run."""


class Outcome(NamedTuple):
    """What became of a run: done, failed (in the notebook), lost (around it) or busy."""

    key: str
    status: str
    seconds: float = 0.0
    error: str = ""


def parameters(notebook: Notebook) -> dict[str, Parameter]:
    """Read names, types and defaults from the one cell tagged `parameters`.

    Raises
    ------
    ValueError
        If there is not exactly one such cell, or it is not readable; see `declared`.
    """
    cells = [cell for cell in notebook["cells"] if "parameters" in _tags(cell)]
    if len(cells) != 1:
        raise ValueError(
            f"a notebook to sweep has one cell tagged 'parameters', not {len(cells)}"
        )
    return declared(_source(cells[0]))


def run_key(
    notebook: Notebook,
    values: Mapping[str, object],
    data: Mapping[str, str],
) -> str:
    """Name a run by all that decides its result, as the start of a SHA-256.

    That is the code cells, every parameter but for the places of files, the library's source, and
    the checksums of the data.
    """
    code = [_source(c) for c in notebook["cells"] if c["cell_type"] == "code"]
    code = [
        source
        for source in code
        if source != _source(_parameters_cell(notebook))
    ]
    chosen = {
        name: value for name, value in values.items() if name not in PLACES
    }
    whole = json.dumps([code, chosen, SOURCE, dict(data)], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def complete(path: Path) -> bool:
    """Whether papermill wrote its end mark, and no exception: a file alone proves nothing."""
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
        mark = page["metadata"]["papermill"]
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return False
    return (
        mark.get("end_time") is not None and mark.get("exception") is not True
    )


def failure(path: Path) -> str:
    """Return why a notebook failed."""
    return str(
        json.loads(path.read_text(encoding="utf-8"))["metadata"].get(
            "failure", "for an unknown reason"
        )
    )


def with_papermill(run: Run, page: Path, row: Path) -> float:
    """Execute a run's notebook in a kernel of its own; see `Perform`."""
    import papermill
    from traitlets.config import Config

    # names and types were checked when the sweep file was read, better than papermill can
    logging.getLogger("papermill").setLevel(logging.ERROR)
    # over TCP any user of the machine could read and drive the kernel; its sockets lie in a folder
    # that is ours alone, with a name short enough for a socket
    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        sockets = {"transport": "ipc", "ip": f"{folder}/socket"}
        executed = papermill.execute_notebook(
            run.notebook,
            page,
            run.parameters | {"results": str(row)},
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=run.notebook.parent,
            start_timeout=120,
            extra_arguments=["--IPKernelApp.log_level=40"],
            execution_timeout=run.timeout,
            config=Config({"KernelManager": sockets}),
        )
    return float(executed.metadata.papermill["duration"])


def execute(
    run: Run,
    source: str = SOURCE,
    wait: bool = True,
    perform: Perform = with_papermill,
) -> Outcome:
    """Carry out a run unless it is complete; what the notebook raises comes back as data.

    Whatever else goes wrong, such as a kernel that dies, is raised, so that it can be tried again.

    Parameters
    ----------
    run : Run
        What to do.
    source : str
        Checksum of the library that shall do it.
    wait : bool
        If another sweep is at this very run: wait for it, or come back at once, ``"busy"``.
    perform : callable
        Executes the notebook. It is the only part of a run that a simulation replaces.
    """
    from filelock import FileLock, Timeout

    if source != SOURCE:
        raise RuntimeError(
            f"this worker has sparselib {SOURCE}, the sweep was started with {source}; install "
            f"the same one in both places"
        )
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(
            run.folder / f"{run.key}.lock", timeout=-1 if wait else 0
        ):
            return (
                Outcome(run.key, "done")
                if complete(run.executed)
                else _execute(run, perform)
            )
    except Timeout:
        return Outcome(run.key, "busy")


def _execute(run: Run, perform: Perform) -> Outcome:
    from nbclient.exceptions import CellTimeoutError
    from papermill.exceptions import PapermillExecutionError

    with _attempt(run) as folder:
        page = folder / "page.ipynb"
        row = folder / "row.json"
        try:
            seconds = perform(run, page, row)
            whole = _row(run, row)
        except CellTimeoutError:
            told = f"a cell took more than {run.timeout} s, the sweep's timeout"
            return _fail(run, page, told)
        except BadRowError as error:
            return _fail(run, page, str(error))
        except PapermillExecutionError as error:
            return _fail(run, page, f"{error.ename}: {error.evalue}")
        write(whole | {"run_seconds": seconds, "run": run.key}, row)
        atomic.move(row, run.row)
        atomic.move(page, run.executed)
        run.failed.unlink(missing_ok=True)
        return Outcome(run.key, "done", seconds)


@contextmanager
def _attempt(run: Run) -> Iterator[Path]:
    """Make a folder for what an attempt at a run writes, and remove it with those of killed ones.

    Finished files are moved out of it. Files are written nowhere else, since what is written
    atomically looks at all its neighbors, of which a folder of runs has tens of thousands.
    """
    attempts = run.folder / f"{run.key}.part"
    folder = attempts / f"{socket.gethostname()}.{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        # whoever is here holds the lock of the run, so nobody else is at it
        shutil.rmtree(attempts, ignore_errors=True)


def _row(run: Run, path: Path) -> Row:
    """Return the row: the parameters that were put in, and what the page measured."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadRowError(
            "it wrote no row of results to the file named by `results`"
        ) from None
    except ValueError as error:
        raise BadRowError(
            f"the row of results that it wrote is no JSON: {error}"
        ) from None
    if not isinstance(found, dict):
        raise BadRowError(
            f"the row of results that it wrote holds no columns: {found!r}"
        )
    if found.get("sparselib", SOURCE).split()[-1] != SOURCE:
        raise BadRowError(
            f"its kernel imported another sparselib, {found['sparselib']}"
        )
    given = columns(run.parameters) | {"scale": run.parameters["scale"]}
    for name in given.keys() & found.keys():
        if found[name] != given[name]:
            raise BadRowError(
                f"its row has {name} = {found[name]!r}, but it was run with {given[name]!r}"
            )
    whole = given | {"commit": commit()} | found
    if differs(run.notebook) and not whole["commit"].endswith(DIRTY):
        whole["commit"] += DIRTY
    return whole


def _fail(run: Run, page: Path, error: str) -> Outcome:
    """Keep the partial page, with the reason of the failure."""
    partial = json.loads(page.read_text(encoding="utf-8"))
    partial["metadata"]["failure"] = error
    atomic.write_text(page, json.dumps(partial, indent=1) + "\n")
    atomic.move(page, run.failed)
    return Outcome(run.key, "failed", error=error)


def _parameters_cell(notebook: Notebook) -> Notebook:
    return next(
        cell for cell in notebook["cells"] if "parameters" in _tags(cell)
    )


def _tags(cell: Notebook) -> list[str]:
    return list(cell["metadata"].get("tags", []))


def _source(cell: Notebook) -> str:
    return "".join(cell["source"])
