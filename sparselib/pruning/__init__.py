"""Pruning steered by saliency: gates learn which channels may go, and they go (Ganjdanesh)."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import nn

from sparselib.datasets import Split
from sparselib.nn.gate import Channels
from sparselib.pruning.channels import Operations as Operations
from sparselib.pruning.channels import cut as cut
from sparselib.pruning.channels import operations as operations
from sparselib.pruning.channels import ranks as ranks
from sparselib.pruning.channels import resource as resource
from sparselib.pruning.channels import structure as structure
from sparselib.pruning.gates import Explaining as Explaining
from sparselib.pruning.gates import Gates as Gates
from sparselib.pruning.gates import GateTrainingOptions
from sparselib.pruning.gates import check_explains as check_explains
from sparselib.pruning.gates import train_gates as train_gates
from sparselib.pruning.tracing import by_tracing as by_tracing
from sparselib.pruning.tracing import group_norms as group_norms
from sparselib.pruning.tracing import taylor as taylor


def prune(
    model: nn.Module,
    data: Split,
    *,
    explain: Explaining | None = None,
    flops: float = 0.5,
    lr: float = 0.02,
    epochs: int = 100,
    batch_size: int = 64,
    groups: Sequence[Channels] | None = None,
    gates: Gates | None = None,
    **options: Unpack[GateTrainingOptions],
) -> nn.Module:
    """Return a smaller network: gates are trained, and the channels of the lowest are cut out.

    Parameters
    ----------
    model : nn.Module
        A trained network that lists its channels in `prunable`; left as it is.
    data : Split
        The images to prune by.
    explain : Selector, optional
        A selector of this very network, which steers.
    flops : float
        Share of the multiply-accumulates that stay, above what one channel per group costs.
    lr, epochs, batch_size
        Of Adam. Gates begin at b = 3, so that lr times steps has to be about 10 to close any.
    groups : sequence of Channels, optional
        Which channels can leave together, for a network without the method `prunable`.
    gates : Gates, optional
        Gates of this network to train on; new ones by default.
    **options
        Passed on to `train_gates`: ``gamma_1``, ``gamma_2``, ``labels``, ``seed``, ...

    Returns
    -------
    nn.Module
        An ordinary module in the mode of `model`, to be fine-tuned. It costs at most `flops` of
        `model`, and as much less as is not enough for one more channel.

    Raises
    ------
    ValueError
        If the target cannot be met, or the selector explains another network.
    """
    gates = Gates(model, groups) if gates is None else gates
    counts = operations(model, tuple(data.train.x.shape[1:]), gates.groups)
    structure(
        [torch.zeros(n) for n in counts.sizes], counts, flops
    )  # refuses at once
    optimizer = torch.optim.Adam(gates.parameters(), lr)
    train_gates(
        gates,
        model,
        data,
        optimizer,
        epochs,
        explain=explain,
        flops=flops,
        batch_size=batch_size,
        counts=counts,
        **options,
    )
    return cut(model, structure(gates.scores(), counts, flops), gates.groups)
