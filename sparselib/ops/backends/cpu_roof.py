"""What a core could compute at most: multiply-adds of what its registers hold, and nothing else.

A product that reads each number from a cache cannot reach it; the share that it reaches says more
about a kernel than a time does, on any machine. And multiply-adds of one number each that the core
reads from its L2, in sequence: the roof of a product whose features do not fit the L1.
"""

from typing import Any

import torch

from sparselib.ops.backends.cpu_arguments import PACK
from sparselib.ops.backends.cpu_launch import launch
from sparselib.ops.backends.cpu_vectors import (
    LANES,
    ONE,
    ZERO,
    floats,
    fma,
    fmas,
    kernel,
    load,
    splat,
    store,
    ticket,
)

CHAINS = 12  # sums that do not wait for each other: two per cycle, of some five cycles each
NUMBERS = 3 * 2**14  # 192 KiB, which do not fit an L1 and do fit an L2


@kernel
def multiply_adds(a):  # type: ignore[no-untyped-def]
    """Add products of two registers to `CHAINS` sums, which stay in registers, again and again."""
    loops = a[2]
    x = floats(a[3])
    y = floats(a[4])
    v = load(x, 0, LANES)
    w = load(x, LANES, LANES)
    s0 = load(x, 2 * LANES, LANES)
    s1 = load(x, 3 * LANES, LANES)
    s2 = load(x, 4 * LANES, LANES)
    s3 = load(x, 5 * LANES, LANES)
    s4 = load(x, 6 * LANES, LANES)
    s5 = load(x, 7 * LANES, LANES)
    s6 = load(x, 8 * LANES, LANES)
    s7 = load(x, 9 * LANES, LANES)
    s8 = load(x, 10 * LANES, LANES)
    s9 = load(x, 11 * LANES, LANES)
    s10 = load(x, 12 * LANES, LANES)
    s11 = load(x, 13 * LANES, LANES)
    for _ in range(loops):
        s0 = fmas(v, w, s0)
        s1 = fmas(v, w, s1)
        s2 = fmas(v, w, s2)
        s3 = fmas(v, w, s3)
        s4 = fmas(v, w, s4)
        s5 = fmas(v, w, s5)
        s6 = fmas(v, w, s6)
        s7 = fmas(v, w, s7)
        s8 = fmas(v, w, s8)
        s9 = fmas(v, w, s9)
        s10 = fmas(v, w, s10)
        s11 = fmas(v, w, s11)
    place = ticket(a, 1) * CHAINS * LANES
    store(y, place, s0)
    store(y, place + LANES, s1)
    store(y, place + 2 * LANES, s2)
    store(y, place + 3 * LANES, s3)
    store(y, place + 4 * LANES, s4)
    store(y, place + 5 * LANES, s5)
    store(y, place + 6 * LANES, s6)
    store(y, place + 7 * LANES, s7)
    store(y, place + 8 * LANES, s8)
    store(y, place + 9 * LANES, s9)
    store(y, place + 10 * LANES, s10)
    store(y, place + 11 * LANES, s11)


def compute(loops: int) -> torch.Tensor:
    """Run the loop on every thread of torch; return each thread's sums.

    Parameters
    ----------
    loops : int
        Each is ``2 * CHAINS * LANES`` operations per thread.
    """
    x = torch.arange(14 * LANES, dtype=torch.float32) / (14 * LANES)
    return _sums(multiply_adds, loops, x, (CHAINS, LANES))


def operations(loops: int) -> int:
    """Count the additions and multiplications of `compute`, of all threads together."""
    return 2 * CHAINS * LANES * loops * torch.get_num_threads()


@kernel
def read_and_add(a):  # type: ignore[no-untyped-def]
    """Add all numbers, times one, to sums that stay in registers, again and again."""
    loops = a[2]
    x = floats(a[3])
    y = floats(a[4])
    s0 = splat(ZERO, PACK)  # [PACK]
    s1 = splat(ZERO, PACK)  # [PACK]
    s2 = splat(ZERO, PACK)  # [PACK]
    for _ in range(loops):
        for i in range(0, NUMBERS, 3 * PACK):
            s0 = fma(ONE, load(x, i, PACK), s0)
            s1 = fma(ONE, load(x, i + PACK, PACK), s1)
            s2 = fma(ONE, load(x, i + 2 * PACK, PACK), s2)
    place = ticket(a, 1) * 3 * PACK
    store(y, place, s0)
    store(y, place + PACK, s1)
    store(y, place + 2 * PACK, s2)


def read(loops: int, x: torch.Tensor) -> torch.Tensor:
    """Read `NUMBERS` numbers that often on every thread of torch; return each thread's sums."""
    return _sums(read_and_add, loops, x, (3 * PACK,))


def readings(loops: int) -> int:
    """Count the additions and multiplications of `read`, of all threads together."""
    return 2 * NUMBERS * loops * torch.get_num_threads()


def _sums(
    loop: Any,  # numba's types are not those of `cpu`
    loops: int,
    x: torch.Tensor,
    shape: tuple[int, ...],
) -> torch.Tensor:
    """Run a loop on every thread of torch; return each thread's sums."""
    y = torch.empty(torch.get_num_threads(), *shape)
    launch(loop, [loops, x, y])
    return y
