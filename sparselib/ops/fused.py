"""Sparse linear layers one after the other with ReLU between them, and all their gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparselib.csr import CSR
from sparselib.ops import operands, products
from sparselib.ops.registration import own

# is given the input of a layer and the gradient of its output
Watch = Callable[[Tensor, Tensor], None]


def sequence(
    patterns: Sequence[CSR],
    tensors: Sequence[Tensor | None],
    x: Tensor,
    watches: Sequence[Sequence[Watch]],
) -> Tensor:
    """Apply layers whose values and biases alternate in `tensors`; differentiable in all of them.

    Biases and ReLU are part of the products, and without a gradient a few samples at a time walk
    through all layers. `operands.fast` says whether it may be called.

    Parameters
    ----------
    patterns : sequence of CSR
        One a layer.
    tensors : sequence of Tensor or None
        Values and biases of the first layer, of the second, ...
    x : Tensor, shape (batch, columns)
        Input of the first layer.
    watches : sequence of sequences of callables
        For each layer, what is called in the backward pass with its input and the gradient of its
        output, before ReLU.

    Raises
    ------
    RuntimeError
        In the backward pass, if a topology changed since the forward pass.
    """
    given = [x, *(tensor for tensor in tensors if tensor is not None)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return _Sequence.apply(patterns, watches, operands.feature_major(x), *tensors)
    weights, cells = (sum(getattr(csr, name) for csr in patterns) for name in ("nnz", "cells"))
    if not operands.fast(x).fuses(len(x), weights, cells):
        return _steps(patterns, tensors, x)[-1]
    layers = [
        (csr.crow_indices, csr.col_indices, values, bias, relu)
        for csr, values, bias, relu in _layers(patterns, tensors)
    ]
    return products.network(layers, x)


def _layers(patterns: Sequence[CSR], tensors: Sequence[Any]) -> Any:
    relus = [True] * (len(patterns) - 1) + [False]
    return zip(patterns, tensors[::2], tensors[1::2], relus)


def _steps(patterns: Sequence[CSR], tensors: Sequence[Any], x: Tensor) -> list[Tensor]:
    """Return the input of each layer, and the output of the last."""
    passed, kernels = [x], operands.fast(x)
    for csr, values, bias, relu in _layers(patterns, tensors):
        indices = csr.crow_indices, csr.col_indices
        passed.append(kernels.spmm(values, *indices, passed[-1], bias, relu=relu))
    return passed


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, patterns: Any, watches: Any, x: Tensor, *tensors: Any) -> Tensor:
        *inputs, y = _steps(patterns, tensors, x)
        ctx.save_for_backward(*inputs, *tensors)
        ctx.patterns, ctx.watches = patterns, watches
        ctx.versions = [csr.version for csr in patterns]
        return own(y)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        if ctx.versions != [csr.version for csr in ctx.patterns]:
            raise RuntimeError(operands.STALE)
        if torch.is_grad_enabled():
            return _again(ctx, dy)
        count, saved = len(ctx.patterns), ctx.saved_tensors
        inputs, values, needed = saved[:count], saved[count::2], ctx.needs_input_grad[2:]
        gradients: list[Tensor] = []
        for number in reversed(range(count)):
            x, csr = inputs[number], ctx.patterns[number]
            for watch in ctx.watches[number]:
                watch(x.detach(), dy)
            further = number > 0 or needed[0]
            dvalues, dbias, dy = products.gradients(values[number], csr, dy, x, further, number > 0)
            gradients[:0] = dvalues, dbias
        return None, None, *(g if needs else None for g, needs in zip((dy, *gradients), needed))


def _again(ctx: Any, dy: Tensor) -> Any:
    """Compute the gradients by steps that have derivatives themselves."""
    x, *saved = ctx.saved_tensors
    tensors, needed = saved[len(ctx.patterns) - 1 :], ctx.needs_input_grad[2:]
    given = [tensor for tensor, needs in zip((x, *tensors), needed) if needs]
    read: list[Tensor] = []
    written: list[Tensor] = []
    for csr, values, bias, relu in _layers(ctx.patterns, tensors):
        read.append(x)
        written.append(products.spmm(csr, values, x, bias))
        x = written[-1].relu() if relu else written[-1]
    is_seen = [watched and y.requires_grad for watched, y in zip(ctx.watches, written)]
    seen = [y for y, sees in zip(written, is_seen) if sees]
    found = iter(torch.autograd.grad(x, [*given, *seen], dy, create_graph=True))
    gradients = [next(found) if needs else None for needs in needed]
    for inputs, watches, sees in zip(read, ctx.watches, is_seen):
        if sees:
            costs = next(found).detach()
            for watch in watches:
                watch(inputs.detach(), costs)
    return None, None, *gradients
