"""What predictors and selectors are trained for (Ganjdanesh, Eq. 8 to 11)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

SIZES = ("expected", "relaxed", "power", "count")


def divergence(
    logits: Float[Tensor, "batch classes"],
    predicted: Float[Tensor, "batch classes"],
) -> Float[Tensor, ""]:
    r"""Mean of :math:`KL(Q_{class}(y | x) \| q_{pred}(y | m'(x)))` (Ganjdanesh, Eq. 9).

    Parameters
    ----------
    logits : tensor
        Of the predictor.
    predicted : tensor
        The classifier's log-probabilities.
    """
    return functional.kl_div(
        logits.log_softmax(1), predicted, reduction="batchmean", log_target=True
    )


def mask_size(
    mask: Float[Tensor, "batch 1 *size"],
    drawn: Float[Tensor, "batch 1 *size"],
    definition: str = "expected",
    power: float = 0.3,
) -> Float[Tensor, ""]:
    r"""R, how much a mask keeps (Ganjdanesh, Eq. 11).

    Parameters
    ----------
    mask : tensor
        Probabilities f.
    drawn : tensor
        The relaxed samples m' of them.
    definition : str
        ``"expected"``: the mean of f, which is the expected share of pixels kept, and trains.
        ``"relaxed"``: the mean of m'. ``"power"``: the mean of :math:`(m' + 0.0005)^p`, as in the
        released code. ``"count"``: the text's :math:`\lVert m' \rVert_0` of the pixels above 1/2,
        which has no gradient.
    power : float
        p: 0.3 for CIFAR-10 and 0.5 for ImageNet in the released code.
    """
    if definition == "expected":
        return mask.mean()
    if definition == "relaxed":
        return drawn.mean()
    if definition == "power":
        return (drawn + 0.0005).pow(power).mean()
    if definition == "count":
        return (drawn > 0.5).flatten(1).sum(1).to(drawn).mean()
    raise ValueError(
        f"the size of a mask is one of {SIZES}, not {definition!r}"
    )


def smoothness(
    drawn: Float[Tensor, "batch 1 *size"], definition: str = "text"
) -> Float[Tensor, ""]:
    r"""S, squared differences of neighbors, summed over a mask (Ganjdanesh, Eq. 11).

    Parameters
    ----------
    drawn : tensor
        The relaxed samples m'.
    definition : {"text", "code"}
        The released code halves the sum and adds 0.3 times the squares of the outermost pixels.
    """
    if definition not in ("text", "code"):
        raise ValueError(
            f"smoothness is by 'text' or 'code', not {definition!r}"
        )
    axes = range(2, drawn.ndim)
    squares = [drawn.diff(dim=axis).square().sum() for axis in axes]
    total = torch.stack(squares).sum()
    if definition == "code":
        inner = drawn
        for axis in axes:
            inner = inner.narrow(axis, 1, drawn.shape[axis] - 2)
        border = drawn.square().sum() - inner.square().sum()
        total = (total + 0.3 * border) / 2
    return total / len(drawn)
