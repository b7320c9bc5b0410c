"""Which modules of a row are computed at once, and how: what stands behind `fusion`."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from sparselib import ops
from sparselib.csr import CSR
from sparselib.nn._watch import keepers
from sparselib.nn.dropout import Dropout
from sparselib.nn.linear import CSRLinear
from sparselib.ops.backends import After, Between
from sparselib.ops.fused import Step, at_once, passed, sequence, through
from sparselib.ops.products import are_few

Activation = Callable[[Tensor], Tensor]
ABSENT_IN_EVALUATION = (nn.Dropout, nn.AlphaDropout, Dropout)
ACTIVATIONS = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Tanh: "tanh"}
# what kernels know in training, too
LINKS = (*ACTIVATIONS, nn.LeakyReLU, nn.GELU)
KNOWN = (*LINKS, nn.LayerNorm, nn.BatchNorm1d)
GELUS = {"none": "gelu", "tanh": "gelu of tanh"}  # by what it approximates by


def applied_in_order(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply modules in order, at once where that can be done."""
    for run in runs(modules):
        x = _applied(run, x)
    return x


def runs(modules: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """Split into single modules, and runs of what kernels know, of two sparse layers or more."""
    run: list[nn.Module] = []
    for module in modules:
        if run and is_passed_over(module):
            continue
        if (
            _is_unobserved(module)
            or (is_joined(module) and (run or not _changes_its_input(module)))
            or (run and is_active_dropout(module))
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


def parts(
    modules: Sequence[nn.Module], is_plain: bool = False
) -> Iterator[list[nn.Module]]:
    """Split into single modules, and sparse layers with a link between each two of them.

    A link is an activation, perhaps with a dropout that works behind it; with `is_plain` a ReLU.
    """
    modules = [module for module in modules if not is_passed_over(module)]
    place = 0
    while place < len(modules):
        part = [modules[place]]
        place += 1
        while _is_unobserved(part[-1]):
            size = link_size(modules, place, is_plain)
            link = modules[place : place + size + 1]
            if not size or len(link) == size or not _is_unobserved(link[-1]):
                break
            part += link
            place += len(link)
        yield part


def link_size(
    modules: Sequence[nn.Module], place: int, is_plain: bool = False
) -> int:
    """Return how many modules from a place on are a link between two layers; 0 if there is none."""
    if place >= len(modules):
        return 0
    activation = modules[place]
    if is_plain:
        return int(is_plain_relu(activation))
    if type(activation) not in LINKS or has_hooks(activation):
        return 0
    dropouts = modules[place + 1 : place + 2]
    return 1 + any(map(is_active_dropout, dropouts))


def links(
    modules: Sequence[nn.Module],
) -> tuple[list[nn.Module], list[After]] | None:
    """Return layers and what follows each but the last, or None if there are no links between."""
    layers = [*modules[:1]]
    after: list[After] = []
    place = 1
    while place < len(modules):
        size = link_size(modules, place)
        if not size or place + size >= len(modules):
            return None
        activation, *dropout = modules[place : place + size]
        between = _step(activation)
        assert isinstance(between, Between)
        draw = _draw_of(dropout[0]) if dropout else None
        after.append(After(between.kind, between.number, draw))
        layers.append(modules[place + size])
        place += size + 1
    return layers, after


def _draw_of(dropout: nn.Module) -> Callable[[int, int], Tensor]:
    """Return what draws the factors of a dropout, in the order of memory of a layer's outputs."""
    if isinstance(dropout, Dropout):
        factors = dropout.factors
        return lambda *shape: factors(torch.empty(shape, device="cpu"))
    assert isinstance(dropout, nn.Dropout)
    return partial(_drawn, 1 - dropout.p)


def _drawn(kept: float, features: int, samples: int) -> Tensor:
    """Draw 1 / kept with probability kept, and 0 otherwise, as torch does."""
    draws = torch.empty(features, samples, device="cpu")
    return draws.bernoulli_(kept).div_(kept)


def is_known(module: nn.Module) -> bool:
    """Whether a kernel does what this module does."""
    if type(module) not in KNOWN:
        return False
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape) == 1
    if isinstance(module, nn.BatchNorm1d):
        return not module.training and module.running_mean is not None
    return True


def is_joined(module: nn.Module) -> bool:
    """Whether a kernel does what this module does, and nobody looks."""
    return is_known(module) and not has_hooks(module)


def _changes_its_input(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.ReLU | nn.SiLU | nn.LeakyReLU) and module.inplace
    )


def is_passed_over(module: nn.Module) -> bool:
    """Whether a dropout does nothing, and nobody looks."""
    return (
        isinstance(module, ABSENT_IN_EVALUATION)
        and type(module) in ABSENT_IN_EVALUATION
        and (not module.training or module.p == 0)
        and not has_hooks(module)
    )


def is_active_dropout(module: nn.Module) -> bool:
    """Whether a dropout works in training as kernels know it, and nobody looks."""
    return (
        isinstance(module, nn.Dropout | Dropout)
        and type(module) in (nn.Dropout, Dropout)
        and module.training
        and 0 < module.p < 1
        and not has_hooks(module)
    )


def is_plain_relu(module: nn.Module) -> bool:
    """Whether it is a ReLU, and nobody looks."""
    return type(module) is nn.ReLU and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody wants to see or change what a module reads, returns or sends back."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


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


