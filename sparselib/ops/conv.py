r"""The 1-D convolution with few weights: the same products, on shifted signals.

A kernel tensor (out, in, taps) is a matrix of out rows and in * taps columns, so a `CSR` of that
shape says which weights exist. With the signals padded once, each weight reads one stretch of one
channel, and the output is the sum of such stretches: no weight that is absent costs anything.

As in `sparselib.ops`, its products (convolution, input gradient, gradient at the nonzeros) are
``torch.library`` custom operators, closed under differentiation.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv1d_weight

from sparselib.csr import CSR, LARGEST_INDEX, rows_of
from sparselib.ops.backends import cpu, reference
from sparselib.ops.dispatch import module, takes_halves
from sparselib.ops.operands import STALE, Indices, check, fast, indices_of, transposed
from sparselib.ops.registration import differentiable, own, transformed

Padding = tuple[int, int]


class _Sizes(NamedTuple):
    """What a convolution is, beside its weights and signals."""

    channels: int
    taps: int
    before: int
    after: int
    dilation: int

    @property
    def extent(self) -> int:
        """Points from the first tap of a kernel to its last, both included."""
        return extent(self.taps, self.dilation)

    def length(self, time: int) -> int:
        """Count the points of the output."""
        return time + self.before + self.after - self.extent + 1


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
        If shapes, types or devices do not fit, or the padded signals are shorter than a kernel or
        too long for 32-bit indices.
    """
    sizes = _check(csr, values, x, bias, padding, dilation)
    if fast(x, values, *([] if bias is None else [bias])):
        return _Convolution.apply(values, bias, x, csr, sizes)
    if transformed():
        return _convolve(values, x, sizes, indices_of(csr), bias)
    y = _conv1d(values, x, sizes, indices_of(csr))
    return y if bias is None else y + bias[:, None].to(y.dtype)


def extent(taps: int, dilation: int) -> int:
    """Count the points from the first tap of a kernel to its last, both included."""
    return (taps - 1) * dilation + 1


