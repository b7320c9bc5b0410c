"""Which channels stay: operations as a function of the widths, and a budget for them."""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from sparselib import cost
from sparselib.nn.gate import Channels, Prunable


class Operations(NamedTuple):
    """Multiply-accumulates of a network as a function of how wide its prunable channels are.

    Parameters
    ----------
    layers : tuple
        For each layer its multiply-accumulates at full width, and which groups of channels they
        are proportional to.
    sizes : tuple of int
        Full width of each group.
    """

    layers: tuple[tuple[int, tuple[int, ...]], ...]
    sizes: tuple[int, ...]

    def count(self, widths: Sequence[int]) -> int:
        """Return the multiply-accumulates at these widths."""
        total = 0
        for macs, groups in self.layers:
            for group in groups:
                macs = macs * widths[group] // self.sizes[group]
            total += macs
        return total

    def total(self, widths: Sequence[Float[Tensor, ""]]) -> Float64[Tensor, ""]:
        """Return the same as a number that is differentiable in the widths."""
        shares = [
            width.double() / size for width, size in zip(widths, self.sizes)
        ]
        total = torch.zeros((), dtype=torch.float64)
        for macs, groups in self.layers:
            left = (shares[group].cpu() for group in groups)
            total = total + math.prod(left, start=float(macs))
        return total

    def full(self) -> int:
        """Return the multiply-accumulates of the whole network."""
        return sum(macs for macs, _ in self.layers)

    def least(self) -> int:
        """Return those that are left with one channel in every group."""
        return self.count([1] * len(self.sizes))


def operations(
    model: nn.Module,
    shape: tuple[int, ...],
    groups: Sequence[Channels] | None = None,
) -> Operations:
    """Count a network's multiply-accumulates, layer by layer, as `cost.flops` does.

    Unlike the released code, which counts the first convolution of each block only and so finds
    half of the operations gone before anything is pruned, this counts every layer.

    Parameters
    ----------
    model : nn.Module
        A network.
    shape : tuple of int
        Of one input, without the batch.
    groups : sequence of Channels, optional
        What may be pruned; ``model.prunable()`` by default.
    """
    groups = prunable(model) if groups is None else groups
    tied: dict[str, tuple[int, ...]] = {}
    for number, group in enumerate(groups):
        for name in (*group.written, group.read):
            tied[name] = (*tied.get(name, ()), number)
    table = cost.flops_of_layers(model, (1, *shape))
    layers = tuple((macs, tied.get(name, ())) for name, macs in table.items())
    return Operations(layers, tuple(width(model, group) for group in groups))


def prunable(model: nn.Module) -> list[Channels]:
    """Return the groups of channels that a model declares prunable."""
    if not isinstance(model, Prunable):
        raise ValueError(
            f"{type(model).__name__} has no method `prunable`, which lists the channels that can "
            f"leave together. Give it one that returns a list of sparselib.nn.Channels, or use "
            f"sparselib.pruning.by_tracing, which needs the package torch-pruning"
        )
    return list(model.prunable())


def width(model: nn.Module, group: Channels) -> int:
    """Return how many channels a group has."""
    return len(_weight(model.get_submodule(group.written[0])))


def resource(now: Float[Tensor, ""], target: float) -> Float[Tensor, ""]:
    r""":math:`\log(\max(x, y) / y)`: 0, without a gradient, up to the target (supplement, 3.2)."""
    return torch.log(now.clamp(min=target) / target)


def structure(
    scores: Sequence[Float[Tensor, "_"]], operations: Operations, flops: float
) -> list[Bool[Tensor, "_"]]:
    """Keep the channels of the highest scores that a budget of operations can pay for.

    The best channel of every group stays. The others come in the order of their scores; one that
    the rest of the budget cannot pay for is passed over. Nothing is random, and what
    remains of the budget pays for no further channel.

    Parameters
    ----------
    scores : sequence of tensor
        One number per channel, for each group; comparable between the groups.
    operations : Operations
        Of the network.
    flops : float
        Share of all multiply-accumulates that may stay, in (0, 1].

    Returns
    -------
    list of tensor
        For each group, which channels stay.

    Raises
    ------
    ValueError
        If the target lies below what cannot be pruned, or a score is not finite.
    """
    budget = _budget(operations, flops)
    _check_scores(scores, operations)
    keep = [_first_of_the_best(score) for score in scores]
    widths = [1] * len(keep)
    for group, channel in _by_score(scores):
        if keep[group][channel]:
            continue
        widths[group] += 1
        if operations.count(widths) <= budget:
            keep[group][channel] = True
        else:
            widths[group] -= 1
    return keep


