"""Residual networks (He and others, 2016): for small images, for ImageNet and for signals."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sparselib.nn.gate import Channels

CONVS = {1: nn.Conv1d, 2: nn.Conv2d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
SHORTCUTS = ("pad", "pad_both", "project")


class ResNet(nn.Module):
    """A stem, stages of residual blocks that halve the size from the second on, a linear layer.

    Modules have torchvision's names, so that its pretrained weights load into `resnet34`,
    `resnet50` and `resnet101`.

    Parameters
    ----------
    blocks : sequence of int
        Blocks of each stage.
    widths : sequence of int
        Channels of each stage; what a bottleneck puts out is four times as wide.
    classes : int
        Number of scores.
    inputs : int
        Channels of the images or signals.
    bottleneck : bool
        Blocks of three convolutions, 1, 3 and 1 wide, instead of two, 3 wide.
    stem : {"small", "half", "large"}
        A convolution 3 wide; the same, which halves the size; or one 7 wide and a pool, which both
        halve it.
    shortcut : {"pad", "pad_both", "project"}
        Where channels become more, the shortcut fills up with zeros behind the given channels, or
        as many before as behind them (both are option A of the paper; public CIFAR-10 weights are
        of the second), or is a convolution 1 wide with batch normalization (option B).
    dimensions : {1, 2}
        1 for signals, 2 for images.

    Attributes
    ----------
    scales : tuple of str
        Names of the modules whose outputs are the network's scales, the largest first.

    Raises
    ------
    ValueError
        If the stages, stem, shortcut or dimensions are impossible.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (3, 3, 3),
        widths: Sequence[int] = (16, 32, 64),
        classes: int = 10,
        *,
        inputs: int = 3,
        bottleneck: bool = False,
        stem: str = "small",
        shortcut: str = "pad",
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        _check(blocks, widths, stem, shortcut, dimensions)
        conv = CONVS[dimensions]
        norm = NORMS[dimensions]
        large = stem == "large"
        size, stride, pad = {
            "small": (3, 1, 1),
            "half": (3, 2, 1),
            "large": (7, 2, 3),
        }[stem]
        self.conv1 = conv(inputs, widths[0], size, stride, pad, bias=False)
        self.bn1 = norm(widths[0])
        self.relu = nn.ReLU(inplace=True)
        pool = nn.MaxPool1d if dimensions == 1 else nn.MaxPool2d
        self.maxpool = pool(3, 2, 1) if large else nn.Identity()
        make, wide = (_Bottleneck, 4) if bottleneck else (_Basic, 1)
        read = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths), 1):
            layer = nn.Sequential()
            for block in range(count):
                step = 2 if stage > 1 and block == 0 else 1
                layer.append(make(read, width, step, shortcut, dimensions))
                read = wide * width
            setattr(self, f"layer{stage}", layer)
        stages = [f"layer{stage}" for stage in range(1, len(blocks) + 1)]
        self.scales = (*(["maxpool"] if large else []), *stages)
        self.fc = nn.Linear(read, classes)
        for module in self.modules():
            if isinstance(module, conv):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu"
                )

    def forward(
        self, x: Float[Tensor, "batch inputs *size"]
    ) -> Float[Tensor, "batch classes"]:
        """Return one score a class."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.scales:
            x = x if name == "maxpool" else getattr(self, name)(x)
        return self.fc(x.flatten(2).mean(2))

    def prunable(self) -> list[Channels]:
        """Inner channels of the blocks: the others are tied to each other by the shortcuts."""
        found = []
        for name, block in self.named_modules():
            if isinstance(block, _Basic | _Bottleneck):
                for number in range(1, block.convolutions):
                    written = (f"{name}.conv{number}", f"{name}.bn{number}")
                    found.append(Channels(written, f"{name}.conv{number + 1}"))
        return found


def resnet20(
    classes: int = 10, inputs: int = 3, *, shortcut: str = "pad"
) -> ResNet:
    """Return the ResNet-20 of CIFAR-10, 0.27 million parameters (He and others, Table 6)."""
    return ResNet((3, 3, 3), classes=classes, inputs=inputs, shortcut=shortcut)


def resnet56(
    classes: int = 10, inputs: int = 3, *, shortcut: str = "pad"
) -> ResNet:
    """Return the ResNet-56 of CIFAR-10, 0.85 million parameters (He and others, Table 6)."""
    return ResNet((9, 9, 9), classes=classes, inputs=inputs, shortcut=shortcut)


def resnet34(classes: int = 1000) -> ResNet:
    """Return the ResNet-34 of ImageNet, with torchvision's names and shapes."""
    return _imagenet((3, 4, 6, 3), classes, bottleneck=False)


