"""Saliency by trying masks: what a network still recognizes behind random ones."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparselib.modes import in_evaluation

from .masks import random_rbf
from .training import Masks


@torch.no_grad()
def rise(
    model: nn.Module,
    x: Float[Tensor, "batch channels *size"],
    labels: Int[Tensor, "batch"],
    number: int,
    *,
    masks: Masks = random_rbf,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch 1 *size"]:
    r"""How much more probable a class is where a pixel is shown (RISE; Petsiuk and others, 2018).

    .. math:: S(p) = \frac{\sum_i q(c \mid x \odot m_i) \, m_i(p)}{\sum_i m_i(p)}

    Their Equation 6, with the number of masks that show a pixel counted instead of known. Nothing
    about the network is used but what it predicts, and nothing is trained: a hundred predictions or
    more for each sample make it the measure of what a mask found in one pass could be.

    Parameters
    ----------
    model : nn.Module
        A classifier, or a predictor trained by `train_predictor`, which knows masked samples.
    x : tensor
        Images or signals.
    labels : tensor
        The class whose probability is measured, for each.
    number : int
        Of masks for each sample.
    masks : callable
        ``(x, generator) -> zeros and ones``.
    generator : torch.Generator, optional
        Of the masks; by default one with the seed 0.

    Returns
    -------
    tensor
        The mean probability of the class where a pixel is shown; 0 where none of the masks does.

    Raises
    ------
    ValueError
        If there is no mask.
    """
    generator = generator or torch.Generator().manual_seed(0)
    if number < 1:
        raise ValueError(f"RISE needs one mask at least, not {number}")
    shape = (len(x), 1, *x.shape[2:])
    score = torch.zeros(shape, dtype=x.dtype, device=x.device)
    shown = torch.zeros_like(score)
    ones = (1,) * (x.ndim - 1)
    with in_evaluation(model):
        for _ in range(number):
            mask = masks(x, generator)
            probability = model(x * mask).softmax(1)
            of_class = probability.gather(1, labels[:, None])
            score += of_class.view(-1, *ones) * mask
            shown += mask
    return score / shown.clamp(min=1)
