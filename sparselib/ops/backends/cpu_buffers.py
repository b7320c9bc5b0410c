"""Memory for large results of the CPU kernels: what is no longer referenced is reused.

An allocator may return a large block to the operating system as soon as it is freed, and then
each new block is filled with zeros, page by page, before anything is written to it. For a product
with few connections that takes longer than the product. So a result keeps its memory alive, and
when the last tensor that looks at it is gone, the memory waits here for a result of the same size.
"""

import weakref
from collections import defaultdict, deque

import numpy as np
import torch
from torch import Tensor

LARGE = 1 << 18  # bytes from which on memory is kept
LIMIT = 1 << 29  # bytes that may wait, all in all

_waiting: defaultdict[int, deque[np.ndarray]] = defaultdict(deque)
# by the number of the reference, which Python calls when nobody looks any more
_held: dict[int, tuple["weakref.ref[np.ndarray]", np.ndarray]] = {}


def empty(rows: int, columns: int) -> Tensor:
    """Return a float32 matrix with any content, on the CPU; its storage cannot be resized."""
    size = 4 * rows * columns
    if size < LARGE:
        return torch.empty(rows, columns)
    memory = _take(size)
    view = memory.reshape(rows, columns)
    # torch holds the view as long as any tensor looks at it, and the view holds the memory
    seen = weakref.ref(view, _keep)
    _held[id(seen)] = seen, memory
    return torch.from_numpy(view)


def waiting() -> int:
    """Count the bytes that wait to be written again."""
    return sum(size * len(blocks) for size, blocks in list(_waiting.items()))


def release() -> None:
    """Give the waiting memory back."""
    _waiting.clear()


def _take(size: int) -> np.ndarray:
    try:
        return _waiting[size].pop()
    except IndexError:
        if waiting() + size > LIMIT:
            release()
        return torch.empty(size // 4).numpy()


def _keep(seen: "weakref.ref[np.ndarray]") -> None:
    _, memory = _held.pop(id(seen))
    if waiting() + memory.nbytes <= LIMIT:
        _waiting[memory.nbytes].append(memory)