def are_unobserved(
    layers: Sequence[nn.Module],
) -> TypeGuard[Sequence[CSRLinear]]:
    """Whether these are sparse layers with kernels, and nobody looks at what each returns."""
    return all(map(_is_unobserved, layers))


def is_every_module_observed() -> bool:
    """Whether a hook of all modules is registered; torch 2.6 has no function that tells."""
    return bool(
        every_module._global_forward_hooks
        or every_module._global_forward_pre_hooks
        or every_module._global_backward_hooks
        or every_module._global_backward_pre_hooks
    )


def _applied(run: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply a run, at once where that can be done."""
    if len(run) == 1:
        return _laid(run[0], x)
    if any(type(module) not in (CSRLinear, nn.ReLU) for module in run):
        first = 0
        while are_few_for(run, x) and type(run[first]) is not CSRLinear:
            x = run[first](x)
            first += 1
        run = run[first:]
        y = carried(run, x)
        if y is not None:
            return y
    for part in parts(run):
        y = _passed(part, x)
        x = _in_plain_parts(part, x) if y is None else y
    return x


def _in_plain_parts(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply modules, layers with ReLU between them at once."""
    for part in parts(modules, is_plain=True):
        x = (
            _laid(part[0], x)
            if len(part) == 1
            else joined(part[::2], part[1], x)
        )
    return x


def _passed(part: Sequence[nn.Module], x: Tensor) -> Tensor | None:
    """Return what layers and links make of x with a gradient, or None where no kernel does."""
    if all(type(module) in (CSRLinear, nn.ReLU) for module in part):
        return None
    if x.ndim < 2 or not torch.is_grad_enabled():
        return None
    chain = links(part)
    if chain is None:
        return None
    layers, after = chain
    if not _fit(layers, int(x.shape[-1])) or any(map(keepers, layers)):
        return None
    patterns, tensors = _weights(layers)
    if (
        ops.fast(x, *(tensor for tensor in tensors if tensor is not None))
        is None
    ):
        return None
    return _by_samples(partial(passed, patterns, tensors, after), x)


def are_few_for(modules: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether a call's own time counts, for so many samples as x has and the layers among these."""
    layers = (one for one in modules if type(one) is CSRLinear)
    return are_few(x, sum(layer.weights[0].nnz for layer in layers))


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


def carried(run: Sequence[nn.Module], x: Tensor) -> Tensor | None:
    """Return what a run makes of x without a gradient, or None where no kernel does all of it."""
    if any(map(is_active_dropout, run)):
        return None
    if torch.is_grad_enabled() and any(
        parameter.requires_grad
        for module in run
        for parameter in module.parameters()
    ):
        return None
    if x.ndim < 2 or (x.ndim > 2 and any(map(_is_batch_norm, run))):
        return None
    return _by_samples(partial(through, [*map(_step, run)]), x)


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm1d)


@torch.no_grad()
def _step(module: nn.Module) -> Step:
    """Return a layer's weights, or what a known module does, as a kernel reads it."""
    if isinstance(module, CSRLinear):
        return module.weights
    if isinstance(module, nn.GELU):
        return Between(GELUS[module.approximate])
    if isinstance(module, nn.LeakyReLU):
        return Between("leaky relu", number=module.negative_slope)
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


def joined(
    layers: Sequence[nn.Module], activation: Activation, x: Tensor
) -> Tensor:
    """Apply layers that nobody observes with ReLU between them, at once where it can be."""
    # a size is a tensor while torch.jit traces
    if not (x.ndim >= 2 and _fit(layers, int(x.shape[-1]))):
        return one_by_one(layers, activation, x)
    y = _by_samples(partial(_at_once, layers), x)
    return one_by_one(layers, activation, x) if y is None else y


def _by_samples(
    compute: Callable[[Tensor], Tensor | None], x: Tensor
) -> Tensor | None:
    """Compute on samples (samples, features), whatever dimensions x has before its last one."""
    if x.ndim == 2:
        return compute(x)
    y = compute(x.flatten(0, -2))
    return y if y is None else y.reshape(*x.shape[:-1], y.shape[-1])


def _at_once(layers: Sequence[CSRLinear], x: Tensor) -> Tensor | None:
    """Return the outputs of layers with ReLU between them, or None where no kernel does it."""
    patterns, tensors = _weights(layers)
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


def _weights(
    layers: Sequence[CSRLinear],
) -> tuple[list[CSR], list[Tensor | None]]:
    """Return the connections of layers, and their values and biases in turn."""
    patterns: list[CSR] = []
    tensors: list[Tensor | None] = []
    for layer in layers:
        csr, values, bias = layer.weights
        patterns.append(csr)
        tensors.append(values)
        tensors.append(bias)
    return patterns, tensors


def one_by_one(
    layers: Sequence[nn.Module], activation: Activation, x: Tensor
) -> Tensor:
    """Apply layers with an activation between them, each by its own call."""
    for layer in layers[:-1]:
        x = activation(layer(x))
    return layers[-1](x)


def _fit(
    layers: Sequence[nn.Module], width: int
) -> TypeGuard[Sequence[CSRLinear]]:
    """Whether each sparse layer reads what the one before writes."""
    for layer in layers:
        if type(layer) is not CSRLinear or layer.in_features != width:
            return False
        width = layer.out_features
    return True
