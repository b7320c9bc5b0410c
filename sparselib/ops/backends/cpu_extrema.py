"""Extrema at a distance on the CPU: Algorithm 3 of Bizopoulos and Koutsouris, compiled.

numba's cache sees changes of this file only, so whatever is compiled here stands here.
"""

import inspect

import numpy as np
from jaxtyping import Bool, Float
from numba import njit
from torch import Tensor, from_numpy

from sparselib._types import Function
from sparselib.ops.backends.cpu_cache import keep


def compiled(function: Function) -> Function:
    """Compile; a checker of types wrapped around the function is taken off."""
    function = inspect.unwrap(function)
    dispatcher = njit(nogil=True)(function)
    keep(dispatcher, function)
    return dispatcher


def greedy(
    s: Float[Tensor, "samples kernels *size"],
    distance: int,
    signed: bool,
    across: bool,
) -> Bool[Tensor, "samples kernels *size"]:
    """Mark the extrema that are kept, see `sparselib.nn.activation.extrema`."""
    maps = s.contiguous().numpy()
    kept = np.zeros(s.shape, np.bool_)
    if not s.numel():
        return from_numpy(kept)
    if s.ndim == 3 and not across:
        shape: tuple[int, ...] = (-1, 1, s.shape[2])
        _divide(maps.reshape(shape), distance, signed, kept.reshape(shape))
    else:
        shape = s.shape if s.ndim == 4 else (*s.shape[:2], 1, s.shape[2])
        _sort(
            maps.reshape(shape),
            distance,
            signed,
            across,
            s.ndim == 4,
            kept.reshape(shape),
        )
    return from_numpy(kept)


@compiled
def _turn(value, before, after, signed):  # type: ignore[no-untyped-def]
    """Return 1 for a peak along an axis, -1 for a valley, 0 for neither; without a branch."""
    if not signed:
        before = -before
        after = -after
    peak = (after <= 0) & (before > 0) & ((value > 0) | (not signed))
    valley = (after > 0) & (before <= 0) & ((not value > 0) | (not signed))
    return np.int8(peak) - np.int8(valley)


@compiled
def _turns(cells, signed, plane, turns):  # type: ignore[no-untyped-def]
    """Write what each cell of a map is, along every axis alike."""
    height, width = cells.shape
    none = cells.dtype.type(0)
    for y in range(height):
        row = cells[y]
        marks = turns[y]
        for x in range(1, width - 1):
            marks[x] = _turn(
                row[x], row[x] - row[x - 1], row[x + 1] - row[x], signed
            )
        last = width - 1
        marks[0] = _turn(row[0], none, row[min(1, last)] - row[0], signed)
        if last:
            marks[last] = _turn(
                row[last], row[last] - row[last - 1], none, signed
            )
    if plane:
        for y in range(height):
            row = cells[y]
            marks = turns[y]
            above = cells[max(y - 1, 0)]
            below = cells[min(y + 1, height - 1)]
            for x in range(width):
                turn = _turn(
                    row[x], row[x] - above[x], below[x] - row[x], signed
                )
                marks[x] = marks[x] if turn == marks[x] else 0


@compiled
def _divide(signals, distance, signed, kept):  # type: ignore[no-untyped-def]
    """Keep the largest extremum of each signal, and again on its left and on its right.

    What lies farther than the distance to one side never meets what lies on the other.
    """
    count, _, width = signals.shape
    turns = np.empty((1, width), np.int8)
    places = np.empty(width, np.int32)
    heights = np.empty(width, signals.dtype)
    waiting = np.empty((width + 1, 2), np.int32)
    for number in range(count):
        signal = signals[number, 0]
        _turns(signals[number], signed, False, turns)
        candidates = 0
        for x in range(width):  # without a branch
            places[candidates] = x
            heights[candidates] = abs(signal[x])
            candidates += turns[0, x] != 0
        waiting[0, 0] = 0
        waiting[0, 1] = candidates
        parts = int(candidates > 0)
        while parts:
            parts -= 1
            first, end = waiting[parts]
            best = first
            for i in range(first + 1, end):
                best = i if heights[i] > heights[best] else best
            place = places[best]
            kept[number, 0, place] = True
            left = best
            right = best + 1
            while left > first and places[left - 1] >= place - distance:
                left -= 1
            while right < end and places[right] <= place + distance:
                right += 1
            if first < left:
                waiting[parts, 0] = first
                waiting[parts, 1] = left
                parts += 1
            if right < end:
                waiting[parts, 0] = right
                waiting[parts, 1] = end
                parts += 1


@compiled
def _sort(s, distance, signed, across, plane, kept):  # type: ignore[no-untyped-def]
    """Go through the extrema of a map, or of a sample's maps together, the largest first."""
    samples, kernels, height, width = s.shape
    together = kernels if across else 1
    places = np.empty((together * height * width, 3), np.int32)
    heights = np.empty(together * height * width, s.dtype)
    turns = np.empty((height, width), np.int8)
    taken = np.empty((height, width), np.bool_)
    for sample in range(samples):
        for first in range(0, kernels, together):
            count = 0
            for kernel in range(first, first + together):
                cells = s[sample, kernel]
                _turns(cells, signed, plane, turns)
                for y in range(height):
                    for x in range(width):
                        if turns[y, x]:
                            place = places[count]
                            place[0] = kernel
                            place[1] = y
                            place[2] = x
                            heights[count] = -abs(cells[y, x])
                            count += 1
            taken[:] = False
            # a stable sort: of equal magnitudes the first comes first
            for i in np.argsort(heights[:count], kind="mergesort"):
                kernel, y, x = places[i]
                if not taken[y, x]:
                    kept[sample, kernel, y, x] = True
                    for row in range(
                        max(0, y - distance), min(height, y + distance + 1)
                    ):
                        taken[row, max(0, x - distance) : x + distance + 1] = (
                            True
                        )
