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
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sparselib.csr import CSR
from sparselib.ops.backends.cpu import Layer
from sparselib.ops.dispatch import module as _backend
from sparselib.ops.dispatch import takes_halves
from sparselib.ops.operands import (
    STALE,
    Indices,
    check_features,
    feature_major,
    indices_of,
    is_eager,
    transposed,
)
from sparselib.ops.registration import differentiable, own, transformed


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
    check_features(csr, values, x, csr.shape[1], "spmm")
    if bias is not None and bias.shape != csr.shape[:1]:
        raise ValueError(f"{csr.shape[0]} rows need as many biases, not {tuple(bias.shape)}")
    if not is_eager(x):
        if transformed():
            return masked_product(csr, values, x, bias)
        y = _by_rows(_spmm, csr, values, x)
        return y if bias is None else y + bias.to(y.dtype)
    flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    y = _Linear.apply(values, bias, feature_major(flat), csr)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], y.shape[-1])


def spmm_t(
    csr: CSR, values: Float[Tensor, "nnz"], y: Float[Tensor, "*batch rows"]
) -> Float[Tensor, "*batch columns"]:
    """Multiply a batch by the sparse matrix, X = Y W: the layer's input gradient."""
    check_features(csr, values, y, csr.shape[0], "spmm_t")
    return _by_rows(_spmm_t, csr, values, y)


def sddmm(
    csr: CSR, dy: Float[Tensor, "*dy_batch rows"], x: Float[Tensor, "*x_batch columns"]
) -> Float[Tensor, "nnz"]:
    """Sample dY^T X at the nonzeros: the layer's weight gradient, summed over the batch."""
    values = x.new_empty(csr.nnz)
    check_features(csr, values, dy, csr.shape[0], "sddmm")
    check_features(csr, values, x, csr.shape[1], "sddmm")
    dy, x = dy.reshape(-1, csr.shape[0]), x.reshape(-1, csr.shape[1])
    if len(dy) != len(x):
        raise ValueError(f"sddmm got {len(dy)} rows of output gradient but {len(x)} of input")
    return _sddmm(dy, x, indices_of(csr))


def network(layers: Sequence[Layer], x: Float[Tensor, "batch columns"]) -> Tensor:
    """Carry a batch through (crow, col, values, bias, relu) layers at once: see `fast`."""
    return _backend(x).network(layers, x)


def masked_product(
    csr: CSR,
    values: Float[Tensor, "nnz"],
    x: Float[Tensor, "*batch columns"],
    bias: Float[Tensor, "rows"] | None = None,
) -> Float[Tensor, "*batch rows"]:
    """Multiply by the dense matrix of the same connections: same numbers, dense cost.

    The control that most of the literature trains, the oracle of the tests, and what the transforms
    of torch.func see, which no operator of ours bears.
    """
    return functional.linear(x, csr.to_dense(values), bias)


def gradients(
    values: Tensor, csr: CSR, dy: Tensor, x: Tensor, further: bool = True, relu: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of a layer's values, biases and, if it goes further, input.

    With `relu` the input is what a ReLU returned, and its gradient is that of the argument.
    """
    dy, kernels = feature_major(dy), _backend(values)
    if further:
        indices = (*csr.indices(), *csr.transposed_indices())
        return kernels.gradients(values, indices, dy, x, relu)
    return *kernels.sddmm(*csr.indices(), dy, x), None


def _by_rows(product: torch.library.CustomOpDef, csr: CSR, values: Tensor, x: Tensor) -> Tensor:
    indices = indices_of(csr)
    if x.ndim == 2:
        return product(values, x, csr.shape[1], indices)
    flat = product(values, x.reshape(-1, x.shape[-1]), csr.shape[1], indices)
    return flat.reshape(*x.shape[:-1], flat.shape[-1])


class _Linear(torch.autograd.Function):
    """Y = X W^T + b, with one piece of work for all of its gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bias: Tensor | None, x: Tensor, csr: CSR) -> Tensor:
        ctx.save_for_backward(values, x)
        ctx.csr, ctx.version = csr, csr.version
        return own(_backend(values).spmm(values, *csr.indices(), x, bias))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        values, x = ctx.saved_tensors
        csr, (_, has_bias, has_x, _) = ctx.csr, ctx.needs_input_grad
        if csr.version != ctx.version:
            raise RuntimeError(STALE)
        if torch.is_grad_enabled():
            indices = indices_of(csr)
            dvalues, dbias = _sddmm(dy, x, indices), dy.sum(0)
            dx = _spmm_t(values, dy, csr.shape[1], indices) if has_x else None
        else:
            dvalues, dbias, dx = gradients(values, csr, dy, x, has_x)
        return dvalues, dbias if has_bias else None, dx, None


