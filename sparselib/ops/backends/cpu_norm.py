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


def layer_outward(x: Tensor, norm: Norm, of: After) -> tuple[Tensor, Tensor]:
    """Return the activation of samples with mean 0 and variance 1, scaled, and these themselves.

    x is (features, samples), float32 and contiguous, as is the first result; the second one, by
    tiles of samples, is what `layer_inward` reads.
    """
    rows, samples = x.shape
    kept = cpu_buffers.empty(cpu_work.ceil(samples, TILE), (rows + 1) * TILE)
    y = _called("layer_outward", x, None, norm, of, kept, None, rows * TILE)
    return y, kept


def layer_inward(
    kept: Tensor, dy: Tensor, norm: Norm, of: After
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of what `layer_outward` read, and of scale and shift."""
    rows = dy.shape[0]
    found = cpu_buffers.empty(kept.shape[0], 2 * rows)
    room = 2 * rows * TILE
    dx = _called("layer_inward", None, dy, norm, of, kept, found, room)
    dscale, dshift = found.sum(0).split(rows)
    return dx, dscale, dshift


def batch_outward(x: Tensor, norm: Norm, of: After) -> tuple[Tensor, Tensor]:
    """Return the activation of features with mean 0 and variance 1, scaled, and those of the batch.

    x is (features, samples), float32 and contiguous, as is the first result; the second one is
    (features, 2): mean and variance, which is that of the samples, divided by their number.
    """
    rows, samples = x.shape
    kept = torch.empty(rows, 2)
    room = cpu_work.ceil(samples, LINE) * LINE
    y = _called("batch_outward", x, None, norm, of, kept, None, room)
    return y, kept


def batch_inward(
    x: Tensor, kept: Tensor, dy: Tensor, norm: Norm, of: After
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of what `batch_outward` read, and of scale and shift."""
    rows, samples = x.shape
    found = torch.empty(2, rows)
    room = 3 * cpu_work.ceil(samples, LINE) * LINE
    dx = _called("batch_inward", x, dy, norm, of, kept, found, room)
    return dx, found[0], found[1]


def _called(
    name: str,
    x: Tensor | None,
    dy: Tensor | None,
    norm: Norm,
    of: After,
    kept: Tensor,
    gradients: Tensor | None,
    room: int,
) -> Tensor:
    """Call a kernel, and return what it writes: outputs, or if it is given dy gradients of x."""
    shape = dy if x is None else x
    assert shape is not None
    rows, samples = shape.shape
    result = cpu_buffers.empty(rows, samples)
    buffers = cpu_buffers.empty(torch.get_num_threads(), room)
    scale = norm.scale.contiguous()
    shift = norm.shift.contiguous()
    block = Normalized(
        rows=rows,
        samples=samples,
        x=0 if x is None else x.data_ptr(),
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
    kernel = getattr(kernels_of("cpu_norm_kernels"), name)
    launch(kernel, block, NUMBER * rows * samples)
    return result
