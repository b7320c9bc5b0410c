"""From what a watch has kept to the gradient that the optimizer uses.

Batches are brought to the type of the values and joined. Their scale is found by comparison: the
gradient that they give at some connections is set against the one that the optimizer saw there,
which `GradScaler` has unscaled, clipping shortened and averaging divided. The factor between
the two belongs to every other cell as well.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparselib.evolution import grow as grows
from sparselib.nn.sparse_layer import SparseLayer

# neurons at whose connections the two gradients are compared
COMPARED_NEURONS = 8
# of the angle between the two: above it they are the same gradient but for rounding
SAME_DIRECTION = 0.999


class Scale(NamedTuple):
    """How the gradient of the optimizer relates to the gathered one.

    Attributes
    ----------
    factor : Tensor, shape ()
        Least squares: optimizer's is about factor times gathered.
    cosine : Tensor, shape ()
        Of the angle between both; 1 where one is a multiple of the other.
    gathered, used : Tensor, shape ()
        Their squared norms at the connections compared.
    """

    factor: Tensor
    cosine: Tensor
    gathered: Tensor
    used: Tensor


def joined(
    layer: SparseLayer, found: Sequence[grows.Batch]
) -> list[grows.Batch]:
    """Return batches in the values' type, as few as there are sizes of a sample."""
    values = layer.values
    sizes: dict[tuple[torch.Size, torch.Size], list[grows.Batch]] = {}
    for inputs, costs in found:
        own = (
            layer.batched(inputs.to(values.device, values.dtype)),
            layer.batched(costs.to(values.device, values.dtype)),
        )
        sizes.setdefault((own[0].shape[1:], own[1].shape[1:]), []).append(own)
    return [
        alike[0]
        if len(alike) == 1
        else (
            torch.cat([x for x, _ in alike]),
            torch.cat([c for _, c in alike]),
        )
        for alike in sizes.values()
    ]


def with_batches(
    context: grows.Context, found: Sequence[grows.Batch]
) -> grows.Context:
    """Return the context that holds these batches."""
    if not found:
        return context
    (inputs, costs), *further = found
    return context._replace(inputs=inputs, costs=costs, further=tuple(further))


def scale_of(
    layer: SparseLayer, context: grows.Context, gradient: Tensor
) -> Scale:
    """Compare the gathered gradient with `gradient` at the connections of the costliest neurons.

    Nothing is looked at; all sizes are known beforehand.
    """
    rows, columns = layer.shape
    positions = layer.positions
    row = positions // max(columns, 1)
    is_connected = torch.zeros(rows, device=row.device).index_fill_(0, row, 1.0)
    costs = grows.neuron_costs(context) * is_connected
    order = torch.sort(costs, descending=True, stable=True).indices
    neurons = order[:COMPARED_NEURONS]
    block = grows.gradient(layer, context, neurons)
    place = row.new_full((rows,), len(neurons))
    place.scatter_(0, neurons, torch.arange(len(neurons), device=row.device))
    padded = torch.cat([block, block.new_zeros(1, columns)]).double()
    gathered = padded[place[row], positions % max(columns, 1)]
    used = context.average(gradient.detach()).double() * (
        place[row] < len(neurons)
    )
    product = gathered @ used
    squares = gathered @ gathered, used @ used
    cosine = product / (squares[0] * squares[1]).sqrt()
    return Scale(product / squares[0], cosine, *squares)


def rescaled(context: grows.Context, factor: Tensor | float) -> grows.Context:
    """Return the context with all costs times a factor."""
    if not isinstance(factor, Tensor) and factor == 1:
        return context
    assert context.costs is not None
    further = tuple(
        (inputs, costs * factor) for inputs, costs in context.further
    )
    return context._replace(costs=(context.costs * factor), further=further)


def factor_on_device(
    scale: Scale, before: Tensor | float, precision: float
) -> Tensor:
    """Return the factor to use, where nothing may be looked at."""
    is_known = (scale.factor > 0) & torch.isfinite(scale.factor)
    factor = torch.where(is_known, scale.factor, before)
    return torch.where((factor - 1).abs() < precision, 1.0, factor)


def factor_checked(scale: Scale, before: float, precision: float) -> float:
    """Return the factor to use; raise if the two gradients are not the same.

    Raises
    ------
    ValueError
        If the optimizer's gradient is zero and the gathered one is not.
    """
    gathered = float(scale.gathered)
    if gathered == 0:
        return before
    if float(scale.used) == 0:
        raise ValueError(
            "the gradient was set to zero in place before the evolution, so its scale is unknown; "
            "call step() before zero_grad(set_to_none=False), or let zero_grad set it to None"
        )
    cosine = float(scale.cosine)
    factor = float(scale.factor)
    if cosine < SAME_DIRECTION:
        warnings.warn(
            f"the gradient that the optimizer uses is not a multiple of the one that the layer's "
            f"inputs and costs give (cosine {cosine:.3f}), as with a penalty on the values, with "
            f"clipping of single entries or with gradients of gradients; growth sees the latter",
            stacklevel=2,
        )
        factor = factor if factor > 0 else before
    return 1.0 if abs(factor - 1) < precision else factor
