"""Sparse linear layers one after the other, carried out at once where nobody looks in between."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from sparselib.ops.backends import Between
from sparselib.ops.fused import Step, at_once, sequence, through
from sparselib.ops.products import are_few

Activation = Callable[[Tensor], Tensor]
Model = TypeVar("Model", bound=nn.Module)
ABSENT_IN_EVALUATION = (nn.Dropout, nn.AlphaDropout, Dropout)
ACTIVATIONS = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Tanh: "tanh"}
KNOWN = (
    *ACTIVATIONS,
    nn.GELU,
    nn.LayerNorm,
    nn.BatchNorm1d,
)
# as torch's layers of encoders and decoders keep them
FUNCTIONS: dict[object, nn.Module] = {
    nn.functional.relu: nn.ReLU(),
    nn.functional.gelu: nn.GELU(),
}
GELUS = {"none": "gelu", "tanh": "gelu of tanh"}  # by what it approximates by


@final
class Sequential(nn.Sequential):
    """An ``nn.Sequential`` that carries out its sparse linear layers at once.

    Where `CSRLinear` layers follow each other with one ``nn.ReLU`` between them, they are computed
    as one `chain`. Without a gradient that is also done with ``nn.GELU``, ``nn.SiLU``, ``nn.Tanh``,
    ``nn.LayerNorm``, and in evaluation ``nn.BatchNorm1d``, between them, before and after. What is
    between other layers, or has a hook, is called as ever. Dropouts are passed over where they do
    nothing. The state dictionary is that of an ``nn.Sequential``, and so are the results, to
    rounding; the random numbers of an active dropout may fall on other activations, as they follow
    the order of memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the modules in order."""
        if _is_every_module_observed():
            result: Tensor = super().forward(x)
            return result
        return _through(list(self), x)


@final
class TransformerEncoderLayer(nn.TransformerEncoderLayer):
    """An ``nn.TransformerEncoderLayer`` whose feed-forward network is carried out at once."""

    def _ff_block(self, x: Tensor) -> Tensor:
        return _fed_forward(self, self.dropout2, x)


@final
class TransformerDecoderLayer(nn.TransformerDecoderLayer):
    """An ``nn.TransformerDecoderLayer`` whose feed-forward network is carried out at once."""

    def _ff_block(self, x: Tensor) -> Tensor:
        return _fed_forward(self, self.dropout3, x)


def _fed_forward(
    layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer,
    last: nn.Module,
    x: Tensor,
) -> Tensor:
    """Return what the feed-forward network of torch's layers makes of x."""
    activation = FUNCTIONS.get(layer.activation, layer.activation)
    if _is_every_module_observed() or not isinstance(activation, nn.Module):
        hidden = layer.dropout(layer.activation(layer.linear1(x)))
        result: Tensor = last(layer.linear2(hidden))
        return result
    parts = [layer.linear1, activation, layer.dropout, layer.linear2, last]
    return _through(parts, x)


