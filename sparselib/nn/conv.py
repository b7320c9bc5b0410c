"""The sparse convolution of dynamic sparse networks (Xiao and others, 2022)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv1d_weight

from sparselib import init, topology
from sparselib._types import StateDict
from sparselib.guarded import ReadOnly, plain, refuse_assignment, view
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
            full = torch.full((out_channels,), self.kernel_size)
            region = _checked(
                full if reach is None else reach.to(torch.int64), self
            )
            self._draw(
                region,
                sparsity,
                topology,
                init,
                cache_transpose,
                generator,
                dtype,
                bool(bias),
            )
        self._reach = region.reach.to(torch.int32)
        self.to(device)

    @property
    def window(self) -> Window:
        """Kernel, stride and dilation, as tuples of one number."""
        return Window((self.kernel_size,), (self.stride,), (self.dilation,))

    @property
    def reach(self) -> Int[Tensor, "filters"]:
        """How many of the first taps each filter may use, int32, read-only."""
        return view(self._reach, ReadOnly)

    @reach.setter
    def reach(self, array: object) -> None:
        refuse_assignment("reach", self._reach, array)

    @property
    def region(self) -> Region:
        """The cells that may hold a connection."""
        return Region(
            self._reach.to(torch.int64), self.kernel_size, self.shape[1]
        )

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
        if self._has_phases:
            phases = self._followed()
            values = phases.values(self)
            return conv1d(phases.csr, values, self._phased(x), self.bias)
        if callable(self.padding) or self.padding_mode != "zeros":
            signals = self._padded(x)
            return conv1d(
                self.csr,
                self.values,
                signals,
                self.bias,
                dilation=self.dilation,
            )
        (padding,) = self._margins()
        return conv1d(
            self.csr, self.values, x, self.bias, padding, self.dilation
        )

    def _margins(self) -> Sequence[Margin]:
        if callable(self.padding):
            return [(0, 0)]
        return [margin(self.padding, self.window.extent[0])]

    def _padded(self, x: Tensor) -> Tensor:
        if callable(self.padding):
            return self.padding(x, self.window.extent[0])
        return super()._padded(x)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "SparseConv1d":
        super()._apply(fn, recurse)
        device = self.csr.device
        if (
            self._reach.is_meta
        ):  # what it would have held is lost, and loading brings it
            self._reach = torch.zeros_like(self._reach, device=device)
        else:
            self._reach = self._reach.to(device)
        return self

    def _save_to_state_dict(
        self, destination: StateDict, prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "reach"] = self.reach

    def _proposed_region(self, entries: Mapping[str, object]) -> Region | None:
        if "reach" not in entries:
            return None
        reach = entries["reach"]
        if not isinstance(reach, Tensor) or reach.dtype not in (
            torch.int32,
            torch.int64,
        ):
            raise ValueError(
                f"reach must be a tensor of int32 or int64, not {reach}"
            )
        return _checked(plain(reach).to(torch.int64), self)

    def _adopt_region(self, region: Region) -> None:
        self._reach = region.reach.to(self.csr.device, torch.int32)


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


def _checked(reach: Tensor, layer: SparseConv1d) -> Region:
    taps = layer.kernel_size
    if reach.is_meta:
        raise ValueError("reach must hold its numbers in memory, not on meta")
    if (
        reach.shape != (layer.out_channels,)
        or int(reach.min()) < 1
        or int(reach.max()) > taps
    ):
        raise ValueError(
            f"reach needs a number from 1 to {taps} for each of {layer.out_channels} filters, not "
            f"{reach.tolist()}"
        )
    return Region(reach, taps, layer.in_channels // layer.groups * taps)
