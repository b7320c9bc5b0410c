r"""Convolutions with few weights: the same products, on shifted signals and images.

A kernel tensor (out, in, taps) is a matrix of out rows and in * taps columns, so a `CSR` of that
shape defines which weights exist. With the signals padded once, each weight reads one stretch of
one channel, and the output is the sum of such stretches: no weight that is absent costs anything.
The rows of an image, one behind the other, are such a signal, and a kernel of several rows one
whose taps lie further apart where a row ends.

As in `sparselib.ops`, its products (convolution, input gradient, gradient at the nonzeros) are
``torch.library`` custom operators, closed under differentiation.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sparselib._types import AutogradContext
from sparselib.compilation import is_exported_to_onnx
from sparselib.csr import CSR, LARGEST_INDEX
from sparselib.ops import operands
from sparselib.ops.backends import Indices, Layout, Sizes, reference
from sparselib.ops.dispatch import (
    fast,
    module,
    note,
    takes_halves,
    transformed,
)
from sparselib.ops.operands import (
    STALE,
    check,
    indices_of,
    operator_indices,
    transposed_of,
)
from sparselib.ops.registration import counted, differentiable, own

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
        One number per filter.
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
    operands.check_numbers(x, "input")
    filters, columns = csr.shape
    if x.ndim != 3 or not x.shape[1] or columns % x.shape[1]:
        raise ValueError(
            f"a pattern of {filters} x {columns} needs signals (batch, channels, time) whose "
            f"channels divide {columns}; the input has shape {tuple(x.shape)}"
        )
    channels = int(x.shape[1])  # a tensor while torch.jit traces
    taps = columns // channels
    sizes = Sizes(channels, taps, *padding, dilation, max(taps, 1), 0)
    return convolved(csr, values, x, bias, sizes)


def convolved(
    csr: CSR, values: Tensor, x: Tensor, bias: Tensor | None, sizes: Sizes
) -> Tensor:
    """Convolve signals of as many channels as `sizes` has; for the operators beside this one."""
    check_numbers(csr, values, x, bias, sizes, x.shape[2])
    note("spmm of taps", (csr,), x, values, bias)
    if fast(x, values, *([] if bias is None else [bias])):
        result: Tensor = _Convolution.apply(
            values, bias, operands.resolved(x), csr, sizes
        )
        return result
    if transformed() or is_exported_to_onnx():
        layout = sizes.layout(x.shape[2])
        return reference.convolve(values, indices_of(csr), x, layout, bias)
    y = _conv1d(values, x, sizes, operator_indices(csr))
    return operands.plus(y, bias, (-1, 1))


def check_numbers(
    csr: CSR,
    values: Tensor,
    x: Tensor,
    bias: Tensor | None,
    sizes: Sizes,
    time: int,
) -> None:
    """Refuse signals of `time` points, weights or biases that do not fit a convolution."""
    filters = csr.shape[0]
    _check_sizes(sizes, filters, time)
    if bias is not None:
        operands.check_numbers(bias, "bias")
        if bias.shape != (filters,):
            raise ValueError(
                f"{filters} filters need as many biases, not {tuple(bias.shape)}"
            )
    check(csr, values, x, "a convolution", bias)


def _check_sizes(sizes: Sizes, filters: int, time: int) -> None:
    """Refuse a convolution without channels, without outputs, or too long for int32 indices."""
    if sizes.dilation < 1:
        raise ValueError(
            f"a dilation is the distance of two taps, at least 1, not {sizes.dilation}"
        )
    if min(sizes.channels, sizes.taps) < 1:
        raise ValueError(
            f"a convolution needs channels and taps, not {sizes.channels} and {sizes.taps}"
        )
    if sizes.across < 1 or sizes.taps % sizes.across or sizes.down < 0:
        raise ValueError(
            f"{sizes.taps} taps cannot lie in rows of {sizes.across} that are {sizes.down} apart"
        )
    padding = (sizes.before, sizes.after)
    if min(padding) < 0 or sizes.length(time) < 1:
        raise ValueError(
            f"{time} points with a padding of {padding} are fewer than the {sizes.extent()} "
            f"that a kernel of {sizes.taps} taps with a dilation of {sizes.dilation} extends over"
        )
    longest = time + max(sum(padding), sizes.extent() - 1)
    if max(filters, sizes.channels) * longest > LARGEST_INDEX:
        raise ValueError(
            f"int32 indices cannot reach {longest} points of {max(filters, sizes.channels)} "
            f"channels; cut the signals"
        )


class _Convolution(torch.autograd.Function):
    """A convolution that is written down directly, without a custom operator's cost."""

    @staticmethod
    def forward(
        ctx: AutogradContext,
        values: Tensor,
        bias: Tensor | None,
        x: Tensor,
        csr: CSR,
        sizes: Sizes,
    ) -> Tensor:
        ctx.save_for_backward(values, x)
        ctx.csr = csr
        ctx.version = csr.version
        ctx.sizes = sizes
        layout = sizes.layout(x.shape[2])
        return own(module(x).convolve(values, indices_of(csr), x, layout, bias))

    @staticmethod
    def backward(ctx: AutogradContext, dy: Tensor) -> tuple[Tensor | None, ...]:
        values, x = ctx.saved_tensors
        csr = ctx.csr
        sizes = ctx.sizes
        _, has_bias, has_x, *_ = ctx.needs_input_grad
        if csr.version != ctx.version:
            raise RuntimeError(STALE)
        time = x.shape[2]
        if torch.is_grad_enabled():
            indices = operator_indices(csr)
            dvalues = _conv1d_weight(dy, x, sizes, indices)
            dbias = dy.sum((0, 2))
            dx = _conv1d_t(values, dy, time, sizes, indices) if has_x else None
        else:
            # memory may have been exchanged since the forward pass
            operands.check_numbers(dy, "output gradient")
            _check_signals(sizes, csr.shape[0], dy, x)
            check(csr, values, x, "a convolution's gradient")
            operands.check_gradient(dy, x, values)
            values = operands.resolved(values)
            dy = operands.resolved(dy)
            x = operands.resolved(x)
            layout = sizes.layout(time)
            dvalues, dbias = module(x).correlate(indices_of(csr), dy, x, layout)
            dx = input_gradient(values, csr, dy, layout) if has_x else None
        return dvalues, dbias if has_bias else None, dx, None, None


