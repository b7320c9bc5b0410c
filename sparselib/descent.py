"""Loss and gradients of a whole network of sparse layers in one call, where nobody looks inside."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sparselib.csr import CSR
from sparselib.models.mlp import MLP
from sparselib.nn import fusion
from sparselib.nn._known import (
    are_as_wide,
    are_unobserved,
    has_hooks,
    is_every_module_observed,
    is_passed_over,
    links,
)
from sparselib.nn._watch import keepers
from sparselib.nn.linear import CSRLinear
from sparselib.ops.backends import After
from sparselib.ops.backends.cpu_batch import Moments
from sparselib.ops.between import keep_moments, scales_of
from sparselib.ops.descending import descend
from sparselib.ops.dispatch import note, noting

# weights of dense layers; with more the dense product is ahead
MOST_DENSE = 1 << 16
# layers, and what follows each but the last
Chain = tuple[list[nn.Module], list[After]]


def descended(
    model: nn.Module,
    x: object,
    labels: object,
    loss: str,
    indices: Tensor | None = None,
) -> Tensor | None:
    """Add a loss's gradients to those of a model, as ``loss.backward()`` does, and return the loss.

    One call of a kernel then does what autograd does in some forty, which is what a step of a small
    network costs. The numbers are the same to rounding, but that a dropout's may fall on other
    activations.

    Parameters
    ----------
    model : nn.Module
        `MLP`, or ``nn.Sequential`` with at most an ``nn.Flatten`` before its layers: `CSRLinear`
        with an ``nn.LayerNorm`` or ``nn.BatchNorm1d`` between them, or one of ``nn.ReLU``,
        ``nn.LeakyReLU``, ``nn.GELU``, ``nn.SiLU`` and ``nn.Tanh``, or the first and then the
        second, and perhaps a dropout behind it, on the CPU, in float32. Some may be an
        ``nn.Linear``, as a last one often is, if all of these have no more than 65,536 weights.
    x : Tensor, shape (samples, ...)
        Inputs, which need no gradient.
    labels : Tensor, int64, shape (samples,)
        Numbers of the classes.
    loss : {"cross-entropy", "squared error"}
        The mean over the batch of ``nn.functional.cross_entropy``, or of
        `sparselib.training.sigmoid_squared_error`.
    indices : Tensor, int64, shape (batch,), optional
        Which of the samples are the batch, counted from 0; by default all. The kernel reads them
        where they lie, so that nothing is gathered before.

    Returns
    -------
    Tensor or None
        The loss, a scalar without a graph. None, and nothing has changed, if it is no such model,
        there is no kernel here, or somebody sees or changes what happens between: hooks, an
        evolution that needs this step's inputs, autocast, anomaly detection. `obstacle` returns
        which. Nor if an index or a label is the number of nothing.
    """
    chain = _chain(model, x, labels)
    if isinstance(chain, str):
        return None
    layers, after = chain
    learned = [_learned(layer) for layer in layers]
    found = _by_kernel(learned, after, x, labels, loss, indices)
    if found is None:
        return None
    error, gradients, moments = found
    keep_moments(after, moments)
    parameters = [tensor for _, *tensors in learned for tensor in tensors]
    parameters += scales_of(after)
    for parameter, gradient in zip(parameters, gradients):
        if parameter is not None and parameter.requires_grad:
            _accumulate(parameter, gradient.view_as(parameter))
    return error


def obstacle(
    model: nn.Module,
    x: object,
    labels: object,
    loss: str = "cross-entropy",
) -> str:
    """Return why `descended` leaves a step to autograd, in a sentence; empty if it does not.

    Parameters
    ----------
    model, x, labels, loss
        As in `descended`. Nothing is changed.
    """
    chain = _chain(model, x, labels)
    if isinstance(chain, str):
        return chain
    learned = [_learned(layer) for layer in chain[0]]
    with noting() as ways, torch.random.fork_rng(devices=[]):
        found = _by_kernel(learned, chain[1], x, labels, loss)
    if found is not None:
        return ""
    if ways:
        return "a label is the number of no class"
    patterns = [csr for csr, *_ in learned]
    tensors = [tensor for _, *both in learned for tensor in both]
    with noting() as ways:
        note("", patterns, torch.as_tensor(x), *tensors)
    return next(
        iter(ways[0].obstacles),
        "the sizes do not fit, the labels are not int64 on the CPU, or the products take longer "
        "than their calls",
    )


def _by_kernel(
    learned: Sequence[tuple[CSR, Tensor, Tensor | None]],
    after: Sequence[After],
    x: object,
    labels: object,
    loss: str,
    indices: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], list[Moments]] | None:
    """Return the loss, its gradients and moments, or None where no kernel is for them."""
    assert isinstance(x, Tensor)
    assert isinstance(labels, Tensor)
    with torch.no_grad():
        weights = [(csr, w.flatten(), bias) for csr, w, bias in learned]
        return descend(weights, after, x.flatten(1), labels, loss, indices)


def _chain(model: nn.Module, x: object, labels: object) -> Chain | str:
    """Return the layers of a model whose step goes at once, or why it does not."""
    if not (isinstance(x, Tensor) and isinstance(labels, Tensor)):
        return "inputs and labels are not one tensor each"
    if x.ndim < 2 or x.requires_grad:
        return "the input has one dimension, or needs a gradient itself"
    if not torch.is_grad_enabled():
        return "gradients are switched off"
    if torch.is_anomaly_enabled() or is_every_module_observed():
        return (
            "anomaly detection, or a hook of all modules, looks at every step"
        )
    chain = _chained(model)
    if isinstance(chain, str):
        return chain
    if x.ndim > 2 and not _flattens(model):
        return "samples are no rows, and nothing flattens them"
    layers, after = chain
    constraints = [
        *map(_constraint, layers),
        *(_reason(one) for one in scales_of(after) if one.requires_grad),
    ]
    return next(filter(None, constraints), chain)


def _chained(model: nn.Module) -> Chain | str:
    """Return the layers of a model that is nothing else but these, and activations between them."""
    if has_hooks(model):
        return "a hook wants to see what the model does"
    if type(model) is MLP:
        modules: list[nn.Module] = []
        for layer in model.layers:
            modules += [layer, model.activation, model.dropout]
        modules = modules[:-2]
    elif type(model) in (nn.Sequential, fusion.Sequential):
        assert isinstance(model, nn.Sequential)
        modules = list(model)[1 if _flattens(model) else 0 :]
    else:
        return f"{type(model).__name__} is no MLP or nn.Sequential, whose order is known"
    modules = [one for one in modules if not is_passed_over(one)]
    if not modules or type(modules[-1]) not in (CSRLinear, nn.Linear):
        return "it does not end with a CSRLinear or nn.Linear"
    chain = links(modules)
    if chain is None:
        return (
            "between the layers is something else than a normalization, an activation and a "
            "dropout that kernels know, in this order, or a hook looks at it"
        )
    layers, after = chain
    reason = _obstacle_among(layers)
    if not reason and not are_as_wide(after, layers):
        reason = "a normalization has not as many features as the layer in front of it"
    return reason or chain


def _obstacle_among(layers: Sequence[nn.Module]) -> str:
    """Return why these are not sparse layers that nobody observes, and small dense ones."""
    sparse = [layer for layer in layers if type(layer) is CSRLinear]
    dense = [layer for layer in layers if type(layer) is nn.Linear]
    others = {type(layer).__name__ for layer in layers}
    others -= {CSRLinear.__name__, nn.Linear.__name__}
    if not sparse or len(sparse) + len(dense) < len(layers):
        return f"no layer is a CSRLinear, or there are others: {', '.join(sorted(others))}"
    if not are_unobserved(sparse) or any(map(has_hooks, dense)):
        return (
            "a hook, or another product than the sparse one, belongs to a layer"
        )
    if sum(layer.weight.numel() for layer in dense) > MOST_DENSE:
        return f"dense layers have more than {MOST_DENSE:,} weights"
    return ""


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


def _constraint(layer: nn.Module) -> str:
    """Return why the gradients of a layer are left to autograd, if they are."""
    if isinstance(layer, CSRLinear) and keepers(layer):
        return (
            "an evolution by gradient needs what the layers read in this step"
        )
    parameters = [one for one in _learned(layer)[1:] if one is not None]
    return next(filter(None, map(_reason, parameters)), "")


def _reason(parameter: Tensor) -> str:
    """Return why the gradient of a parameter is left to autograd, if it is."""
    if not (parameter.is_leaf and parameter.requires_grad):
        return "a parameter does not learn, or is computed from others"
    if parameter._backward_hooks:
        return "a hook wants to see or change the gradient of a parameter"
    return ""


def _accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """Add a gradient to a parameter's, and call who waits for that."""
    before = parameter.grad
    parameter.grad = gradient if before is None else before + gradient
    hooks: dict[int, Callable[[Tensor], None]] | None
    hooks = parameter._post_accumulate_grad_hooks
    for hook in list((hooks or {}).values()):
        hook(parameter)
