r"""The three products of a sparse layer, closed under differentiation.

==========  =========================  ==========================================
product     definition                 its gradients
==========  =========================  ==========================================
``spmm``    Y = X W^T                  dX by ``spmm_t``, dW by ``sddmm``
``spmm_t``  X = Y W                    dY by ``spmm``, dW by ``sddmm``
``sddmm``   dW = (dY^T X) at nonzeros  dY by ``spmm``, dX by ``spmm_t``
==========  =========================  ==========================================

Each is a ``torch.library`` custom operator, so ``torch.compile``, autocast (to float32) and double
backward work. W is (out, in) in CSR, its values a 1-D tensor. Nothing of size out x in and nothing
of size batch x nnz is ever allocated.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sparselib._types import AutogradContext
from sparselib.compilation import is_exported_to_onnx
from sparselib.csr import CSR, transpose
from sparselib.ops import operands
from sparselib.ops.backends import Indices, Weights, cpu
from sparselib.ops.dispatch import (
    is_eager,
    is_plain,
    module,
    note,
    takes_halves,
    transformed,
)
from sparselib.ops.operands import (
    check_features,
    feature_major,
    indices_of,
    operator_indices,
)
from sparselib.ops.registration import counted, differentiable, own


class Layer(NamedTuple):
    """One layer of a `network`.

    Attributes
    ----------
    csr : CSR
        Its connections.
    values : Tensor, shape (nnz,)
        The weights at these.
    bias : Tensor, shape (rows,), optional
        What is added to each output.
    relu : bool
        Whether max(., 0) follows.
    """

    csr: CSR
    values: Tensor
    bias: Tensor | None = None
    relu: bool = False


def spmm(
    csr: CSR,
    values: Float[Tensor, "nnz"],
    x: Float[Tensor, "*batch columns"],
    bias: Float[Tensor, "rows"] | None = None,
) -> Float[Tensor, "*batch rows"]:
    """Multiply a batch by the transposed sparse matrix, Y = X W^T + b: the layer's forward product.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices do not fit; the sentence names them.
    """
    if (
        values is not None
        and is_plain(x, values, bias)
        and x.ndim
        and fit_exactly(csr, values, bias, x.shape[-1])
    ):
        kernel = "few" if are_few(x, csr.nnz) else "spmm"
        note(kernel, (csr,), x, values, bias)
        flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        y = cpu.spmm(values, *indices_of(csr), flat, bias)
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], y.shape[-1])
    check_features(csr, values, x, csr.shape[1], "spmm", bias)
    note("spmm", (csr,), x, values, bias)
    if not is_eager(x, values, bias):
        if transformed() or is_exported_to_onnx():
            return masked_product(csr, values, x, bias)
        return operands.plus(_by_rows(_spmm, csr, values, x), bias)
    flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    y = _Linear.apply(values, bias, feature_major(flat), csr)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], y.shape[-1])


def are_few(x: Tensor, weights: int) -> bool:
    """Whether a call's own time counts, for so many samples as x has and so many weights."""
    width = x.shape[-1] if x.ndim else 0
    return width > 0 and cpu.are_few(x.numel() // width, weights)


def fit_exactly(
    csr: CSR, values: Tensor, bias: Tensor | None, width: int
) -> bool:
    """Whether a layer reads so many features, and its numbers lie as kernels read them."""
    rows, columns = csr.shape
    nnz = csr.nnz
    return (
        columns == width
        and nnz > 0
        and values.shape == (nnz,)
        and values.is_contiguous()
        and (bias is None or (bias.shape == (rows,) and bias.is_contiguous()))
    )


def spmm_t(
    csr: CSR, values: Float[Tensor, "nnz"], y: Float[Tensor, "*batch rows"]
) -> Float[Tensor, "*batch columns"]:
    """Multiply a batch by the sparse matrix, X = Y W: the layer's input gradient."""
    check_features(csr, values, y, csr.shape[0], "spmm_t")
    return _by_rows(_spmm_t, csr, values, y)


def sddmm(
    csr: CSR,
    dy: Float[Tensor, "*dy_batch rows"],
    x: Float[Tensor, "*x_batch columns"],
) -> Float[Tensor, "nnz"]:
    """Sample dY^T X at the nonzeros: the layer's weight gradient, summed over the batch."""
    operands.check_numbers(x, "input")
    values = x.new_empty(csr.nnz)
    check_features(csr, values, dy, csr.shape[0], "sddmm")
    check_features(csr, values, x, csr.shape[1], "sddmm")
    dy = dy.reshape(-1, csr.shape[0])
    x = x.reshape(-1, csr.shape[1])
    if len(dy) != len(x):
        raise ValueError(
            f"sddmm got {len(dy)} rows of output gradient but {len(x)} of input"
        )
    return _sddmm(dy, x, operator_indices(csr))


@torch.no_grad()
def network(
    layers: Sequence[Layer], x: Float[Tensor, "batch columns"]
) -> Float[Tensor, "batch rows"]:
    """Carry a batch through layers at once, without a gradient.

    Parameters
    ----------
    layers : sequence of Layer
        ``(csr, values, bias, relu)``; each reads as many features as the one before writes.
    x : Tensor, shape (batch, columns)
        Input of the first layer.

    Raises
    ------
    ValueError
        If there is no layer, or shapes, dtypes or devices do not fit; the sentence names them.
    """
    checked = check_network(layers, x)
    return module(x).network(checked, operands.resolved(x))


def check_network(layers: Sequence[Layer], x: Tensor) -> list[Weights]:
    """Return the layers as a backend reads them, or refuse what does not fit."""
    if not layers:
        raise ValueError("a network needs at least one layer")
    operands.check_numbers(x, "input")
    if x.ndim != 2:
        raise ValueError(
            f"a network reads a batch (samples, features), not {tuple(x.shape)}"
        )
    width = x.shape[1]
    checked = []
    for number, layer in enumerate(layers):
        if len(layer) != 4 or not isinstance(layer[0], CSR):
            raise TypeError(
                f"layer {number} of a network must be (csr, values, bias, relu), not "
                f"{tuple(type(part).__name__ for part in layer)}"
            )
        csr, values, bias, relu = layer
        if csr.shape[1] != width:
            raise ValueError(
                f"layer {number} of a network reads {csr.shape[1]} features, but gets {width}"
            )
        operands.check(csr, values, x, "a network", bias)
        bias = bias if bias is None else operands.resolved(bias)
        checked.append(
            Weights(*indices_of(csr), operands.resolved(values), bias, relu)
        )
        width = csr.shape[0]
    return checked


def masked_product(
    csr: CSR,
    values: Float[Tensor, "nnz"],
    x: Float[Tensor, "*batch columns"],
    bias: Float[Tensor, "rows"] | None = None,
) -> Float[Tensor, "*batch rows"]:
    """Multiply by the dense matrix of the same connections: same numbers, dense cost.

    The control that most of the literature trains, the oracle of the tests, and the fallback under
    the transforms of torch.func, which the sparse operators do not support.
    """
    return functional.linear(x, csr.to_dense(values), bias)


def gradients(
    values: Float[Tensor, "nnz"],
    csr: CSR,
    dy: Float[Tensor, "batch rows"],
    x: Float[Tensor, "batch columns"],
    further: bool = True,
    relu: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of a layer's values, biases and, if it goes further, input.

    They have no derivatives themselves; those of `spmm`, `spmm_t` and `sddmm` have. With `relu` the
    input is what a ReLU returned, and its gradient is that of the argument.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices do not fit; the sentence names them.
    """
    operands.check_batches(dy, x, csr)
    operands.check(csr, values, x, "a gradient")
    operands.check_gradient(dy, x, values)
    values = operands.resolved(values)
    dy = feature_major(dy)
    x = operands.resolved(x)
    backend = module(x)
    crow, col = indices_of(csr)
    if further:
        indices = (crow, col, *operands.transposed_of(csr))
        return backend.gradients(values, indices, dy, x, relu)
    return *backend.sddmm(crow, col, dy, x), None


def _by_rows(
    product: torch.library.CustomOpDef, csr: CSR, values: Tensor, x: Tensor
) -> Tensor:
    indices = operator_indices(csr)
    if x.ndim == 2:
        return product(values, x, csr.shape[1], indices)
    flat = product(values, x.reshape(-1, x.shape[-1]), csr.shape[1], indices)
    return flat.reshape(*x.shape[:-1], flat.shape[-1])


class _Linear(torch.autograd.Function):
    """Y = X W^T + b, with one piece of work for all of its gradients."""

    @staticmethod
    def forward(
        ctx: AutogradContext,
        values: Tensor,
        bias: Tensor | None,
        x: Tensor,
        csr: CSR,
    ) -> Tensor:
        ctx.save_for_backward(values, x)
        ctx.csr = csr
        ctx.version = csr.version
        return own(module(x).spmm(values, *indices_of(csr), x, bias))

    @staticmethod
    def backward(ctx: AutogradContext, dy: Tensor) -> tuple[Tensor | None, ...]:
        values, x = ctx.saved_tensors
        csr = ctx.csr
        _, has_bias, has_x, _ = ctx.needs_input_grad
        if csr.version != ctx.version:
            raise RuntimeError(operands.STALE)
        if torch.is_grad_enabled():
            indices = operator_indices(csr)
            dvalues = _sddmm(dy, x, indices)
            dbias = dy.sum(0)
            dx = _spmm_t(values, dy, csr.shape[1], indices) if has_x else None
        else:
            dvalues, dbias, dx = gradients(values, csr, dy, x, has_x)
        return dvalues, dbias if has_bias else None, dx, None


def _verified(
    values: Tensor,
    x: Tensor,
    indices: Indices,
    columns: int,
    features: int | None,
) -> Indices:
    """Check what an operator was called with; it reads `features`, or one for each row."""
    operands.check_devices(values, x, *indices)
    rows = operands.rows_of_raw(indices)
    wanted = rows if features is None else features
    if x.ndim != 2 or x.shape[1] != wanted:
        raise ValueError(
            f"a {rows} x {columns} matrix needs a batch (samples, {wanted}), not {tuple(x.shape)}"
        )
    operands.check_raw(values, indices[1].numel(), x, indices=indices)
    return operands.verified(indices, (rows, columns))


@torch.library.custom_op(
    "sparselib::spmm",
    mutates_args=(),
    schema="(Tensor values, Tensor x, SymInt columns, Tensor[] indices) -> Tensor",
)
def _spmm(
    values: Tensor, x: Tensor, columns: int, indices: Sequence[Tensor]
) -> Tensor:
    crow, col, *_ = _verified(values, x, indices, columns, columns)
    values = operands.resolved(values)
    return own(module(x).spmm(values, crow, col, operands.resolved(x)))


@torch.library.custom_op(
    "sparselib::spmm_t",
    mutates_args=(),
    schema="(Tensor values, Tensor y, SymInt columns, Tensor[] indices) -> Tensor",
)
def _spmm_t(
    values: Tensor, y: Tensor, columns: int, indices: Sequence[Tensor]
) -> Tensor:
    crow, col, *cached = _verified(values, y, indices, columns, None)
    tcrow, tcol, permutation = cached or transpose(crow, col, columns)
    values = operands.resolved(values)
    y = operands.resolved(y)
    return own(module(y).spmm(values, tcrow, tcol, y, permutation=permutation))


@torch.library.custom_op(
    "sparselib::sddmm",
    mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor[] indices) -> Tensor",
)
def _sddmm(dy: Tensor, x: Tensor, indices: Sequence[Tensor]) -> Tensor:
    operands.check_devices(dy, x, *indices)
    rows = operands.rows_of_raw(indices)
    if (
        dy.ndim != 2
        or x.ndim != 2
        or dy.shape[0] != x.shape[0]
        or dy.shape[1] != rows
    ):
        raise ValueError(
            f"sddmm of {rows} rows needs a batch (samples, {rows}) and one of as many samples, not "
            f"{tuple(dy.shape)} and {tuple(x.shape)}"
        )
    operands.check_raw(x.new_empty(0), 0, dy, x, indices=indices)
    operands.check_gradient(dy, x, x)
    crow, col, *_ = operands.verified(indices, (rows, x.shape[1]))
    return module(x).sddmm(
        crow, col, operands.resolved(dy), operands.resolved(x)
    )[0]


@_spmm.register_fake
def _(
    values: Tensor, x: Tensor, columns: int, indices: Sequence[Tensor]
) -> Tensor:
    operands.check_devices(values, x, *indices)
    return x.new_empty((indices[0].shape[0] - 1, x.shape[0])).t()


@_spmm_t.register_fake
def _(
    values: Tensor, y: Tensor, columns: int, indices: Sequence[Tensor]
) -> Tensor:
    operands.check_devices(values, y, *indices)
    return y.new_empty((columns, y.shape[0])).t()


@_sddmm.register_fake
def _(dy: Tensor, x: Tensor, indices: Sequence[Tensor]) -> Tensor:
    operands.check_devices(dy, x, *indices)
    sums = torch.float32 if takes_halves(x) else x.dtype
    return x.new_empty((indices[1].shape[0],), dtype=sums)


def _save_product(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    values, x, columns, indices = inputs
    ctx.columns = columns
    ctx.save_for_backward(values, x, *indices)


def _spmm_backward(ctx, dy):  # type: ignore[no-untyped-def]
    values, x, *indices = ctx.saved_tensors
    dvalues = _sddmm(dy, x, indices) if ctx.needs_input_grad[0] else None
    dx = (
        _spmm_t(values, dy, ctx.columns, indices)
        if ctx.needs_input_grad[1]
        else None
    )
    return dvalues, dx, None, [None] * len(indices)


def _spmm_t_backward(ctx, dx):  # type: ignore[no-untyped-def]
    values, y, *indices = ctx.saved_tensors
    dvalues = _sddmm(y, dx, indices) if ctx.needs_input_grad[0] else None
    dy = (
        _spmm(values, dx, ctx.columns, indices)
        if ctx.needs_input_grad[1]
        else None
    )
    return dvalues, dy, None, [None] * len(indices)


def _save_sddmm(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    dy, x, indices = inputs
    ctx.save_for_backward(dy, x, *indices)


def _sddmm_backward(ctx, dvalues):  # type: ignore[no-untyped-def]
    dy, x, *indices = ctx.saved_tensors
    ddy = (
        _spmm(dvalues, x, x.shape[1], indices)
        if ctx.needs_input_grad[0]
        else None
    )
    dx = (
        _spmm_t(dvalues, dy, x.shape[1], indices)
        if ctx.needs_input_grad[1]
        else None
    )
    return ddy, dx, [None] * len(indices)


differentiable(_spmm, _save_product, _spmm_backward)
differentiable(_spmm_t, _save_product, _spmm_t_backward)
differentiable(_sddmm, _save_sddmm, _sddmm_backward)


def _flops(values, batch, *_, **__) -> int:  # type: ignore[no-untyped-def]
    """Count a multiplication and an addition for each connection and sample."""
    return 2 * values[0] * batch[0]


def _flops_of_samples(dy, x, indices, **_) -> int:  # type: ignore[no-untyped-def]
    return _flops(indices[1], x)


counted(_spmm, _flops)
counted(_spmm_t, _flops)
counted(_sddmm, _flops_of_samples)
