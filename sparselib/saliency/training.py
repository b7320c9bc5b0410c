"""How predictors and selectors are trained."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselib import metrics
from sparselib.batches import Batch
from sparselib.datasets import Samples, Split
from sparselib.modes import in_evaluation
from sparselib.training import (
    FitOptions,
    History,
    fit,
    predict,
)

from .masks import random_rbf, sample
from .objectives import divergence, mask_size, smoothness
from .selector import MaskSelector

Masks = Callable[[Tensor, torch.Generator], Tensor]


def predicted_by(
    classifier: nn.Module,
    x: Float[Tensor, "samples ..."],
    batch_size: int = 500,
) -> Float[Tensor, "samples classes"]:
    """Log-probabilities that a classifier predicts, in evaluation mode; its mode is restored."""
    return predict(classifier, x, batch_size).log_softmax(1)


def train_predictor(
    predictor: nn.Module,
    classifier: nn.Module,
    data: Split,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    masks: Masks = random_rbf,
    seed: int = 0,
    **options: Unpack[FitOptions],
) -> History:
    """Train a predictor to predict from masked images what the classifier does from whole ones.

    With `random_rbf` masks the objective is Eq. 6 of Ganjdanesh's main text, with `bernoulli`
    Eq. 8.

    Parameters
    ----------
    predictor : nn.Module
        Trained in place; of the same make as the classifier in the paper.
    classifier : nn.Module
        Left as it is.
    data : Split
        Images; their labels are not used.
    optimizer : torch.optim.Optimizer
        Of the predictor.
    epochs : int
        Passes over the training images.
    masks : callable
        ``(x, generator) -> zeros and ones``, new ones for every batch.
    seed : int
        Fixes the masks and the order of the images.
    **options
        Passed on to `fit`: ``batch_size``, ``after_step``, ``progress``.

    Returns
    -------
    dict of list
        As `fit` does; ``accuracy`` is the share of masked validation images on which the
        predictor's class is the one that the classifier gives the whole image.
    """
    generator = torch.Generator().manual_seed(seed)
    predicted = predicted_by(classifier, data.train.x)
    masked = data.valid.x * masks(data.valid.x, generator)
    monitor = Samples(masked, _classes(classifier, data.valid.x))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.x * masks(batch.x, generator))
        return divergence(logits, predicted[batch.indices])

    given: FitOptions = {"monitor": monitor, **options}
    return fit(
        predictor, data, optimizer, epochs, loss=loss, seed=seed, **given
    )


def train_selector(
    selector: MaskSelector,
    predictor: nn.Module,
    data: Split,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    lambda_1: float = 1.0,
    lambda_2: float = 0.001,
    size: str = "expected",
    smooth: str = "code",
    noise: str = "logistic",
    temperature: float = 1.0,
    seed: int = 0,
    **options: Unpack[FitOptions],
) -> History:
    r"""Train a selector: a small mask from which the predictor predicts the same (Eq. 11).

    .. math:: KL(Q_{class}(y | x) \| q_{pred}(y | m'(x))) + \lambda_1 R(m') + \lambda_2 S(m')

    Parameters
    ----------
    selector : MaskSelector
        Its decoder is trained in place.
    predictor : nn.Module
        Trained by `train_predictor`; left as it is.
    data : Split
        Images, and labels as the classes to look for.
    optimizer : torch.optim.Optimizer
        Of ``selector.decoder``.
    epochs : int
        Passes over the training images; a few hundred steps suffice.
    lambda_1, lambda_2 : float
        Weights of `mask_size` and `smoothness`.
    size, smooth : str
        Their definitions. With the defaults, and with these only, the penalty grows with the mask
        all the way; where it does not, masks run away.
    noise, temperature
        See `sample`.
    seed : int
        Fixes the random masks and the order of the images.
    **options
        Passed on to `fit`.

    Returns
    -------
    dict of list
        As `fit` does; ``accuracy`` is the fidelity on the validation images, which alone shows
        little: a mask that keeps everything has the best.

    Warns
    -----
    RuntimeWarning
        If the masks keep nearly nothing, nearly everything, or differ wildly in size.
    """
    generator = torch.Generator().manual_seed(seed)
    frozen = copy.deepcopy(predictor).eval().requires_grad_(False)
    predicted = predicted_by(selector.classifier, data.train.x)
    monitor = Samples(data.valid.x, _classes(selector.classifier, data.valid.x))

    def loss(selector: MaskSelector, batch: Batch) -> Tensor:
        _, scales = selector.read(batch.x)
        mask = selector.masks(selector.decoder(scales, batch.y))
        drawn = sample(mask, temperature, noise, generator)
        total = divergence(frozen(batch.x * drawn), predicted[batch.indices])
        total = total + lambda_1 * mask_size(mask, drawn, size)
        return total + lambda_2 * smoothness(drawn, smooth)

    def fidelity(selector: MaskSelector, samples: Samples) -> dict[str, float]:
        logits = torch.cat(
            [frozen(x * selector(x)) for x in _parts(selector, samples.x, 512)]
        )
        return {
            "accuracy": metrics.accuracy(logits, samples.y.to(logits.device))
        }

    given: FitOptions = {"measure": fidelity, "monitor": monitor, **options}
    history = fit(
        selector, data, optimizer, epochs, loss=loss, seed=seed, **given
    )
    _warn_of_collapse(selector, data.valid.x)
    return history


def _classes(classifier: nn.Module, x: Tensor) -> Tensor:
    """Return the class that a classifier predicts for each sample, on the CPU."""
    return predicted_by(classifier, x).argmax(1).cpu()


def _parts(model: nn.Module, x: Tensor, batch_size: int) -> Iterator[Tensor]:
    like = next(model.parameters())
    return (part.to(like) for part in x.split(batch_size))


@torch.no_grad()
def _warn_of_collapse(selector: MaskSelector, x: Tensor) -> None:
    with in_evaluation(selector):
        u = torch.cat(
            [selector.numbers(part) for part in _parts(selector, x[:500], 100)]
        )
    extent = selector.extent(u)
    area = float(selector.masks(u).mean())
    if not 0.02 <= area <= 0.9 or extent.std() > extent.mean():
        warnings.warn(
            f"the masks have collapsed: they keep {area:.1%} of an image, their extent is "
            f"{float(extent.mean()):.1f} +- {float(extent.std()):.1f} pixels. Lower the learning "
            f"rate, change lambda_1, or make a Selector with bound='bounded'",
            RuntimeWarning,
            stacklevel=3,
        )
