"""Random numbers of a dropout, four of them from 64 bits."""

import numpy as np

from sparselib.ops.backends.cpu_arguments import NOISE, NOISE_PIECE
from sparselib.ops.backends.cpu_between import number_of
from sparselib.ops.backends.cpu_vectors import (
    ZERO,
    floats,
    inline,
    kernel,
    ticket,
)

# SplitMix64, whose state grows by the first (Steele, Lea and Flood, 2014)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST = np.uint64(0xBF58476D1CE4E5B9)
SECOND = np.uint64(0x94D049BB133111EB)
LOW = np.uint64(0xFFFF)
SIXTEEN = np.uint64(16)
TWENTY_SEVEN = np.uint64(27)
THIRTY = np.uint64(30)
THIRTY_ONE = np.uint64(31)
THIRTY_TWO = np.uint64(32)
FORTY_EIGHT = np.uint64(48)


@inline
def mixed(seed, i):  # type: ignore[no-untyped-def]
    """Return number i of the sequence of a seed, from 0 on."""
    z = seed + np.uint64(i + 1) * GOLDEN
    z = (z ^ (z >> THIRTY)) * FIRST
    z = (z ^ (z >> TWENTY_SEVEN)) * SECOND
    return z ^ (z >> THIRTY_ONE)


@kernel
def noise(a):  # type: ignore[no-untyped-def]
    """y[i] = scale where 16 bits are less than what is kept, else 0; see `Noise`."""
    count = a[NOISE.numbers]
    seed = np.uint64(a[NOISE.seed])
    kept = np.uint64(a[NOISE.kept])
    scale = number_of(a[NOISE.scale])
    y = floats(a[NOISE.y])
    while True:
        first = ticket(a, 0) * NOISE_PIECE
        if first >= count:
            break
        end = min(count, first + NOISE_PIECE)
        whole = end - end % 4
        for i in range(first // 4, whole // 4):
            z = mixed(seed, i)
            y[4 * i] = scale if z & LOW < kept else ZERO
            y[4 * i + 1] = scale if (z >> SIXTEEN) & LOW < kept else ZERO
            y[4 * i + 2] = scale if (z >> THIRTY_TWO) & LOW < kept else ZERO
            y[4 * i + 3] = scale if z >> FORTY_EIGHT < kept else ZERO
        z = mixed(seed, whole // 4)
        for i in range(whole, end):
            y[i] = scale if z & LOW < kept else ZERO
            z >>= SIXTEEN
