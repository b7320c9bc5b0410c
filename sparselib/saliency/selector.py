"""Selectors: a frozen classifier, and a decoder that shows where it looked."""

import abc
import copy
from collections.abc import Sequence
from typing import Any, TypedDict, TypeVar, Unpack, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparselib.models import UNet
from sparselib.nn.gate import Scaled

from .masks import center_and_sigma, first_sigma, rbf

Kind = TypeVar("Kind", bound="MaskSelector")


class DecoderOptions(TypedDict, total=False):
    """Choices of a selector's decoder, see `MaskSelector` and `UNet`."""

    scales: Sequence[str] | None
    blocks: int
    mixing: str
    resize: bool


class MaskSelector(nn.Module, abc.ABC):
    """A frozen copy of a classifier in evaluation mode, and a decoder that reads its scales.

    Only the decoder, a `UNet`, learns. What its outputs mean is up to the kinds of selectors.

    Parameters
    ----------
    classifier : nn.Module
        A trained network with `scales`, the names of the modules whose outputs are read.
    shape : tuple of int
        Of one image, (channels, height, width), or one signal, (channels, points).
    classes : int
        Number of the classifier's scores.
    scales : sequence of str, optional
        Names of the modules to read, the largest scale first. By default those of the classifier;
        the last four where it has five, which gives the paper's three upsamplings for ImageNet.
    outputs, **options
        Passed on to `UNet`.

    Raises
    ------
    ValueError
        If the classifier names no scales, or they do not divide the image.
    """

    def __init__(
        self,
        classifier: nn.Module,
        shape: tuple[int, ...],
        classes: int,
        *,
        scales: Sequence[str] | None = None,
        outputs: str = "numbers",
        **options: Any,
    ) -> None:
        super().__init__()
        own = classifier.scales if isinstance(classifier, Scaled) else ()
        named = own if scales is None else scales
        if not named:
            raise ValueError(
                f"{type(classifier).__name__} has no attribute `scales`: pass the names of the "
                f"modules whose outputs are its scales, the largest first"
            )
        self.scales = tuple(named)[-4:] if scales is None else tuple(named)
        self.classifier = copy.deepcopy(classifier).eval().requires_grad_(False)
        self.size = tuple(shape[1:])
        like = next(classifier.parameters())
        with torch.no_grad():
            x = torch.zeros((1, *shape), dtype=like.dtype, device=like.device)
            _, scales_of_x = self.read(x)
        shapes = [tuple(scale.shape[1:]) for scale in scales_of_x]
        self.decoder = UNet(shapes, classes, outputs=outputs, **options).to(
            like
        )

    def read(
        self, x: Float[Tensor, "batch channels *size"]
    ) -> tuple[Float[Tensor, "batch classes"], list[Tensor]]:
        """Return the classifier's scores and its scales, the largest first."""
        found: dict[str, Tensor] = {}
        hooks = [
            self.classifier.get_submodule(name).register_forward_hook(
                lambda *args, name=name: found.__setitem__(name, args[2])
            )
            for name in self.scales
        ]
        try:
            scores = self.classifier(x)
        finally:
            for hook in hooks:
                hook.remove()
        return scores, [found[name] for name in self.scales]

    def numbers(
        self,
        x: Float[Tensor, "batch channels *size"],
        labels: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch numbers"] | Float[Tensor, "batch 2 *mapped"]:
        """Return u, what the decoder makes of the scales; see `forward`."""
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(
                f"this selector was made for images of size {self.size}, "
                f"not {tuple(x.shape[2:])}: scale them, or make another"
            )
        scores, scales = self.read(x)
        return self.decoder(
            scales, scores.argmax(1) if labels is None else labels
        )

    @abc.abstractmethod
    def masks(
        self,
        u: Float[Tensor, "batch numbers"] | Float[Tensor, "batch 2 *mapped"],
    ) -> Float[Tensor, "batch 1 *size"]:
        """Return the masks that the decoder's outputs stand for."""

    @abc.abstractmethod
    def extent(
        self,
        u: Float[Tensor, "batch numbers"] | Float[Tensor, "batch 2 *mapped"],
    ) -> Float[Tensor, "batch"]:
        """Return how large each mask is, in pixels along a side."""

    def forward(
        self,
        x: Float[Tensor, "batch channels *size"],
        labels: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch 1 *size"]:
        """Return for each pixel the probability that it matters.

        Parameters
        ----------
        x : tensor
            Images, or signals.
        labels : tensor, optional
            The class to look for in each; by default what the classifier takes it for.
        """
        return self.masks(self.numbers(x, labels))

    def train(self: Kind, mode: bool = True) -> Kind:
        """Set the decoder's mode; the classifier stays in evaluation mode."""
        super().train(mode)
        self.classifier.eval()
        return self

    def explains(self, classifier: nn.Module) -> bool:
        """Whether this is a selector of that very classifier, weight by weight."""
        mine = self.classifier.state_dict()
        theirs = classifier.state_dict()
        if mine.keys() != theirs.keys():
            return False
        return all(
            torch.equal(tensor, theirs[name].to(tensor.device))
            for name, tensor in mine.items()
        )

    def of(self: Kind, classifier: nn.Module) -> Kind:
        """Return a selector with the same decoder for another classifier, such as a cut one."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.classifier = (
            copy.deepcopy(classifier).eval().requires_grad_(False)
        )
        return other


@final
class Selector(MaskSelector):
    """Round masks of the part of an image that a classifier decides by (Ganjdanesh, Section 2).

    The decoder finds three numbers, the center and the extent of an RBF mask; two for a signal.

    Parameters
    ----------
    classifier, shape, classes, scales
        See `MaskSelector`.
    blocks, mixing, resize
        See `UNet`.
    bound : {"softplus", "bounded"}
        See `center_and_sigma`.
    definition : {"code", "text"}
        See `rbf`.
    unit : float
        How many pixels or points a unit of the decoder's numbers is. The paper's forms count
        pixels, which suits images of 32 and of 224; over thousands of points the numbers would have
        to grow large, and a unit of ``points / 32`` makes a signal 32 wide, as CIFAR-10 is.

    Raises
    ------
    ValueError
        If the classifier names no scales, they do not divide the image, or the unit is 0.
    """

    def __init__(
        self,
        classifier: nn.Module,
        shape: tuple[int, ...],
        classes: int,
        *,
        scales: Sequence[str] | None = None,
        blocks: int = 3,
        mixing: str = "bottleneck",
        resize: bool = False,
        bound: str = "softplus",
        definition: str = "code",
        unit: float = 1.0,
    ) -> None:
        if not unit > 0:
            raise ValueError(
                f"a unit is a number of pixels above 0, not {unit}"
            )
        super().__init__(
            classifier,
            shape,
            classes,
            scales=scales,
            blocks=blocks,
            mixing=mixing,
            resize=resize,
        )
        self.bound = bound
        self.definition = definition
        self.unit = unit
        with torch.no_grad():
            bias = dict(self.decoder.named_parameters())["output.bias"]
            bias[-1] = first_sigma(min(self.size) / unit)

    def center_and_sigma(
        self, u: Float[Tensor, "batch numbers"]
    ) -> tuple[Float[Tensor, "batch dimensions"], Float[Tensor, "batch"]]:
        """Bring the decoder's numbers into the image, in pixels."""
        sides = [side / self.unit for side in self.size]
        center, sigma = center_and_sigma(u, sides, self.bound)
        return self.unit * center, self.unit * sigma

    def masks(
        self, u: Float[Tensor, "batch numbers"]
    ) -> Float[Tensor, "batch 1 *size"]:
        """Return the masks that the decoder's numbers stand for."""
        return rbf(*self.center_and_sigma(u), self.size, self.definition)

    def extent(
        self, u: Float[Tensor, "batch numbers"]
    ) -> Float[Tensor, "batch"]:
        """Return sigma, in pixels."""
        return self.center_and_sigma(u)[1]


@final
class PixelSelector(MaskSelector):
    r"""A probability of its own for each pixel, as REAL-X has it (Ganjdanesh, supplement, Eq. 2).

    The decoder ends in two channels a and b of the size of the largest scale, and

    .. math:: f = \frac{|a|}{|a| + |b| + 10^{-8}},

    as in the authors' program, is brought to the size of the image by linear interpolation. It is
    trained by `train_selector` with a predictor that learned from `bernoulli` masks (Eq. 8) and
    with ``lambda_2=0`` (Eq. 10).

    Parameters
    ----------
    classifier, shape, classes
        See `MaskSelector`.
    **options
        ``scales`` as of `MaskSelector`; ``blocks``, ``mixing`` and ``resize`` as of `UNet`.

    Raises
    ------
    ValueError
        If the classifier names no scales, or they do not divide the image.
    """

    def __init__(
        self,
        classifier: nn.Module,
        shape: tuple[int, ...],
        classes: int,
        **options: Unpack[DecoderOptions],
    ) -> None:
        super().__init__(classifier, shape, classes, outputs="map", **options)

    def masks(
        self, u: Float[Tensor, "batch 2 *mapped"]
    ) -> Float[Tensor, "batch 1 *size"]:
        """Return the masks that the two channels stand for."""
        kept, hidden = u.abs().split(1, dim=1)
        mask = kept / (kept + hidden + 1e-8)
        if tuple(mask.shape[2:]) == self.size:
            return mask
        linear = "linear" if mask.ndim == 3 else "bilinear"
        return nn.functional.interpolate(mask, self.size, mode=linear)

    def extent(
        self, u: Float[Tensor, "batch 2 *mapped"]
    ) -> Float[Tensor, "batch"]:
        """Return the side of a square, in pixels, that holds as many as are expected to be kept."""
        kept = self.masks(u).flatten(1).sum(1)
        return kept.pow(1 / len(self.size))
