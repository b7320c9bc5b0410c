"""Sparse activation functions of Bizopoulos and Koutsouris, the same for signals and images.

Each takes similarities of shape (samples, kernels, length) or (samples, kernels, height, width)
and the size m of the kernel they come from, and returns a map of the same shape in which what is
not kept is zero (Eq. 8). The gradient passes where an activation is kept. Among equal magnitudes
the lowest index wins, so that maps do not depend on the device.
"""

import math
from collections.abc import Callable
from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sparselib.ops import choice
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
    count = math.prod(length // size for length in s.shape[2:]) if k is None else k
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
    distance, signed = max(size - tolerance, 1), definition == "code"
    return _keep(s, _marks(s)(s.detach(), distance, signed, across))


def _marks(s: Tensor) -> Callable[[Tensor, int, bool, bool], Tensor]:
    if (
        s.device.type == "cpu"
        and s.dtype in (torch.float32, torch.float64)
        and choice.CHOSEN in ("auto", "cpu")
    ):
        from sparselib.ops import peaks

        return peaks.greedy
    return _at_a_distance


def _at_a_distance(
    s: Tensor, distance: int, signed: bool, across: bool
) -> Bool[Tensor, "samples kernels *size"]:
    """Mark the extrema that are kept, for all maps at once and on any device."""
    reach = dict.fromkeys(range(2, s.ndim), distance) | ({1: s.shape[1]} if across else {})
    heights = s.abs().masked_fill(~_candidates(s, signed), -1)
    kept = torch.zeros_like(s, dtype=torch.bool)
    while (heights >= 0).any():
        # of equal heights the first comes first
        before, after = _maxima(heights, reach, -1)
        winners = (heights > before) & (heights >= after)
        before, after = _maxima(winners, reach, False)
        heights = heights.masked_fill(winners | before | after, -1)
        kept |= winners
    return kept


def _candidates(s: Tensor, signed: bool) -> Bool[Tensor, "samples kernels *size"]:
    """Mark cells that are a peak, or a valley, along every axis."""
    peaks = s > 0 if signed else torch.ones_like(s, dtype=torch.bool)
    valleys = ~peaks if signed else peaks.clone()
    for axis in range(2, s.ndim):
        step = s.diff(dim=axis)
        edge = torch.zeros_like(s.narrow(axis, 0, 1))
        after, before = torch.cat([step, edge], axis), torch.cat([edge, step], axis)
        if not signed:
            # as printed; the two names are exchanged there, which changes plateaus only
            after, before = -after, -before
        peaks &= (after <= 0) & (before > 0)
        valleys &= (after > 0) & (before <= 0)
    return peaks | valleys


def _maxima(x: Tensor, reach: dict[int, int], outside: int) -> tuple[Tensor, Tensor]:
    """Largest value of the cells before each cell in its window, in memory's order, and after it.

    The window of a cell reaches so far in every direction along each of the axes.
    """
    whole, befores, afters = x, [], []
    for axis in sorted(reach, reverse=True):
        before, after = _sides(whole, axis, min(reach[axis], x.shape[axis]), outside)
        befores.append(before)
        afters.append(after)
        if len(befores) < len(reach):
            whole = torch.maximum(whole, torch.maximum(before, after))
    return reduce(torch.maximum, befores), reduce(torch.maximum, afters)


def _sides(x: Tensor, axis: int, distance: int, outside: int) -> tuple[Tensor, Tensor]:
    """Largest value among the `distance` cells before each cell along an axis, and after it.

    Windows are joined in pairs, so that a wide one takes a few maxima more than a narrow one.
    """
    size, width = x.shape[axis], 1
    margin = x.new_full((*x.shape[:axis], distance, *x.shape[axis + 1 :]), outside)
    x = torch.cat([margin, x, margin], axis)
    while width < distance:
        step = min(width, distance - width)
        rest = x.shape[axis] - step
        x = torch.maximum(x.narrow(axis, 0, rest), x.narrow(axis, step, rest))
        width += step
    return x.narrow(axis, 0, size), x.narrow(axis, distance + 1, size)


def _keep(s: Tensor, kept: Tensor) -> Float[Tensor, "samples kernels *size"]:
    return torch.where(kept.view(s.shape), s, 0)


def _check(s: Tensor, size: int) -> None:
    if s.ndim not in (3, 4) or size < 1:
        raise ValueError(
            f"similarities are (samples, kernels, length) or (samples, kernels, height, width) and "
            f"a kernel size is at least 1, not {tuple(s.shape)} and {size}"
        )
    if torch.isnan(s).any():
        raise ValueError(
            f"{int(torch.isnan(s).sum())} of {s.numel()} similarities are NaN, and a NaN has no "
            f"rank; look for it in the input, or lower the learning rate"
        )
