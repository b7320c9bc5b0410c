"""Selectors: a frozen classifier, and a decoder that shows where it looked."""

import abc
import copy
from collections.abc import Sequence
from typing import TypedDict, TypeVar, Unpack, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparselib.models import UNet
from sparselib.nn.gate import Scaled

from .masks import center_and_sigma, first_sigma, rbf

Kind = TypeVar("Kind", bound="MaskSelector")


class DecoderOptions(TypedDict, total=False):
    """Choices of a selector's decoder, see `UNet`."""

    blocks: int
    mixing: str
    resize: bool


class MaskSelector(nn.Module, abc.ABC):
    """A frozen copy of a classifier in evaluation mode, and a decoder that reads its scales.

    Only the decoder learns, if anything does. What it is and what its outputs mean is up to the
    kinds of selectors.

    Parameters
    ----------
    classifier : nn.Module
        A trained network with `scales`, the names of the modules whose outputs are read.
    shape : tuple of int
        Of one image, (channels, height, width), or one signal, (channels, points).
    scales : sequence of str, optional
        Names of the modules to read, the largest scale first. By default those of the classifier;
        the last four where it has five, which gives the paper's three upsamplings for ImageNet.

    Attributes
    ----------
    shapes : list of tuple
        Of each scale of one sample.

    Raises
    ------
    ValueError
        If the classifier names no scales.
    """

    decoder: nn.Module

    def __init__(
        self,
        classifier: nn.Module,
        shape: tuple[int, ...],
        *,
        scales: Sequence[str] | None = None,
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
        self.shapes = [tuple(scale.shape[1:]) for scale in scales_of_x]

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
    ) -> Float[Tensor, "batch numbers"] | Float[Tensor, "batch maps *mapped"]:
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
        u: Float[Tensor, "batch numbers"] | Float[Tensor, "batch maps *mapped"],
    ) -> Float[Tensor, "batch 1 *size"]:
        """Return the masks that the decoder's outputs stand for."""

    @abc.abstractmethod
    def extent(
        self,
        u: Float[Tensor, "batch numbers"] | Float[Tensor, "batch maps *mapped"],
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
    classifier, shape, scales
        See `MaskSelector`.
    classes : int
        Number of the classifier's scores.
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
        super().__init__(classifier, shape, scales=scales)
        self.decoder = UNet(
            self.shapes, classes, blocks=blocks, mixing=mixing, resize=resize
        ).to(next(classifier.parameters()))
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

    def centered(
        self, u: Float[Tensor, "batch numbers"]
    ) -> Float[Tensor, "batch 1 *size"]:
        """Return masks of the same extents in the middle: a control that knows no image."""
        return self.masks(
            torch.cat([torch.zeros_like(u[:, :-1]), u[:, -1:]], 1)
        )

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
    classifier, shape, scales
        See `MaskSelector`.
    classes : int
        Number of the classifier's scores.
    **options
        ``blocks``, ``mixing`` and ``resize`` as of `UNet`.

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
        **options: Unpack[DecoderOptions],
    ) -> None:
        super().__init__(classifier, shape, scales=scales)
        self.decoder = UNet(self.shapes, classes, outputs="map", **options).to(
            next(classifier.parameters())
        )

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
        return _side(self.masks(u))


@final
class ClassActivationMaps(MaskSelector):
    r"""Masks by what each place adds to the score of a class; nothing is trained (Zhou, 2016).

    .. math:: u_c(p) = \sum_k w_k^c A_k(p)

    with the maps :math:`A` of the last scale and the weights of the linear layer behind their mean
    (Equation 2). The mask is the positive part, as a share of its maximum, brought to the size of
    the image by linear interpolation: what `grad_cam` returns for this layer, without a gradient.

    Parameters
    ----------
    classifier, shape, scales
        See `MaskSelector`. The last scale has to be the one whose mean over all places the last
        linear layer reads.

    Raises
    ------
    ValueError
        If the classifier names no scales, or does not end in a linear layer that reads one number
        for each channel of the last.
    """

    def __init__(
        self,
        classifier: nn.Module,
        shape: tuple[int, ...],
        *,
        scales: Sequence[str] | None = None,
    ) -> None:
        super().__init__(classifier, shape, scales=scales)
        linear = [m for m in classifier.modules() if isinstance(m, nn.Linear)]
        channels = self.shapes[-1][0]
        if not linear or linear[-1].in_features != channels:
            found = linear[-1].in_features if linear else "none"
            raise ValueError(
                f"a class activation map needs a linear layer at the end that reads the {channels} "
                f"channels of {self.scales[-1]!r}; the last one reads {found}"
            )
        self.decoder = _ClassMaps(linear[-1].weight.detach().clone())

    def masks(
        self, u: Float[Tensor, "batch 1 *mapped"]
    ) -> Float[Tensor, "batch 1 *size"]:
        """Return the positive part of the maps, each with a maximum of 1, as large as the image."""
        linear = "linear" if u.ndim == 3 else "bilinear"
        cam = nn.functional.interpolate(u.relu(), self.size, mode=linear)
        ones = (1,) * (cam.ndim - 1)
        largest = cam.flatten(1).amax(1).view(-1, *ones)
        return cam / largest.clamp(min=torch.finfo(cam.dtype).tiny)

    def extent(
        self, u: Float[Tensor, "batch 1 *mapped"]
    ) -> Float[Tensor, "batch"]:
        """Return the side of a square, in pixels, as large as the mask."""
        return _side(self.masks(u))


@final
class _ClassMaps(nn.Module):
    """The weighted sum of the last scale's maps, by the weights of each sample's class."""

    def __init__(self, weight: Float[Tensor, "classes channels"]) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight)

    def forward(
        self, scales: list[Tensor], labels: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch 1 *mapped"]:
        return torch.einsum(
            "bk,bk...->b...", self.weight[labels], scales[-1]
        ).unsqueeze(1)


def _side(masks: Float[Tensor, "batch 1 *size"]) -> Float[Tensor, "batch"]:
    """Return the side of a square, in pixels, as large as each mask."""
    return masks.flatten(1).sum(1).pow(1 / (masks.ndim - 2))
