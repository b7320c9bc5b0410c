"""Sparse autoencoders: a vector written as a weighted sum of a few of many features."""

import abc
from typing import Any, final

import torch
from torch import Tensor, nn

BANDWIDTH = 0.1  # within which a threshold feels a feature, where the features have a variance of 1


class Autoencoder(nn.Module, abc.ABC):
    r"""Write x as codes z, and read it back as a sum of rows of a dictionary.

    .. math:: h = W (x - b) + c, \quad z = f(h), \quad \hat x = z D + b

    The dictionary begins with rows of norm 1, and W with the same numbers (Gao and others, 2024).
    What f is, and what the loss asks for besides the squared error, is up to the kinds.

    Parameters
    ----------
    width : int
        Numbers of x.
    features : int
        Rows of the dictionary.
    generator : torch.Generator
        Of the first dictionary.
    """

    def __init__(self, width: int, features: int, generator: torch.Generator) -> None:
        super().__init__()
        rows = nn.functional.normalize(torch.randn(features, width, generator=generator))
        self.dictionary = nn.Parameter(rows)
        self.encoder = nn.Parameter(rows.clone())
        self.offset = nn.Parameter(torch.zeros(features))
        self.center = nn.Parameter(torch.zeros(width))

    def scores(self, x: Tensor) -> Tensor:
        """Return h, how much of each feature there may be."""
        return (x - self.center) @ self.encoder.T + self.offset

    @abc.abstractmethod
    def codes(self, scores: Tensor) -> Tensor:
        """Return z, of which most are 0."""

    def penalty(self, scores: Tensor) -> Tensor:
        """Return what training pays for the codes of a batch, besides the error."""
        return scores.new_zeros(())

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of x."""
        return self.codes(self.scores(x))

    def decode(self, codes: Tensor) -> Tensor:
        """Return what codes stand for."""
        return codes @ self.dictionary + self.center

    def forward(self, x: Tensor) -> Tensor:
        """Return x as its codes describe it."""
        return self.decode(self.encode(x))


def loss(model: Autoencoder, batch: Any) -> Tensor:
    """Return the mean squared error of a batch, and what its codes cost, as `fit` wants it."""
    scores = model.scores(batch.x)
    error = nn.functional.mse_loss(model.decode(model.codes(scores)), batch.x)
    return error + model.penalty(scores)


@final
class TopK(Autoencoder):
    """Keeps the k largest scores, if they are positive (Gao and others, 2024)."""

    def __init__(self, *size: int, generator: torch.Generator, active: int) -> None:
        super().__init__(*size, generator)
        self.active = active

    def codes(self, scores: Tensor) -> Tensor:
        """Return the k largest scores in their places."""
        largest = scores.topk(self.active, dim=1)
        return torch.zeros_like(scores).scatter(1, largest.indices, largest.values.relu())


@final
class ReLU(Autoencoder):
    r"""Keeps what is positive, and pays :math:`\lambda \sum_i z_i \lVert D_i \rVert / n`.

    The norm of the row keeps codes from being small and rows large instead.
    """

    def __init__(self, *size: int, generator: torch.Generator, weight: float) -> None:
        super().__init__(*size, generator)
        self.weight = weight

    def codes(self, scores: Tensor) -> Tensor:
        """Return the positive scores."""
        return scores.relu()

    def penalty(self, scores: Tensor) -> Tensor:
        """Return the sum of the codes, each times the norm of its row."""
        norms = self.dictionary.norm(dim=1)
        return self.weight * (scores.relu() @ norms).mean() / self.dictionary.shape[1]


@final
class JumpReLU(Autoencoder):
    r"""Keeps what is above a threshold of its own (Rajamanoharan and others, 2024).

    .. math:: z_i = h_i H(h_i - \theta_i)

    and pays :math:`\lambda` for each code that is not 0, divided by n. Thresholds learn by a step
    smoothed over a bandwidth, their Equations 11 and 12.
    """

    def __init__(self, *size: int, generator: torch.Generator, weight: float) -> None:
        super().__init__(*size, generator)
        self.weight = weight
        self.log_threshold = nn.Parameter(torch.full((size[1],), 0.1).log())

    def codes(self, scores: Tensor) -> Tensor:
        """Return the scores above their thresholds."""
        codes: Tensor = _Jump.apply(scores, self.log_threshold.exp())
        return codes

    def penalty(self, scores: Tensor) -> Tensor:
        """Return the number of codes that are not 0."""
        counted: Tensor = _Step.apply(scores, self.log_threshold.exp())
        return self.weight * counted.sum(1).mean() / self.dictionary.shape[1]


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(scores, threshold)
        return scores * (scores > threshold)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        scores, threshold = ctx.saved_tensors
        near = (scores - threshold).abs() < BANDWIDTH / 2
        of_threshold = -threshold / BANDWIDTH * (near * slope).sum(0)
        return slope * (scores > threshold), of_threshold


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(scores, threshold)
        return (scores > threshold).to(scores)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[None, Tensor]:
        scores, threshold = ctx.saved_tensors
        near = (scores - threshold).abs() < BANDWIDTH / 2
        return None, -(near * slope).sum(0) / BANDWIDTH
