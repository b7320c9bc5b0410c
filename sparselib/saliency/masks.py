"""Masks over images and signals: round ones, random ones, sampled ones (Ganjdanesh)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sparselib.nn.gate import gumbel_sigmoid

SIGMAS = ("softplus", "bounded")


def rbf(
    center: Float[Tensor, "batch dimensions"],
    sigma: Float[Tensor, "batch"],
    size: Sequence[int],
    definition: str = "code",
) -> Float[Tensor, "batch 1 *size"]:
    r"""Round masks that fall off from a center (Ganjdanesh, Eq. 12).

    .. math:: f(z, t) = \exp\left(-\frac{(z - c_z)^2 + (t - c_t)^2}{2 \sigma^2}\right)

    Parameters
    ----------
    center : tensor
        :math:`(c_z, c_t)`, the row and the column, in pixels; one number for signals.
    sigma : tensor
        :math:`\sigma`, in pixels.
    size : sequence of int
        Of the image: rows and columns.
    definition : {"code", "text"}
        ``"code"`` divides by the largest value on the grid, so that a mask is 1 at its peak even
        if that lies between two pixels; ``"text"`` does not.
    """
    if definition not in ("code", "text") or center.shape[1] != len(size):
        raise ValueError(
            f"definition must be 'code' or 'text' and a center have one number a dimension, "
            f"not {definition!r} and {center.shape[1]} for size {tuple(size)}"
        )
    ones = (1,) * len(size)
    axes = [
        torch.arange(n, dtype=center.dtype, device=center.device) for n in size
    ]
    grid = torch.stack(
        torch.meshgrid(*axes, indexing="ij")
    )  # (dimensions, *size)
    offsets = grid - center.view(
        *center.shape, *ones
    )  # (batch, dimensions, *size)
    distance = offsets.square().sum(1)  # (batch, *size)
    width = 2 * sigma.square() + 1e-12
    exponent = distance / width.view(-1, *ones)
    if definition == "code":
        every_pixel = tuple(range(1, exponent.ndim))
        smallest = exponent.amin(every_pixel, keepdim=True)
        exponent = exponent - smallest.detach()
    mask = torch.exp(-exponent)
    return mask[:, None]


def reach(side: int | float) -> float:
    """How far a center may lie from the middle: 14 pixels of 32, 108 of 224 (supplement, 3)."""
    return side / 2 - max(2, side / 56)


def first_sigma(side: int | float) -> float:
    """About a third of the image: 10 pixels of 32, 80 of 224 (supplement, 3)."""
    return {32.0: 10.0, 224.0: 80.0}.get(float(side), side / 3)


def center_and_sigma(
    u: Float[Tensor, "batch numbers"],
    size: Sequence[int | float],
    bound: str = "softplus",
) -> tuple[Float[Tensor, "batch dimensions"], Float[Tensor, "batch"]]:
    r"""Bring a selector's numbers into the image (Ganjdanesh, supplement, 3).

    .. math:: c = r \tanh(u / r) + \frac{n}{2}, \quad \sigma = \log(1 + e^u)

    with n pixels and the `reach` r: for CIFAR-10 :math:`14 \tanh(u / 14) + 16`.

    Parameters
    ----------
    u : tensor
        A number for each dimension and one for :math:`\sigma`.
    size : sequence of int
        Of the image, in pixels.
    bound : {"softplus", "bounded"}
        ``"bounded"`` goes on to :math:`\sigma / (1 + 2 \sigma / n)`, which stays below half of the
        smallest side and cannot run away.
    """
    if bound not in SIGMAS or u.shape[1] != len(size) + 1:
        raise ValueError(
            f"bound must be one of {SIGMAS} and there must be {len(size) + 1} numbers, "
            f"not {bound!r} and {u.shape[1]}"
        )
    reaches = u.new_tensor([reach(n) for n in size])
    middle = u.new_tensor([n / 2 for n in size])
    sigma = torch.nn.functional.softplus(u[:, -1])
    if bound == "bounded":
        sigma = sigma / (1 + 2 * sigma / min(size))
    center = reaches * torch.tanh(u[:, :-1] / reaches) + middle
    return center, sigma


def sample(
    mask: Float[Tensor, "*shape"],
    temperature: float = 1.0,
    noise: str = "logistic",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*shape"]:
    r"""Relaxed Bernoulli samples with the mask's probabilities (Ganjdanesh, Eq. 14).

    Parameters
    ----------
    mask : tensor
        Probabilities f.
    temperature : float
        :math:`\tau`; 1 in the paper.
    noise : {"logistic", "gumbel", "none"}
        ``"logistic"``, as in the released code, keeps a pixel with probability f; ``"gumbel"``,
        as Eq. 14 is printed, with :math:`1 - e^{-f}`; ``"none"`` returns f.
    """
    if noise == "none":
        return mask
    logit = mask.clamp(1e-6, 1 - 1e-6).logit()
    scores = mask.clamp(1e-12).log() if noise == "gumbel" else logit
    return gumbel_sigmoid(scores, temperature, noise, generator)


def random_rbf(
    x: Float[Tensor, "batch channels *size"],
    generator: torch.Generator | None = None,
    sigmas: tuple[float, float] | None = None,
) -> Float[Tensor, "batch 1 *size"]:
    """Sample a round mask anywhere for each image, then its pixels (Ganjdanesh, Eq. 6).

    Parameters
    ----------
    x : tensor
        The images or signals; only their shape counts.
    generator : torch.Generator, optional
        Of the random numbers, on the CPU.
    sigmas : tuple of float, optional
        Range of sigma in pixels: 5 to 11 for sides of 32, 80 to 100 for 224; by default the first,
        in proportion to the smallest side.

    Returns
    -------
    tensor
        Zeros and ones.
    """
    size = tuple(x.shape[2:])
    low, high = sigmas or (min(size) * 5 / 32, min(size) * 11 / 32)
    reaches = torch.tensor([reach(n) for n in size])
    middle = torch.tensor([n / 2 for n in size])
    uniform = torch.rand(len(x), len(size), generator=generator)
    center = (2 * uniform - 1) * reaches + middle
    sigma = low + (high - low) * torch.rand(len(x), generator=generator)
    mask = rbf(center, sigma, size)
    return torch.bernoulli(mask, generator=generator).to(x)


def bernoulli(
    x: Float[Tensor, "batch channels *size"],
    generator: torch.Generator | None = None,
    probability: float = 0.5,
) -> Float[Tensor, "batch 1 *size"]:
    """Keep every pixel with the same probability, as REAL-X does (Jethani and others; Eq. 8)."""
    shape = (len(x), 1, *x.shape[2:])
    return torch.bernoulli(
        torch.full(shape, probability), generator=generator
    ).to(x)


def visible(
    saliency: Float[Tensor, "batch 1 *size"], share: float
) -> Float[Tensor, "batch 1 *size"]:
    """Keep the most salient pixels of each sample, the same number of every one.

    Masks of different shapes and ranges become comparable so: each shows as much.

    Parameters
    ----------
    saliency : tensor
        Any numbers; the larger, the more a pixel matters. Of equal ones the first are kept.
    share : float
        Of the pixels, in (0, 1].

    Returns
    -------
    tensor
        Zeros and ones.

    Raises
    ------
    ValueError
        If the share is out of range or of less than a pixel.
    """
    pixels = saliency[0].numel()
    if not 0 < share <= 1 or round(share * pixels) == 0:
        raise ValueError(
            f"the share of pixels to keep lies in (0, 1], and is at least one of {pixels}, not "
            f"{share}"
        )
    order = saliency.flatten(1).argsort(stable=True, dim=1, descending=True)
    kept = torch.zeros_like(saliency.flatten(1))
    return kept.scatter(1, order[:, : round(share * pixels)], 1.0).view_as(
        saliency
    )
