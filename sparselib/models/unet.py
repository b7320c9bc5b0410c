"""The decoder that reads a classifier's feature scales and predicts masks (Ganjdanesh, 2.1)."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .resnet import CONVS, NORMS

Make = Callable[[int, int, int], nn.Module]


class UNet(nn.Module):
    r"""A feature filter, blocks that double the size, and a few numbers or a map at the end.

    The filter (Eq. 13) weakens places of the smallest scale that do not hold the class y:

    .. math:: Z_{ij} = X_{ij} \, \sigma(X_{ij}^\top C_y)

    Each block brings Z to twice its size by a convolution and a pixel shuffle, puts the next
    larger scale beside it and mixes both. The output convolution is as large as the last map, or
    of one pixel.

    Parameters
    ----------
    shapes : sequence of tuple of int
        (channels, \*size) of each scale, the largest first, each twice as large as the next.
    classes : int
        Rows of the embedding C.
    blocks : int
        Blocks that mix, after the upsampling: three in the paper.
    mixing : {"bottleneck", "basic"}
        What these blocks are; the released code has a single basic one.
    resize : bool
        Bring what was doubled to the next scale's size by linear interpolation, for networks whose
        scales are not exactly twice as large.
    outputs : {"numbers", "map"}
        ``"numbers"`` for one number a dimension and one more, ``"map"`` for two channels of the
        size of the largest scale.

    Attributes
    ----------
    upsampling : list of tuple of int
        For each doubling the channels that come in, that pass by and that go out.

    Raises
    ------
    ValueError
        If a scale is not twice as large as the next and nothing is resized, an option is unknown,
        or a label is no class.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        classes: int,
        *,
        blocks: int = 3,
        mixing: str = "bottleneck",
        resize: bool = False,
        outputs: str = "numbers",
    ) -> None:
        super().__init__()
        if mixing not in ("bottleneck", "basic"):
            raise ValueError(
                f"mixing must be 'bottleneck' or 'basic', not {mixing!r}"
            )
        if outputs not in ("numbers", "map"):
            raise ValueError(
                f"outputs must be 'numbers' or 'map', not {outputs!r}"
            )
        if not resize:
            _check_scales(shapes)
        self.resize = resize
        self.outputs = outputs
        dimensions = len(shapes[0]) - 1
        deep = shapes[::-1]
        self.embedding = nn.Embedding(classes, deep[0][0])
        self.upsampling = [
            (below[0], here[0], here[0]) for below, here in pairwise(deep)
        ]
        make = _bottleneck if mixing == "bottleneck" else _basic
        self.ups = nn.ModuleList(
            _Up(read, out, dimensions) for read, _, out in self.upsampling
        )
        self.mixes = nn.ModuleList(
            nn.Sequential(
                *(
                    _Residual(out if n else out + beside, out, dimensions, make)
                    for n in range(blocks)
                )
            )
            for _, beside, out in self.upsampling
        )
        channels, *size = shapes[0]
        self.output = (
            _whole(channels, dimensions + 1, size)
            if outputs == "numbers"
            else CONVS[dimensions](channels, 2, 1)
        )

    def forward(
        self,
        scales: Sequence[Float[Tensor, "batch _ *_size"]],
        labels: Int[Tensor, "batch"],
    ) -> Float[Tensor, "batch numbers"] | Float[Tensor, "batch 2 *mapped"]:
        """Return what the output convolution does, before any nonlinearity.

        Parameters
        ----------
        scales : sequence of tensor
            Of the classifier, the largest first, in the shapes it was made for.
        labels : tensor
            The class to look for, one per sample.
        """
        *larger, z = scales
        z = self.filter(z, labels)
        for up, mix, beside in zip(self.ups, self.mixes, reversed(larger)):
            z = up(z)
            if self.resize:
                linear = "linear" if z.ndim == 3 else "bilinear"
                z = nn.functional.interpolate(z, beside.shape[2:], mode=linear)
            z = mix(torch.cat([z, beside], 1))
        y = self.output(z)
        return y.flatten(1) if self.outputs == "numbers" else y

    def filter(
        self,
        x: Float[Tensor, "batch channels *size"],
        labels: Int[Tensor, "batch"],
    ) -> Float[Tensor, "batch channels *size"]:
        """Weaken the places that do not hold the class (Eq. 13)."""
        classes = self.embedding.num_embeddings
        if len(labels) and not (
            int(labels.min()) >= 0 and int(labels.max()) < classes
        ):
            wrong = (
                int(labels.min())
                if int(labels.min()) < 0
                else int(labels.max())
            )
            raise ValueError(
                f"class {wrong} is out of range: the feature filter knows the classes 0 to "
                f"{classes - 1}"
            )
        wanted = self.embedding(labels)
        here = torch.einsum("bc...,bc->b...", x, wanted).sigmoid()
        return x * here[:, None]


def _check_scales(shapes: Sequence[tuple[int, ...]]) -> None:
    for (_, *large), (_, *small) in pairwise(shapes):
        if any(a != 2 * b for a, b in zip(large, small, strict=True)):
            raise ValueError(
                f"a scale of size {tuple(large)} is not twice the next, {tuple(small)}: choose an "
                f"image size that every scale divides, leave scales out, or pass resize=True"
            )


def _whole(channels: int, numbers: int, size: Sequence[int]) -> nn.Module:
    """Return a convolution as large as the map it reads."""
    if len(size) == 1:
        return nn.Conv1d(channels, numbers, size[0])
    return nn.Conv2d(channels, numbers, (size[0], size[1]))


class _Up(nn.Module):
    def __init__(self, read: int, out: int, dimensions: int) -> None:
        super().__init__()
        more = out * 2**dimensions
        conv = CONVS[dimensions](read, more, 3, padding=1, bias=False)
        self.conv = nn.Sequential(conv, NORMS[dimensions](more), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.ndim == 4:
            return nn.functional.pixel_shuffle(x, 2)
        batch, channels, length = x.shape
        return (
            x.view(batch, channels // 2, 2, length)
            .transpose(2, 3)
            .reshape(batch, -1, 2 * length)
        )


class _Residual(nn.Module):
    def __init__(
        self, read: int, out: int, dimensions: int, make: Make
    ) -> None:
        super().__init__()
        self.body = make(read, out, dimensions)
        conv = CONVS[dimensions]
        norm = NORMS[dimensions]
        short = (
            [] if read == out else [conv(read, out, 1, bias=False), norm(out)]
        )
        self.shortcut = nn.Sequential(*short)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _bottleneck(read: int, out: int, dimensions: int) -> nn.Module:
    conv = CONVS[dimensions]
    norm = NORMS[dimensions]
    inner = math.ceil(out / 4)
    return nn.Sequential(
        conv(read, inner, 1, bias=False),
        norm(inner),
        nn.ReLU(),
        conv(inner, inner, 3, padding=1, bias=False),
        norm(inner),
        nn.ReLU(),
        conv(inner, out, 1, bias=False),
        norm(out),
    )


def _basic(read: int, out: int, dimensions: int) -> nn.Module:
    conv = CONVS[dimensions]
    norm = NORMS[dimensions]
    return nn.Sequential(
        conv(read, out, 3, padding=1, bias=False),
        norm(out),
        nn.ReLU(),
        conv(out, out, 3, padding=1, bias=False),
        norm(out),
    )
