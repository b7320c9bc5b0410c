"""The omni-scale network: kernels of all prime lengths (Tang and others, 2020)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sparselib.nn._known import has_hooks, is_every_module_observed
from sparselib.ops import dispatch

BUDGETS = (8 * 128, 5 * 128 * 256 + 2 * 256 * 128)
# kernels of so many points and more are faster by their spectrum
LONG = 32
TRANSFORMED = (torch.float32, torch.float64)


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
    own length. Where the longest has `LONG` points or more, a processor computes the layer by
    Fourier transforms (a seventh of the time in training, on Zen 5 with 720 points); whoever
    counts, traces or compiles the model sees the convolutions, and so does autocast.

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
        self.longest = max(sizes)

    def forward(self, x: Tensor) -> Tensor:
        if self.longest >= LONG and _is_number(x) and self._is_unobserved():
            joined = self._by_spectrum(x)
        else:
            joined = torch.cat([conv(x) for conv in self.convs], 1)
        return self.norm(joined).relu_()

    def _dense(self) -> list[nn.Conv1d]:
        return [
            conv
            for conv in self.convs.modules()
            if type(conv) is nn.Conv1d and conv.bias is not None
        ]

    def _is_unobserved(self) -> bool:
        """Whether all are dense convolutions, and nobody looks at what each returns."""
        return (
            len(self._dense()) == len(self.convs)
            and not is_every_module_observed()
            and not any(map(has_hooks, self.convs.modules()))
        )

    def _by_spectrum(self, x: Tensor) -> Tensor:
        """Correlate with all kernels at once, each amid zeros as long as the longest."""
        kernels = []
        biases = []
        behind = (self.longest - 1) // 2
        for conv in self._dense():
            less = self.longest - conv.kernel_size[0]
            before = behind - (conv.kernel_size[0] - 1) // 2
            kernels.append(functional.pad(conv.weight, (before, less - before)))
            if conv.bias is not None:
                biases.append(conv.bias)
        joined = correlated(x, torch.cat(kernels), behind)
        return joined + torch.cat(biases)[:, None]


def correlated(
    x: Float[Tensor, "batch inputs time"],
    kernels: Float[Tensor, "filters inputs taps"],
    behind: int,
) -> Float[Tensor, "batch filters time"]:
    """Correlate signals amid zeros with kernels, by discrete Fourier transforms of stretches.

    ``y_f(t) = sum_i sum_k w_fi(k) x_i(t + k - behind)`` is, in a stretch of time, the inverse
    transform of ``sum_i conj(W_fi) X_i``; the last ``taps - 1`` points of each stretch wrap around,
    and the next one starts before them (overlap-save: Stockham, 1966).

    Parameters
    ----------
    x : tensor of shape (batch, inputs, time)
        The signals.
    kernels : tensor of shape (filters, inputs, taps)
        A kernel for each filter and input.
    behind : int
        How many points a kernel reads before its own.

    Returns
    -------
    tensor of shape (batch, filters, time)
        Sums without bias, as long as the signals.
    """
    batch, inputs, time = x.shape
    filters, _, taps = kernels.shape
    length = 2 ** (2 * taps).bit_length()
    kept = length - taps + 1
    stretches = -(-time // kept)
    ahead = stretches * kept + taps - 1 - time - behind
    signals = torch.fft.rfft(
        functional.pad(x, (behind, ahead)).unfold(2, length, kept)
    )
    responses = torch.fft.rfft(kernels, length)
    # one product of matrices for each frequency
    rows = signals.permute(3, 0, 2, 1).reshape(-1, batch * stretches, inputs)
    spectrum = rows @ responses.conj().permute(2, 1, 0)
    spectrum = spectrum.permute(1, 2, 0).reshape(batch, stretches, filters, -1)
    sums = torch.fft.irfft(spectrum, length)[..., :kept]
    return sums.transpose(1, 2).reshape(batch, filters, -1)[..., :time]


def _is_number(x: Tensor) -> bool:
    """Whether x is numbers on a processor that nothing but autograd oversees."""
    return x.is_cpu and x.dtype in TRANSFORMED and not dispatch.is_overseen(x)
