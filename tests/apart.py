"""Programs in a Python of their own, which has not the shape checks of the test run.

A Python takes two seconds to load torch. On Linux a process waits that has loaded it, and nothing
of ours: each program is a fork of it with its own environment, which ends like any other process.
Where there is no such fork, each program starts from nothing.

What compiles takes three seconds more, to load the compiler. For that another process waits, which
has compiled something small; tests that ask for it have the marker ``xdist_group("compiler")``.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Mapping
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

from forks import IS_FORKED, without_main

LOADED = ["torch", "nbclient", "papermill", "distributed"]  # those of them that are installed


class Program:
    """``python -c CODE``, ``python -m MODULE ...`` or ``python FILE ...`` as a process."""

    def __init__(
        self, *words: object, env: Mapping[str, str] | None = None, cwd: Path | str = "."
    ) -> None:
        context = multiprocessing.get_context("forkserver" if IS_FORKED else "spawn")
        if IS_FORKED:
            context.set_forkserver_preload(LOADED)
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name, name) for name in ("out", "err")]
        environment = dict(os.environ if env is None else env)
        given = ([str(word) for word in words], environment, str(cwd), self._files)
        self._process = context.Process(target=_become, args=given)
        with without_main():
            self._process.start()
        self.pid = self._process.pid

    def end(self) -> None:
        """Kill the process, if it is there still."""
        self._process.kill()
        self._process.join()
        self._folder.cleanup()

    def complaints(self) -> str:
        """Return what was printed as errors up to now."""
        file = self._files[1]
        return file.read_text(encoding="utf-8") if file.exists() else ""

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal, or None before the end."""
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return what was printed, and what was printed as errors."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a program apart", timeout or 0)
        out, err = (file.read_text(encoding="utf-8") for file in self._files)
        self._folder.cleanup()
        return out, err


def _become(words: list[str], environment: dict[str, str], folder: str, files: list[Path]) -> None:
    """Turn this process into the one that was asked for."""
    for stream, path in zip((sys.stdout, sys.stderr), files):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if "dask" in sys.modules:
        sys.modules["dask"].config.refresh()  # which has read another environment
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path]
    try:
        _carry_out(*words)
    finally:
        atexit._run_exitfuncs()


def _carry_out(first: str, *rest: str) -> None:
    """Do what Python does with its arguments."""
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif first == "-m":
        sys.argv = list(rest)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")


def run(
    *words: object, env: Mapping[str, str] | None = None, cwd: Path | str = "."
) -> subprocess.CompletedProcess:
    """Run a program to its end."""
    program = Program(*words, env=env, cwd=cwd)
    out, err = program.communicate()
    return subprocess.CompletedProcess(words, program.returncode, out, err)


def run_plain(program: str) -> list[str]:
    """Run code without the shape checks of the test run, which refuse torch's symbolic sizes."""
    return _lines(run("-c", program))


def run_compiling(
    program: str, env: Mapping[str, str] | None = None, cwd: Path | str = "."
) -> list[str]:
    """Run code that compiles, likewise."""
    if not IS_FORKED:
        return _lines(run("-c", program, env=env, cwd=cwd))
    environment = dict(os.environ if env is None else env)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        compiler = _compiler()
        compiler.send((["-c", program], environment, str(cwd), files))
        status = compiler.recv()
        out, err = (file.read_text(encoding="utf-8") for file in files)
    return _lines(subprocess.CompletedProcess(program, status, out, err))


def _lines(done: subprocess.CompletedProcess) -> list[str]:
    """Return what was printed by a program that has to end well."""
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@cache
def _compiler() -> Connection:
    """Start the process that has compiled, which waits for programs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    here, there = context.Pipe()
    with without_main():
        context.Process(target=_fork_programs, args=(there,), daemon=True).start()
    there.close()
    return here


def _fork_programs(asked: Connection) -> None:
    """Compile something; then carry out each program in a fork, and answer with its status."""
    _compile()
    while True:
        try:
            given = asked.recv()
        except EOFError:
            return
        process = os.fork()
        if process == 0:
            _end_as_python_does(given)
        _, status = os.waitpid(process, 0)
        asked.send(os.waitstatus_to_exitcode(status))


def _compile() -> None:
    """Load all that a compilation loads, without autograd, whose threads no fork may inherit."""
    import torch

    layer = torch.nn.Linear(3, 2).requires_grad_(False)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    compiled(torch.randn(2, 3)).relu().sum()
    torch._dynamo.reset()


def _end_as_python_does(given: tuple) -> None:
    """Carry out a program in this fork, tell what it raised, and end."""
    status = 1
    try:
        _become(*given)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
