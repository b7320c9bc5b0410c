"""Start compiled kernels on torch's own threads."""

import contextlib
import ctypes
import functools
import importlib
import os
import sys
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from types import ModuleType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

ALONE = 1 << 18  # products that one thread does before another has begun


@runtime_checkable
class Made(Protocol):
    """A kernel as numba has compiled it."""

    @property
    def address(self) -> int:
        """Where its code is."""


def launch(
    kernel: Callable[[], Made],
    block: Iterable[int | Tensor | None],
    products: int = ALONE,
) -> None:
    """Run a kernel on a block of arguments; tensors must be contiguous and outlive the call.

    Where it has few `products` to sum, one thread does them: to wake others takes longer.
    """
    numbers = _numbers(block)
    # the counters that all threads share come first
    shared = array("q", [0, 0, *numbers])
    threads = 1 if products < ALONE else torch.get_num_threads()
    start(kernel, shared.buffer_info()[0], threads)


def start(kernel: Callable[[], Made], address: int, threads: int) -> None:
    """Run a kernel on some threads, which share the array at this address."""
    compiled = _compiled(kernel)
    if threads == 1:
        compiled.call(address)
    elif (parallel := _openmp()) is not None:
        parallel(compiled.address, address, threads, 0)
    else:
        list(_pool().map(lambda _: compiled.call(address), range(threads)))


def _numbers(block: Iterable[int | Tensor | None]) -> list[int]:
    """Return the arguments as a kernel reads them: sizes, and addresses of tensors."""
    return [
        argument if type(argument) is int else _number(argument)
        for argument in block
    ]


def _number(argument: int | Tensor | None) -> int:
    if argument is None:
        return 0
    if isinstance(argument, Tensor) and argument.ndim:
        return argument.data_ptr() or _nowhere(argument)
    return int(argument)  # while torch.jit traces, sizes are tensors, too


def _nowhere(tensor: Tensor) -> int:
    """Return the address of a tensor that has none, because it is empty."""
    if tensor.numel():
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} has no memory; it was freed or never made"
        )
    return 0


@functools.cache
def kernels() -> ModuleType:
    """Load the kernels and their compiler.

    Raises
    ------
    ImportError
        If numba is not installed, or its compiler is switched off.
    """
    with _announced("sparselib loads its compiler ..."):
        from sparselib.ops.backends import cpu_kernels
    return cpu_kernels


@functools.cache
def kernels_of(module: str) -> ModuleType:
    """Load the kernels of a module of this package, as `kernels` does."""
    kernels()
    return importlib.import_module(f"{__package__}.{module}")


@functools.cache
def _compiled(kernel: Callable[[], Made]) -> "_Compiled":
    with _announced(
        "sparselib compiles its CPU kernels, once for this machine ..."
    ):
        return _Compiled(kernel())


class _Compiled:
    """A kernel as C calls it.

    Parameters
    ----------
    made : CFunc
        What numba compiled.

    Attributes
    ----------
    address : int
        Where its code is.
    """

    def __init__(self, made: Made) -> None:
        self._made = made  # which owns the code
        self.address: int = made.address
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.address)


@functools.cache
def _say(sentence: str) -> None:
    # in a notebook it would be an output that is there the first time only
    if sys.stderr.isatty():
        print(sentence, file=sys.stderr)


@contextlib.contextmanager
def _announced(sentence: str) -> Iterator[None]:
    timer = threading.Timer(1.0, _say, [sentence])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@functools.cache
def _openmp() -> Callable[..., None] | None:
    """GOMP_parallel of the OpenMP that torch has loaded already, or None; never loads another."""
    root = os.path.dirname(torch.__file__)
    beside = [*glob(f"{root}/lib/lib*omp*"), *glob(f"{root}.libs/lib*omp*")]
    for name in [
        *beside,
        "libgomp.so.1",
        "libomp.so",
        "libiomp5.so",
        "libomp.dylib",
    ]:
        try:
            function = ctypes.CDLL(
                name, mode=os.RTLD_NOLOAD | os.RTLD_NOW
            ).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_uint,
            ctypes.c_uint,
        ]
        function.restype = None
        return function
    return None


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor()
