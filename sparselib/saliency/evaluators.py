"""How good masks are, judged by a network that has no stake in them (Jethani and others, 2021)."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselib import metrics
from sparselib.datasets import Samples
from sparselib.training import predict


class Verdict(NamedTuple):
    """What `evalx` finds, each a share in [0, 1].

    Parameters
    ----------
    area : float
        Mean share of a sample that its mask keeps.
    fidelity : float
        Share of samples of which the judge, shown what is kept, says what the classifier says of
        the whole.
    accuracy, auroc : float
        Of the judge against the true labels, EVAL-X's two scores.
    """

    area: float
    fidelity: float
    accuracy: float
    auroc: float


def evalx(
    judge: nn.Module,
    classifier: nn.Module,
    masks: Float[Tensor, "samples 1 *size"],
    samples: Samples,
    generator: torch.Generator | None = None,
) -> Verdict:
    """Let a judge say what is left of samples behind masks (EVAL-X; Jethani and others, 2021).

    A selector is trained against its predictor and may learn what that predictor falls for. EVAL-X
    asks another network, which knows no selector: it learnt from samples with every pixel kept or
    hidden by a fair coin, `train_predictor` with ``masks=coins`` (Ganjdanesh, Eq. 8). A mask is
    drawn once, so that the judge sees pixels kept or hidden here too.

    Parameters
    ----------
    judge : nn.Module
        Trained on coins; not the predictor that the selector was trained with.
    classifier : nn.Module
        What the masks explain.
    masks : tensor
        Probability of each pixel to be kept.
    samples : Samples
        With their true labels.
    generator : torch.Generator, optional
        Source of the coins, on the processor.

    Raises
    ------
    ValueError
        If there is not one mask a sample and of its size, or a class has no sample.
    """
    if masks.shape != (len(samples), 1, *samples.x.shape[2:]):
        raise ValueError(
            f"masks of shape {tuple(masks.shape)} do not fit samples of shape "
            f"{tuple(samples.x.shape)}: one mask a sample, of one channel and the same size"
        )
    drawn = torch.bernoulli(masks.detach().cpu(), generator=generator)
    left, whole = predict(judge, samples.x.cpu() * drawn), predict(classifier, samples.x)
    labels = samples.y.to(left.device)
    return Verdict(
        float(metrics.mask_area(masks).mean()),
        metrics.fidelity(left, whole.to(left.device)),
        metrics.accuracy(left, labels),
        metrics.auroc(left, labels),
    )
