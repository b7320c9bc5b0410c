"""Sparse activation functions of Bizopoulos and Koutsouris, the same for signals and images.

Each takes similarities of shape (samples, kernels, length) or (samples, kernels, height, width)
and the size m of the kernel they come from, and returns a map of the same shape in which what is
not kept is zero (Eq. 8). The gradient passes where an activation is kept. Among equal magnitudes
the lowest index wins, so that maps do not depend on the device.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sparselib.ops.dispatch import module_of_extrema
from sparselib.ranking import first_at_least


def identity(
    s: Float[Tensor, "samples kernels *size"], size: int = 1
) -> Float[Tensor, "samples kernels *size"]:
    """Keep everything: the base of reference (Bizopoulos, Section III-A.1). `size` has no part."""
    return s


def relu(
    s: Float[Tensor, "samples kernels *size"], size: int = 1
) -> Float[Tensor, "samples kernels *size"]:
    """Keep what is positive (Bizopoulos, Section III-A.2). `size` has no part in it."""
    return torch.relu(s)


def topk_absolutes(
    s: Float[Tensor, "samples kernels *size"], size: int, k: int | None = None
) -> Float[Tensor, "samples kernels *size"]:
    r"""Keep the `k` largest magnitudes of each map (Bizopoulos, Algorithm 1).

    Parameters
    ----------
    s : tensor
        Similarities, 1-D or 2-D.
    size : int
        Size m of the kernel, which sets :math:`k = \prod_i \lfloor n_i / m \rfloor`.
    k : int, optional
        How many to keep instead.

    Raises
    ------
    ValueError
        If `k` is not in 1..n, a similarity is NaN, or the shape is no batch of signals or images.
    """
    _check(s, size)
    cells = math.prod(s.shape[2:])
    count = (
        math.prod(length // size for length in s.shape[2:]) if k is None else k
    )
    if not 1 <= count <= cells:
        raise ValueError(
            f"cannot keep {count} of the {cells} activations of a map (kernel size {size}, k={k}); "
            f"take a kernel no larger than the input, or k from 1 to {cells}"
        )
    magnitude = s.detach().abs().flatten(2)
    threshold = magnitude.topk(count).values[..., -1:]
    return _keep(s, first_at_least(magnitude, threshold, count))


def extrema_pool_indices(
    s: Float[Tensor, "samples kernels *size"], size: int
) -> Float[Tensor, "samples kernels *size"]:
    r"""Keep the largest magnitude of each region of a grid (Bizopoulos, Algorithm 2).

    A region is `size` wide in every direction; :math:`\prod_i \lfloor n_i / m \rfloor` fit into a
    map, and what remains at its end is never kept.

    Parameters
    ----------
    s : tensor
        Similarities, 1-D or 2-D.
    size : int
        Size m of the kernel.

    Raises
    ------
    ValueError
        If no region fits, a similarity is NaN, or the shape is no batch of signals or images.
    """
    _check(s, size)
    if size > min(s.shape[2:]):
        raise ValueError(
            f"a region of size {size} does not fit into maps of {tuple(s.shape[2:])}; "
            f"take a kernel no larger than the input"
        )
    pool = functional.max_pool1d if s.ndim == 3 else functional.max_pool2d
    _, indices = pool(s.detach().abs(), size, return_indices=True)
    kept = torch.zeros_like(s, dtype=torch.bool).flatten(2)
    return _keep(s, kept.scatter_(2, indices.flatten(2), True))


def extrema(
    s: Float[Tensor, "samples kernels *size"],
    size: int,
    tolerance: int = 0,
    definition: str = "code",
    across: bool = False,
) -> Float[Tensor, "samples kernels *size"]:
    """Keep extrema, the largest magnitudes first, at a distance (Bizopoulos, Algorithm 3).

    An extremum is kept unless one of larger magnitude is kept within `size` - `tolerance` cells
    of it, at least 1, in every direction. In 2-D it is an extremum along both axes.

    Parameters
    ----------
    s : tensor
        Similarities, 1-D or 2-D.
    size : int
        Size m of the kernel, the minimum distance of extrema.
    tolerance : int
        How far kernels may reach into each other: the paper takes 3 for PhysioNet, 2 elsewhere.
    definition : str
        ``"code"``, which gives the paper's tables: a peak is positive, a valley is not, and of
        a plateau the first cell is a peak, the last a valley. ``"text"``, Algorithm 3 as
        printed: the signs do not matter, and of a plateau it is the other cell.
    across : bool
        Let the maps of a sample compete for territory: the distance holds between extrema of all
        of them (Bizopoulos, Section VI).

    Raises
    ------
    ValueError
        If a similarity is NaN, the tolerance is negative, the definition unknown, or the shape no
        batch of signals or images.
    """
    _check(s, size)
    if tolerance < 0 or definition not in ("text", "code"):
        raise ValueError(
            f"tolerance must be at least 0 and definition 'text' or 'code', "
            f"not {tolerance} and {definition!r}"
        )
    distance = max(size - tolerance, 1)
    signed = definition == "code"
    return _keep(
        s, module_of_extrema(s).extrema(s.detach(), distance, signed, across)
    )


def _keep(s: Tensor, kept: Tensor) -> Float[Tensor, "samples kernels *size"]:
    return torch.where(kept.view(s.shape), s, 0)


def _check(s: Tensor, size: int) -> None:
    if s.ndim not in (3, 4) or size < 1:
        raise ValueError(
            f"similarities are (samples, kernels, length) or (samples, kernels, height, width) and "
            f"a kernel size is at least 1, not {tuple(s.shape)} and {size}"
        )
    # the sum, which costs less, is also NaN of infinities of both signs
    if torch.isnan(s.detach().sum()) and torch.isnan(s).any():
        raise ValueError(
            f"{int(torch.isnan(s).sum())} of {s.numel()} similarities are NaN, and a NaN has no "
            f"rank; look for it in the input, or lower the learning rate"
        )
