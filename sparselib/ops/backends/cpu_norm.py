"""How the kernels of normalizations are called, for samples that lie feature by feature."""

import torch
from torch import Tensor

from sparselib.ops.backends import After, Norm, cpu_buffers, cpu_work
from sparselib.ops.backends.cpu_arguments import (
    KINDS,
    LINE,
    TILE,
    Normalized,
    bits_of,
)
from sparselib.ops.backends.cpu_launch import kernels_of, launch

# that a number takes, as much time as so many products
NUMBER = 16


def outward(x: Tensor, norm: Norm, of: After) -> tuple[Tensor, Tensor]:
    """Return the activation of numbers with mean 0 and variance 1, scaled, and what is kept.

    x is (features, samples), float32 and contiguous, as is the first result. The second one is what
    `inward` reads: of a layer, the numbers themselves by tiles of samples; of a batch, (features,
    2), mean and variance, the sum of squares about it divided by the number of samples.
    """
    rows, samples = x.shape
    if norm.keep is None:
        tiles = cpu_work.ceil(samples, TILE)
        kept = cpu_buffers.empty(tiles, (rows + 1) * TILE)
        room = rows * TILE
    else:
        kept = torch.empty(rows, 2)
        room = _padded(samples)
    return _called("outward", x, None, norm, of, kept, None, room), kept


def inward(
    x: Tensor, kept: Tensor, dy: Tensor, norm: Norm, of: After
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of what `outward` read, and of scale and shift."""
    rows, samples = x.shape
    if norm.keep is None:
        found = cpu_buffers.empty(kept.shape[0], 2 * rows)
        room = 2 * rows * TILE
    else:
        found = torch.empty(1, 2 * rows)
        room = 3 * _padded(samples)
    dx = _called("inward", x, dy, norm, of, kept, found, room)
    dscale, dshift = found.sum(0).split(rows)
    return dx, dscale, dshift


def _padded(samples: int) -> int:
    """Return the numbers of a feature with those that fill the last line of the cache."""
    return cpu_work.ceil(samples, LINE) * LINE


def _called(
    way: str,
    x: Tensor,
    dy: Tensor | None,
    norm: Norm,
    of: After,
    kept: Tensor,
    gradients: Tensor | None,
    room: int,
) -> Tensor:
    """Call a kernel, and return what it writes: outputs, or if it is given dy gradients of x."""
    rows, samples = x.shape
    result = cpu_buffers.empty(rows, samples)
    buffers = cpu_buffers.empty(torch.get_num_threads(), room)
    scale = norm.scale.contiguous()
    shift = norm.shift.contiguous()
    block = Normalized(
        rows=rows,
        samples=samples,
        x=x.data_ptr(),
        y=result.data_ptr() if dy is None else dy.data_ptr(),
        dx=0 if dy is None else result.data_ptr(),
        scale=scale.data_ptr(),
        shift=shift.data_ptr(),
        epsilon=bits_of(norm.epsilon),
        kind=KINDS[of.kind],
        number=bits_of(of.number),
        kept=kept.data_ptr(),
        gradients=0 if gradients is None else gradients.data_ptr(),
        buffers=buffers.data_ptr(),
        room=room,
    )
    kind = "layer" if norm.keep is None else "batch"
    kernel = getattr(kernels_of("cpu_norm_kernels"), f"{kind}_{way}")
    launch(kernel, block, NUMBER * rows * samples)
    return result
