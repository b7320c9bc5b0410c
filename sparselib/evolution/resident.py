"""The algorithms that stay on the device, under their names: ``device_resident=True`` written out.

See `sparselib.evolution.on_device` for what that means.
"""

from typing import Unpack

import torch
from torch import nn

from sparselib.evolution import algorithms
from sparselib.evolution._options import SeededOptions, SETOptions
from sparselib.evolution.engine import Evolution


def GradientGrowth(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    fraction: float = 0.1,
    **options: Unpack[SeededOptions],
) -> Evolution:
    """Ertl's evolution (3.2.4), as `sparselib.GradientGrowth`."""
    return algorithms.GradientGrowth(
        model, optimizer, fraction, device_resident=True, **options
    )


def SET(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    fraction: float = 0.3,
    **options: Unpack[SETOptions],
) -> Evolution:
    """Sparse evolutionary training (Mocanu et al., 2018), as `sparselib.SET`."""
    return algorithms.SET(
        model, optimizer, fraction, device_resident=True, **options
    )


def RigL(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    fraction: float = 0.3,
    **options: Unpack[SeededOptions],
) -> Evolution:
    """Evci et al. (2020), as `sparselib.RigL`."""
    return algorithms.RigL(
        model, optimizer, fraction, device_resident=True, **options
    )
