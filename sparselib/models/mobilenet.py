"""MobileNetV2 (Sandler and others, 2018)."""

from jaxtyping import Float
from torch import Tensor, nn

from sparselib.nn.gate import Channels

# expansion, channels, blocks; and the stride of each stage for ImageNet and for small images
STAGES = [
    (1, 16, 1),
    (6, 24, 2),
    (6, 32, 3),
    (6, 64, 4),
    (6, 96, 3),
    (6, 160, 3),
    (6, 320, 1),
]
STRIDES = {"large": (2, 1, 2, 2, 2, 1, 2, 1), "small": (1, 1, 1, 1, 2, 1, 2, 1)}


class MobileNetV2(nn.Module):
    """Inverted residuals: expand, filter each channel on its own, project; width 1.0.

    Modules have torchvision's names, so that its pretrained weights load.

    Parameters
    ----------
    classes : int
        Number of scores.
    inputs : int
        Channels of the images.
    stem : {"small", "large"}
        For images of 32 x 32 pixels, which end as 8 x 8, or of 224 x 224, which end as 7 x 7.

    Attributes
    ----------
    scales : tuple of str
        Names of the modules whose outputs are the network's scales, the largest first.

    Raises
    ------
    ValueError
        If the stem is unknown.
    """

    def __init__(
        self, classes: int = 10, inputs: int = 3, stem: str = "small"
    ) -> None:
        super().__init__()
        if stem not in STRIDES:
            raise ValueError(f"stem must be 'small' or 'large', not {stem!r}")
        first, *strides = STRIDES[stem]
        self.features = nn.Sequential(_conv(inputs, 32, 3, first))
        read = 32
        ends = {}
        for (expansion, width, blocks), stride in zip(STAGES, strides):
            for block in range(blocks):
                self.features.append(
                    _Inverted(read, width, 1 if block else stride, expansion)
                )
                read = width
            ends[width] = len(self.features) - 1
        self.features.append(_conv(read, 1280, 1))
        places = (
            [ends[32], ends[96]]
            if stem == "small"
            else [0, ends[24], ends[32], ends[96]]
        )
        self.scales = tuple(
            f"features.{n}" for n in (*places, len(self.features) - 1)
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(1280, classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(
        self, x: Float[Tensor, "batch inputs h w"]
    ) -> Float[Tensor, "batch classes"]:
        """Return one score a class."""
        return self.classifier(self.features(x).mean((2, 3)))

    def prunable(self) -> list[Channels]:
        """Expanded channels: each is written, filtered on its own and then read."""
        found = []
        for name, block in self.named_modules():
            if isinstance(block, _Inverted) and len(block.conv) == 4:
                parts = ("0.0", "0.1", "1.0", "1.1")
                written = tuple(f"{name}.conv.{part}" for part in parts)
                found.append(Channels(written, f"{name}.conv.2"))
        return found


def _conv(
    read: int, width: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(
        read, width, size, stride, size // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU6())


class _Inverted(nn.Module):
    def __init__(
        self, read: int, width: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        inner = expansion * read
        expand = [_conv(read, inner, 1)] if expansion > 1 else []
        project = [
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        ]
        self.conv = nn.Sequential(
            *expand, _conv(inner, inner, 3, stride, inner), *project
        )
        self.residual = stride == 1 and read == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)
