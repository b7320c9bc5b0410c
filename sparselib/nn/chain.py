"""Sparse linear layers one after the other, carried out at once where nobody looks in between."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from sparselib import ops
from sparselib.nn.linear import CSRLinear

Activation = Callable[[Tensor], Tensor]


def chain(
    layers: Sequence[nn.Module], activation: Activation, x: Float[Tensor, "batch columns"]
) -> Float[Tensor, "batch rows"]:
    """Apply layers with an activation between them; fused where that gives the same numbers.

    Fused means that a few samples at a time walk through all layers without leaving the cache,
    so that no activation is written to memory. It needs layers in evaluation mode, no gradient,
    float32 on the CPU, ReLU, 64 samples a thread, and no forward hook that has to see a layer.
    """
    if _can_fuse(layers, activation, x):
        relu = [True] * (len(layers) - 1) + [False]
        return ops.network([(*_tensors(layer), act) for layer, act in zip(layers, relu)], x)
    for layer in layers[:-1]:
        x = activation(layer(x))
    return layers[-1](x)


def _tensors(layer: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    assert isinstance(layer, CSRLinear)
    return layer.csr.crow_indices, layer.csr.col_indices, layer.values, layer.bias


def _can_fuse(layers: Sequence[nn.Module], activation: Activation, x: Tensor) -> bool:
    return (
        all(map(_is_plain, layers))
        and type(activation) is nn.ReLU
        and not activation._forward_hooks
        and ops.can_fuse(x, *(p for layer in layers for p in layer.parameters()))
        and _fits(layers, x.shape[-1])
    )


def _fits(layers: Sequence[Any], width: int) -> bool:
    widths = [width, *(layer.shape[0] for layer in layers)]
    return all(layer.shape[1] == width for layer, width in zip(layers, widths))


def _is_plain(layer: nn.Module) -> bool:
    # the hook of an evolution looks at nothing in evaluation mode
    hooks = [h for h in layer._forward_hooks.values() if not getattr(h, "is_for_training", False)]
    return (
        type(layer) is CSRLinear
        and layer.product is ops.spmm
        and not (layer.training or hooks or layer._forward_pre_hooks)
    )
