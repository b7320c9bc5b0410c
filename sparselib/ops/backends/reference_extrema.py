"""The definition of extrema at a distance: for all maps at once, on any device."""

from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def extrema(
    s: Float[Tensor, "samples kernels *size"],
    distance: int,
    signed: bool,
    across: bool,
) -> Bool[Tensor, "samples kernels *size"]:
    """Mark the extrema that are kept, see `sparselib.nn.activation.extrema`."""
    reach = dict.fromkeys(range(2, s.ndim), distance) | (
        {1: s.shape[1]} if across else {}
    )
    heights = torch.where(_candidates(s, signed), s.abs(), -1)
    kept = torch.zeros_like(s, dtype=torch.bool)
    while s.numel() and heights.max() >= 0:
        # of equal heights the first comes first
        before, after = _maxima(heights, reach)
        winners = (heights > before) & (heights >= after)
        heights = torch.where(_around(winners, reach), -1, heights)
        kept |= winners
    return kept


def _candidates(
    s: Tensor, signed: bool
) -> Bool[Tensor, "samples kernels *size"]:
    """Mark cells that are a peak, or a valley, along every axis."""
    turns = []
    is_peak = s > 0 if signed else None
    for axis in range(2, s.ndim):
        step = s.diff(dim=axis)
        # as printed the two names are exchanged, which changes plateaus only
        slope = _padded(step > 0 if signed else step < 0, axis, 1, 0)
        before, after = (
            slope.narrow(axis, start, s.shape[axis]) for start in (0, 1)
        )
        is_peak = before if is_peak is None else is_peak
        turns.append((before ^ after) & ~(before ^ is_peak))
    return reduce(torch.bitwise_and, turns)


def _maxima(x: Tensor, reach: dict[int, int]) -> tuple[Tensor, Tensor]:
    """Largest value of the cells before each cell in its window, in memory's order, and after it.

    The window of a cell reaches so far in every direction along each of the axes.
    """
    whole = x
    befores = []
    afters = []
    for axis in sorted(reach, reverse=True):
        size = x.shape[axis]
        distance = min(reach[axis], x.shape[axis])
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
    x = _padded(x, axis, margin, -1 if numbers else 0)
    joined = 1
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
