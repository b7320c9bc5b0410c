"""Memory that is used again: of large results of the CPU kernels, and of all that a training frees.

An allocator may return a large block to the operating system as soon as it is freed, and then
each new block is filled with zeros, page by page, before anything is written to it. For a product
with few connections that takes longer than the product. So a result keeps its memory alive, and
when the last tensor that looks at it is gone, the memory waits here for a result of the same size.
"""

import functools
import weakref
from collections import defaultdict, deque

import numpy as np
import torch
from torch import Tensor

LARGE = 1 << 18  # bytes from which on memory is kept
LIMIT = 1 << 29  # bytes that may wait, all in all
# bytes of the largest block that glibc learns from, and a page for what it adds
LEARNED = (1 << 25) - (1 << 12)

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


@functools.cache
def keep_freed() -> None:
    """Let glibc keep up to 64 MiB of what is freed, for all that this process allocates later.

    It gives the end of its memory back as soon as that is twice as large as the largest block ever
    freed, and new blocks then begin with pages that are zeroed one by one. Steps whose tensors have
    some hundred kilobytes took up to three times as long. One large block, never written, that is
    freed at once raises the bound as far as it goes; other allocators do not notice.
    """
    torch.empty(LEARNED, dtype=torch.uint8)  # freed at once, as nobody holds it


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