def _first_of_the_best(score: Tensor) -> Tensor:
    """Return a mask of one channel: the first of those with the highest score."""
    mask = score == score.max()
    first = int(mask.nonzero()[0])
    mask[first + 1 :] = False
    return mask


def _by_score(scores: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Return all pairs (group, channel), the highest score first, then in order."""
    order = sorted(
        (-float(value), group, channel)
        for group, score in enumerate(scores)
        for channel, value in enumerate(score.tolist())
    )
    return [(group, channel) for _, group, channel in order]


def ranks(scores: Sequence[Float[Tensor, "_"]]) -> list[Float[Tensor, "_"]]:
    """Place of each channel in its own group, in (0, 1]: a budget keeps the same share of each."""
    places = [score.argsort().argsort() for score in scores]
    return [place.add(1).double() / len(place) for place in places]


def cut(
    model: nn.Module,
    keep: Sequence[Bool[Tensor, "_"]],
    groups: Sequence[Channels] | None = None,
) -> nn.Module:
    """Return a copy without the channels that do not stay: an ordinary, smaller network.

    Parameters
    ----------
    model : nn.Module
        Left as it is; the copy has its mode.
    keep : sequence of tensor
        For each group, which channels stay.
    groups : sequence of Channels, optional
        ``model.prunable()`` by default.

    Raises
    ------
    ValueError
        If the masks do not fit the groups, or no channel of a group would stay.
    """
    groups = prunable(model) if groups is None else groups
    if len(keep) != len(groups):
        raise ValueError(
            f"{len(groups)} groups of channels need as many masks, not {len(keep)}"
        )
    smaller = copy.deepcopy(model)
    for group, mask in zip(groups, keep):
        whole = width(model, group)
        if mask.shape != (whole,) or not mask.any():
            raise ValueError(
                f"the mask of {group.written[0]} has shape {tuple(mask.shape)} and keeps "
                f"{int(mask.sum())} channels: it needs one entry for each of {whole} and must "
                f"keep at least one, or nothing would pass"
            )
        kept = mask.nonzero().flatten()
        for name in group.written:
            _keep_written(smaller.get_submodule(name), kept)
        _keep_read(smaller.get_submodule(group.read), kept)
    return smaller


@torch.no_grad()
def _keep_written(layer: nn.Module, kept: Tensor) -> None:
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        if tensor.ndim:
            _replace(layer, name, tensor, kept.to(tensor.device), 0)
    count = len(kept)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.num_features = count
    elif isinstance(layer, nn.modules.conv._ConvNd):
        layer.out_channels = count
        if layer.groups > 1:
            layer.groups = layer.in_channels = count
    elif isinstance(layer, nn.Linear):
        layer.out_features = count


@torch.no_grad()
def _keep_read(layer: nn.Module, kept: Tensor) -> None:
    weight = _weight(layer)
    _replace(layer, "weight", weight, kept.to(weight.device), 1)
    size = "in_features" if isinstance(layer, nn.Linear) else "in_channels"
    setattr(layer, size, len(kept))


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _replace(
    layer: nn.Module, name: str, tensor: Tensor, kept: Tensor, axis: int
) -> None:
    left = tensor.detach().index_select(axis, kept).clone()
    if isinstance(tensor, nn.Parameter):
        left = nn.Parameter(left, requires_grad=tensor.requires_grad)
    setattr(layer, name, left)


def _budget(operations: Operations, flops: float) -> float:
    whole = operations.full()
    least = operations.least()
    if not 0 < flops <= 1 or flops * whole < least:
        raise ValueError(
            f"flops={flops} cannot be met: it is the share of {whole:,} multiply-accumulates that "
            f"stay, and {least:,} of them ({least / whole:.1%}) are left with one channel in every "
            f"group. Choose a number between {least / whole:.3f} and 1"
        )
    return flops * whole


def _check_scores(scores: Sequence[Tensor], operations: Operations) -> None:
    lengths = [len(score) for score in scores]
    if lengths != list(operations.sizes):
        raise ValueError(
            f"scores of {lengths} channels do not fit groups of {operations.sizes}"
        )
    if not all(torch.isfinite(score).all() for score in scores):
        raise ValueError(
            "a score is not finite: gates were trained at too high a learning rate"
        )
