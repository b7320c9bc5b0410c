"""Channels of any network, found by tracing it with the package torch-pruning."""

import copy
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sparselib import cost
from sparselib.datasets import Samples
from sparselib.modes import in_evaluation
from sparselib.nn.gate import Channels

from .channels import prunable, width

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


def group_norms(
    model: nn.Module,
    shape: tuple[int, ...],
    groups: Sequence[Channels] | None = None,
) -> list[Float[Tensor, "_"]]:
    """Importance of channels by the weights of all layers that they touch (Fang and others, 2023).

    The norms of what writes a channel and of what reads it, averaged, and divided by their mean
    over the group, as the package torch-pruning does: scores for `structure`.

    Parameters
    ----------
    model : nn.Module
        Left as it is.
    shape : tuple of int
        Of one input, without the batch.
    groups : sequence of Channels, optional
        ``model.prunable()`` by default.

    Returns
    -------
    list of tensor
        One score per channel, for each group.

    Raises
    ------
    ModuleNotFoundError
        If torch-pruning is not installed.
    """
    package = _package()
    groups = prunable(model) if groups is None else groups
    norms = package.importance.GroupMagnitudeImportance(p=2)
    return _importances(copy.deepcopy(model), shape, groups, norms)


def taylor(
    model: nn.Module,
    samples: Samples,
    groups: Sequence[Channels] | None = None,
    *,
    batch_size: int = 250,
) -> list[Float[Tensor, "_"]]:
    r"""Importance of channels by what their weights do to the loss (Molchanov and others, 2019).

    :math:`\sum |w \, \partial L / \partial w|` over the layers' weights that write a channel and
    those that read it, averaged, and divided by the mean over the group, as the package
    torch-pruning does. L is the mean cross-entropy of the samples, in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        A classifier; left as it is. What its normalizations scale by is not counted.
    samples : Samples
        What the loss is measured on.
    groups : sequence of Channels, optional
        ``model.prunable()`` by default.
    batch_size : int
        Samples at a time.

    Returns
    -------
    list of tensor
        One score per channel, for each group, for `structure`.

    Raises
    ------
    ModuleNotFoundError
        If torch-pruning is not installed.
    """
    package = _package()
    groups = prunable(model) if groups is None else groups
    measured = copy.deepcopy(model).requires_grad_(True).eval()
    measured.zero_grad()
    like = next(measured.parameters())
    for x, y in zip(samples.x.split(batch_size), samples.y.split(batch_size)):
        logits = measured(x.to(like))
        loss = functional.cross_entropy(
            logits, y.to(like.device), reduction="sum"
        )
        (loss / len(samples)).backward()
    importance = package.importance.GroupTaylorImportance()
    shape = tuple(samples.x.shape[1:])
    return _importances(measured, shape, groups, importance)


def _importances(
    model: nn.Module,
    shape: tuple[int, ...],
    groups: Sequence[Channels],
    importance: Callable[..., Tensor],
) -> list[Tensor]:
    """Apply an importance of torch-pruning to groups of channels."""
    package = _package()
    like = next(model.parameters())
    example = torch.zeros((1, *shape), dtype=like.dtype, device=like.device)
    with in_evaluation(model):
        graph = package.DependencyGraph().build_dependency(model, example)
    scores = []
    for group in groups:
        layer = model.get_submodule(group.written[0])
        channels = list(range(width(model, group)))
        traced = graph.get_pruning_group(
            layer,
            graph.get_pruner_of_module(layer).prune_out_channels,
            channels,
        )
        scores.append(importance(traced).detach().cpu())
    return scores


def _package() -> ModuleType:
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pruning by tracing needs the package torch-pruning: pip install torch-pruning"
        ) from error
    return torch_pruning


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
    package = _package()
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
        package.pruner.MetaPruner(
            smaller,
            example,
            importance=importance
            or package.importance.MagnitudeImportance(p=1),
            pruning_ratio=ratio,
            ignored_layers=[smaller.get_submodule(name) for name in names],
        ).step()
    return smaller
