"""Exact selections: the same answer on every device, ties to the lowest index."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# types in which numpy selects, ten times as fast as torch on a CPU; it sorts and counts faster, too
SELECTED_BY_NUMPY = (torch.float32, torch.float64)


def largest(scores: Float[Tensor, "n"], count: int) -> Int[Tensor, "count"]:
    """Return the indices of the `count` largest scores, in ascending order of index.

    Among equal scores the lowest index wins, so the choice does not depend on device or thread
    count. Costs O(n): a threshold by selection, then the ties in order.

    Raises
    ------
    ValueError
        If `count` is not in 0..n, or a score is NaN: a NaN has no rank.
    """
    if not 0 <= count <= scores.numel():
        raise ValueError(f"cannot take {count} of {scores.numel()} scores")
    if torch.isnan(scores).any():
        raise ValueError(
            f"{int(torch.isnan(scores).sum())} of {scores.numel()} scores are NaN"
        )
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    threshold = _nth_largest(scores, count)
    chosen = scores > threshold
    tied = marked(scores == threshold)
    chosen[tied[: count - int(chosen.count_nonzero())]] = True
    return marked(chosen)


def _nth_largest(scores: Float[Tensor, "n"], count: int) -> Float[Tensor, ""]:
    """Return the smallest of the `count` largest scores."""
    if scores.device.type == "cpu" and scores.dtype in SELECTED_BY_NUMPY:
        place = scores.numel() - count
        numbers = scores.detach().numpy()
        return torch.from_numpy(np.partition(numbers, place))[place]
    return torch.topk(scores, count, sorted=False).values.min()


def marked(mask: Bool[Tensor, "n"]) -> Int[Tensor, "some"]:
    """Return the indices of what is true, in ascending order."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().flatten()


def ascending(numbers: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Sort numbers."""
    if numbers.device.type == "cpu":
        return torch.from_numpy(np.sort(numbers.numpy()))
    return numbers.sort().values


def distinct(numbers: Int[Tensor, "n"]) -> Int[Tensor, "some"]:
    """Sort numbers and keep one of each."""
    ordered = ascending(numbers)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=is_first[1:])
    return ordered.index_select(0, marked(is_first))


def first_at_least(
    scores: Float[Tensor, "*batch n"],
    threshold: Float[Tensor, "..."],
    count: int | Int[Tensor, ""],
) -> Bool[Tensor, "*batch n"]:
    """Mark the scores above a threshold, and of those equal to it the first: `count` in all."""
    above = scores > threshold
    tied = scores == threshold
    return above | (
        tied & (tied.cumsum(-1) <= count - above.sum(-1, keepdim=True))
    )


def places(
    ascending: Int[Tensor, "n"], wanted: Int[Tensor, "m"], right: bool = False
) -> Int[Tensor, "m"]:
    """Count the `ascending` numbers below each wanted one, or if `right` those not above it.

    On the processor numpy searches from where the wanted number before was found, which halves the
    time where these ascend, too.
    """
    if ascending.device.type == "cpu":
        numbers, sought = ascending.numpy(), wanted.numpy()
        if right:
            return torch.from_numpy(np.searchsorted(numbers, sought, "right"))
        return torch.from_numpy(np.searchsorted(numbers, sought))
    return torch.searchsorted(ascending, wanted, right=right)


def contains(
    ascending: Int[Tensor, "n"], wanted: Int[Tensor, "m"]
) -> Bool[Tensor, "m"]:
    """Mark which of the `wanted` numbers occur among the `ascending` ones."""
    if ascending.numel() == 0:
        return torch.zeros_like(wanted, dtype=torch.bool)
    place = places(ascending, wanted).clamp_(max=ascending.numel() - 1)
    return ascending.index_select(0, place) == wanted


def nth_free(
    ranks: Int[Tensor, "ranks"], taken: Int[Tensor, "taken"]
) -> Int[Tensor, "ranks"]:
    """Return the cells of these ranks among the free ones; `taken`, ascending, are not free."""
    # the r-th free cell lies behind as many taken cells as have at most r free cells before them
    before = taken - torch.arange(taken.numel(), device=taken.device)
    return places(before, ranks, right=True).add_(ranks)


def draw(
    cells: int, count: int, generator: torch.Generator | None = None
) -> Int[Tensor, "count"]:
    """Draw `count` distinct numbers of ``range(cells)`` uniformly, sorted, in O(count) memory.

    Drawn on the CPU, so that the same seed gives the same numbers for every device.

    Raises
    ------
    ValueError
        If there are fewer than `count` numbers.
    """
    if not 0 <= count <= cells:
        raise ValueError(f"cannot draw {count} distinct cells of {cells}")
    if 2 * count > cells:
        return ascending(torch.randperm(cells, generator=generator)[:count])
    drawn = torch.empty(0, dtype=torch.int64)
    while drawn.numel() < count:
        # twice the missing number, so that one or two rounds do
        more = torch.randint(
            cells, (2 * (count - drawn.numel()) + 8,), generator=generator
        )
        drawn = distinct(torch.cat([drawn, more]))
    chosen = torch.zeros_like(drawn, dtype=torch.bool)
    chosen[torch.randperm(drawn.numel(), generator=generator)[:count]] = True
    return drawn.index_select(0, marked(chosen))


def weighted_draw(
    weights: Float[Tensor, "columns"],
    height: int,
    taken: Int[Tensor, "taken"],
    count: int,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "count"]:
    """Draw distinct free cells one after the other, in proportion to the weight of their column.

    The columns have `height` cells each; cell r of column c has the number ``c * height + r``, and
    `taken` are those that are not free, sorted. Drawn with replacement, and what was drawn before
    is passed over: that is drawing without replacement, in O(columns + taken + count) memory.

    Raises
    ------
    ValueError
        If the columns of positive weight have fewer than `count` free cells.
    """
    free = height - torch.bincount(
        taken // max(height, 1), minlength=weights.numel()
    )
    room = int(free[weights > 0].sum())
    if count > room:
        raise ValueError(
            f"cannot draw {count} distinct cells of {room} with a weight above 0"
        )
    drawn = taken[:0]
    while drawn.numel() < count:
        occupied = ascending(torch.cat([taken, drawn]))
        more = _free_draws(
            weights.double(), height, occupied, count - drawn.numel(), generator
        )
        drawn = torch.cat([drawn, more])
    return drawn


def _free_draws(
    weights: Tensor,
    height: int,
    taken: Tensor,
    count: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw `count` times with replacement; return the distinct cells in order of appearance."""
    free = height - torch.bincount(taken // height, minlength=weights.numel())
    mass = (weights / weights.max() * free).cumsum(0)
    which, where = torch.rand(
        2, count, dtype=torch.float64, generator=generator
    )
    column = torch.searchsorted(mass, which * mass[-1], right=True).clamp(
        max=mass.argmax()
    )
    inside = torch.minimum((where * free[column]).long(), free[column] - 1)
    rank = (free.cumsum(0) - free)[column] + inside
    ordered = nth_free(rank, taken).sort(stable=True)
    is_first = torch.ones(count, dtype=torch.bool)
    is_first[1:] = ordered.values[1:] != ordered.values[:-1]
    appearance = ordered.indices[is_first].sort()
    return ordered.values[is_first][appearance.indices]
