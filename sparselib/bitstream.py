"""Sparse maps as bytes: quantized amplitudes and the gaps between them, entropy coded."""

import lzma
import math
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LONGEST_GAP = 255
LARGEST = 127  # steps that one pair holds, in either direction
MOST_STEPS = 2**15 - 1
CODER = {  # an adaptive binary range coder for bytes; bytes do not depend on their neighbors
    "id": lzma.FILTER_LZMA2,
    "dict_size": 2**16,
    "lc": 0,
    "lp": 0,
    "pb": 0,
    "mode": lzma.MODE_NORMAL,
    "nice_len": 273,
    "mf": lzma.MF_BT4,
}


def quantized(maps: Tensor, step: float) -> Tensor:
    """Round to the multiples of a step, which is what `decode` returns of what `encode` wrote.

    Parameters
    ----------
    maps : tensor
        Activations, of any shape and in any unit.
    step : float
        Distance of two levels, in the unit of the maps; it is rounded to single precision.

    Raises
    ------
    ValueError
        If a level is not finite or more than 32767 steps from zero, or the step is not positive.
    """
    return _levels(maps, step).double() * _single(step)


def encode(maps: Tensor, step: float) -> bytes:
    r"""Write maps as bytes: the step, then pairs of a gap and a level, coded by LZMA.

    A cell with level :math:`l = \mathrm{round}(a / \Delta) \ne 0` is a pair of bytes: its distance
    from the last one, and :math:`2l` or :math:`-2l - 1`. A gap above 255 is led by pairs of a gap
    of 255 and a level of 0; a level beyond 127 is followed by pairs with a gap of 0, which add up.
    All gaps come first, then all levels, through `lzma` of Python's standard library.

    Parameters
    ----------
    maps : tensor
        Activations, of any shape; what is below half a step is dropped.
    step : float
        Distance of two levels.

    Returns
    -------
    bytes
        Four for the step, and the coded pairs. `decode` needs the shape of the maps, too.

    Raises
    ------
    ValueError
        As `quantized` does.
    """
    levels = _levels(maps, step).flatten().numpy()
    places = levels.nonzero()[0]
    gaps, parts = _pairs(places, levels[places])
    signs = np.where(parts < 0, -2 * parts - 1, 2 * parts)
    pairs = np.concatenate([gaps, signs]).astype(np.uint8).tobytes()
    coded = lzma.compress(pairs, lzma.FORMAT_RAW, filters=[CODER])
    return struct.pack("<f", step) + coded


def decode(data: bytes, shape: Sequence[int]) -> Tensor:
    """Return the maps that `encode` wrote, rounded as `quantized` does, in double precision.

    Parameters
    ----------
    data : bytes
        What `encode` returned.
    shape : sequence of int
        Shape of the maps.

    Raises
    ------
    ValueError
        If the bytes are damaged, or describe cells that maps of this shape do not have.
    """
    try:
        (step,) = struct.unpack("<f", data[:4])
        pairs = np.frombuffer(
            lzma.decompress(data[4:], lzma.FORMAT_RAW, filters=[CODER]),
            np.uint8,
        )
    except (struct.error, lzma.LZMAError) as error:
        raise ValueError(
            f"{len(data)} bytes are no code of sparse maps: {error}"
        ) from error
    if len(pairs) % 2:
        raise ValueError(
            f"a code of sparse maps has as many gaps as levels, not {len(pairs)} in all"
        )
    gaps, signs = pairs.astype(np.int64).reshape(2, -1)
    parts = np.where(signs % 2, -(signs + 1) // 2, signs // 2)
    places = gaps.cumsum() - 1
    cells = math.prod(shape)
    if len(places) and (places[0] < 0 or places[-1] >= cells):
        raise ValueError(
            f"the code describes cell {places[-1]}, and maps of shape {tuple(shape)} have {cells}"
        )
    levels = np.zeros(cells)
    np.add.at(levels, places, parts)
    return torch.from_numpy(levels).view(*shape) * step


def _single(step: float) -> float:
    with np.errstate(over="ignore"):  # infinite, which is refused
        return float(np.float32(step))


def _levels(maps: Tensor, step: float) -> Tensor:
    if not 0 < _single(step) < math.inf:
        raise ValueError(f"the step must be a positive number, not {step}")
    levels = (maps.detach().cpu().double() / _single(step)).round()
    if not bool((levels.abs() <= MOST_STEPS).all()):
        raise ValueError(
            f"amplitudes must be finite and at most {MOST_STEPS} steps of {step}; "
            f"the largest is {float(maps.abs().max()):.4g}"
        )
    return levels.long()


def _pairs(
    places: np.ndarray, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Split gaps and levels into pieces of which each fits into a byte."""
    gaps = np.diff(places, prepend=-1)
    skips = (gaps - 1) // LONGEST_GAP
    pieces = -(-np.abs(levels) // LARGEST)
    ends = (skips + pieces).cumsum()
    starts = ends - skips - pieces  # first pair of every cell
    of = np.repeat(np.arange(len(places)), skips + pieces)
    rank = np.arange(len(of)) - starts[of] - skips[of]  # below zero: a skip
    written = np.where(rank == 0, (gaps - LONGEST_GAP * skips)[of], 0)
    written = np.where(rank < 0, LONGEST_GAP, written)
    left = np.abs(levels)[of] - LARGEST * rank
    parts = np.sign(levels)[of] * np.minimum(left, LARGEST)
    return written, np.where(rank < 0, 0, parts)