def _through(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply modules in order, at once where that can be done."""
    for run in _runs(modules):
        x = _applied(run, x)
    return x


# torch's layers of which the feed-forward network is found, and what takes their place
FUSED = {
    nn.TransformerEncoderLayer: TransformerEncoderLayer,
    nn.TransformerDecoderLayer: TransformerDecoderLayer,
}


def fuse(model: Model) -> Model:
    """Have a model carry out sparse linear layers that follow each other at once.

    Every ``nn.Sequential`` of exactly that type in which two `CSRLinear` follow each other with
    nothing but what a kernel knows between them becomes a `sparselib.nn.Sequential`, and every
    ``nn.TransformerEncoderLayer`` and ``nn.TransformerDecoderLayer`` with a sparse feed-forward
    network likewise, in place: each is the same object, with the same modules, hooks and state
    dictionary.

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
    found = [module for module in model.modules() if _has_a_chain(module)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no nn.Sequential in which CSRLinear layers follow each "
            f"other with nothing between them but {_names(KNOWN)} or dropout, and no layer of an "
            f"encoder or decoder with two of them, so that nothing can be carried out at once"
        )
    for module in found:
        module.__class__ = FUSED.get(type(module), Sequential)
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
    modules = _in_order(parent)
    if type(layer) is not CSRLinear or layer not in modules:
        return ()
    if type(parent) is nn.Sequential or type(parent) in FUSED:
        run = next(run for run in _runs(modules) if layer in run)
        if torch.is_grad_enabled():
            run = next(part for part in _parts(run) if layer in part)
        if len(run) > 1:
            return ("sparselib.fuse joins it with its neighbors",)
    place = modules.index(layer)
    for beside in modules[place + 1 :], modules[:place][::-1]:
        kinds = [type(module) for module in beside]
        if CSRLinear in kinds:
            between = beside[: kinds.index(CSRLinear)]
            reasons = tuple(dict.fromkeys(_separations(layer, between)))
            return reasons or ("there is nothing between it and another",)
    return ()


def _in_order(parent: nn.Module) -> list[nn.Module]:
    """Return the modules that a parent applies one after the other, as far as that is known."""
    if isinstance(parent, nn.Sequential):
        return list(parent)
    kinds = nn.TransformerEncoderLayer | nn.TransformerDecoderLayer
    if not isinstance(parent, kinds):
        return []
    activation = FUNCTIONS.get(parent.activation, parent.activation)
    between = [activation] if isinstance(activation, nn.Module) else []
    return [parent.linear1, *between, parent.dropout, parent.linear2]


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
        if isinstance(module, ABSENT_IN_EVALUATION):
            if module.training and module.p > 0:
                yield f"the {name} between it and another works in training"
        elif not _is_known(module):
            yield f"no kernel does the {name} between it and another"
        elif type(module) is nn.ReLU:
            continue
        elif torch.is_grad_enabled():
            yield f"with a gradient no kernel does the {name} between it and another, only nn.ReLU"
        else:
            yield (
                f"with the {name} between it and another these samples are too few, or the weights "
                f"too many, to be carried through all layers at once"
            )


def _has_a_chain(module: nn.Module) -> bool:
    """Whether sparse layers follow each other with only known modules between, dropouts aside."""
    if type(module) in (*FUSED, *FUSED.values()):
        layers = module.linear1, module.linear2
        return all(type(layer) is CSRLinear for layer in layers)
    if type(module) not in (nn.Sequential, Sequential):
        return False
    assert isinstance(module, nn.Sequential)
    is_behind_a_layer = False
    has_any_between = False
    for part in module:
        if type(part) is CSRLinear:
            if is_behind_a_layer and has_any_between:
                return True
            is_behind_a_layer = True
            has_any_between = False
        elif type(part) in KNOWN:
            has_any_between = True
        elif type(part) not in ABSENT_IN_EVALUATION:
            is_behind_a_layer = False
    return False


def _names(kinds: Iterable[type]) -> str:
    return ", ".join(f"nn.{kind.__name__}" for kind in kinds)


def _runs(modules: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """Split into single modules, and runs of what kernels know, of two sparse layers or more."""
    run: list[nn.Module] = []
    for module in modules:
        if run and _is_passed_over(module):
            continue
        if _is_unobserved(module) or (
            _is_joined(module) and (run or not _changes_its_input(module))
        ):
            run.append(module)
            continue
        yield from _undivided(run)
        run = []
        yield [module]
    yield from _undivided(run)


def _undivided(run: list[nn.Module]) -> Iterator[list[nn.Module]]:
    """Yield a run with several sparse layers as it is, the modules of another one by one."""
    layers = [module for module in run if type(module) is CSRLinear]
    if len(layers) > 1:
        yield run
    else:
        yield from ([module] for module in run)


def _is_known(module: nn.Module) -> bool:
    """Whether a kernel does what this module does."""
    if type(module) not in KNOWN:
        return False
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape) == 1
    if isinstance(module, nn.BatchNorm1d):
        return not module.training and module.running_mean is not None
    return True


def _is_joined(module: nn.Module) -> bool:
    """Whether a kernel does what this module does, and nobody looks."""
    return _is_known(module) and not has_hooks(module)


def _changes_its_input(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU | nn.SiLU) and module.inplace


def _applied(run: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply a run, at once where that can be done."""
    if len(run) == 1:
        return _laid(run[0], x)
    if any(type(module) not in (CSRLinear, nn.ReLU) for module in run):
        first = 0
        while are_few(x) and type(run[first]) is not CSRLinear:
            x = run[first](x)
            first += 1
        run = run[first:]
        y = _carried(run, x)
        if y is not None:
            return y
    for part in _parts(run):
        x = (
            _laid(part[0], x)
            if len(part) == 1
            else _joined(part[::2], part[1], x)
        )
    return x


def _carried(run: Sequence[nn.Module], x: Tensor) -> Tensor | None:
    """Return what a run makes of x without a gradient, or None where no kernel does all of it."""
    if torch.is_grad_enabled() and any(
        parameter.requires_grad
        for module in run
        for parameter in module.parameters()
    ):
        return None
    if x.ndim < 2 or (x.ndim > 2 and any(map(_is_batch_norm, run))):
        return None
    flat = x if x.ndim == 2 else x.flatten(0, -2)
    y = through([*map(_step, run)], flat)
    if y is None or x.ndim == 2:
        return y
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm1d)


@torch.no_grad()
def _step(module: nn.Module) -> Step:
    """Return a layer's weights, or what a known module does, as a kernel reads it."""
    if isinstance(module, CSRLinear):
        return module.weights
    if isinstance(module, nn.GELU):
        return Between(GELUS[module.approximate])
    if isinstance(module, nn.LayerNorm):
        width = module.normalized_shape[0]
        # where it learns none of the two torch has None, which its types do not say
        weight: Tensor | None = module.weight
        bias: Tensor | None = module.bias
        return Between(
            "normalized",
            torch.ones(width) if weight is None else weight,
            torch.zeros(width) if bias is None else bias,
            module.eps,
        )
    if isinstance(module, nn.BatchNorm1d):
        mean = module.running_mean
        variance = module.running_var
        assert mean is not None
        assert variance is not None
        factor = (variance + module.eps).rsqrt()
        if module.weight is not None:
            factor = factor * module.weight
        rest = -mean * factor
        if module.bias is not None:
            rest = rest + module.bias
        return Between("scaled", factor, rest)
    return Between(ACTIVATIONS[type(module)])


def _laid(module: nn.Module, x: Tensor) -> Tensor:
    """Apply a module; a batch normalization to samples that lie side by side, as torch likes it."""
    is_turned = (
        type(module) is nn.BatchNorm1d
        and x.ndim == 2
        and len(x) > 1
        and x.stride() == (1, len(x))
        and not has_hooks(module)
    )
    y: Tensor = module(x.t().unsqueeze(0) if is_turned else x)
    return y.squeeze(0).t() if is_turned else y


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
        isinstance(module, ABSENT_IN_EVALUATION)
        and type(module) in ABSENT_IN_EVALUATION
        and (not module.training or module.p == 0)
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
    samples at a time walk through all layers, and the activations that a `Sequential` knows,
    without leaving the cache. It needs `CSRLinear` layers, a backend with kernels of its own, and
    no hook on a layer. The watches of an evolution are served; `torch.compile` sees the layers one
    by one then.
    """
    if not isinstance(activation, nn.Module) or not _is_joined(activation):
        return _one_by_one(layers, activation, x)
    # with one layer and few samples there is nothing to join, and the call's own time counts
    if (
        (len(layers) == 1 and are_few(x))
        or _is_every_module_observed()
        or not _are_unobserved(layers)
    ):
        return _one_by_one(layers, activation, x)
    if type(activation) is nn.ReLU:
        return _joined(layers, activation, x)
    run: list[nn.Module] = []
    for layer in layers:
        run += [layer, activation]
    y = _carried(run[:-1], x) if len(layers) > 1 else None
    return _one_by_one(layers, activation, x) if y is None else y


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
