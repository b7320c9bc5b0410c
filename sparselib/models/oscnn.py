"""The omni-scale network: kernels of all prime lengths (Tang and others, 2020)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

BUDGETS = (8 * 128, 5 * 128 * 256 + 2 * 256 * 128)


def prime_kernel_sizes(length: int, largest: int = 89) -> list[int]:
    """List 1 and the primes up to a quarter of the signal, at most `largest`.

    Any even length is the sum of two primes, so two layers of them cover every receptive field,
    whatever the data need: there is no kernel size to search for.
    """
    top = max(min(length // 4, largest), 1)
    return [
        n
        for n in range(1, top + 1)
        if all(n % d for d in range(2, round(n**0.5) + 1))
    ]


class OSCNN(nn.Module):
    """Two layers of prime-length convolutions, one of lengths 1 and 2, then an average over time.

    Each layer joins convolutions of several lengths, of as many filters each as the `budgets` of
    weights allow, with batch normalization and ReLU. With the defaults and signals of 6000 points
    the network has the 235.74 K parameters of Vanwinsen and others (2023), Table 1, who write "47
    filters per layer": these are 225 and 50 instead.

    The authors store every kernel at the longest length and multiply by a mask; here each has its
    own length.

    Parameters
    ----------
    length : int
        Points of a signal, which decide the longest kernel.
    classes : int
        Number of scores.
    inputs : int
        Channels of the signals.
    largest : int
        Bound of the kernel lengths.
    budgets : sequence of int
        About how many weights each layer of primes may have.
    """

    def __init__(
        self,
        length: int = 6000,
        classes: int = 2,
        *,
        inputs: int = 1,
        largest: int = 89,
        budgets: Sequence[int] = BUDGETS,
    ) -> None:
        super().__init__()
        sizes = prime_kernel_sizes(length, largest)
        layers = []
        width = inputs
        for budget in budgets:
            filters = max(budget // (width * sum(sizes)), 1)
            layers.append(_Scales(width, filters, sizes))
            width = filters * len(sizes)
        filters = len(sizes) * max(budgets[0] // (inputs * sum(sizes)), 1)
        layers.append(_Scales(width, filters, [1, 2]))
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(2 * filters, classes)

    def forward(
        self, x: Float[Tensor, "batch *channels time"]
    ) -> Float[Tensor, "batch classes"]:
        """Return one score a class; signals of one channel may come without that dimension."""
        x = x[:, None] if x.ndim == 2 else x
        return self.classifier(self.layers(x).mean(2))


class _Scales(nn.Module):
    def __init__(self, inputs: int, filters: int, sizes: Sequence[int]) -> None:
        super().__init__()
        # even lengths read one point more ahead than behind, as the authors' masks do
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.ConstantPad1d(((size - 1) // 2, size // 2), 0.0),
                nn.Conv1d(inputs, filters, size),
            )
            for size in sizes
        )
        self.norm = nn.BatchNorm1d(filters * len(sizes))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat([conv(x) for conv in self.convs], 1)).relu_()
