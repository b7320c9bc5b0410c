"""Sparsely activated networks: a few kernels and where they occur (Bizopoulos and Koutsouris)."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional, grad

from sparselib._types import AutogradContext
from sparselib.nn.activation import extrema
from sparselib.ops.dispatch import is_overseen

DEFINITIONS = ("text", "code", "corrected")


class SparseCode(NamedTuple):
    """What remains of a batch of inputs: positions, amplitudes and kernels.

    Parameters
    ----------
    positions : tensor
        Sorted flat positions of the activations in maps of `shape`, int32 where that suffices.
    amplitudes : tensor
        One a position, never zero.
    kernels : tuple of tensor
        The kernels.
    shape : tuple of int
        ``(samples, kernels, *size)``.
    definition : str
        How the network decodes; see `SAN`.
    """

    positions: Tensor
    amplitudes: Tensor
    kernels: tuple[Tensor, ...]
    shape: tuple[int, ...]
    definition: str

    @property
    def nbytes(self) -> int:
        """Size in bytes of positions, amplitudes and kernels."""
        return sum(
            t.nbytes for t in (self.positions, self.amplitudes, *self.kernels)
        )

    def maps(self) -> Float[Tensor, "samples kernels *size"]:
        """Return the activation maps, zeros and all."""
        flat = self.amplitudes.new_zeros(math.prod(self.shape))
        flat[self.positions.long()] = self.amplitudes
        return flat.view(self.shape)

    def decode(self) -> Float[Tensor, "samples *size"]:
        """Return the reconstruction, bit for bit that of the network on the same machine."""
        return _decoded(self.maps(), self.kernels, self.definition)


class SAN(nn.Module):
    r"""An autoencoder that finds which kernel occurs where and how strongly (Bizopoulos, Eq. 9-14).

    .. math:: s^{(i)} = x * w^{(i)}, \quad \alpha^{(i)} = \phi(s^{(i)}, d^{(i)}), \quad
       \hat x = \sum_{i=1}^q \alpha^{(i)} * w^{(i)}

    Encoding and decoding share the kernels :math:`w^{(i)} \sim N(\mu, \sigma)`, and maps are as
    large as the input, padded with zeros. Its loss is ``nn.functional.l1_loss`` (Eq. 14).

    Parameters
    ----------
    kernel_sizes : sequence of int
        Size m of each kernel, which has m weights in 1-D and m x m in 2-D. Sizes may differ.
    activation : callable
        ``(similarities, size) -> maps``: `sparselib.nn.extrema`, ``partial(extrema, tolerance=3)``,
        `sparselib.nn.topk_absolutes`, ...
    dimensions : int
        1 for inputs of shape (samples, length), 2 for (samples, height, width).
    together : bool
        Give the activation the maps of all kernels at once, with the largest size, so that they
        can compete: ``partial(extrema, across=True)``. By default each map is on its own.
    mean, std : float
        Of the kernels at initialization. The released code begins with ``mean=0.1, std=0.0``, so
        that kernels of one size stay equal for ever.
    definition : str
        Where a decoded kernel lies. ``"text"``: both convolutions are cross-correlations, as
        footnote 3 allows, and what is written lies where it was read. ``"code"``: the padding of
        the encoder again, so that for even sizes it lies one cell before. ``"corrected"``: the
        decoder is the transpose of the encoder, what is written is the kernel that was read with.
    generator : torch.Generator, optional
        Source of the kernels; torch's default otherwise.

    Raises
    ------
    ValueError
        If there is no kernel, or a size, the dimensions, the definition or an input is impossible.
    """

    def __init__(
        self,
        kernel_sizes: Sequence[int],
        activation: Callable[[Tensor, int], Tensor] = extrema,
        dimensions: int = 1,
        *,
        together: bool = False,
        mean: float = 0.0,
        std: float = 0.1,
        definition: str = "text",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = tuple(kernel_sizes)
        if (
            not sizes
            or min(sizes) < 1
            or dimensions not in (1, 2)
            or definition not in DEFINITIONS
        ):
            raise ValueError(
                f"a SAN has kernels of size 1 or more, 1 or 2 dimensions and a definition of "
                f"{DEFINITIONS}, not {sizes}, {dimensions} and {definition!r}"
            )
        self.kernel_sizes = sizes
        self.dimensions = dimensions
        self.activation = activation
        self.together = together
        self.definition = definition
        kernels = (
            torch.empty([size] * dimensions, dtype=dtype) for size in sizes
        )
        self.kernels = nn.ParameterList(
            nn.Parameter(
                kernel.normal_(mean, std, generator=generator).to(device)
            )
            for kernel in kernels
        )

    def similarities(
        self, x: Float[Tensor, "samples *size"]
    ) -> Float[Tensor, "samples q *size"]:
        """Compare the input with each kernel at each place (Eq. 10)."""
        if x.ndim != self.dimensions + 1:
            kind = (
                "(samples, length)"
                if self.dimensions == 1
                else "(samples, height, width)"
            )
            raise ValueError(
                f"a {self.dimensions}-D SAN takes {kind}, not {tuple(x.shape)}"
            )
        stacks = [torch.stack(run)[:, None] for run in _runs(self.kernels)]
        return torch.cat(
            [
                _correlated(x[:, None], k, (k.shape[-1] - 1) // 2)
                for k in stacks
            ],
            1,
        )

    def encode(
        self, x: Float[Tensor, "samples *size"]
    ) -> Float[Tensor, "samples q *size"]:
        """Return the activation maps (Eq. 11)."""
        similarities = self.similarities(x)
        if self.together:
            return self.activation(similarities, max(self.kernel_sizes))
        parts = zip(similarities.split(1, 1), self.kernel_sizes)
        return torch.cat([self.activation(s, size) for s, size in parts], 1)

    def reconstructions(
        self, maps: Float[Tensor, "samples q *size"]
    ) -> Float[Tensor, "samples q *size"]:
        """Return what each kernel contributes to the reconstruction (Eq. 12)."""
        parts = zip(maps.split(1, 1), self.kernels)
        return torch.cat(
            [_written(m, k[None, None], self.definition) for m, k in parts], 1
        )

    def decode(
        self, maps: Float[Tensor, "samples q *size"]
    ) -> Float[Tensor, "samples *size"]:
        """Return the sum of what the kernels contribute (Eq. 13)."""
        return _decoded(maps, self.kernels, self.definition)

    def forward(
        self, x: Float[Tensor, "samples *size"]
    ) -> Float[Tensor, "samples *size"]:
        """Return the reconstruction of the input (Eq. 17)."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def describe(self, x: Float[Tensor, "samples *size"]) -> SparseCode:
        """Return the sparse code of the input, which decodes to what `forward` returns."""
        maps = self.encode(x)
        positions = maps.flatten().nonzero().flatten()
        amplitudes = maps.flatten()[positions]
        if maps.numel() < 2**31:
            positions = positions.int()
        kernels = tuple(kernel.detach().clone() for kernel in self.kernels)
        return SparseCode(
            positions, amplitudes, kernels, tuple(maps.shape), self.definition
        )

    def extra_repr(self) -> str:
        """Sizes, dimensions and activation."""
        name = getattr(self.activation, "__name__", repr(self.activation))
        return f"{self.kernel_sizes}, {self.dimensions}-D, {name}, definition={self.definition!r}"


