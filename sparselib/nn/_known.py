"""What kernels know of modules: which ones stand between sparse layers, and what they do there."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from sparselib import ops
from sparselib.nn.dropout import Dropout
from sparselib.nn.linear import CSRLinear
from sparselib.ops.backends import After, Between, Norm
from sparselib.ops.carrying import Step

ABSENT_IN_EVALUATION = (nn.Dropout, nn.AlphaDropout, Dropout)
ACTIVATIONS = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Tanh: "tanh"}
# what kernels know in training, too
LINKS = (*ACTIVATIONS, nn.LeakyReLU, nn.GELU)
KNOWN = (*LINKS, nn.LayerNorm, nn.BatchNorm1d)
# of what they compute with
KERNELS: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
GELUS = {"none": "gelu", "tanh": "gelu of tanh"}  # by what it approximates by


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
        after.append(after_of(modules[place : place + size]))
        layers.append(modules[place + size])
        place += size + 1
    return layers, after


def are_as_wide(after: Sequence[After], layers: Sequence[nn.Module]) -> bool:
    """Whether each normalization has as many features as the layer in front of it."""
    return all(
        of.norm is None or of.norm.scale.shape == (layer.out_features,)
        for of, layer in zip(after, layers)
    )


def link_size(
    modules: Sequence[nn.Module], place: int, is_plain: bool = False
) -> int:
    """Return how many modules from a place on are a link between two layers; 0 if there is none."""
    if place >= len(modules):
        return 0
    if is_plain:
        return int(is_plain_relu(modules[place]))
    size = int(normalizes(modules[place]))
    size += any(map(is_activation, modules[place + size : place + size + 1]))
    if size == 0:
        return 0
    dropouts = modules[place + size : place + size + 1]
    return size + any(map(is_active_dropout, dropouts))


def after_of(link: Sequence[nn.Module]) -> After:
    """Return what a link does."""
    after = After("nothing")
    for module in link:
        if isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
            after = after._replace(norm=norm_of(module))
        elif type(module) in LINKS:
            between = step_of(module)
            assert isinstance(between, Between)
            after = after._replace(kind=between.kind, number=between.number)
        else:
            after = after._replace(draw=_draw_of(module))
    return after


@torch.no_grad()
def step_of(module: nn.Module) -> Step:
    """Return a layer's weights, or what a known module does, as a kernel reads it."""
    if isinstance(module, CSRLinear):
        return module.weights
    if isinstance(module, nn.GELU):
        return Between(GELUS[module.approximate])
    if isinstance(module, nn.LeakyReLU):
        return Between("leaky relu", number=module.negative_slope)
    if isinstance(module, nn.LayerNorm):
        norm = norm_of(module)
        return Between("normalized", norm.scale, norm.shift, norm.epsilon)
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


def norm_of(module: nn.LayerNorm | nn.BatchNorm1d) -> Norm:
    """Return a normalization with numbers in place of parameters that it does not have."""
    width = (
        module.normalized_shape[0]
        if isinstance(module, nn.LayerNorm)
        else module.num_features
    )
    # where it learns none of the two torch has None, which its types do not say
    scale: Tensor | None = module.weight
    shift: Tensor | None = module.bias
    return Norm(
        torch.ones(width, **KERNELS) if scale is None else scale,
        torch.zeros(width, **KERNELS) if shift is None else shift,
        module.eps,
        partial(_remember, module)
        if isinstance(module, nn.BatchNorm1d)
        else None,
    )


@torch.no_grad()
def _remember(module: nn.BatchNorm1d, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics of a normalization toward those of a batch."""
    if not module.training or module.running_mean is None:
        return
    assert module.running_var is not None
    assert module.num_batches_tracked is not None
    module.num_batches_tracked.add_(1)
    share = module.momentum
    if share is None:
        share = 1 / float(module.num_batches_tracked)
    module.running_mean.lerp_(mean, share)
    module.running_var.lerp_(variance, share)


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


def is_activation(module: nn.Module) -> bool:
    """Whether it is one that kernels know in training, too, and nobody looks."""
    return type(module) in LINKS and not has_hooks(module)


def is_plain_relu(module: nn.Module) -> bool:
    """Whether it is a ReLU, and nobody looks."""
    return type(module) is nn.ReLU and not has_hooks(module)


def is_layer_norm(module: nn.Module) -> bool:
    """Whether it normalizes the features of each sample, and nobody looks."""
    return type(module) is nn.LayerNorm and is_joined(module)


def is_of_batch(module: nn.Module) -> bool:
    """Whether a module normalizes by the batch, and nobody looks."""
    return (
        type(module) is nn.BatchNorm1d
        and (module.training or module.running_mean is None)
        and not has_hooks(module)
    )


def normalizes(module: nn.Module) -> bool:
    """Whether a module has a kernel of its own in training, and nobody looks."""
    return is_layer_norm(module) or is_of_batch(module)


def is_active_dropout(module: nn.Module) -> bool:
    """Whether a dropout works in training as kernels know it, and nobody looks."""
    return (
        isinstance(module, nn.Dropout | Dropout)
        and type(module) in (nn.Dropout, Dropout)
        and module.training
        and 0 < module.p < 1
        and not has_hooks(module)
    )


def is_passed_over(module: nn.Module) -> bool:
    """Whether a dropout does nothing, and nobody looks."""
    return (
        isinstance(module, ABSENT_IN_EVALUATION)
        and type(module) in ABSENT_IN_EVALUATION
        and (not module.training or module.p == 0)
        and not has_hooks(module)
    )


def is_unobserved(layer: nn.Module) -> bool:
    """Whether it is a sparse layer with kernels, and nobody looks at what it returns."""
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
    return all(map(is_unobserved, layers))


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody wants to see or change what a module reads, returns or sends back."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_every_module_observed() -> bool:
    """Whether a hook of all modules is registered; torch 2.6 has no function that tells."""
    return bool(
        every_module._global_forward_hooks
        or every_module._global_forward_pre_hooks
        or every_module._global_backward_hooks
        or every_module._global_backward_pre_hooks
    )
