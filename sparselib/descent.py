"""Loss and gradients of a whole network of sparse layers in one call, where nobody looks inside."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sparselib.csr import CSR
from sparselib.models.mlp import MLP
from sparselib.nn import fusion
from sparselib.nn._joining import (
    are_unobserved,
    has_hooks,
    is_every_module_observed,
    is_passed_over,
    is_plain_relu,
)
from sparselib.nn._watch import keepers
from sparselib.nn.linear import CSRLinear
from sparselib.ops.fused import descend

MOST_DENSE = (
    1 << 16
)  # weights of dense layers; with more the dense product is ahead


def descended(
    model: nn.Module, x: object, labels: object, loss: str
) -> Tensor | None:
    """Add a loss's gradients to those of a model, as ``loss.backward()`` does, and return the loss.

    One call of a kernel then does what autograd does in some forty, which is what a step of a small
    network costs. The numbers are the same to rounding.

    Parameters
    ----------
    model : nn.Module
        `MLP`, or ``nn.Sequential`` with at most an ``nn.Flatten`` before its layers: `CSRLinear`
        with ``nn.ReLU`` between them, on the CPU, in float32. Some may be an ``nn.Linear``, as a
        last one often is, if all of these have no more than 65,536 weights.
    x : Tensor, shape (batch, ...)
        Inputs, which need no gradient.
    labels : Tensor, int64, shape (batch,)
        Numbers of the classes.
    loss : {"cross-entropy", "squared error"}
        The mean over the batch of ``nn.functional.cross_entropy``, or of
        `sparselib.training.sigmoid_squared_error`.

    Returns
    -------
    Tensor or None
        The loss, a scalar without a graph. None, and nothing has changed, if it is no such model,
        there is no kernel here, or somebody sees or changes what happens between: hooks, an
        evolution that needs this step's inputs, autocast, anomaly detection.
    """
    if not (isinstance(x, Tensor) and isinstance(labels, Tensor)):
        return None
    if x.ndim < 2 or x.requires_grad or not torch.is_grad_enabled():
        return None
    if torch.is_anomaly_enabled() or is_every_module_observed():
        return None
    layers = _chained(model)
    if layers is None or (x.ndim > 2 and not _flattens(model)):
        return None
    if not all(map(_is_free, layers)):
        return None
    learned = [_learned(layer) for layer in layers]
    with torch.no_grad():
        weights = [(csr, w.flatten(), bias) for csr, w, bias in learned]
        found = descend(weights, x.flatten(1), labels, loss)
    if found is None:
        return None
    error, gradients = found
    parameters = [tensor for _, *tensors in learned for tensor in tensors]
    for parameter, gradient in zip(parameters, gradients):
        if parameter is not None:
            _accumulate(parameter, gradient.view_as(parameter))
    return error


def _chained(model: nn.Module) -> Sequence[nn.Module] | None:
    """Return the layers of a model that is nothing else but these, with ReLU between them."""
    if has_hooks(model):
        return None
    if type(model) is MLP:
        if model.training and model.dropout.p > 0:
            return None
        layers = list(model.layers)
        between: Sequence[nn.Module] = [model.activation]
    elif type(model) in (nn.Sequential, fusion.Sequential):
        assert isinstance(model, nn.Sequential)
        modules = list(model)[1 if _flattens(model) else 0 :]
        modules = [one for one in modules if not is_passed_over(one)]
        layers = modules[::2]
        between = modules[1::2]
        if len(layers) != len(between) + 1:
            return None
    else:
        return None
    is_known = all(map(is_plain_relu, between)) and _are_known(layers)
    return layers if is_known else None


def _are_known(layers: Sequence[nn.Module]) -> bool:
    """Whether these are sparse layers that nobody observes, and small dense ones among them."""
    sparse = [layer for layer in layers if type(layer) is CSRLinear]
    dense = [layer for layer in layers if type(layer) is nn.Linear]
    if not sparse or len(sparse) + len(dense) < len(layers):
        return False
    return (
        are_unobserved(sparse)
        and not any(map(has_hooks, dense))
        and sum(layer.weight.numel() for layer in dense) <= MOST_DENSE
    )


def _learned(
    layer: nn.Module,
) -> tuple[CSR, Tensor, Tensor | None]:
    """Return the connections, weights and biases of a layer; a dense one has all connections."""
    if isinstance(layer, CSRLinear):
        csr, values, bias = layer.weights
        return csr, values, bias
    assert isinstance(layer, nn.Linear)
    shape = (layer.out_features, layer.in_features)
    return _whole(shape), layer.weight, layer.bias


@functools.lru_cache(maxsize=16)
def _whole(shape: tuple[int, int]) -> CSR:
    """Return the pattern of a dense matrix."""
    with torch.device("cpu"):
        return CSR.from_positions(torch.arange(shape[0] * shape[1]), shape)


def _flattens(model: nn.Module) -> bool:
    """Whether a model makes one row of each sample before anything else."""
    if type(model) is MLP:
        return True
    assert isinstance(model, nn.Sequential)
    first = model[0] if len(model) else None
    return (
        type(first) is nn.Flatten
        and (first.start_dim, first.end_dim) == (1, -1)
        and not has_hooks(first)
    )


def _is_free(layer: nn.Module) -> bool:
    """Whether a layer learns, and nobody wants to see or change its gradients on their way."""
    if isinstance(layer, CSRLinear) and keepers(layer):
        return False
    return all(
        parameter.is_leaf
        and parameter.requires_grad
        and not parameter._backward_hooks
        for parameter in _learned(layer)[1:]
        if parameter is not None
    )


def _accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """Add a gradient to a parameter's, and call who waits for that."""
    before = parameter.grad
    parameter.grad = gradient if before is None else before + gradient
    hooks: dict[int, Callable[[Tensor], None]] | None
    hooks = parameter._post_accumulate_grad_hooks
    for hook in list((hooks or {}).values()):
        hook(parameter)
