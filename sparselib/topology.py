"""Where connections are at birth. Every function returns sorted positions row * columns + column.

Sparsity, in [0, 1), is the only public measure of emptiness; counts come from it here.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from sparselib.ranking import draw


def connections(out_features: int, in_features: int, sparsity: float) -> int:
    """Number of weights N_w = N_in N_out (1 - sparsity), to the nearest integer (Ertl, 3.2.1).

    Raises
    ------
    ValueError
        If `sparsity` is outside [0, 1) or a size is negative.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), not {sparsity}")
    if out_features < 0 or in_features < 0:
        raise ValueError(f"sizes cannot be negative: {out_features} x {in_features}")
    return round(out_features * in_features * (1 - sparsity))


def even_fan_in(
    out_features: int,
    in_features: int,
    sparsity: float,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "nnz"]:
    r"""Ertl's topology: :math:`n_w = N_w / N_{out}` weights a neuron, one in each equal slice.

    The inputs of a neuron with :math:`n` weights are cut into :math:`n` slices
    :math:`[\lfloor j N_{in}/n \rfloor, \lfloor (j+1) N_{in}/n \rfloor)` and one input is drawn
    uniformly from each (Ertl, Section 3.2.1). The paper does not say what happens when
    :math:`n_w` is no integer. Here the total :math:`N_w` is kept exactly: every neuron has
    :math:`\lfloor n_w \rfloor` weights, and the remaining :math:`N_w \bmod N_{out}` go one each to
    neurons drawn at random. So where :math:`n_w < 1`, as with the 28 inputs of HIGGS at 97 %, some
    neurons start with none.
    """
    total = connections(out_features, in_features, sparsity)
    counts = torch.full((out_features,), total // max(out_features, 1))
    counts[draw(out_features, total % max(out_features, 1), generator)] += 1
    rows = torch.repeat_interleave(torch.arange(out_features), counts)
    slices = torch.arange(total) - (counts.cumsum(0) - counts)[rows]
    start = slices * in_features // counts[rows]
    width = (slices + 1) * in_features // counts[rows] - start
    uniform = torch.rand(total, dtype=torch.float64, generator=generator)
    return rows * in_features + start + torch.minimum((uniform * width).long(), width - 1)


def erdos_renyi(
    out_features: int,
    in_features: int,
    sparsity: float,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "nnz"]:
    """Exactly N_in N_out (1 - sparsity) connections, every set of that size equally likely.

    The random graph G(n, M) of Erdős and Rényi (1959). Mocanu et al. (2018) and Radu (Eq. 1) give
    every cell the same probability instead, so that the count holds on average only.
    """
    count = connections(out_features, in_features, sparsity)
    return draw(out_features * in_features, count, generator)


def epsilon_to_sparsity(out_features: int, in_features: int, epsilon: float) -> float:
    r"""Sparsity of a layer with :math:`\epsilon (n^k + n^{k-1})` connections (Radu, Eq. 1).

    Clipped at 0, where the layer has no more cells than that.

    Raises
    ------
    ValueError
        If `epsilon` is not above 0, or the layer has no cells.
    """
    cells = out_features * in_features
    if not epsilon > 0 or cells <= 0:
        raise ValueError(
            f"epsilon must be above 0 and the layer have cells, not epsilon={epsilon} for "
            f"{out_features} x {in_features}"
        )
    return max(0.0, 1 - epsilon * (out_features + in_features) / cells)


def sparsity_to_epsilon(out_features: int, in_features: int, sparsity: float) -> float:
    """Invert `epsilon_to_sparsity`, as far as it was not clipped."""
    cells = out_features * in_features
    if not 0 <= sparsity < 1 or cells <= 0:
        raise ValueError(
            f"sparsity must lie in [0, 1) and the layer have cells, not sparsity={sparsity} for "
            f"{out_features} x {in_features}"
        )
    return (1 - sparsity) * cells / (out_features + in_features)