def input_gradient(
    values: Tensor, csr: CSR, dy: Tensor, layout: Layout
) -> Tensor:
    """Return the gradient of signals or images, which autograd does not see."""
    indices = (*indices_of(csr), *transposed_of(csr))
    return module(dy).convolve_t(values, indices, dy, layout)


def _check_signals(sizes: Sizes, filters: int, dy: Tensor, x: Tensor) -> None:
    """Refuse an output gradient and signals that are not of one convolution."""
    if x.ndim != 3 or x.shape[1] != sizes.channels:
        raise ValueError(
            f"a convolution of {sizes.channels} channels cannot read signals {tuple(x.shape)}"
        )
    shape = (x.shape[0], filters, sizes.length(x.shape[2]))
    if dy.shape != shape:
        raise ValueError(
            f"signals of shape {tuple(x.shape)} have an output gradient of shape {shape}, not "
            f"{tuple(dy.shape)}"
        )


def _verified(
    values: Tensor,
    sizes: Sizes,
    time: int,
    indices: Sequence[Tensor],
    *signals: Tensor,
) -> Indices:
    """Check what an operator was called with, beside the shapes of its signals."""
    filters = operands.rows_of_raw(indices)
    _check_sizes(sizes, filters, time)
    operands.check_raw(values, indices[1].numel(), *signals, indices=indices)
    return operands.verified(indices, (filters, sizes.channels * sizes.taps))


def _sizes(sizes: Sequence[int]) -> Sizes:
    if len(sizes) != len(Sizes._fields):
        raise ValueError(
            f"a convolution has the sizes {Sizes._fields}, not {[*sizes]}"
        )
    return Sizes(*sizes)


@torch.library.custom_op(
    "sparselib::conv1d",
    mutates_args=(),
    schema="(Tensor values, Tensor x, SymInt[] sizes, Tensor[] indices) -> Tensor",
)
def _conv1d(
    values: Tensor, x: Tensor, sizes: Sequence[int], indices: Sequence[Tensor]
) -> Tensor:
    named = _sizes(sizes)
    operands.check_devices(values, x, *indices)
    if x.ndim != 3 or x.shape[1] != named.channels:
        raise ValueError(
            f"a convolution of {named.channels} channels cannot read signals {tuple(x.shape)}"
        )
    checked = _verified(values, named, x.shape[2], indices, x)
    values = operands.resolved(values)
    layout = named.layout(x.shape[2])
    x = operands.resolved(x)
    return own(module(x).convolve(values, checked, x, layout))


@torch.library.custom_op(
    "sparselib::conv1d_t",
    mutates_args=(),
    schema="(Tensor values, Tensor dy, SymInt time, SymInt[] sizes, Tensor[] indices) -> Tensor",
)
def _conv1d_t(
    values: Tensor,
    dy: Tensor,
    time: int,
    sizes: Sequence[int],
    indices: Sequence[Tensor],
) -> Tensor:
    named = _sizes(sizes)
    operands.check_devices(values, dy, *indices)
    checked = _verified(values, named, time, indices, dy)
    filters = len(checked[0]) - 1
    if dy.ndim != 3 or dy.shape[1:] != (filters, named.length(time)):
        raise ValueError(
            f"{time} points have an output gradient of ({filters}, {named.length(time)}) for each "
            f"sample, not {tuple(dy.shape)}"
        )
    values = operands.resolved(values)
    dy = operands.resolved(dy)
    layout = named.layout(time)
    return own(module(dy).convolve_t(values, checked, dy, layout))


