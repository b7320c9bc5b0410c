"""Start the kernels of `sparselib.ops.cpu` on torch's own threads."""

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from typing import Any

import torch
from torch import Tensor

# crow and col indices, values, bias or None, and whether max(., 0) follows
Layer = tuple[Tensor, Tensor, Tensor, Tensor | None, bool]


def spmm(
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    x: Tensor,
    bias: Tensor | None = None,
    permutation: Tensor | None = None,
) -> Tensor:
    """Y = X W^T + b for W (out, in) in CSR and X (batch, in); float32.

    With a permutation the weight of nonzero j is ``values[permutation[j]]``.
    """
    kernels = _kernels()
    rows, batch = crow.numel() - 1, x.shape[0]
    x = features_first(x)
    y = x.new_empty(rows, batch)
    if not y.numel():
        return y.t()
    blocks, threads = -(-batch // kernels.WIDE), torch.get_num_threads()
    step = rows if blocks >= 4 * threads else max(1, -(-rows * blocks // (4 * threads)))
    start = 0 if bias is None else bias.contiguous()
    values = values.contiguous() if permutation is None else values.index_select(0, permutation)
    _launch(kernels.spmm, 1, rows, batch, step, crow, col, batch, values, start, 0, x, 0, y)
    return y.t()


def sddmm(crow: Tensor, col: Tensor, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of dY^T X at the nonzeros, and the sums of dY over the batch; float32."""
    rows, batch = dy.shape[1], dy.shape[0]
    dvalues, dbias = dy.new_empty(col.numel()), dy.new_empty(rows)
    if not rows * batch:
        return dvalues.zero_(), dbias.zero_()
    dy, x = features_first(dy), features_first(x)
    step = max(1, -(-rows // (4 * torch.get_num_threads())))
    kernel = _kernels().sddmm
    _launch(kernel, 1, rows, batch, step, crow, col, batch, dy, x, 0, dvalues, dbias)
    return dvalues, dbias


def network(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """Carry a batch through all layers at once, some samples at a time; float32, no gradient."""
    kernels, (samples, width) = _kernels(), x.shape
    x, rows = x.contiguous(), [len(crow) - 1 for crow, *_ in layers]
    y = x.new_empty(samples, rows[-1])
    widest = max(width, *rows)
    buffers = x.new_empty(torch.get_num_threads() * 2 * widest * kernels.TILE)
    # what is copied to be contiguous has to outlive the call
    held = [[t if t is None else t.contiguous() for t in tensors] for *tensors, _ in layers]
    table = [
        number
        for tensors, out, (*_, relu) in zip(held, rows, layers)
        for number in (out, *(0 if t is None else t.data_ptr() for t in tensors), int(relu))
    ]
    addresses = torch.tensor(table)
    if y.numel():
        _launch(kernels.network, samples, width, len(layers), x, y, buffers, widest, addresses)
    return y


def fewest_samples() -> int:
    """Count the samples from which `network` is worth its start."""
    return 64 * torch.get_num_threads()


def features_first(x: Tensor) -> Tensor:
    """Return the contiguous (features, batch) of a (batch, features); no copy where it is one."""
    view = x.t()
    if view.is_contiguous():
        return view
    x = x.contiguous()
    y = x.new_empty(x.shape[1], x.shape[0])
    if y.numel():
        _launch(_kernels().transposed, *x.shape, x, y)
    return y


def _launch(kernel: Callable[[], Any], *arguments: int | Tensor) -> None:
    """Run a kernel; tensors travel as addresses and must be contiguous and outlive the call."""
    # while torch.jit traces, sizes are tensors too, without a dimension
    numbers = (a.data_ptr() if isinstance(a, Tensor) and a.ndim else int(a) for a in arguments)
    array = (ctypes.c_int64 * (len(arguments) + 2))(0, 0, *numbers)
    function, threads = _compiled(kernel), torch.get_num_threads()
    if threads == 1:
        function.ctypes(array)
    elif (parallel := _openmp()) is not None:
        parallel(function.address, array, threads, 0)
    else:
        list(_pool().map(lambda _: function.ctypes(array), range(threads)))


@functools.cache
def _kernels() -> Any:
    with _told("sparselib loads its compiler ..."):
        from sparselib.ops import cpu
    return cpu


@functools.cache
def _compiled(kernel: Callable[[], Any]) -> Any:
    with _told("sparselib compiles its CPU kernels, once for this machine ..."):
        return kernel()


@contextlib.contextmanager
def _told(sentence: str) -> Iterator[None]:
    timer = threading.Timer(1.0, print, [sentence], {"file": sys.stderr})
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@functools.cache
def _openmp() -> Any:
    """GOMP_parallel of the OpenMP that torch has loaded already, or None; never loads another."""
    root = os.path.dirname(torch.__file__)
    beside = [*glob(f"{root}/lib/lib*omp*"), *glob(f"{root}.libs/lib*omp*")]
    for name in [*beside, "libgomp.so.1", "libomp.so", "libiomp5.so", "libomp.dylib"]:
        try:
            function = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor()
