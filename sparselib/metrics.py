"""Metrics: of predictions against labels, and of descriptions against what they describe."""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


@runtime_checkable
class Describing(Protocol):
    """An autoencoder that describes a sample by maps of where its kernels occur, as `SAN` does."""

    @property
    def kernel_sizes(self) -> Sequence[int]:
        """Points of each kernel, along a dimension."""

    def encode(self, x: Tensor, /) -> Tensor:
        """Return the maps (samples, kernels, *size)."""

    def decode(self, maps: Tensor, /) -> Tensor:
        """Return the reconstruction (samples, *size)."""


def accuracy(
    outputs: Float[Tensor, "samples classes"], labels: Int[Tensor, "samples"]
) -> float:
    """Share of samples whose largest output is that of their true class, in [0, 1]."""
    if len(labels) == 0:
        raise ValueError("accuracy of no samples is undefined")
    return float((outputs.argmax(1) == labels).double().mean())


def confusion(
    outputs: Float[Tensor, "samples classes"], labels: Int[Tensor, "samples"]
) -> Int[Tensor, "classes classes"]:
    """Confusion matrix: samples of each true class (rows) by predicted class (columns)."""
    classes = outputs.shape[1]
    cells = labels * classes + outputs.argmax(1)
    return torch.bincount(cells, minlength=classes**2).view(classes, classes)


def apnea_rates(
    is_apnea: Int[Tensor, "minutes"], groups: Int[Tensor, "minutes"]
) -> dict[int, float]:
    """Minutes with apnea per hour of each night, a proxy of the apnea-hypopnea index.

    The index counts events per hour of sleep; minutes are all that Apnea-ECG labels, and a minute
    may hold several events or a part of one, so it is at most 60.

    Parameters
    ----------
    is_apnea : tensor
        1 for a minute with apnea, as labels or predictions have it.
    groups : tensor
        The night of each minute.
    """
    nights = groups.unique()
    return {
        int(n): 60 * float(is_apnea[groups == n].double().mean())
        for n in nights
    }


def ahi_class(rate: float) -> str:
    """Severity of sleep apnea: none below 5 events per hour, mild below 15, moderate to 30, severe.

    The scale of Goyal and Johnson (2017), as Vanwinsen and others (2023, Section 6.1.2) give it:
    "from 15 to 30" is moderate and "more than 30" severe.

    Raises
    ------
    ValueError
        If the rate is negative or no number.
    """
    if not rate >= 0:
        raise ValueError(f"the events per hour must be at least 0, not {rate}")
    bounds = ((rate < 5, "none"), (rate < 15, "mild"), (rate <= 30, "moderate"))
    return next((name for holds, name in bounds if holds), "severe")


def ara(accuracies: Sequence[float], b: float = 0.5) -> float:
    r"""Average Ratiod Accuracy, which measures how early a network learns (Radu, Eq. 3).

    .. math:: ARA = \frac{\sum_{i=1}^n a_i (i c_1 + c_2)}{n^2 (b + 1) / 2}, \quad
       c_1 = \frac{n - nb}{n - 1}, \quad c_2 = n - n c_1

    A mean of the accuracies in which the first epoch weighs `b` times as much as the last, and the
    weight grows evenly in between. With b = 1 it is the ordinary mean.

    Parameters
    ----------
    accuracies : sequence of float
        One per epoch, in any unit; the result has the same.
    b : float
        Weight of the first epoch relative to the last, at least 0.

    Raises
    ------
    ValueError
        If there are no epochs, or `b` is negative.
    """
    n = len(accuracies)
    if n == 0 or not b >= 0:
        raise ValueError(
            f"ARA needs at least one epoch and b >= 0, not {n} epochs and b={b}"
        )
    if n == 1:
        return float(accuracies[0])
    c1 = (n - n * b) / (n - 1)
    c2 = n - n * c1
    weighted = sum(a * (i * c1 + c2) for i, a in enumerate(accuracies, 1))
    return float(weighted / (n * n * (b + 1) / 2))


def compression_ratio(
    maps: Float[Tensor, "samples kernels *size"],
    kernel_sizes: Sequence[int],
    definition: str = "text",
) -> Float64[Tensor, "samples"]:
    r"""Compression ratio: numbers of a sample per number of its description (Bizopoulos, Eq. 2-4).

    .. math:: CR = \frac{n}{W + (\dim x + 1) A_x}, \quad W = \sum_{i=1}^q m^{(i)}, \quad
       A_x = \sum_{i=1}^q \lVert \alpha^{(i)} \rVert_0

    Parameters
    ----------
    maps : tensor
        Activation maps, one per kernel, each as large as a sample; `SAN.encode` returns them.
    kernel_sizes : sequence of int
        The size m of each kernel, in every direction.
    definition : str
        What counts. ``"text"``: all weights of a kernel, :math:`m^{\dim x}`, and for each
        activation its amplitude and :math:`\dim x` coordinates. ``"code"``: only m weights of a
        kernel, as in the released code and the paper's tables of images. ``"corrected"``: all
        weights, and one flat position per activation, which is what a `SparseCode` of one
        sample takes. In 1-D the three agree.

    Raises
    ------
    ValueError
        If the definition is unknown, or there is not one size per map.
    """
    dimensions = maps.ndim - 2
    if definition not in ("text", "code", "corrected"):
        raise ValueError(
            f"definition must be 'text', 'code' or 'corrected', not {definition!r}"
        )
    if len(kernel_sizes) != maps.shape[1] or dimensions < 1:
        raise ValueError(
            f"maps of shape {tuple(maps.shape)} and {len(kernel_sizes)} kernel sizes do not fit: "
            f"they are (samples, kernels, *size) and one size per kernel"
        )
    weights = sum(
        m ** (1 if definition == "code" else dimensions) for m in kernel_sizes
    )
    numbers = 2 if definition == "corrected" else dimensions + 1
    active = (maps != 0).flatten(1).sum(1).double()
    return math.prod(maps.shape[2:]) / (weights + numbers * active)


