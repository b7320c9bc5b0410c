"""Channels of any network, found by tracing it with the package torch-pruning."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from sparselib import cost
from sparselib.training import in_evaluation

STEPS = 12


def by_tracing(
    model: nn.Module,
    shape: tuple[int, ...],
    flops: float = 0.5,
    *,
    ignored: list[nn.Module] | None = None,
    importance: Callable[..., object] | None = None,
) -> nn.Module:
    """Return a smaller copy of any network, without a method `prunable` and without gates.

    Channels that depend on each other are found by the package torch-pruning (Fang and others,
    2023), which is not installed with this library: ``pip install torch-pruning``. The share of
    channels to remove, the same in each layer, is found by bisection.

    Parameters
    ----------
    model : nn.Module
        Left as it is; the copy has its mode.
    shape : tuple of int
        Of one input, without the batch.
    flops : float
        Share of the multiply-accumulates that may stay.
    ignored : list of nn.Module, optional
        Layers whose outputs must keep their width; by default the last linear layer.
    importance : callable, optional
        Of torch-pruning; the L1 norm by default.

    Raises
    ------
    ModuleNotFoundError
        If torch-pruning is not installed.
    ValueError
        If the target is out of range or lies below what tracing can remove, or the package takes
        channels out that the network still needs, as it does where shortcuts are padded.
    """
    if not 0 < flops <= 1:
        raise ValueError(
            f"flops is the share of operations that may stay, in (0, 1], not {flops}"
        )
    whole = cost.flops(model, (1, *shape))
    low = 0.0
    high = 1.0
    best: nn.Module = copy.deepcopy(model)
    if flops == 1:
        return best
    found = False
    for _ in range(STEPS):
        ratio = (low + high) / 2
        smaller = _pruned(model, shape, ratio, ignored, importance)
        if _checked(smaller, shape) <= flops * whole:
            best = smaller
            high = ratio
            found = True
        else:
            low = ratio
    if not found:
        raise ValueError(
            f"flops={flops} cannot be met: with nearly all channels removed more than that is left"
        )
    return best


def _checked(smaller: nn.Module, shape: tuple[int, ...]) -> int:
    try:
        return cost.flops(smaller, (1, *shape))
    except RuntimeError as error:
        raise ValueError(
            f"torch-pruning took channels out of this {type(smaller).__name__} that it still needs "
            f"({error}). Pass the layers around them as `ignored`, or give the network a method "
            f"`prunable` and use sparselib.prune"
        ) from error


def _pruned(
    model: nn.Module,
    shape: tuple[int, ...],
    ratio: float,
    ignored: list[nn.Module] | None,
    importance: Callable[..., object] | None,
) -> nn.Module:
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pruning by tracing needs the package torch-pruning: pip install torch-pruning"
        ) from error
    named = dict(model.named_modules())
    linear = [
        module for module in named.values() if isinstance(module, nn.Linear)
    ]
    fixed = linear[-1:] if ignored is None else ignored
    names = [
        name
        for name, module in named.items()
        if any(module is one for one in fixed)
    ]
    smaller = copy.deepcopy(model)
    first = next(smaller.parameters())
    example = torch.zeros((1, *shape), dtype=first.dtype, device=first.device)
    with in_evaluation(smaller):
        torch_pruning.pruner.MetaPruner(
            smaller,
            example,
            importance=importance
            or torch_pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=ratio,
            ignored_layers=[smaller.get_submodule(name) for name in names],
        ).step()
    return smaller