def resnet50(classes: int = 1000) -> ResNet:
    """Return the ResNet-50 of ImageNet; its stride is in the middle, as in torchvision."""
    return _imagenet((3, 4, 6, 3), classes, bottleneck=True)


def resnet101(classes: int = 1000) -> ResNet:
    """Return the ResNet-101 of ImageNet; its stride is in the middle, as in torchvision."""
    return _imagenet((3, 4, 23, 3), classes, bottleneck=True)


def _imagenet(blocks: Sequence[int], classes: int, bottleneck: bool) -> ResNet:
    widths = (64, 128, 256, 512)
    return ResNet(
        blocks,
        widths,
        classes,
        bottleneck=bottleneck,
        stem="large",
        shortcut="project",
    )


class _Basic(nn.Module):
    convolutions = 2

    def __init__(
        self, read: int, width: int, stride: int, shortcut: str, dimensions: int
    ) -> None:
        super().__init__()
        conv = CONVS[dimensions]
        norm = NORMS[dimensions]
        self.conv1 = conv(read, width, 3, stride, 1, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(width, width, 3, 1, 1, bias=False)
        self.bn2 = norm(width)
        self.downsample = _shortcut(read, width, stride, shortcut, dimensions)

    def forward(self, x: Tensor) -> Tensor:
        aside = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + aside)


class _Bottleneck(nn.Module):
    convolutions = 3

    def __init__(
        self, read: int, width: int, stride: int, shortcut: str, dimensions: int
    ) -> None:
        super().__init__()
        conv = CONVS[dimensions]
        norm = NORMS[dimensions]
        self.conv1 = conv(read, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3, stride, 1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = conv(width, 4 * width, 1, bias=False)
        self.bn3 = norm(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(
            read, 4 * width, stride, shortcut, dimensions
        )

    def forward(self, x: Tensor) -> Tensor:
        aside = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + aside)


class _Padded(nn.Module):
    """Every other place, and channels of zeros before and behind the given ones (option A)."""

    def __init__(self, before: int, behind: int, stride: int) -> None:
        super().__init__()
        self.before = before
        self.behind = behind
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = (
            x[:, :, :: self.stride]
            if x.ndim == 3
            else x[:, :, :: self.stride, :: self.stride]
        )
        channels = (self.before, self.behind)
        return functional.pad(x, (0, 0) * (x.ndim - 2) + channels)


def _shortcut(
    read: int, width: int, stride: int, shortcut: str, dimensions: int
) -> nn.Module | None:
    if stride == 1 and read == width:
        return None
    if shortcut == "pad":
        return _Padded(0, width - read, stride)
    if shortcut == "pad_both":
        before = (width - read) // 2
        return _Padded(before, width - read - before, stride)
    conv = CONVS[dimensions](read, width, 1, stride, bias=False)
    return nn.Sequential(conv, NORMS[dimensions](width))


def _check(
    blocks: Sequence[int],
    widths: Sequence[int],
    stem: str,
    shortcut: str,
    dimensions: int,
) -> None:
    if len(blocks) != len(widths) or not blocks or min(*blocks, *widths, 1) < 1:
        raise ValueError(
            f"a ResNet has stages of at least one block and one channel, as many of the ones as of "
            f"the others, not {tuple(blocks)} and {tuple(widths)}"
        )
    if stem not in ("small", "half", "large") or shortcut not in SHORTCUTS:
        raise ValueError(
            f"stem must be 'small', 'half' or 'large' and shortcut one of {SHORTCUTS}, "
            f"not {stem!r} and {shortcut!r}"
        )
    if dimensions not in CONVS:
        raise ValueError(f"a ResNet reads 1 or 2 dimensions, not {dimensions}")
