"""Sparse linear layers one after the other, carried out at once where nobody looks in between."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeGuard, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from sparselib import ops
from sparselib.csr import CSR
from sparselib.nn._watch import keepers
from sparselib.nn.dropout import Dropout
from sparselib.nn.linear import CSRLinear
from sparselib.ops.fused import at_once, sequence
from sparselib.ops.products import are_few

Activation = Callable[[Tensor], Tensor]
Model = TypeVar("Model", bound=nn.Module)
ABSENT_IN_EVALUATION = (nn.Dropout, nn.AlphaDropout, Dropout)


@final
class Sequential(nn.Sequential):
    """An ``nn.Sequential`` that carries out its sparse linear layers at once.

    Where `CSRLinear` layers follow each other with one ``nn.ReLU`` between them, they are computed
    as one `chain`; what is between other layers, or has a hook, is called as ever. Dropouts are
    passed over where they do nothing. The state dictionary is that of an ``nn.Sequential``, and so
    are the results, to rounding; the random numbers of an active dropout may fall on other
    activations, as they follow the order of memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the modules in order."""
        if _is_every_module_observed():
            result: Tensor = super().forward(x)
            return result
        for part in _parts(list(self)):
            x = part[0](x) if len(part) == 1 else _joined(part[::2], part[1], x)
        return x


def fuse(model: Model) -> Model:
    """Have each ``nn.Sequential`` of a model carry out its sparse linear layers at once.

    Every module of exactly that type in which two `CSRLinear` follow each other with an
    ``nn.ReLU`` between them becomes a `sparselib.nn.Sequential`, in place: it is the same object,
    with the same modules, hooks and state dictionary.

    Parameters
    ----------
    model : nn.Module
        The model, or an ``nn.Sequential`` itself.

    Returns
    -------
    nn.Module
        The same model.

    Raises
    ------
    ValueError
        If there is no such place in the model.
    """
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.Sequential) and _has_a_chain(module)
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no nn.Sequential in which CSRLinear layers follow each "
            f"other with one nn.ReLU between them, so that nothing can be carried out at once"
        )
    for module in found:
        module.__class__ = Sequential
    return model


def apart(model: nn.Module, name: str) -> tuple[str, ...]:
    """Return why a sparse layer of a model is not computed together with the next one.

    Parameters
    ----------
    model : nn.Module
        The model.
    name : str
        The name of the layer in it.

    Returns
    -------
    tuple of str
        Sentences; none if the layer has no sparse layer beside it that it could be joined with.
    """
    layer = model.get_submodule(name)
    parent = model.get_submodule(name.rpartition(".")[0])
    if type(layer) is not CSRLinear or not isinstance(parent, nn.Sequential):
        return ()
    if type(parent) is nn.Sequential:
        part = next(part for part in _parts(list(parent)) if layer in part)
        if len(part) > 1:
            return ("sparselib.fuse joins it with its neighbors",)
    modules = list(parent)
    place = modules.index(layer)
    for beside in modules[place + 1 :], modules[:place][::-1]:
        kinds = [type(module) for module in beside]
        if CSRLinear in kinds:
            between = beside[: kinds.index(CSRLinear)]
            reasons = tuple(dict.fromkeys(_separations(layer, between)))
            return reasons or ("there is no nn.ReLU between it and another",)
    return ()


def _separations(
    layer: nn.Module, modules: Sequence[nn.Module]
) -> Iterator[str]:
    """What keeps a sparse layer from another one, with these modules between them."""
    for module in layer, *modules:
        name = type(module).__name__
        if has_hooks(module):
            yield f"a hook wants to see what the {name} does"
    for module in modules:
        name = type(module).__name__
        if type(module) in ABSENT_IN_EVALUATION:
            if module.training:
                yield f"the {name} between it and another works in training"
        elif type(module) is not nn.ReLU:
            yield f"no kernel does the {name} between it and another, only nn.ReLU"


def _has_a_chain(module: nn.Sequential) -> bool:
    """Whether sparse layers follow each other with one ReLU between them, dropouts aside."""
    if type(module) not in (nn.Sequential, Sequential):
        return False
    kinds = [type(part) for part in module]
    kinds = [kind for kind in kinds if kind not in ABSENT_IN_EVALUATION]
    triples = zip(kinds, kinds[1:], kinds[2:])
    return (CSRLinear, nn.ReLU, CSRLinear) in triples


def _parts(modules: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """Split into single modules, and sparse layers with a ReLU between each two of them."""
    part: list[nn.Module] = []
    for module in modules:
        if part and _is_passed_over(module):
            continue
        is_next = _is_plain_relu if len(part) % 2 else _is_unobserved
        if is_next(module):
            part.append(module)
            continue
        yield from _whole(part)
        part = []
        if _is_unobserved(module):
            part.append(module)
        else:
            yield [module]
    yield from _whole(part)


def _whole(part: list[nn.Module]) -> Iterator[list[nn.Module]]:
    """Yield a part that ends with a layer, and the activation behind it alone."""
    if len(part) % 2:
        yield part
    elif part:
        yield part[:-1]
        yield part[-1:]


def _is_passed_over(module: nn.Module) -> bool:
    return (
        type(module) in ABSENT_IN_EVALUATION
        and not module.training
        and not has_hooks(module)
    )


def _is_plain_relu(module: nn.Module) -> bool:
    return type(module) is nn.ReLU and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody wants to see or change what a module reads, returns or sends back."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def chain(
    layers: Sequence[nn.Module],
    activation: Activation,
    x: Float[Tensor, "*batch columns"],
) -> Float[Tensor, "*batch rows"]:
    """Apply layers with an activation between them; fused where that gives the same numbers.

    Fused means that biases and ReLU are part of the products and, without a gradient, that a few
    samples at a time walk through all layers without leaving the cache. It needs `CSRLinear`
    layers and ``nn.ReLU``, a backend with kernels of its own, and no hook on a layer. The watches
    of an evolution are served; `torch.compile` sees the layers one by one then.
    """
    # with one layer and few samples there is nothing to join, and the call's own time counts
    is_plain = (
        not (len(layers) == 1 and are_few(x))
        and isinstance(activation, nn.Module)
        and _is_plain_relu(activation)
        and not _is_every_module_observed()
        and _are_unobserved(layers)
    )
    apply = _joined if is_plain else _one_by_one
    return apply(layers, activation, x)


def _joined(
    layers: Sequence[nn.Module], activation: Activation, x: Tensor
) -> Tensor:
    """Apply layers that nobody observes with ReLU between them, at once where it can be."""
    # a size is a tensor while torch.jit traces
    if not (x.ndim >= 2 and _fit(layers, int(x.shape[-1]))):
        return _one_by_one(layers, activation, x)
    y = _at_once(layers, x if x.ndim == 2 else x.flatten(0, -2))
    if y is None:
        return _one_by_one(layers, activation, x)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], y.shape[-1])


def _at_once(layers: Sequence[CSRLinear], x: Tensor) -> Tensor | None:
    """Return the outputs of layers with ReLU between them, or None where no kernel does it."""
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
        return None
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


def _is_every_module_observed() -> bool:
    """Whether a hook of all modules is registered; torch 2.6 has no function that tells."""
    return bool(
        every_module._global_forward_hooks
        or every_module._global_forward_pre_hooks
        or every_module._global_backward_hooks
        or every_module._global_backward_pre_hooks
    )


def _fit(
    layers: Sequence[nn.Module], width: int
) -> TypeGuard[Sequence[CSRLinear]]:
    """Whether each sparse layer reads what the one before writes."""
    for layer in layers:
        if type(layer) is not CSRLinear or layer.in_features != width:
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
        and not has_hooks(layer)
        and not (
            layer.watches
            and layer.watches.references
            and torch.compiler.is_compiling()
        )
    )
