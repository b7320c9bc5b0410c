"""Sparse linear layers one after the other, carried out at once where nobody looks in between."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from sparselib import ops
from sparselib.nn._watch import keepers
from sparselib.nn.linear import CSRLinear
from sparselib.ops.fused import sequence

Activation = Callable[[Tensor], Tensor]


def chain(
    layers: Sequence[Any],
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
    tensors = [
        tensor for layer in layers for tensor in (layer.values, layer.bias)
    ]
    if (
        ops.fast(x, *(tensor for tensor in tensors if tensor is not None))
        is None
    ):
        return _one_by_one(layers, activation, x)
    return sequence(
        [layer.csr for layer in layers],
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


def _is_plain(layers: Sequence[Any], activation: Activation, x: Tensor) -> bool:
    return (
        type(activation) is nn.ReLU
        and not (activation._forward_hooks or activation._forward_pre_hooks)
        and not activation._backward_hooks
        and not _is_every_module_observed()
        and all(map(_is_unobserved, layers))
        and x.ndim == 2
        and _fits(layers, x.shape[1])
    )


def _is_every_module_observed() -> bool:
    """Whether a hook of all modules is registered; torch 2.6 has no function that tells."""
    return bool(
        every_module._global_forward_hooks
        or every_module._global_forward_pre_hooks
        or every_module._global_backward_hooks
        or every_module._global_backward_pre_hooks
    )


def _fits(layers: Sequence[Any], width: int) -> bool:
    for layer in layers:
        if layer.in_features != width:
            return False
        width = layer.out_features
    return True


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
