"""The sparse convolution of dynamic sparse networks (Xiao and others, 2022)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv1d_weight

from sparselib import init, topology
from sparselib.nn._options import Initialize, Mode, Padding
from sparselib.nn.convolution import (
    Margin,
    SparseConvolution,
    Topology,
    Window,
    check_sizes,
    is_amount,
    margin,
)
from sparselib.nn.sparse_layer import check_spelling
from sparselib.ops.conv import conv1d
from sparselib.topology import Region


def replicate_right(
    x: Float[Tensor, "batch channels time"], extent: int
) -> Float[Tensor, "batch channels padded"]:
    """Repeat the last value ``extent - 1`` times: tap 0 reads the present, the others look ahead.

    What the program of dynamic sparse networks does. A kernel extends over as many points as it
    has taps, or, dilated, over ``(taps - 1) * dilation + 1``.
    """
    return (
        functional.pad(x, (0, extent - 1), mode="replicate")
        if extent > 1
        else x
    )


def centered_zeros(
    x: Float[Tensor, "batch channels time"], extent: int
) -> Float[Tensor, "batch channels padded"]:
    """Put ``(extent - 1) // 2`` zeros before, ``extent // 2`` behind: torch's ``padding="same"``.

    As for `replicate_right`, the extent is that of a kernel.
    """
    return functional.pad(x, ((extent - 1) // 2, extent // 2))


class SparseConv1d(SparseConvolution):
    r"""A 1-D convolution whose kernels exist only at their connections.

    .. math:: y_{o,t} = b_o + \sum_{c,k} w_{o,c,k} \, x_{c,ts+kd}

    with stride s and dilation d, on padded signals. Drop-in for ``nn.Conv1d``, whose arguments
    come first, in its order and with its meaning. The kernels (out, in / groups, tap) are a matrix
    of ``in / groups * taps`` columns, so that `positions`, `values`, `shape` and `rewire` mean what
    they mean in a `CSRLinear`, and every drop and grow rule works. No dense kernel is stored.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, dilation, groups : int
        As for ``nn.Conv1d``. With a stride, or groups, the products see the pattern of an equal
        convolution of stride 1 without groups, whose channels are the phases of the signals.
    padding : int, {"valid", "same"} or callable
        As for ``nn.Conv1d``. Or ``(x, extent) -> padded x``, longer by ``extent - 1`` where a
        kernel extends over ``(kernel_size - 1) * dilation + 1`` points: `replicate_right`, that
        of dynamic sparse networks, or `centered_zeros`.
    bias : bool
        Learn an additive bias, zero at initialization.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        As for ``nn.Conv1d``.
    device, dtype
        As for ``nn.Conv1d``.
    sparsity : float
        Share of absent weights among those that `reach` allows, in [0, 1).
    reach : Tensor, integers, shape (out_channels,), optional
        How many of the first taps each filter may use, see `sparselib.topology.kernel_regions`;
        by default all. No evolution leaves them.
    topology : callable
        ``(region, sparsity, generator) -> positions``: `sparselib.topology.scattered` or
        `sparselib.topology.first_taps`.
    init : callable
        ``(values, shape, generator)`` fills the values in place. `sparselib.init.fan_in_` keeps
        the variance that the outputs of ``nn.Conv1d`` have.
    cache_transpose : bool
        Keep the transposed pattern for the input gradient (8 bytes per connection).
    generator : torch.Generator, optional
        Source of the topology and the weights; torch's default otherwise.

    Raises
    ------
    ValueError
        If the sparsity, a size or a reach is impossible, or an input does not fit.
    """

    extras = ("reach",)
    sample_dimensions = 2
    dense_class = nn.Conv1d
    kernel_size: int
    stride: int
    dilation: int
    padding: int | str | Padding

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] | str | Padding = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool | float = True,  # a number is refused with advice
        padding_mode: Mode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        sparsity: float | int = 0.9,
        reach: Int[Tensor, "filters"] | None = None,
        topology: Topology = topology.scattered,
        init: Initialize = init.fan_in_,
        cache_transpose: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _single(kernel_size)
        self.stride = _single(stride)
        self.dilation = _single(dilation)
        self.groups = groups
        self.padding = (
            _single(padding) if isinstance(padding, tuple) else padding
        )
        self.padding_mode = padding_mode
        sizes = (in_channels, out_channels, self.kernel_size)
        check_spelling(type(self), sizes, sparsity, bias)
        check_sizes(self)
        _check_padding(self.padding)
        # in torch 2.6 `get_default_device` does not see `with torch.device(...)`
        device = torch.empty(0).device if device is None else device
        with torch.device("cpu"):  # a seed means the same layer everywhere
            self._draw(
                reach,
                sparsity,
                topology,
                init,
                cache_transpose,
                generator,
                dtype,
                bool(bias),
            )
        self.to(device)

    @property
    def window(self) -> Window:
        """Kernel, stride and dilation, as tuples of one number."""
        return Window((self.kernel_size,), (self.stride,), (self.dilation,))

    def _region(self, reach: Tensor) -> Region:
        taps = self.kernel_size
        return Region(reach, taps, self.in_channels // self.groups * taps)

    def _dense_padding(self) -> int | tuple[int, int] | str:
        padding = "same" if self.padding is centered_zeros else self.padding
        if not isinstance(padding, int | str):
            raise ValueError(
                f"nn.Conv1d does not know the padding {self.padding}; only a layer with a padding "
                f"of nn.Conv1d or with padding=centered_zeros has a dense twin"
            )
        return padding

    @staticmethod
    def _weight_gradient(
        x: Tensor, size: Sequence[int], costs: Tensor, **how: object
    ) -> Tensor:
        return conv1d_weight(x, size, costs, **how)

    def _convolved(self, x: Tensor) -> Tensor:
        margins: tuple[int, int] = (0, 0)
        if max(self.window.stride) > 1:
            x = self._phased(x)
        elif callable(self.padding) or self.padding_mode != "zeros":
            x = self._padded(x)
        else:
            (margins,) = self._margins()
        if not self._has_phases:
            return conv1d(
                self.csr, self.values, x, self.bias, margins, self.dilation
            )
        if max(self.window.stride) == 1:
            self._checked_points(x, [margins])
        phases = self._followed()
        values = phases.values(self)
        return conv1d(phases.csr, values, x, self.bias, margins)

    def _margins(self) -> Sequence[Margin]:
        if callable(self.padding):
            return [(0, 0)]
        return [margin(self.padding, self.window.extent()[0])]

    def _padded(self, x: Tensor) -> Tensor:
        if callable(self.padding):
            return self.padding(x, self.window.extent()[0])
        return super()._padded(x)


def _single(size: int | tuple[int]) -> int:
    """Return the one number of ``nn.Conv1d``'s tuples, or what is no tuple."""
    return size[0] if isinstance(size, tuple) and len(size) == 1 else size


def _check_padding(padding: object) -> None:
    if not (
        is_amount(padding) or padding in ("same", "valid") or callable(padding)
    ):
        raise ValueError(
            f"padding is a number of points, 'same', 'valid' or a callable, not {padding!r}"
        )
