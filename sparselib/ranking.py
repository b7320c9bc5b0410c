"""Exact selections: the same answer on every device, ties to the lowest index."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def largest(scores: Float[Tensor, "n"], count: int) -> Int[Tensor, "count"]:
    """Return the indices of the `count` largest scores, in ascending order of index.

    Among equal scores the lowest index wins, so the choice does not depend on device or thread
    count. Costs O(n): a threshold by ``torch.topk``, then the ties in order.

    Raises
    ------
    ValueError
        If `count` is not in 0..n, or a score is NaN: a NaN has no rank.
    """
    if not 0 <= count <= scores.numel():
        raise ValueError(f"cannot take {count} of {scores.numel()} scores")
    if torch.isnan(scores).any():
        raise ValueError(f"{int(torch.isnan(scores).sum())} of {scores.numel()} scores are NaN")
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    threshold = torch.topk(scores, count, sorted=False).values.min()
    above = scores > threshold
    tied = scores == threshold
    chosen = above | (tied & (tied.cumsum(0) <= count - above.sum()))
    return chosen.nonzero().flatten()


def draw(cells: int, count: int, generator: torch.Generator | None = None) -> Int[Tensor, "count"]:
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
        return torch.randperm(cells, generator=generator)[:count].sort().values
    drawn = torch.empty(0, dtype=torch.int64)
    while drawn.numel() < count:
        # twice the missing number, so that one or two rounds do
        more = torch.randint(cells, (2 * (count - drawn.numel()) + 8,), generator=generator)
        drawn = torch.cat([drawn, more]).unique()
    surplus = torch.randperm(drawn.numel(), generator=generator)[:count]
    return drawn[surplus].sort().values
