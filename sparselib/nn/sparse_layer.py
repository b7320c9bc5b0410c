"""What makes a layer evolvable: four names, and no base class."""

from typing import Any

import torch
from torch import Tensor, nn

from sparselib import topology
from sparselib.ranking import largest


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


def with_largest(kind: Any, dense: Any, sparsity: float | None, options: dict[str, Any]) -> Any:
    """Build a layer of a `kind` that keeps the largest weights of a dense one, and its bias.

    Without `sparsity`, exactly the nonzero weights are kept.
    """
    weight = dense.weight.detach()
    flat, columns = weight.flatten(), weight[0].numel()
    if sparsity is None:
        positions = flat.nonzero().flatten()
    else:
        positions = largest(flat.abs(), topology.connections(len(weight), columns, sparsity))
    layer = kind(
        **kind.arguments_of(dense),
        topology=lambda *_: positions,
        init=lambda values, *_: values.copy_(flat[positions]),
        **options,
    )
    if layer.bias is not None:
        layer.bias.data.copy_(dense.bias.detach())
    return layer.train(dense.training)


def evolvable_layers(model: nn.Module) -> dict[str, Any]:
    """Return the evolvable layers of a model by name, in order."""
    return {name: module for name, module in model.named_modules() if is_evolvable(module)}
