"""Gates in a frozen network, steered by its saliency (Ganjdanesh, main text, Eq. 11)."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypedDict, Unpack, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sparselib.batches import Batch
from sparselib.datasets import Samples, Split
from sparselib.modes import in_evaluation
from sparselib.nn.gate import ChannelGate, Channels
from sparselib.training import (
    FitOptions,
    History,
    LoopOptions,
    accuracy,
    fit,
)

from .channels import Operations, operations, prunable, resource, width


@runtime_checkable
class Explaining(Protocol):
    """What steers: a selector, as `sparselib.saliency.Selector` is one."""

    @property
    def classifier(self) -> nn.Module:
        """The network that it explains."""

    @property
    def decoder(self) -> nn.Module:
        """Makes numbers of scales and labels."""

    def explains(self, classifier: nn.Module, /) -> bool:
        """Whether this is a selector of that very network."""

    def of(self, classifier: nn.Module, /) -> "Explaining":
        """Return a selector with the same decoder for another network."""

    def read(self, x: Tensor, /) -> tuple[Tensor, list[Tensor]]:
        """Return the network's scores and its scales."""

    def numbers(self, x: Tensor, labels: Tensor, /) -> Tensor:
        """Return the numbers of each sample."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of a module."""

    def requires_grad_(self, requires_grad: bool) -> object:
        """As of a module."""

    def eval(self) -> object:
        """As of a module."""


class GateOptions(TypedDict, total=False):
    """What a `ChannelGate` takes besides its number of channels."""

    bias: float
    temperature: float
    noise: str
    std: float
    generator: torch.Generator | None
    device: torch.device | str | None
    dtype: torch.dtype | None


class GateTrainingOptions(LoopOptions, total=False):
    """What `train_gates` takes besides what `prune` decides itself."""

    gamma_1: float
    gamma_2: float
    labels: bool
    statistics: str
    seed: int


