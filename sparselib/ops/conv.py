"""The 1-D convolution with few weights: the same two products, on shifted signals.

A kernel tensor (out, in, taps) is a matrix of out rows and in * taps columns, so a `CSR` of that
shape says which weights exist. With the signals padded once, each weight reads one stretch of one
channel, and the output is the sum of such stretches: no weight that is absent costs anything.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sparselib.csr import CSR, LARGEST_INDEX
from sparselib.ops import STALE, fast, host
from sparselib.ops.choice import takes_halves

Padding = tuple[int, int]


def conv1d(
    csr: CSR,
    values: Float[Tensor, "nnz"],
    x: Float[Tensor, "batch channels time"],
    bias: Float[Tensor, "filters"] | None = None,
    padding: Padding = (0, 0),
    dilation: int = 1,
) -> Float[Tensor, "batch filters new_time"]:
    """Cross-correlate signals with sparse kernels.

    y[o, t] = b[o] + sum w[o, c, k] x[c, t + k d - p] with dilation d and p zeros before the signal.

    Parameters
    ----------
    csr : CSR
        Pattern of the kernels, (filters, channels * taps).
    values : Tensor, shape (nnz,)
        Weights at the pattern's positions.
    x : Tensor, shape (batch, channels, time)
        Signals.
    bias : Tensor, shape (filters,), optional
        One number a filter.
    padding : (int, int)
        Zeros before and after each signal; together ``(taps - 1) * dilation`` keep the length.
    dilation : int
        Points from one tap to the next.

    Raises
    ------
    ValueError
        If shapes or devices do not fit, or the padded signals are shorter than a kernel or too
        long for 32-bit indices.
    """
    _check(csr, values, x, bias, padding, dilation)
    kernels = _kernels(x, values, *([] if bias is None else [bias]))
    if kernels is None:
        return _densely(csr, values, x, bias, padding, dilation)
    return _Convolution.apply(values, bias, x, csr, padding, dilation, kernels)


def extent(taps: int, dilation: int) -> int:
    """Count the points from the first tap of a kernel to its last, both included."""
    return (taps - 1) * dilation + 1


def _kernels(x: Tensor, *parameters: Tensor) -> Any:
    """Return the module that offers `convolve` and `correlate` for these tensors, or None."""
    found = fast(x, *parameters)
    if found is None or found is host:
        return found
    from sparselib.ops import gpu_conv

    return gpu_conv


def _check(
    csr: CSR, values: Tensor, x: Tensor, bias: Tensor | None, padding: Padding, dilation: int
) -> None:
    filters, columns = csr.shape
    if x.ndim != 3 or not x.shape[1] or columns % x.shape[1]:
        raise ValueError(
            f"a pattern of {filters} x {columns} needs signals (batch, channels, time) whose "
            f"channels divide {columns}; the input has shape {tuple(x.shape)}"
        )
    if dilation < 1:
        raise ValueError(f"a dilation is the distance of two taps, at least 1, not {dilation}")
    taps = columns // x.shape[1]
    if min(padding) < 0 or x.shape[2] + sum(padding) < extent(taps, dilation):
        raise ValueError(
            f"{x.shape[2]} points with a padding of {padding} are fewer than the "
            f"{extent(taps, dilation)} that a kernel of {taps} taps with a dilation of {dilation} "
            f"extends over"
        )
    longest = x.shape[2] + max(sum(padding), extent(taps, dilation) - 1)
    if max(filters, x.shape[1]) * longest > LARGEST_INDEX:
        raise ValueError(
            f"int32 indices cannot reach {longest} points of {max(filters, x.shape[1])} channels; "
            f"cut the signals"
        )
    if values.shape != (csr.nnz,) or (bias is not None and bias.shape != (filters,)):
        raise ValueError(
            f"{csr.nnz} connections of {filters} filters need as many values and biases, not "
            f"{tuple(values.shape)} and {None if bias is None else tuple(bias.shape)}"
        )
    if x.device != values.device or x.device != csr.col_indices.device:
        raise ValueError(
            f"a convolution needs one device; the signals are on {x.device}, the values on "
            f"{values.device}, the indices on {csr.col_indices.device}"
        )


def _densely(
    csr: CSR, values: Tensor, x: Tensor, bias: Tensor | None, padding: Padding, dilation: int
) -> Tensor:
    """Convolve with the dense kernels: the definition, and what has derivatives of any order."""
    weight = csr.to_dense(values).view(csr.shape[0], x.shape[1], -1)
    signals = functional.pad(x, padding)
    if takes_halves(x):
        return functional.conv1d(signals.to(values.dtype), weight, bias, dilation=dilation).to(
            x.dtype
        )
    return functional.conv1d(signals, weight, bias, dilation=dilation)


class _Convolution(torch.autograd.Function):
    """Each gradient is one of the two products again."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        bias: Tensor | None,
        x: Tensor,
        csr: CSR,
        padding: Padding,
        dilation: int,
        kernels: Any,
    ) -> Tensor:
        ctx.kernels = kernels
        ctx.save_for_backward(values, x, bias)
        ctx.csr, ctx.version, ctx.padding, ctx.dilation = csr, csr.version, padding, dilation
        taps, signals = csr.shape[1] // x.shape[1], _padded(x, padding)
        places = _places(csr.col_indices, taps, signals.shape[2], dilation)
        length = signals.shape[2] - extent(taps, dilation) + 1
        return kernels.convolve(values, csr.crow_indices, places, signals, length, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        values, x, bias = ctx.saved_tensors
        csr, padding, dilation = ctx.csr, ctx.padding, ctx.dilation
        needed = ctx.needs_input_grad[:3]
        if csr.version != ctx.version:
            raise RuntimeError(STALE)
        if torch.is_grad_enabled():
            y = _densely(csr, values, x, bias, padding, dilation)
            inputs = [t for t, needs in zip((values, bias, x), needed) if needs]
            found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
            return *(next(found) if needs else None for needs in needed), *[None] * 4
        taps, signals = csr.shape[1] // x.shape[1], _padded(x, padding)
        places = _places(csr.col_indices, taps, signals.shape[2], dilation)
        dvalues, dbias = ctx.kernels.correlate(csr.crow_indices, places, dy.contiguous(), signals)
        dx = _back(ctx.kernels, csr, values, dy, x, padding, dilation) if needed[2] else None
        return dvalues, dbias if needed[1] else None, dx, *[None] * 4


def _back(
    kernels: Any,
    csr: CSR,
    values: Tensor,
    dy: Tensor,
    x: Tensor,
    padding: Padding,
    dilation: int,
) -> Tensor:
    """Convolve the output's gradient with the kernels turned round, channels and filters changed.

    The transposed pattern is sorted by channel, then tap, so every `taps`-th pointer starts a
    channel.
    """
    taps, (crow, filters, permutation) = csr.shape[1] // x.shape[1], csr.transposed
    last = extent(taps, dilation) - 1
    signals = _padded(dy, (last - padding[0], last - padding[1]))
    tap = csr.col_indices[permutation] % taps
    places = filters * signals.shape[2] + (last - tap * dilation)
    pointers = crow[::taps].contiguous()
    return kernels.convolve(values, pointers, places, signals, x.shape[2], None, permutation)


def _padded(x: Tensor, padding: Padding) -> Tensor:
    return (functional.pad(x, padding) if any(padding) else x).contiguous()


def _places(columns: Tensor, taps: int, length: int, dilation: int) -> Tensor:
    """Return how far from a point of the output, in one sample, each weight reads."""
    return columns // taps * length + columns % taps * dilation
