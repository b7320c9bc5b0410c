"""What makes a layer evolvable: four names, and no base class."""

from typing import Any

from torch import nn


def is_evolvable(module: nn.Module) -> bool:
    """Tell whether a module offers `positions`, `values`, `shape` and `rewire`."""
    return all(hasattr(module, name) for name in ("positions", "values", "shape", "rewire"))


def evolvable_layers(model: nn.Module) -> dict[str, Any]:
    """Return the evolvable layers of a model by name, in order."""
    return {name: module for name, module in model.named_modules() if is_evolvable(module)}
