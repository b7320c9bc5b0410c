"""Which modules of a row are computed at once, and how: what stands behind `fusion`."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

from sparselib import ops
from sparselib.csr import CSR
from sparselib.nn._known import (
    after_of,
    are_as_wide,
    has_hooks,
    is_activation,
    is_active_dropout,
    is_joined,
    is_of_batch,
    is_passed_over,
    is_unobserved,
    link_size,
    links,
    norm_of,
    normalizes,
    step_of,
)
from sparselib.nn._watch import keepers
from sparselib.nn.linear import CSRLinear
from sparselib.ops.between import scales_of
from sparselib.ops.carrying import at_once, through
from sparselib.ops.fused import passed, sequence
from sparselib.ops.normalization import normalized
from sparselib.ops.products import are_few

Activation = Callable[[Tensor], Tensor]


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
            is_unobserved(module)
            or (is_joined(module) and (run or not _changes_its_input(module)))
            or (run and (is_active_dropout(module) or is_of_batch(module)))
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
    """Split into single modules, sparse layers with a link between each two, and normalizations.

    With a normalization goes the activation behind it, where they are not part of a link. A link is
    a normalization, or an activation, or the first and then the second, perhaps with a
    dropout that works behind them; with `is_plain` a ReLU.
    """
    modules = [module for module in modules if not is_passed_over(module)]
    place = 0
    while place < len(modules):
        part = [modules[place]]
        place += 1
        if normalizes(part[0]):
            behind = modules[place : place + 1]
            if any(map(is_activation, behind)):
                part += behind
                place += 1
        while is_unobserved(part[-1]):
            size = link_size(modules, place, is_plain)
            link = modules[place : place + size + 1]
            if not size or len(link) == size or not is_unobserved(link[-1]):
                break
            part += link
            place += len(link)
        yield part


def _changes_its_input(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.ReLU | nn.SiLU | nn.LeakyReLU) and module.inplace
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


def _normalized(part: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply a normalization, and perhaps an activation behind it, by one kernel where it can be."""
    norm, *activation = part
    assert isinstance(norm, nn.LayerNorm | nn.BatchNorm1d)
    if x.ndim == 2 or (x.ndim > 2 and isinstance(norm, nn.LayerNorm)):
        of = after_of(activation)
        y = _by_samples(partial(normalized, norm=norm_of(norm), of=of), x)
        if y is not None:
            return y
    for module in part:
        x = _laid(module, x)
    return x


def _in_plain_parts(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply modules, layers with ReLU between them at once."""
    for part in parts(modules, is_plain=True):
        if normalizes(part[0]):
            x = _normalized(part, x)
        elif len(part) == 1:
            x = _laid(part[0], x)
        else:
            x = joined(part[::2], part[1], x)
    return x


def _passed(part: Sequence[nn.Module], x: Tensor) -> Tensor | None:
    """Return what layers and links make of x with a gradient, or None where no kernel does."""
    if all(type(module) in (CSRLinear, nn.ReLU) for module in part):
        return None
    if type(part[0]) is not CSRLinear:
        return None
    if x.ndim < 2 or not torch.is_grad_enabled():
        return None
    chain = links(part)
    if chain is None:
        return None
    layers, after = chain
    if not _fit(layers, int(x.shape[-1])) or any(map(keepers, layers)):
        return None
    if x.ndim > 2 and any(map(is_of_batch, part)):
        return None
    if not are_as_wide(after, layers):
        return None
    patterns, tensors = _weights(layers)
    learned = [tensor for tensor in tensors if tensor is not None]
    if ops.fast(x, *learned, *scales_of(after)) is None:
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
    if any(is_active_dropout(one) or is_of_batch(one) for one in run):
        return None
    if torch.is_grad_enabled() and any(
        parameter.requires_grad
        for module in run
        for parameter in module.parameters()
    ):
        return None
    if x.ndim < 2 or (x.ndim > 2 and any(map(_is_batch_norm, run))):
        return None
    return _by_samples(partial(through, [*map(step_of, run)]), x)


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm1d)


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
