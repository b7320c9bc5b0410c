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

from sparselib.ops import dispatch
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
        and dispatch.CHOSEN in ("auto", "cpu")
    ):
        from sparselib.ops.backends import cpu_extrema

        return cpu_extrema.greedy
    return _at_a_distance


def _at_a_distance(
    s: Tensor, distance: int, signed: bool, across: bool
) -> Bool[Tensor, "samples kernels *size"]:
    """Mark the extrema that are kept, for all maps at once and on any device."""
    reach = dict.fromkeys(range(2, s.ndim), distance) | ({1: s.shape[1]} if across else {})
    heights = torch.where(_candidates(s, signed), s.abs(), -1)
    kept = torch.zeros_like(s, dtype=torch.bool)
    while s.numel() and heights.max() >= 0:
        # of equal heights the first comes first
        before, after = _maxima(heights, reach)
        winners = (heights > before) & (heights >= after)
        heights = torch.where(_around(winners, reach), -1, heights)
        kept |= winners
    return kept


def _candidates(s: Tensor, signed: bool) -> Bool[Tensor, "samples kernels *size"]:
    """Mark cells that are a peak, or a valley, along every axis."""
    turns, is_peak = [], s > 0 if signed else None
    for axis in range(2, s.ndim):
        step = s.diff(dim=axis)
        # as printed the two names are exchanged, which changes plateaus only
        slope = _padded(step > 0 if signed else step < 0, axis, 1, 0)
        before, after = (slope.narrow(axis, start, s.shape[axis]) for start in (0, 1))
        is_peak = before if is_peak is None else is_peak
        turns.append((before ^ after) & ~(before ^ is_peak))
    return reduce(torch.bitwise_and, turns)


def _maxima(x: Tensor, reach: dict[int, int]) -> tuple[Tensor, Tensor]:
    """Largest value of the cells before each cell in its window, in memory's order, and after it.

    The window of a cell reaches so far in every direction along each of the axes.
    """
    whole, befores, afters = x, [], []
    for axis in sorted(reach, reverse=True):
        size, distance = x.shape[axis], min(reach[axis], x.shape[axis])
        sides = _windows(whole, axis, distance, distance)
        befores.append(sides.narrow(axis, 0, size))
        afters.append(sides.narrow(axis, distance + 1, size))
        if len(befores) < len(reach):
            whole = torch.maximum(whole, torch.maximum(befores[-1], afters[-1]))
    return reduce(torch.maximum, befores), reduce(torch.maximum, afters)


def _around(x: Tensor, reach: dict[int, int]) -> Tensor:
    """Largest value in the window of each cell."""
    for axis, far in reach.items():
        distance = min(far, x.shape[axis])
        x = _windows(x, axis, 2 * distance + 1, distance)
    return x


def _windows(x: Tensor, axis: int, width: int, margin: int) -> Tensor:
    """Largest of each `width` cells side by side along an axis, the margins at both ends included.

    Windows are joined in pairs, so that a wide one takes a few maxima more than a narrow one;
    along the last axis torch's pooling is the faster way to the first few cells.
    """
    numbers = x.is_floating_point()
    x, joined = _padded(x, axis, margin, -1 if numbers else 0), 1
    if numbers and axis == x.ndim - 1:
        joined = min(width, 32)
        x = torch.max_pool1d(x.flatten(0, 1), joined, 1).view(*x.shape[:-1], -1)
    while joined < width:
        step = min(joined, width - joined)
        rest = x.shape[axis] - step
        x = torch.maximum(x.narrow(axis, 0, rest), x.narrow(axis, step, rest))
        joined += step
    return x


def _padded(x: Tensor, axis: int, margin: int, value: int) -> Tensor:
    behind = x.ndim - 1 - axis
    return torch.constant_pad_nd(x, (0, 0) * behind + (margin, margin), value)


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
