"""Random changes of images and signals that leave their class as it is."""

import torch
from jaxtyping import Float
from torch import Tensor


def shifted_and_flipped(
    x: Float[Tensor, "images colors height width"],
    most: int = 4,
    flip: bool = True,
    generator: torch.Generator | None = None,
    *,
    fill: float | Tensor = 0.0,
) -> Float[Tensor, "images colors height width"]:
    """Shift each image by up to `most` pixels in both directions, and flip half of them sideways.

    With the defaults it is the augmentation of CIFAR-10 by He and others (2016, Section 4.2): a
    crop of 32 x 32 from the image with a margin of 4, or its mirror image. The margin is zero,
    which in standardized images is their mean color; who pads before standardizing, as is usual
    with torchvision, pads with black. A network notices: the public ResNet-20 of
    `sparselib.models.pretrained`, which learned with black margins, loses three points of accuracy
    when its normalizations are measured anew with margins of zero.

    Parameters
    ----------
    x : Tensor, shape (images, colors, height, width)
        Images, unchanged.
    most : int
        Pixels of the largest shift.
    flip : bool
        Flip each image with a probability of one half.
    generator : torch.Generator, optional
        Source of the shifts, on the CPU; torch's default otherwise.
    fill : float or Tensor, shape (colors,)
        What enters at a border: one value, or one of each color, such as
        ``sparselib.datasets.cifar.black()``.

    Raises
    ------
    ValueError
        If `most` is below 0, or `fill` has another number of values.
    """
    if most < 0:
        raise ValueError(f"a shift is of at least 0 pixels, not {most}")
    count, colors, height, width = x.shape
    margin = torch.as_tensor(fill, dtype=x.dtype, device=x.device)
    if margin.shape not in ((), (colors,)):
        raise ValueError(
            f"fill has one value or one for each of {colors} colors, not the shape "
            f"{tuple(margin.shape)}"
        )
    wide = x.new_empty(count, colors, height + 2 * most, width + 2 * most)
    wide[:] = margin.view(-1, 1, 1)
    wide[:, :, most : most + height, most : most + width] = x
    draw = torch.randint(0, 2 * most + 1, (2, count, 1), generator=generator)
    rows = draw[0] + torch.arange(height)
    columns = draw[1] + torch.arange(width)
    if flip:
        is_flipped = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(is_flipped, columns.flip(1), columns)
    image = torch.arange(count)[:, None, None]
    places = (image, rows[:, :, None], columns[:, None, :])
    chosen = wide.movedim(1, 3)[tuple(place.to(x.device) for place in places)]
    return chosen.movedim(3, 1).contiguous()


def scaled_and_jittered(
    x: Float[Tensor, "samples points"],
    scale: float = 0.1,
    jitter: float = 0.1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "samples points"]:
    r"""Scale each signal at random, and add noise to each of its points.

    :math:`x' = (1 + \sigma_s a) x + \sigma_j b` with :math:`a` of each signal and :math:`b` of each
    point standard normal: scaling and jittering (Um and others, 2017).

    Parameters
    ----------
    x : Tensor, shape (samples, points)
        Signals, unchanged.
    scale : float
        Standard deviation of the factor around 1.
    jitter : float
        Standard deviation of the noise, in the unit of the signals.
    generator : torch.Generator, optional
        Source of both, on the CPU; torch's default otherwise.

    Raises
    ------
    ValueError
        If one of them is below 0.
    """
    if scale < 0 or jitter < 0:
        raise ValueError(
            f"standard deviations count from 0, not scale={scale}, jitter={jitter}"
        )
    count, points = x.shape
    factor = 1 + scale * torch.randn(count, 1, generator=generator)
    noise = jitter * torch.randn(count, points, generator=generator)
    return factor.to(x) * x + noise.to(x)
