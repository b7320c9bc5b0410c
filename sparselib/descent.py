"""Loss and gradients of a whole network of sparse layers in one call, where nobody looks inside."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sparselib.models.mlp import MLP
from sparselib.nn import fusion
from sparselib.nn._joining import (
    are_unobserved,
    has_hooks,
    is_every_module_observed,
    parts,
)
from sparselib.nn._watch import keepers
from sparselib.nn.linear import CSRLinear
from sparselib.ops.fused import descend


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
        with ``nn.ReLU`` between them, on the CPU, in float32.
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
    weights = [layer.weights for layer in layers]
    with torch.no_grad():
        found = descend(weights, x.flatten(1), labels, loss)
    if found is None:
        return None
    error, gradients = found
    parameters = [tensor for _, *tensors in weights for tensor in tensors]
    for parameter, gradient in zip(parameters, gradients):
        if parameter is not None:
            _accumulate(parameter, gradient)
    return error


def _chained(model: nn.Module) -> Sequence[CSRLinear] | None:
    """Return the layers of a model that is nothing else but these, with ReLU between them."""
    if has_hooks(model):
        return None
    if type(model) is MLP:
        layers = list(model.layers)
        is_plain = type(model.activation) is nn.ReLU
        is_whole = model.dropout.p == 0 or not model.training
        if not (is_plain and is_whole) or has_hooks(model.activation):
            return None
    elif type(model) in (nn.Sequential, fusion.Sequential):
        assert isinstance(model, nn.Sequential)
        modules = list(model)
        found = list(parts(modules[1:] if _flattens(model) else modules))
        if len(found) != 1:
            return None
        layers = found[0][::2]
    else:
        return None
    return layers if are_unobserved(layers) else None


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


def _is_free(layer: CSRLinear) -> bool:
    """Whether a layer learns, and nobody wants to see or change its gradients on their way."""
    if keepers(layer):
        return False
    _, values, bias = layer.weights
    return all(
        parameter.is_leaf
        and parameter.requires_grad
        and not parameter._backward_hooks
        for parameter in (values, bias)
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