def _product_t(values: Tensor, y: Tensor, columns: int, indices: Indices) -> Tensor:
    crow_indices, col_indices, permutation = transposed(indices, columns)
    product = _backend(values).spmm
    return product(values, crow_indices, col_indices, y, permutation=permutation)


@torch.library.custom_op("sparselib::spmm", mutates_args=())
def _spmm(values: Tensor, x: Tensor, columns: int, indices: Indices) -> Tensor:
    return own(_backend(values).spmm(values, indices[0], indices[1], x))


@torch.library.custom_op("sparselib::spmm_t", mutates_args=())
def _spmm_t(values: Tensor, y: Tensor, columns: int, indices: Indices) -> Tensor:
    return own(_product_t(values, y, columns, indices))


@torch.library.custom_op("sparselib::sddmm", mutates_args=())
def _sddmm(dy: Tensor, x: Tensor, indices: Indices) -> Tensor:
    return _backend(x).sddmm(indices[0], indices[1], dy, x)[0]


@_spmm.register_fake
def _(values: Tensor, x: Tensor, columns: int, indices: Indices) -> Tensor:
    return x.new_empty((indices[0].shape[0] - 1, x.shape[0])).t()


@_spmm_t.register_fake
def _(values: Tensor, y: Tensor, columns: int, indices: Indices) -> Tensor:
    return y.new_empty((columns, y.shape[0])).t()


@_sddmm.register_fake
def _(dy: Tensor, x: Tensor, indices: Indices) -> Tensor:
    sums = torch.float32 if takes_halves(x) else x.dtype
    return x.new_empty((indices[1].shape[0],), dtype=sums)


def _save_product(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    values, x, ctx.columns, indices = inputs
    ctx.save_for_backward(values, x, *indices)


def _spmm_backward(ctx, dy):  # type: ignore[no-untyped-def]
    values, x, *indices = ctx.saved_tensors
    dvalues = _sddmm(dy, x, indices) if ctx.needs_input_grad[0] else None
    dx = _spmm_t(values, dy, ctx.columns, indices) if ctx.needs_input_grad[1] else None
    return dvalues, dx, None, [None] * len(indices)


def _spmm_t_backward(ctx, dx):  # type: ignore[no-untyped-def]
    values, y, *indices = ctx.saved_tensors
    dvalues = _sddmm(y, dx, indices) if ctx.needs_input_grad[0] else None
    dy = _spmm(values, dx, ctx.columns, indices) if ctx.needs_input_grad[1] else None
    return dvalues, dy, None, [None] * len(indices)


def _save_sddmm(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    dy, x, indices = inputs
    ctx.save_for_backward(dy, x, *indices)


def _sddmm_backward(ctx, dvalues):  # type: ignore[no-untyped-def]
    dy, x, *indices = ctx.saved_tensors
    ddy = _spmm(dvalues, x, x.shape[1], indices) if ctx.needs_input_grad[0] else None
    dx = _spmm_t(dvalues, dy, x.shape[1], indices) if ctx.needs_input_grad[1] else None
    return ddy, dx, [None] * len(indices)


differentiable(_spmm, _save_product, _spmm_backward)
differentiable(_spmm_t, _save_product, _spmm_t_backward)
differentiable(_sddmm, _save_sddmm, _sddmm_backward)
