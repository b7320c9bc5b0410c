"""The residual network for heartbeats (Kachuee and others, 2018), as adapted to apnea."""

from jaxtyping import Float
from torch import Tensor, nn

from sparselib.nn.gate import Channels


class ECGResNet(nn.Module):
    """Residual blocks of two convolutions and a pool that halves the time, then two layers of 32.

    Vanwinsen and others (2023) adapt it to "47 filters per layer and a stride of 1" and four
    blocks. Their 578.751 K parameters and 104 M operations follow from no reading of that we
    found: this one has 648,156 parameters and 250 M multiply-accumulates for 6000 points. Most of
    the parameters read the last block's output and depend on the length.

    Parameters
    ----------
    length : int
        Points of a signal.
    channels : int
        Filters of every convolution; 32 in the original.
    blocks : int
        Number of residual blocks; 5 in the original.
    classes : int
        Number of scores.
    inputs : int
        Channels of the signals.

    Attributes
    ----------
    scales : tuple of str
        Names of the blocks, whose outputs are the network's scales, the largest first; each is
        about half as long as the one before, so that a decoder on them needs ``resize=True``.

    Raises
    ------
    ValueError
        If nothing of the signal is left behind the last pool.
    """

    def __init__(
        self,
        length: int = 6000,
        channels: int = 47,
        blocks: int = 4,
        classes: int = 2,
        *,
        inputs: int = 1,
    ) -> None:
        super().__init__()
        left = length - 4
        for _ in range(blocks):
            left = (left - 5) // 2 + 1
        if left < 1:
            raise ValueError(
                f"{length} points are too few for {blocks} blocks that halve them"
            )
        self.stem = nn.Conv1d(inputs, channels, 5)
        self.blocks = nn.Sequential(*(_Block(channels) for _ in range(blocks)))
        self.scales = tuple(f"blocks.{block}" for block in range(blocks))
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * left, 32),
            nn.ReLU(),
            nn.Linear(32, 32),
            nn.ReLU(),
            nn.Linear(32, classes),
        )

    def forward(
        self, x: Float[Tensor, "batch *channels time"]
    ) -> Float[Tensor, "batch classes"]:
        """Return one score a class; signals of one channel may come without that dimension."""
        x = x[:, None] if x.ndim == 2 else x
        return self.classifier(self.blocks(self.stem(x)))

    def prunable(self) -> list[Channels]:
        """Inner channels of the blocks: the others are tied to each other by the shortcuts."""
        return [
            Channels((f"{name}.first",), f"{name}.second")
            for name in self.scales
        ]


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, channels, 5, padding=2)
        self.second = nn.Conv1d(channels, channels, 5, padding=2)
        self.pool = nn.MaxPool1d(5, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool((x + self.second(self.first(x).relu_())).relu_())
