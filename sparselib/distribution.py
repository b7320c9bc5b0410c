"""How a sparsity of a whole model is divided among its layers.

A distribution is a function ``(weights, sparsity) -> sparsities`` of the weight tensors of the
layers, (outputs, inputs, ...). A layer whose sparsity is 0 stays dense.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparselib.ranking import largest


def uniform(weights: Sequence[Tensor], sparsity: float) -> list[float]:
    """Give every layer the same sparsity."""
    _check(weights, sparsity)
    return [sparsity] * len(weights)


def erdos_renyi_kernel(
    weights: Sequence[Tensor], sparsity: float
) -> list[float]:
    r"""Give small layers more: a density in proportion to the sum of sizes over their product.

    .. math:: \rho^l = \epsilon \, \frac{n^{l-1} + n^l + w^l + h^l}{n^{l-1} n^l w^l h^l}

    of Evci et al. (2020), Section 3 (ERK); with matrices alone it is that of Mocanu et al. (2018).
    :math:`\epsilon` is such that the model has the sparsity asked for. Layers whose density would
    be above 1 stay dense, and the others share what is left.

    Raises
    ------
    ValueError
        If the sparsity is outside [0, 1) or a layer has no weights.
    """
    _check(weights, sparsity)
    cells = [weight.numel() for weight in weights]
    raw = [sum(weight.shape) / size for weight, size in zip(weights, cells)]
    dense: set[int] = set()
    epsilon = 0.0
    while len(dense) < len(weights):
        others = [n for n in range(len(weights)) if n not in dense]
        budget = (1 - sparsity) * sum(cells) - sum(cells[n] for n in dense)
        epsilon = budget / sum(raw[n] * cells[n] for n in others)
        too_full = {n for n in others if epsilon * raw[n] > 1}
        if not too_full:
            break
        dense |= too_full
    return [
        0.0 if n in dense else 1 - epsilon * raw[n] for n in range(len(weights))
    ]


def global_magnitude(weights: Sequence[Tensor], sparsity: float) -> list[float]:
    """Keep the largest weights of the whole model, wherever they are.

    Raises
    ------
    ValueError
        If the sparsity is outside [0, 1), or there are shapes only (device meta).
    """
    _check(weights, sparsity)
    if any(weight.is_meta for weight in weights):
        raise ValueError(
            "the largest weights are asked for, but the model is on the device meta and has none; "
            "use another distribution"
        )
    sizes = [weight.numel() for weight in weights]
    flat = torch.cat(
        [weight.detach().abs().flatten().float().cpu() for weight in weights]
    )
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[largest(flat, round((1 - sparsity) * flat.numel()))] = True
    return [1 - int(part.sum()) / part.numel() for part in kept.split(sizes)]


def _check(weights: Sequence[Tensor], sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), not {sparsity}")
    for weight in weights:
        if not math.prod(weight.shape):
            raise ValueError(
                f"a layer of shape {tuple(weight.shape)} has no weights to divide"
            )
