"""Start the kernels of `sparselib.ops.backends.cpu_kernels` on torch's own threads."""

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

from sparselib.ops.backends import Indices, Sizes, Weights, cpu_buffers, stretches

MANY = 1 << 17  # weights: as many as the second cache of a core holds with their places


def spmm(
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    x: Tensor,
    bias: Tensor | None = None,
    permutation: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Y = X W^T + b for W (out, in) in CSR and X (batch, in), or max(Y, 0); float32.

    With a permutation the weight of nonzero j is ``values[permutation[j]]``.
    """
    rows, batch = crow.numel() - 1, x.shape[0]
    x = features_first(x)
    values = values.contiguous() if permutation is None else values.index_select(0, permutation)
    y = cpu_buffers.empty(rows, batch)
    if rows and batch:
        step, pieces, *copies = _product_pieces(rows, x.shape[0], batch, col.numel())
        start, also = _also(bias, relu)
        numbers = (pieces, 1, rows, batch, step, crow, col, batch, values, start, also, x, 0, y)
        _launch(kernels().spmm, *numbers, *copies)
    return y.t()


def sddmm(crow: Tensor, col: Tensor, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of dY^T X at the nonzeros, and the sums of dY over the batch; float32."""
    rows, batch = dy.shape[1], dy.shape[0]
    dvalues, dbias = dy.new_empty(col.numel()), dy.new_empty(rows)
    if not rows * batch:
        return dvalues.zero_(), dbias.zero_()
    dy, x = features_first(dy), features_first(x)
    step, pieces = _sample_pieces(rows)
    numbers = (pieces, 1, rows, batch, step, crow, col, batch, dy, x, 0, dvalues, dbias)
    _launch(kernels().sddmm, *numbers)
    return dvalues, dbias


def gradients(
    values: Tensor, indices: Indices, dy: Tensor, x: Tensor, relu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`sddmm`, and dX = dY W by the transposed pattern, as one piece of work; float32.

    With `relu` X is what a ReLU returned, and the gradient is that of its argument.
    """
    crow, col, tcrow, tcol, permutation = indices
    (batch, rows), columns = dy.shape, x.shape[1]
    dvalues, dbias = dy.new_empty(col.numel()), dy.new_empty(rows)
    dx = cpu_buffers.empty(columns, batch)
    if not rows * columns * batch:
        return dvalues.zero_(), dbias.copy_(dy.sum(0)), dx.zero_().t()
    dy, x, values = features_first(dy), features_first(x), values.index_select(0, permutation)
    step, samples = _sample_pieces(rows)
    chunk, pieces, *copies = _product_pieces(columns, rows, batch, col.numel())
    numbers = (samples, samples + pieces, batch, dy, dvalues, dbias, dx, rows, step, crow, col, x)
    also = kernels().MASK if relu else 0
    _launch(kernels().gradients, *numbers, columns, chunk, tcrow, tcol, values, also, *copies)
    return dvalues, dbias, dx.t()


def _also(bias: Tensor | None, relu: bool) -> tuple[Tensor | int, int]:
    """Where the biases are, and what else the kernel is to do, as it wants to know it."""
    flag = kernels().RELU if relu else 0
    return (0, flag) if bias is None else (bias.contiguous(), flag | kernels().BIAS)


def _pieces(rows: int, columns: int, samples: int = 1) -> tuple[int, int]:
    """How many rows a thread takes at a time, and how many such pieces there are."""
    blocks, threads = samples * -(-columns // kernels().WIDE), torch.get_num_threads()
    step = rows if blocks >= 4 * threads else max(1, -(-rows * blocks // (4 * threads)))
    return step, blocks * -(-rows // step)


def _product_pieces(rows: int, columns: int, batch: int, nnz: int) -> tuple[int, int, Any, int]:
    """Rows of a piece, number of pieces, and room for copies, of so many columns or none."""
    pack, threads = kernels().PACK, torch.get_num_threads()
    # copying pays if each number is read several times, and all threads have something to do
    if batch >= 2 * threads * pack and nnz >= 4 * columns:
        return rows, -(-batch // pack), cpu_buffers.empty(threads * columns, pack), columns
    return *_pieces(rows, batch), 0, 0


def _sample_pieces(rows: int) -> tuple[int, int]:
    step = max(1, -(-rows // (4 * torch.get_num_threads())))
    return step, -(-rows // step)


def padded(x: Tensor, before: int, after: int) -> Tensor:
    """Return (samples, channels, time) with zeros before and after; no copy if there are none.

    Negative numbers cut the signals.
    """
    if min(before, after) < 0:
        return stretches.padded(x, before, after)
    if not before + after:
        return x.contiguous()
    samples, channels, time = x.shape
    length = before + time + after
    y = cpu_buffers.empty(samples * channels, length).view(samples, channels, length)
    y[..., :before], y[..., before + time :] = 0, 0
    y[..., before : before + time] = x
    return y


def convolve(
    values: Tensor,
    indices: Indices,
    x: Tensor,
    sizes: Sizes,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the output of a convolution; float32."""
    return stretches.output(add_stretches, padded, values, indices, x, sizes, bias)


def convolve_t(values: Tensor, indices: Indices, dy: Tensor, sizes: Sizes, time: int) -> Tensor:
    """Gradient of a convolution's signals; float32."""
    return stretches.input_gradient(add_stretches, padded, values, indices, dy, sizes, time)


def correlate(indices: Indices, dy: Tensor, x: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Gradients of a convolution's weights and biases; float32."""
    return stretches.weight_gradient(multiply_stretches, padded, indices, dy, x, sizes)


def extrema(s: Tensor, distance: int, signed: bool, across: bool) -> Tensor:
    """Mark the extrema that are kept; float32 or float64."""
    from sparselib.ops.backends import cpu_extrema

    return cpu_extrema.greedy(s, distance, signed, across)


def add_stretches(
    values: Tensor,
    crow: Tensor,
    places: Tensor,
    x: Tensor,
    length: int,
    bias: Tensor | None = None,
    permutation: Tensor | None = None,
) -> Tensor:
    """y[s, o, t] = b[o] + sum of values[j] x[s][places[j] + t] over row o, for t < length.

    With a permutation the weight of nonzero j is ``values[permutation[j]]``.
    """
    samples, rows = x.shape[0], crow.numel() - 1
    values = values if permutation is None else values.index_select(0, permutation)
    y = cpu_buffers.empty(samples * rows, length).view(samples, rows, length)
    if y.numel():
        step, pieces = _pieces(rows, length, samples)
        x, values, (start, also) = x.contiguous(), values.contiguous(), _also(bias, False)
        numbers = (pieces, samples, rows, length, step, crow, places, 1, values, start, also)
        _launch(kernels().spmm, *numbers, x, x[0].numel(), y, 0, 0)
    return y


def multiply_stretches(
    crow: Tensor, places: Tensor, dy: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of dy[s, o, t] x[s][places[j] + t] over s and t for each j of row o, and of dy."""
    samples, rows, length = dy.shape
    dvalues, dbias = dy.new_empty(places.numel()), dy.new_empty(rows)
    if not dy.numel():
        return dvalues.zero_(), dbias.zero_()
    step, pieces = _sample_pieces(rows)
    numbers = (pieces, samples, rows, length, step, crow, places, 1, dy, x, x[0].numel())
    _launch(kernels().sddmm, *numbers, dvalues, dbias)
    return dvalues, dbias


def network(layers: Sequence[Weights], x: Tensor) -> Tensor:
    """Carry a batch through all layers at once, some samples at a time; float32, no gradient."""
    compiled, (samples, width) = kernels(), x.shape
    x, rows = x.contiguous(), [len(crow) - 1 for crow, *_ in layers]
    y = x.new_empty(samples, rows[-1])
    widest = max(width, *rows)
    buffers = x.new_empty(torch.get_num_threads() * 2 * widest * compiled.TILE)
    # what is copied to be contiguous has to outlive the call
    held = [(crow, col, values.contiguous(), *_also(b, r)) for crow, col, values, b, r in layers]
    table = [
        number if isinstance(number, int) else number.data_ptr() or _nowhere(number)
        for out, layer in zip(rows, held)
        for number in (out, *layer)
    ]
    addresses = torch.tensor(table)
    if y.numel():
        _launch(compiled.network, samples, width, len(layers), x, y, buffers, widest, addresses)
    return y


def fuses(samples: int, weights: int, cells: int) -> bool:
    """Whether `network` is faster than one product after the other.

    It needs enough samples for all threads, and not so many weights that a few samples at a time
    cannot walk through them.
    """
    return samples >= 64 * torch.get_num_threads() and (weights < MANY or 4 * weights < cells)


def features_first(x: Tensor) -> Tensor:
    """Return the contiguous (features, batch) of a (batch, features); no copy where it is one."""
    view = x.t()
    if view.is_contiguous():
        return view
    x = x.contiguous()
    y = cpu_buffers.empty(x.shape[1], x.shape[0])
    if y.numel():
        _launch(kernels().transposed, *x.shape, x, y)
    return y


def _launch(kernel: Callable[[], Any], *arguments: int | Tensor) -> None:
    """Run a kernel; tensors travel as addresses and must be contiguous and outlive the call."""
    numbers = []
    for argument in arguments:
        if isinstance(argument, int):
            numbers.append(argument)
        elif argument.ndim:
            numbers.append(argument.data_ptr() or _nowhere(argument))
        else:  # while torch.jit traces, sizes are tensors too, without a dimension
            numbers.append(int(argument))
    array = _array(len(numbers) + 2)(0, 0, *numbers)
    function, threads = _compiled(kernel), torch.get_num_threads()
    if threads == 1:
        function.ctypes(array)
    elif (parallel := _openmp()) is not None:
        parallel(function.address, array, threads, 0)
    else:
        list(_pool().map(lambda _: function.ctypes(array), range(threads)))


def _nowhere(tensor: Tensor) -> int:
    """Return the address of a tensor that has none, because it is empty."""
    if tensor.numel():
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} has no memory; it was freed or never made"
        )
    return 0


@functools.cache
def _array(length: int) -> Any:
    return ctypes.c_int64 * length


@functools.cache
def kernels() -> Any:
    """Load the kernels and their compiler.

    Raises
    ------
    ImportError
        If numba is not here, or was told not to compile.
    """
    with _told("sparselib loads its compiler ..."):
        from sparselib.ops.backends import cpu_kernels
    return cpu_kernels


@functools.cache
def _compiled(kernel: Callable[[], Any]) -> Any:
    with _told("sparselib compiles its CPU kernels, once for this machine ..."):
        return kernel()


@functools.cache
def _say(sentence: str) -> None:
    # in a notebook it would be an output that is there the first time only
    if sys.stderr.isatty():
        print(sentence, file=sys.stderr)


@contextlib.contextmanager
def _told(sentence: str) -> Iterator[None]:
    timer = threading.Timer(1.0, _say, [sentence])
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