@torch.library.custom_op(
    "sparselib::conv1d_weight",
    mutates_args=(),
    schema="(Tensor dy, Tensor x, SymInt[] sizes, Tensor[] indices) -> Tensor",
)
def _conv1d_weight(
    dy: Tensor, x: Tensor, sizes: Sequence[int], indices: Sequence[Tensor]
) -> Tensor:
    named = _sizes(sizes)
    operands.check_devices(dy, x, *indices)
    filters = operands.rows_of_raw(indices)
    if x.ndim == 3:
        _check_sizes(named, filters, x.shape[2])
    _check_signals(named, filters, dy, x)
    operands.check_raw(x.new_empty(0), 0, dy, x, indices=indices)
    operands.check_gradient(dy, x, x)
    checked = operands.verified(indices, (filters, named.channels * named.taps))
    dy = operands.resolved(dy)
    layout = named.layout(x.shape[2])
    x = operands.resolved(x)
    dvalues, _ = module(x).correlate(checked, dy, x, layout)
    return dvalues


@_conv1d.register_fake
def _(
    values: Tensor, x: Tensor, sizes: Sequence[int], indices: Sequence[Tensor]
) -> Tensor:
    operands.check_devices(values, x, *indices)
    filters = indices[0].shape[0] - 1
    length = Sizes(*sizes).length(x.shape[2])
    return x.new_empty(x.shape[0], filters, length)


@_conv1d_t.register_fake
def _(
    values: Tensor,
    dy: Tensor,
    time: int,
    sizes: Sequence[int],
    indices: Sequence[Tensor],
) -> Tensor:
    operands.check_devices(values, dy, *indices)
    return dy.new_empty(dy.shape[0], sizes[0], time)


@_conv1d_weight.register_fake
def _(
    dy: Tensor, x: Tensor, sizes: Sequence[int], indices: Sequence[Tensor]
) -> Tensor:
    operands.check_devices(dy, x, *indices)
    sums = torch.float32 if takes_halves(x) else x.dtype
    return x.new_empty(indices[1].shape[0], dtype=sums)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    values, x, sizes, indices = inputs
    ctx.sizes = sizes
    ctx.save_for_backward(values, x, *indices)


def _conv1d_backward(ctx, dy):  # type: ignore[no-untyped-def]
    values, x, *indices = ctx.saved_tensors
    sizes = ctx.sizes
    dvalues = (
        _conv1d_weight(dy, x, sizes, indices)
        if ctx.needs_input_grad[0]
        else None
    )
    dx = (
        _conv1d_t(values, dy, x.shape[2], sizes, indices)
        if ctx.needs_input_grad[1]
        else None
    )
    return dvalues, dx, None, [None] * len(indices)


def _save_t(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    values, dy, _, sizes, indices = inputs
    ctx.sizes = sizes
    ctx.save_for_backward(values, dy, *indices)


def _conv1d_t_backward(ctx, dx):  # type: ignore[no-untyped-def]
    values, dy, *indices = ctx.saved_tensors
    sizes = ctx.sizes
    dvalues = (
        _conv1d_weight(dy, dx, sizes, indices)
        if ctx.needs_input_grad[0]
        else None
    )
    ddy = (
        _conv1d(values, dx, sizes, indices) if ctx.needs_input_grad[1] else None
    )
    return dvalues, ddy, None, None, [None] * len(indices)


def _conv1d_weight_backward(ctx, dvalues):  # type: ignore[no-untyped-def]
    dy, x, *indices = ctx.saved_tensors
    sizes = ctx.sizes
    ddy = (
        _conv1d(dvalues, x, sizes, indices) if ctx.needs_input_grad[0] else None
    )
    dx = (
        _conv1d_t(dvalues, dy, x.shape[2], sizes, indices)
        if ctx.needs_input_grad[1]
        else None
    )
    return ddy, dx, None, [None] * len(indices)


differentiable(_conv1d, _save, _conv1d_backward)
differentiable(_conv1d_t, _save_t, _conv1d_t_backward)
differentiable(_conv1d_weight, _save, _conv1d_weight_backward)


def _flops(values, *_, out_shape) -> int:  # type: ignore[no-untyped-def]
    """Count a multiplication and an addition for each weight, sample and point of the output.

    Points between the rows of an image are computed, and counted.
    """
    return 2 * values[0] * out_shape[0] * out_shape[2]


def _flops_back(values, dy, *_, **__) -> int:  # type: ignore[no-untyped-def]
    return 2 * values[0] * dy[0] * dy[2]


def _flops_of_weights(dy, x, sizes, indices, **_) -> int:  # type: ignore[no-untyped-def]
    return _flops_back(indices[1], dy)


counted(_conv1d, _flops)
counted(_conv1d_t, _flops_back)
counted(_conv1d_weight, _flops_of_weights)
