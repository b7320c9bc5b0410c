"""How good masks are, evaluated by an independent network (Jethani and others, 2021)."""

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
        Share of samples for which the evaluator, given what is kept, predicts the class that the
        classifier predicts from the whole.
    accuracy, auroc : float
        Of the evaluator against the true labels, EVAL-X's two scores.
    """

    area: float
    fidelity: float
    accuracy: float
    auroc: float


def evalx(
    evaluator: nn.Module,
    classifier: nn.Module,
    masks: Float[Tensor, "samples 1 *size"],
    samples: Samples,
    generator: torch.Generator | None = None,
) -> Verdict:
    """Evaluate what is left of samples behind masks (EVAL-X; Jethani and others, 2021).

    A selector is trained against its predictor and may exploit that predictor's errors. EVAL-X
    uses another network, trained without any selector: on samples with every pixel kept or hidden
    with probability one half, `train_predictor` with ``masks=bernoulli`` (Ganjdanesh, Eq. 8). Each
    mask is sampled once, so that the evaluator sees pixels kept or hidden here too.

    Parameters
    ----------
    evaluator : nn.Module
        Trained with `bernoulli`; not the predictor that the selector was trained with.
    classifier : nn.Module
        The network that the masks explain.
    masks : tensor
        Probability of each pixel to be kept.
    samples : Samples
        With their true labels.
    generator : torch.Generator, optional
        Of the samples of the masks, on the CPU.

    Raises
    ------
    ValueError
        If there is not one mask per sample and of its size, or a class has no sample.
    """
    if masks.shape != (len(samples), 1, *samples.x.shape[2:]):
        raise ValueError(
            f"masks of shape {tuple(masks.shape)} do not fit samples of shape "
            f"{tuple(samples.x.shape)}: one mask per sample, of one channel and the same size"
        )
    kept = torch.bernoulli(masks.detach().cpu(), generator=generator)
    masked = predict(evaluator, samples.x.cpu() * kept)
    whole = predict(classifier, samples.x)
    labels = samples.y.to(masked.device)
    return Verdict(
        area=float(metrics.mask_area(masks).mean()),
        fidelity=metrics.fidelity(masked, whole.to(masked.device)),
        accuracy=metrics.accuracy(masked, labels),
        auroc=metrics.auroc(masked, labels),
    )