def normalized_loss(
    reconstruction: Float[Tensor, "samples *size"],
    x: Float[Tensor, "samples *size"],
) -> Float64[Tensor, "samples"]:
    r"""Mean absolute error relative to that of a reconstruction by zeros (Bizopoulos, Eq. 5).

    .. math:: \tilde L(\hat x, x) = \frac{L(\hat x, x)}{L(0, x)}

    Raises
    ------
    ValueError
        If a sample is zero everywhere.
    """
    size = x.double().abs().flatten(1).sum(1)
    if (size == 0).any():
        empty = int((size == 0).nonzero()[0])
        raise ValueError(
            f"sample {empty} is zero everywhere, and its loss has nothing to be divided by; "
            f"leave it out"
        )
    return (reconstruction.double() - x.double()).abs().flatten(1).sum(1) / size


@torch.no_grad()
def description(
    model: Describing,
    x: Float[Tensor, "samples *size"],
    definition: str = "text",
) -> dict[str, Float64[Tensor, "samples"]]:
    r"""Measure how a model describes each sample: the two axes of phi, and phi.

    Parameters
    ----------
    model : SAN, or whatever is `Describing`
    x : tensor
        The samples.
    definition : str
        See `compression_ratio`.

    Returns
    -------
    dict of tensor
        ``verbosity``, :math:`CR^{-1}`; ``error``, :math:`\tilde L`; and ``phi`` (Bizopoulos,
        Eq. 4 to 6), one number per sample.

    Raises
    ------
    ValueError
        As `compression_ratio` and `normalized_loss` do.
    """
    maps = model.encode(x)
    verbosity = 1 / compression_ratio(maps, model.kernel_sizes, definition)
    error = normalized_loss(model.decode(maps), x)
    return {
        "verbosity": verbosity,
        "error": error,
        "phi": torch.hypot(verbosity, error),
    }


def phi(
    model: Describing,
    x: Float[Tensor, "samples *size"],
    definition: str = "text",
) -> Float64[Tensor, "samples"]:
    r"""How wordy and how wrong a model is, for each sample; less is better (Bizopoulos, Eq. 6).

    .. math:: \varphi = \lVert (CR^{-1}, \tilde L(\hat x, x)) \rVert_2

    Its mean over the samples is :math:`\bar\varphi` (Eq. 7).

    Parameters
    ----------
    model : SAN, or whatever is `Describing`
    x : tensor
        The samples.
    definition : str
        See `compression_ratio`.

    Raises
    ------
    ValueError
        As `compression_ratio` and `normalized_loss` do.
    """
    return description(model, x, definition)["phi"]


def auroc(
    outputs: Float[Tensor, "samples classes"], labels: Int[Tensor, "samples"]
) -> float:
    """Area under the ROC curve (AUROC), the mean over the classes, each against the rest.

    Raises
    ------
    ValueError
        If a class has no sample.
    """
    from sklearn.metrics import roc_auc_score

    classes = outputs.shape[1]
    missing = set(range(classes)) - set(labels.tolist())
    if missing:
        raise ValueError(
            f"AUROC needs samples of every class, but there is none of {min(missing)}"
        )
    probabilities = outputs.double().softmax(1).cpu().numpy()
    if classes == 2:
        return float(roc_auc_score(labels.cpu(), probabilities[:, 1]))
    return float(roc_auc_score(labels.cpu(), probabilities, multi_class="ovr"))


def fidelity(
    outputs: Float[Tensor, "samples classes"],
    reference: Float[Tensor, "samples classes"],
) -> float:
    """Share of samples for which two networks predict the same class, in [0, 1]."""
    return accuracy(outputs, reference.argmax(1))


def mask_area(
    masks: Float[Tensor, "samples 1 *size"],
) -> Float64[Tensor, "samples"]:
    """Share of an image that its mask keeps: the mean over its pixels, in [0, 1]."""
    return masks.double().flatten(1).mean(1)


def localization(
    masks: Float[Tensor, "samples 1 height width"],
    boxes: Int[Tensor, "samples 4"],
) -> tuple[float, float]:
    """How well masks find what is known to lie in a box.

    Parameters
    ----------
    masks : tensor
        Values in [0, 1].
    boxes : tensor
        (top, left, bottom, right), of which the last two lie just outside.

    Returns
    -------
    float, float
        Share of the masks whose largest value lies in the box (the pointing game); and the mean
        intersection over union of the box and the pixels above 1/2.
    """
    height, width = masks.shape[2:]
    rows = torch.arange(height)
    columns = torch.arange(width)
    top, left, bottom, right = boxes.cpu().view(-1, 4, 1).unbind(1)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    inside = (in_rows[:, :, None] & in_columns[:, None]).flatten(1)
    flat = masks.cpu().flatten(1)
    hit = inside.gather(1, flat.argmax(1, keepdim=True)).double().mean()
    kept = flat > 0.5
    both = (kept & inside).sum(1).double() / (kept | inside).sum(1)
    return float(hit), float(both.mean())
