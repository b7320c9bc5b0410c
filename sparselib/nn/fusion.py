"""Sparse linear layers one after the other, carried out at once where nobody looks in between."""

from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from sparselib import ops
from sparselib.csr import CSR
from sparselib.nn._watch import keepers
from sparselib.nn.linear import CSRLinear
from sparselib.ops.fused import at_once, sequence

Activation = Callable[[Tensor], Tensor]


def chain(
    layers: Sequence[nn.Module],
    activation: Activation,
    x: Float[Tensor, "batch columns"],
) -> Float[Tensor, "batch rows"]:
    """Apply layers with an activation between them; fused where that gives the same numbers.

    Fused means that biases and ReLU are part of the products and, without a gradient, that a few
    samples at a time walk through all layers without leaving the cache. It needs `CSRLinear`
    layers and ``nn.ReLU``, a backend with kernels of its own, and no hook on a layer. The watches
    of an evolution are served; `torch.compile` sees the layers one by one then.
    """
    if not _is_plain(layers, activation, x):
        return _one_by_one(layers, activation, x)
    patterns: list[CSR] = []
    tensors: list[Tensor | None] = []
    for layer in layers:
        csr, values, bias = layer.weights
        patterns.append(csr)
        tensors.append(values)
        tensors.append(bias)
    y = at_once(patterns, tensors, x)
    if y is not None:
        return y
    if (
        ops.fast(x, *(tensor for tensor in tensors if tensor is not None))
        is None
    ):
        return _one_by_one(layers, activation, x)
    return sequence(
        patterns,
        tensors,
        x,
        [keepers(one) for one in layers],
    )


def _one_by_one(
    layers: Sequence[nn.Module], activation: Activation, x: Tensor
) -> Tensor:
    for layer in layers[:-1]:
        x = activation(layer(x))
    return layers[-1](x)


def _is_plain(
    layers: Sequence[nn.Module], activation: Activation, x: Tensor
) -> TypeGuard[Sequence[CSRLinear]]:
    return (
        type(activation) is nn.ReLU
        and not (activation._forward_hooks or activation._forward_pre_hooks)
        and not activation._backward_hooks
        and not _is_every_module_observed()
        and _are_unobserved(layers)
        and x.ndim == 2
        and _fits(layers, int(x.shape[1]))  # a tensor while torch.jit traces
    )


def _is_every_module_observed() -> bool:
    """Whether a hook of all modules is registered; torch 2.6 has no function that tells."""
    return bool(
        every_module._global_forward_hooks
        or every_module._global_forward_pre_hooks
        or every_module._global_backward_hooks
        or every_module._global_backward_pre_hooks
    )


def _fits(layers: Sequence[CSRLinear], width: int) -> bool:
    for layer in layers:
        if layer.in_features != width:
            return False
        width = layer.out_features
    return True


def _are_unobserved(
    layers: Sequence[nn.Module],
) -> TypeGuard[Sequence[CSRLinear]]:
    return all(map(_is_unobserved, layers))


def _is_unobserved(layer: nn.Module) -> bool:
    return (
        type(layer) is CSRLinear
        and layer.product is ops.spmm
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
        and not (
            layer.watches
            and layer.watches.references
            and torch.compiler.is_compiling()
        )
    )
