"""Kernels that are forks of a process that has loaded what takes long to load, on Linux."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

IS_FORKED = sys.platform == "linux"
# no library reads these when it is loaded: they are of one kernel, of one test, and of readline,
# which sets the size of the terminal for the programs that a Python starts
OWN = {"JPY_PARENT_PID", "PYTEST_CURRENT_TEST", "COLUMNS", "LINES"}
# what Jupyter chooses before a page loads matplotlib
BACKEND = "module://matplotlib_inline.backend_inline"


class Fork:
    """A kernel, ``python -m ipykernel_launcher ...``, for those who expect a `subprocess.Popen`.

    The process that it is a fork of loads the modules named in `loaded`, once per process that
    starts kernels. It ends with that, and so do the kernels, however that ends. Libraries read the
    environment when they are loaded; if theirs is not `env`, the fork becomes a new Python.
    """

    stdin = None
    stdout = None
    stderr = None

    def __init__(
        self, words: list[str], env: Mapping[str, str], cwd: str, loaded: list[str]
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(loaded)
        given = (words, dict(env), cwd, path_at_start(cwd))
        self._process = context.Process(target=_become, args=given)
        with without_main():
            self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None before the end."""
        return self._process.exitcode

    def wait(self) -> int | None:
        """Wait for the end, and return the exit status."""
        self._process.join()
        return self.poll()

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process is there still."""
        if self.poll() is None:
            os.kill(self.pid, number)


@contextmanager
def without_main() -> Iterator[None]:
    """Hide the module that this process started from, which the new one would load otherwise."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@cache
def path_at_start(folder: str) -> list[str]:
    """Return where a Python that starts in a folder looks for modules."""
    command = [sys.executable, "-P", "-c", "import sys; print(*sys.path, sep='\\n')"]
    found = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return found.stdout.splitlines()


def _become(words: list[str], environment: dict[str, str], folder: str, path: list[str]) -> None:
    """Turn this process into the one that was asked for."""
    os.setsid()
    os.chdir(folder)
    if _for_libraries(_environment_at_start()) != _for_libraries(environment):
        environment["JPY_PARENT_PID"] = str(os.getppid())
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.execve(sys.executable, [sys.executable, "-m", *words], environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    sys.argv = [*words, f"--IPKernelApp.parent_handle={os.getppid()}"]
    _renew()
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


def _environment_at_start() -> dict[str, str]:
    """Return the environment in which the libraries of this process were loaded."""
    words = os.fsdecode(Path("/proc/self/environ").read_bytes()).split("\0")
    return dict(word.split("=", 1) for word in words if word)


def _for_libraries(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in OWN}


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _renew() -> None:
    """Undo what the libraries would not have in common if each kernel had loaded them."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    if "matplotlib" in sys.modules and "MPLBACKEND" not in os.environ:
        sys.modules["matplotlib"].rcParams["backend"] = BACKEND
