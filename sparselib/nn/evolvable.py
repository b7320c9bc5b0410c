"""What makes a layer evolvable: four names, and no base class."""

from typing import Any

import torch
from torch import Tensor, nn


def is_evolvable(module: nn.Module) -> bool:
    """Tell whether a module offers `positions`, `values`, `shape` and `rewire`."""
    return all(hasattr(module, name) for name in ("positions", "values", "shape", "rewire"))


@torch.no_grad()
def replace(layer: Any, positions: Tensor, values: Tensor, check: bool) -> None:
    """Rewire the layer's `csr` and fill in its values, whose number never changes."""
    if values.shape != layer.values.shape:
        raise ValueError(
            f"{layer.values.numel()} connections need as many values, not {tuple(values.shape)}"
        )
    layer.csr.rewire(positions, check)
    layer.values.copy_(values)


def evolvable_layers(model: nn.Module) -> dict[str, Any]:
    """Return the evolvable layers of a model by name, in order."""
    return {name: module for name, module in model.named_modules() if is_evolvable(module)}