def _runs(kernels: Iterable[Tensor]) -> list[list[Tensor]]:
    """Gather neighbors of one size, which one convolution serves."""
    return [list(run) for _, run in groupby(kernels, key=len)]


def _decoded(
    maps: Tensor, kernels: Iterable[Tensor], definition: str
) -> Tensor:
    runs = _runs(kernels)
    if maps.ndim != runs[0][0].ndim + 2 or maps.shape[1] != sum(map(len, runs)):
        raise ValueError(
            f"maps of shape {tuple(maps.shape)} do not belong to {sum(map(len, runs))} kernels in "
            f"{runs[0][0].ndim} dimensions: they are (samples, kernels, *size)"
        )
    parts = zip(maps.split([len(run) for run in runs], 1), runs)
    return sum(
        (
            _written(part, torch.stack(run)[None], definition)
            for part, run in parts
        ),
        start=torch.zeros_like(maps[:, :1]),
    )[:, 0]


def _written(maps: Tensor, kernels: Tensor, definition: str) -> Tensor:
    """Write a kernel wherever its map is not zero, see `SAN` for where exactly."""
    size = kernels.shape[-1]
    if definition == "corrected":
        kernels = kernels.flip(tuple(range(2, kernels.ndim)))
    return _correlated(
        maps, kernels, (size - 1) // 2 if definition == "code" else size // 2
    )


def _correlated(x: Tensor, kernels: Tensor, before: int) -> Tensor:
    """Cross-correlate, with `before` zeros at the start of every axis and the rest at its end."""
    if x.requires_grad and torch.is_grad_enabled() and not is_overseen(x):
        y: Tensor = _Correlation.apply(x, kernels, before)
        return y
    return _convolved(x, kernels, before)


def _convolved(x: Tensor, kernels: Tensor, before: int) -> Tensor:
    axes = kernels.ndim - 2
    after = kernels.shape[-1] - 1 - before
    convolve = functional.conv1d if axes == 1 else functional.conv2d
    if before == after:
        return convolve(x, kernels, padding=before)
    return convolve(functional.pad(x, [before, after] * axes), kernels)


class _Correlation(torch.autograd.Function):
    """`_convolved`; the gradient of its input is a correlation with the mirrored kernels, too.

    For a channel or two torch computes that gradient in up to ten times the time of the product.
    """

    @staticmethod
    def forward(
        ctx: AutogradContext, x: Tensor, kernels: Tensor, before: int
    ) -> Tensor:
        ctx.save_for_backward(x, kernels)
        ctx.before = before
        return _convolved(x, kernels, before)

    @staticmethod
    def backward(ctx: AutogradContext, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kernels = ctx.saved_tensors
        axes = kernels.ndim - 2
        after = kernels.shape[-1] - 1 - ctx.before
        mirrored = kernels.flip(tuple(range(2, kernels.ndim))).transpose(0, 1)
        dx = _correlated(dy, mirrored, after)
        if not ctx.needs_input_grad[1]:
            return dx, None, None
        gradient = grad.conv1d_weight if axes == 1 else grad.conv2d_weight
        padded = functional.pad(x, [ctx.before, after] * axes)
        return dx, gradient(padded, kernels.shape, dy), None