class Gates(nn.Module):
    """A gate for every prunable channel of a network, in front of the layer that reads it.

    Parameters
    ----------
    model : nn.Module
        The network whose channels are gated; it is not kept and not changed.
    groups : sequence of Channels, optional
        ``model.prunable()`` by default.
    **options
        Passed on to `ChannelGate`.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Channels] | None = None,
        **options: Unpack[GateOptions],
    ) -> None:
        super().__init__()
        like = next(model.parameters())
        given: GateOptions = {
            "dtype": like.dtype,
            "device": like.device,
            **options,
        }
        self.groups = prunable(model) if groups is None else list(groups)
        self.gates = nn.ModuleList(
            ChannelGate(width(model, group), **given) for group in self.groups
        )

    def each(self) -> list[ChannelGate]:
        """Return the gates, one module per group."""
        return [gate for gate in self.gates if isinstance(gate, ChannelGate)]

    def scores(self) -> list[Float[Tensor, "_"]]:
        """Return theta of each group."""
        return [gate.theta.detach() for gate in self.each()]

    def draw(
        self, generator: torch.Generator | None = None
    ) -> list[Float[Tensor, "_"]]:
        """Sample all gates anew and return them."""
        return [gate.draw(generator) for gate in self.each()]

    def set(self, opened: Sequence[Tensor]) -> None:
        """Set all gates, with booleans or numbers."""
        for gate, value in zip(self.each(), opened, strict=True):
            gate.open = value.to(gate.theta)

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[nn.Module]:
        """Put the gates into a network for the time of a ``with`` block."""
        hooks = [
            model.get_submodule(group.read).register_forward_pre_hook(
                lambda layer, inputs, gate=gate: (gate(inputs[0]), *inputs[1:])
            )
            for group, gate in zip(self.groups, self.each())
        ]
        try:
            yield model
        finally:
            for hook in hooks:
                hook.remove()


def train_gates(
    gates: Gates,
    model: nn.Module,
    data: Split,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    explain: Explaining | None = None,
    flops: float = 0.5,
    gamma_1: float = 0.5,
    gamma_2: float = 10.0,
    labels: bool = True,
    statistics: str = "stored",
    counts: Operations | None = None,
    seed: int = 0,
    **options: Unpack[FitOptions],
) -> History:
    r"""Learn which gates close (Ganjdanesh, main text, Eq. 11).

    .. math:: L(f(x; W, v), y) + \gamma_1 \lVert u(x, y; v) - u(x, y; 1) \rVert^2
       + \gamma_2 R_{res}(T(v), p T)

    with the cross-entropy L, the mean squared change of the selector's numbers u, and T all
    multiply-accumulates. Only the gates learn: weights are frozen. Gates are soft where features
    pass and rounded, with the gradient of the soft ones, where operations are counted; both are
    the same draw.

    Parameters
    ----------
    gates : Gates
        Trained in place.
    model : nn.Module
        The network; left as it is.
    data : Split
        The images to prune by, 5 % of the training images in the paper.
    optimizer : torch.optim.Optimizer
        Of the gates. With Adam a gate closes after about b / lr steps.
    epochs : int
        Passes over the images.
    explain : Selector, optional
        Without one there is no second term.
    flops : float
        p, the share of multiply-accumulates that may stay.
    gamma_1, gamma_2 : float
        Weights; 0.5 and 2.0 in the paper. With 2.0 the cross-entropy holds gates open far above the
        target, and a budget then closes channels that the loss wants: the default is larger.
    labels : bool
        Whether the first term is there; it is not in the released code's default.
    statistics : {"stored", "batch"}
        What normalizations use: the stored statistics, as in the paper, or those of the batch.
    counts : Operations, optional
        What `operations` returns for this network and these gates; counted here by default.
    seed : int
        Fixes the noise and the order of the images.
    **options
        Passed on to `fit`.

    Returns
    -------
    dict of list
        As `fit` does; ``accuracy`` is that of the network with rounded gates without noise.

    Raises
    ------
    ValueError
        If the selector explains another network, or an option is unknown.
    """
    if statistics not in ("stored", "batch"):
        raise ValueError(
            f"statistics are 'stored' or of the 'batch', not {statistics!r}"
        )
    check_explains(explain, model)
    if counts is None:
        counts = operations(model, tuple(data.train.x.shape[1:]), gates.groups)
    ours = copy.deepcopy(None if explain is None else explain.of(model))
    if ours is None:
        network = copy.deepcopy(model).requires_grad_(False).eval()
        wanted = None
    else:
        ours.requires_grad_(False)
        network = ours.classifier
        wanted = _numbers(ours, data.train)
    network.train(statistics == "batch")
    generator = torch.Generator().manual_seed(seed)
    target = flops * counts.full()

    def loss(gates: Gates, batch: Batch) -> Tensor:
        opened = gates.draw(generator)
        with gates.inside(network):
            scores, scales = (
                (network(batch.x), []) if ours is None else ours.read(batch.x)
            )
        total = gamma_2 * resource(_spent(counts, opened), target).to(scores)
        if labels:
            total = total + functional.cross_entropy(scores, batch.y)
        if ours is not None and wanted is not None and gamma_1:
            numbers = ours.decoder(scales, batch.y)
            total = total + gamma_1 * functional.mse_loss(
                numbers, wanted[batch.indices]
            )
        return total

    def measure(gates: Gates, samples: Samples) -> dict[str, float]:
        gates.set(
            [gate.theta.detach() + gate.bias > 0 for gate in gates.each()]
        )
        with gates.inside(network), in_evaluation(network):
            return accuracy(network, samples)

    given: FitOptions = {"measure": measure, **options}
    return fit(gates, data, optimizer, epochs, loss=loss, seed=seed, **given)


def check_explains(explain: Explaining | None, model: nn.Module) -> None:
    """Refuse a selector that was trained for another network."""
    if explain is not None and not explain.explains(model):
        raise ValueError(
            "this selector was trained for another classifier: its copy of the weights differs "
            "from those of the network to prune. Train a selector for this network, or pass the "
            "network that the selector was made from"
        )


def _spent(counts: Operations, opened: Sequence[Tensor]) -> Tensor:
    rounded = [(v > 0.5).to(v) - v.detach() + v for v in opened]
    return counts.total([v.sum() for v in rounded])


@torch.no_grad()
def _numbers(selector: Explaining, samples: Samples) -> Tensor:
    selector.eval()
    like = next(selector.parameters())
    parts = zip(samples.x.split(200), samples.y.split(200))
    return torch.cat(
        [selector.numbers(x.to(like), y.to(like.device)) for x, y in parts]
    )
