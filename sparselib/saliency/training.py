"""How predictors and selectors are trained."""

import copy
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselib.datasets import Samples, Split
from sparselib.training import History, fit, in_evaluation, predict

from .masks import random_rbf, sample
from .objectives import divergence, mask_size, smoothness
from .selector import Selector

Masks = Callable[[Tensor, torch.Generator], Tensor]


def said_by(
    classifier: nn.Module, x: Float[Tensor, "samples ..."], batch_size: int = 500
) -> Float[Tensor, "samples classes"]:
    """Logarithms of a classifier's probabilities, in evaluation mode; its mode is restored."""
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
    **options: Any,
) -> History:
    """Train a predictor to say of masked images what the classifier says of whole ones.

    With `random_rbf` masks the objective is Eq. 6 of Ganjdanesh's main text, with `coins` Eq. 8.

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
    said = said_by(classifier, data.train.x)
    held = data.valid.x * masks(data.valid.x, generator)
    monitor = Samples(held, said_by(classifier, data.valid.x).argmax(1).cpu())
    model = _Masked(predictor, lambda x: masks(x, generator))
    return fit(
        model,
        _numbered(data),
        optimizer,
        epochs,
        loss=lambda logits, number: divergence(logits, said[number]),
        monitor=monitor,
        seed=seed,
        **options,
    )


def train_selector(
    selector: Selector,
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
    **options: Any,
) -> History:
    r"""Train a selector: a small mask by which the predictor still says the same (Eq. 11).

    .. math:: KL(Q_{class}(y | x) \| q_{pred}(y | m'(x))) + \lambda_1 R(m') + \lambda_2 S(m')

    Parameters
    ----------
    selector : Selector
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
        Fixes the coins and the order of the images.
    **options
        Passed on to `fit`.

    Returns
    -------
    dict of list
        As `fit` does; ``accuracy`` is the fidelity on the validation images, which alone says
        little: a mask that keeps everything has the best.

    Warns
    -----
    RuntimeWarning
        If the masks keep nearly nothing, nearly everything, or now this and now that.
    """
    generator = torch.Generator().manual_seed(seed)
    said, labels = said_by(selector.classifier, data.train.x), data.train.y
    monitor = Samples(data.valid.x, said_by(selector.classifier, data.valid.x).argmax(1).cpu())

    def loss(outputs: Any, number: Tensor) -> Tensor:
        x, scales = outputs
        mask = selector.masks(selector.decoder(scales, labels.to(number.device)[number]))
        drawn = sample(mask, temperature, noise, generator)
        told = divergence(model.predictor(x * drawn), said[number])
        return told + lambda_1 * mask_size(mask, drawn, size) + lambda_2 * smoothness(drawn, smooth)

    model = _Explained(selector, predictor)
    history = fit(
        model, _numbered(data), optimizer, epochs, loss=loss, monitor=monitor, seed=seed, **options
    )
    _warn_of_collapse(selector, data.valid.x)
    return history


class _Numbered(NamedTuple):
    train: Samples
    valid: Samples


def _numbered(data: Split) -> _Numbered:
    """Samples whose labels are their numbers, so that a loss can look up what belongs to them."""
    return _Numbered(Samples(data.train.x, torch.arange(len(data.train))), data.valid)


class _Masked(nn.Module):
    def __init__(self, predictor: nn.Module, masks: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.predictor, self.masks = predictor, masks

    def forward(self, x: Tensor) -> Tensor:
        return self.predictor(x * self.masks(x) if self.training else x)


class _Explained(nn.Module):
    def __init__(self, selector: Selector, predictor: nn.Module) -> None:
        super().__init__()
        self.selector = selector
        self.predictor = copy.deepcopy(predictor).requires_grad_(False)

    def train(self, mode: bool = True) -> "_Explained":
        super().train(mode)
        self.predictor.eval()
        return self

    def forward(self, x: Tensor) -> Any:
        if self.training:
            return x, self.selector.read(x)[1]
        return self.predictor(x * self.selector(x))


@torch.no_grad()
def _warn_of_collapse(selector: Selector, x: Tensor) -> None:
    like = next(selector.parameters())
    with in_evaluation(selector):
        u = torch.cat([selector.numbers(part.to(like)) for part in x[:500].split(100)])
    sigma, area = selector.centre_and_sigma(u)[1], float(selector.masks(u).mean())
    if not 0.02 <= area <= 0.9 or sigma.std() > sigma.mean():
        warnings.warn(
            f"the masks have collapsed: they keep {area:.1%} of an image, sigma is "
            f"{float(sigma.mean()):.1f} +- {float(sigma.std()):.1f}. Lower the learning rate, "
            f"change lambda_1, or make the selector with bound='bounded'",
            RuntimeWarning,
            stacklevel=3,
        )
