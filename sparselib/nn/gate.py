"""Gates that close channels, sampled by a relaxed Bernoulli distribution (Ganjdanesh)."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

NOISES = ("gumbel", "logistic", "none")


class Channels(NamedTuple):
    """Channels that can leave a network together.

    Parameters
    ----------
    written : tuple of str
        Names of the layers that write them, in order; normalizations and depthwise convolutions
        among them.
    read : str
        Name of the one layer that reads them.
    """

    written: tuple[str, ...]
    read: str


@runtime_checkable
class Prunable(Protocol):
    """A network that knows which of its channels can leave together."""

    def prunable(self) -> list[Channels]:
        """Return the groups of channels."""


@runtime_checkable
class Scaled(Protocol):
    """A network that names the modules whose outputs are its feature scales, the largest first."""

    scales: Sequence[str]


def gumbel_sigmoid(
    scores: Float[Tensor, "*size"],
    temperature: float = 1.0,
    noise: str = "gumbel",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*size"]:
    r"""Relaxed Bernoulli samples, near 0 or 1 at low temperature (Ganjdanesh, Eq. 14, 15).

    .. math:: \sigma\left(\frac{s + g}{\tau}\right), \quad g = -\log(-\log u), \quad u \sim U(0, 1)

    It exceeds 1/2 with probability :math:`1 - \exp(-e^s)`: with :math:`s = \log f`, as in Eq. 14,
    that is :math:`1 - e^{-f}`, and not f. Logistic noise, :math:`g = \log u - \log(1 - u)`, makes
    the probability :math:`\sigma(s)`, whatever the temperature, and so f for the logit of f.

    Parameters
    ----------
    scores : tensor
        s.
    temperature : float
        :math:`\tau`, above 0.
    noise : {"gumbel", "logistic", "none"}
        The distribution of g.
    generator : torch.Generator, optional
        Source of the noise, on the processor; torch's default otherwise.

    Raises
    ------
    ValueError
        If the temperature is not above 0, or the noise unknown.
    """
    if not temperature > 0 or noise not in NOISES:
        raise ValueError(
            f"a relaxed Bernoulli sample needs a temperature above 0 and a noise of {NOISES}, "
            f"not {temperature} and {noise!r}"
        )
    if noise == "none":
        return torch.sigmoid(scores / temperature)
    tiny = torch.finfo(scores.dtype).tiny
    u = torch.rand(scores.shape, generator=generator, dtype=scores.dtype).clamp(
        tiny
    )
    g = -torch.log(-torch.log(u)) if noise == "gumbel" else torch.logit(u)
    return torch.sigmoid((scores + g.to(scores.device)) / temperature)


class ChannelGate(nn.Module):
    r"""One gate per channel, which multiplies its activations (Ganjdanesh, Eq. 15 and 16).

    .. math:: v = \sigma\left(\frac{\theta + g + b}{\tau}\right), \quad F \leftarrow v \odot F

    Parameters
    ----------
    channels : int
        Number of channels.
    bias : float
        b, which opens all gates at first.
    temperature : float
        :math:`\tau`.
    noise : {"gumbel", "logistic", "none"}
        The distribution of g; see `gumbel_sigmoid`.
    std : float
        Standard deviation of :math:`\theta` at initialization. The paper gives none; the released
        code has 1.

    Attributes
    ----------
    open : tensor or None
        The gates as last sampled or set; None leaves all channels as they are.
    """

    open: Tensor | None

    def __init__(
        self,
        channels: int,
        *,
        bias: float = 3.0,
        temperature: float = 0.4,
        noise: str = "gumbel",
        std: float = 0.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        theta = std * torch.randn(channels, generator=generator, dtype=dtype)
        self.theta = nn.Parameter(theta.to(device))
        self.bias = bias
        self.temperature = temperature
        self.noise = noise
        self.open = None

    def draw(
        self, generator: torch.Generator | None = None
    ) -> Float[Tensor, "channels"]:
        """Sample new gates, soft and differentiable, keep them in `open` and return them."""
        scores = self.theta + self.bias
        self.open = gumbel_sigmoid(
            scores, self.temperature, self.noise, generator
        )
        return self.open

    def forward(
        self, x: Float[Tensor, "batch channels *size"]
    ) -> Float[Tensor, "..."]:
        """Return the features times their gates."""
        if self.open is None:
            return x
        return x * self.open.view(-1, *(1,) * (x.ndim - 2))