def _check(
    csr: CSR, values: Tensor, x: Tensor, bias: Tensor | None, padding: Padding, dilation: int
) -> _Sizes:
    filters, columns = csr.shape
    if x.ndim != 3 or not x.shape[1] or columns % x.shape[1]:
        raise ValueError(
            f"a pattern of {filters} x {columns} needs signals (batch, channels, time) whose "
            f"channels divide {columns}; the input has shape {tuple(x.shape)}"
        )
    if dilation < 1:
        raise ValueError(f"a dilation is the distance of two taps, at least 1, not {dilation}")
    channels = int(x.shape[1])  # a tensor while torch.jit traces
    sizes = _Sizes(channels, columns // channels, *padding, dilation)
    if min(padding) < 0 or sizes.length(x.shape[2]) < 1:
        raise ValueError(
            f"{x.shape[2]} points with a padding of {padding} are fewer than the {sizes.extent} "
            f"that a kernel of {sizes.taps} taps with a dilation of {dilation} extends over"
        )
    longest = x.shape[2] + max(sum(padding), sizes.extent - 1)
    if max(filters, sizes.channels) * longest > LARGEST_INDEX:
        raise ValueError(
            f"int32 indices cannot reach {longest} points of {max(filters, sizes.channels)} "
            f"channels; cut the signals"
        )
    if bias is not None and bias.shape != (filters,):
        raise ValueError(f"{filters} filters need as many biases, not {tuple(bias.shape)}")
    check(csr, values, x, "a convolution")
    return sizes


class _Convolution(torch.autograd.Function):
    """A convolution that is written down directly, without a custom operator's cost."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, bias: Tensor | None, x: Tensor, csr: CSR, sizes: _Sizes
    ) -> Tensor:
        ctx.save_for_backward(values, x)
        ctx.csr, ctx.version, ctx.sizes = csr, csr.version, sizes
        return own(_convolve(values, x, sizes, csr.indices(), bias))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        values, x = ctx.saved_tensors
        csr, sizes, (_, has_bias, has_x, *_) = ctx.csr, ctx.sizes, ctx.needs_input_grad
        if csr.version != ctx.version:
            raise RuntimeError(STALE)
        time, indices = x.shape[2], indices_of(csr)
        if torch.is_grad_enabled():
            dvalues, dbias = _conv1d_weight(dy, x, sizes, indices), dy.sum((0, 2))
            dx = _conv1d_t(values, dy, time, sizes, indices) if has_x else None
        else:
            dvalues, dbias = _correlate(dy, x, sizes, indices)
            dx = _back(values, dy, time, sizes, indices) if has_x else None
        return dvalues, dbias if has_bias else None, dx, None, None


def _kernels(x: Tensor) -> Any:
    """Return the module that offers `convolve` and `correlate` for these signals, or None."""
    found = module(x)
    if found is reference or transformed():
        return None
    if found is cpu:
        return cpu
    from sparselib.ops.backends import gpu_conv

    return gpu_conv


def _convolve(
    values: Tensor, x: Tensor, sizes: _Sizes, indices: Indices, bias: Tensor | None = None
) -> Tensor:
    signals, kernels = _padded(x, sizes.before, sizes.after), _kernels(x)
    if kernels is None:
        weight = _dense(values, sizes, indices)
        return functional.conv1d(signals, weight, bias, dilation=sizes.dilation)
    places = _places(indices[1], sizes, signals.shape[2])
    length = sizes.length(x.shape[2])
    return kernels.convolve(values, indices[0], places, signals, length, bias)


def _back(values: Tensor, dy: Tensor, time: int, sizes: _Sizes, indices: Indices) -> Tensor:
    """Convolve the output's gradient with the kernels turned round, channels and filters changed.

    The transposed pattern is sorted by channel, then tap, so every `taps`-th pointer starts a
    channel.
    """
    _, taps, before, after, dilation = sizes
    if (kernels := _kernels(dy)) is None:
        weight = _dense(values, sizes, indices)
        dx = functional.conv_transpose1d(dy, weight, dilation=dilation)
        return dx[:, :, before : before + time].contiguous()
    crow, filters, permutation = transposed(indices, sizes.channels * taps)
    last = sizes.extent - 1
    signals = _padded(dy, last - before, last - after)
    places = filters * signals.shape[2] + (last - indices[1][permutation] % taps * dilation)
    pointers = crow[::taps].contiguous()
    return kernels.convolve(values, pointers, places, signals, time, None, permutation)


def _correlate(dy: Tensor, x: Tensor, sizes: _Sizes, indices: Indices) -> tuple[Tensor, Tensor]:
    signals, kernels = _padded(x, sizes.before, sizes.after), _kernels(x)
    if kernels is None:
        shape = (dy.shape[1], sizes.channels, sizes.taps)
        weight = conv1d_weight(signals, shape, dy, dilation=sizes.dilation)
        return weight.flatten(1)[_cells(indices)], dy.sum((0, 2))
    places = _places(indices[1], sizes, signals.shape[2])
    return kernels.correlate(indices[0], places, dy.contiguous(), signals)


def _dense(values: Tensor, sizes: _Sizes, indices: Indices) -> Tensor:
    weight = values.new_zeros(len(indices[0]) - 1, sizes.channels * sizes.taps)
    return weight.index_put(_cells(indices), values).view(-1, sizes.channels, sizes.taps)


def _cells(indices: Indices) -> tuple[Tensor, Tensor]:
    """Return row and column of each nonzero."""
    return rows_of(indices[0], len(indices[1])), indices[1]


def _padded(x: Tensor, before: int, after: int) -> Tensor:
    if _kernels(x) is cpu and min(before, after) >= 0:
        return cpu.padded(x, before, after)
    return (functional.pad(x, (before, after)) if before or after else x).contiguous()


def _places(columns: Tensor, sizes: _Sizes, length: int) -> Tensor:
    """Return how far from a point of the output, in one sample, each weight reads."""
    return columns // sizes.taps * length + columns % sizes.taps * sizes.dilation


@torch.library.custom_op("sparselib::conv1d", mutates_args=())
def _conv1d(values: Tensor, x: Tensor, sizes: Sequence[int], indices: Indices) -> Tensor:
    return own(_convolve(values, x, _Sizes(*sizes), indices))


@torch.library.custom_op("sparselib::conv1d_t", mutates_args=())
def _conv1d_t(
    values: Tensor, dy: Tensor, time: int, sizes: Sequence[int], indices: Indices
) -> Tensor:
    return own(_back(values, dy, time, _Sizes(*sizes), indices))


@torch.library.custom_op("sparselib::conv1d_weight", mutates_args=())
def _conv1d_weight(dy: Tensor, x: Tensor, sizes: Sequence[int], indices: Indices) -> Tensor:
    return _correlate(dy, x, _Sizes(*sizes), indices)[0]


@_conv1d.register_fake
def _(values: Tensor, x: Tensor, sizes: Sequence[int], indices: Indices) -> Tensor:
    filters, length = indices[0].shape[0] - 1, _Sizes(*sizes).length(x.shape[2])
    return x.new_empty(x.shape[0], filters, length)


@_conv1d_t.register_fake
def _(values: Tensor, dy: Tensor, time: int, sizes: Sequence[int], indices: Indices) -> Tensor:
    return dy.new_empty(dy.shape[0], sizes[0], time)


@_conv1d_weight.register_fake
def _(dy: Tensor, x: Tensor, sizes: Sequence[int], indices: Indices) -> Tensor:
    sums = torch.float32 if takes_halves(x) else x.dtype
    return x.new_empty(indices[1].shape[0], dtype=sums)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    values, x, ctx.sizes, indices = inputs
    ctx.save_for_backward(values, x, *indices)


def _conv1d_backward(ctx, dy):  # type: ignore[no-untyped-def]
    (values, x, *indices), sizes = ctx.saved_tensors, ctx.sizes
    dvalues = _conv1d_weight(dy, x, sizes, indices) if ctx.needs_input_grad[0] else None
    dx = _conv1d_t(values, dy, x.shape[2], sizes, indices) if ctx.needs_input_grad[1] else None
    return dvalues, dx, None, [None] * len(indices)


def _save_t(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    values, dy, _, ctx.sizes, indices = inputs
    ctx.save_for_backward(values, dy, *indices)


def _conv1d_t_backward(ctx, dx):  # type: ignore[no-untyped-def]
    (values, dy, *indices), sizes = ctx.saved_tensors, ctx.sizes
    dvalues = _conv1d_weight(dy, dx, sizes, indices) if ctx.needs_input_grad[0] else None
    ddy = _conv1d(values, dx, sizes, indices) if ctx.needs_input_grad[1] else None
    return dvalues, ddy, None, None, [None] * len(indices)


def _conv1d_weight_backward(ctx, dvalues):  # type: ignore[no-untyped-def]
    (dy, x, *indices), sizes = ctx.saved_tensors, ctx.sizes
    ddy = _conv1d(dvalues, x, sizes, indices) if ctx.needs_input_grad[0] else None
    dx = _conv1d_t(dvalues, dy, x.shape[2], sizes, indices) if ctx.needs_input_grad[1] else None
    return ddy, dx, None, [None] * len(indices)


differentiable(_conv1d, _save, _conv1d_backward)
differentiable(_conv1d_t, _save_t, _conv1d_t_backward)
differentiable(_conv1d_weight, _save, _conv1d_weight_backward)
