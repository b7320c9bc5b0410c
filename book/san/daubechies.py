"""Daubechies' orthonormal wavelet of 8 taps as a matrix, a rival of the chapter's networks."""

import torch
from torch import Tensor

# scaling filter with four vanishing moments (Daubechies, 1992, Ten Lectures, Table 6.1)
LOW = torch.tensor(
    [
        *(0.230377813308855, 0.714846570552542, 0.630880767929590, -0.027983769416984),
        *(-0.187034811718881, 0.030841381835987, 0.032883011666983, -0.010597401784997),
    ],
    dtype=torch.float64,
)
HIGH = LOW.flip(0) * torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)


def one_level(length: int) -> Tensor:
    """Return the orthonormal periodic matrix of one level: averages, then details."""
    rows = torch.zeros(length, length, dtype=torch.float64)
    for row in range(length // 2):
        place = (2 * row + torch.arange(8)) % length
        rows[row].index_add_(0, place, LOW)
        rows[length // 2 + row].index_add_(0, place, HIGH)
    return rows


def basis(length: int, levels: int = 6) -> Tensor:
    """Return the matrix of all levels, coarsest rows first; its inverse is its transpose.

    Raises
    ------
    ValueError
        If the length is no multiple of 2 to the number of levels.
    """
    if length % 2**levels:
        raise ValueError(
            f"{levels} levels halve a length {levels} times, and {length} is no multiple "
            f"of {2**levels}; put zeros after the end"
        )
    whole = torch.eye(length, dtype=torch.float64)
    for level in range(levels):
        part = length >> level
        whole[:part] = one_level(part) @ whole[:part]
    return whole
