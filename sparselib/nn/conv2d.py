"""The sparse convolution of images."""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from sparselib import init, topology
from sparselib.nn._options import Initialize, Mode
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
from sparselib.ops.images import conv2d
from sparselib.topology import Region

Pair = tuple[int, int]


class SparseConv2d(SparseConvolution):
    r"""A 2-D convolution whose kernels exist only at their connections.

    .. math:: y_{o,i,j} = b_o + \sum_{c,k,l} w_{o,c,k,l} \, x_{c,is+kd,js+ld}

    with stride s and dilation d, each in both directions, on padded images. Drop-in for
    ``nn.Conv2d``, whose arguments come first, in its order and with its meaning. The kernels
    (out, in / groups, rows, columns) are a matrix of ``in / groups * rows * columns`` columns, so
    that `positions`, `values`, `shape` and `rewire` mean what they mean in a `CSRLinear`, and every
    drop and grow rule works. No dense kernel is stored.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups : int or (int, int)
        As for ``nn.Conv2d``. With a stride, or groups, the products see the pattern of an equal
        convolution of stride 1 without groups, whose channels are the phases of the images.
    bias : bool
        Learn an additive bias, zero at initialization.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        As for ``nn.Conv2d``.
    device, dtype
        As for ``nn.Conv2d``.
    sparsity : float
        Share of absent weights among those that `reach` allows, in [0, 1).
    reach : Tensor, integers, shape (out_channels,), optional
        How many taps each filter may use, from the middle of its kernel ring by ring: 1 is the
        middle, 9 the inner 3 x 3, see `sparselib.topology.kernel_regions`; by default all. No
        evolution leaves them.
    topology : callable
        ``(region, sparsity, generator) -> positions``, such as `sparselib.topology.scattered`.
    init : callable
        ``(values, shape, generator)`` fills the values in place. `sparselib.init.fan_in_` keeps
        the variance that the outputs of ``nn.Conv2d`` have.
    cache_transpose : bool
        Keep the transposed pattern for the input gradient (8 bytes per connection).
    generator : torch.Generator, optional
        Source of the topology and the weights; torch's default otherwise.

    Raises
    ------
    ValueError
        If the sparsity, a size or a reach is impossible, or an input does not fit.
    """

    sample_dimensions = 3
    dense_class = nn.Conv2d
    kernel_size: Pair
    stride: Pair
    dilation: Pair
    padding: Pair | str

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
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
        self.kernel_size = _pair(kernel_size, "kernel_size")
        self.stride = _pair(stride, "stride")
        self.dilation = _pair(dilation, "dilation")
        self.groups = groups
        self.padding = _padding(padding)
        self.padding_mode = padding_mode
        sizes = (in_channels, out_channels, self.kernel_size)
        check_spelling(type(self), sizes, sparsity, bias)
        check_sizes(self)
        self.extras = () if reach is None else ("reach",)
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
        """Kernel, stride and dilation of rows and columns."""
        return Window(self.kernel_size, self.stride, self.dilation)

    def _region(self, reach: Tensor) -> Region:
        channels = self.in_channels // self.groups
        if self.extras:
            return Region.outward(reach, self.kernel_size, channels)
        taps = prod(self.kernel_size)
        return Region(reach, taps, channels * taps, is_whole=True)

    @staticmethod
    def _weight_gradient(
        x: Tensor, size: Sequence[int], costs: Tensor, **how: object
    ) -> Tensor:
        return conv2d_weight(x, size, costs, **how)

    def _convolved(self, x: Tensor) -> Tensor:
        is_last = x.is_contiguous(memory_format=torch.channels_last)
        is_last = is_last and not x.is_contiguous()
        margins: Sequence[Margin] = [(0, 0), (0, 0)]
        if max(self.stride) > 1:
            x = self._phased(x)
        elif self.padding_mode != "zeros":
            x = self._padded(x)
        else:
            margins = self._margins()
        if self.groups > 1 and max(self.stride) == 1:
            self._checked_points(x, margins)
        csr = self.csr
        values: Tensor = self.values
        kernel = self.kernel_size
        dilation = self.dilation
        if self._has_phases:
            phases = self._followed()
            csr = phases.csr
            values = phases.values(self)
            rows, columns = self.window.reach()
            kernel = (rows, columns)
            dilation = (1, 1)
        around = (*margins[0], *margins[1])
        y = conv2d(csr, values, x, self.bias, kernel, around, dilation)
        return y.contiguous(memory_format=torch.channels_last) if is_last else y

    def _margins(self) -> Sequence[Margin]:
        extent = self.window.extent()
        if isinstance(self.padding, str):
            return [margin(self.padding, points) for points in extent]
        return [margin(*pair) for pair in zip(self.padding, extent)]


def _pair(size: int | Pair, name: str) -> Pair:
    """Return ``nn.Conv2d``'s number, or two numbers, as two."""
    if not isinstance(size, tuple | list):
        return size, size
    if len(size) != 2:
        raise ValueError(
            f"{name} is one number, or two for rows and columns, not {size}"
        )
    return size[0], size[1]


def _padding(padding: int | Pair | str) -> Pair | str:
    if padding in ("same", "valid"):
        assert isinstance(padding, str)
        return padding
    if isinstance(padding, str):
        found: Pair = (-1, -1)
    else:
        found = _pair(padding, "padding")
    if not all(map(is_amount, found)):
        raise ValueError(
            f"padding is a number of points, one of rows and one of columns, 'same' or 'valid', "
            f"not {padding!r}"
        )
    return found
