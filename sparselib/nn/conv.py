"""The sparse convolution of dynamic sparse networks (Xiao and others, 2022)."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv1d_weight

from sparselib import init, topology
from sparselib._types import StateDict
from sparselib.csr import CSR
from sparselib.guarded import ReadOnly, plain, refuse_assignment, view
from sparselib.nn._options import Initialize, Mode, Padding
from sparselib.nn.sparse_layer import Dense, SparseLayer, check_spelling
from sparselib.ops.conv import conv1d, extent
from sparselib.topology import Region

MODES = get_args(Mode)
Topology = Callable[[Region, float, torch.Generator | None], Tensor]


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


class SparseConv1d(SparseLayer):
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
        _check_sizes(self)
        # in torch 2.6 `get_default_device` does not see `with torch.device(...)`
        device = torch.empty(0).device if device is None else device
        with torch.device("cpu"):  # a seed means the same layer everywhere
            full = torch.full((out_channels,), self.kernel_size)
            region = _checked(
                full if reach is None else reach.to(torch.int64), self
            )
            positions = topology(region, sparsity, generator)
            shape = (out_channels, region.columns)
            csr = CSR.from_positions(
                positions, shape, cache_transpose=cache_transpose
            )
            values = torch.empty(csr.nnz, dtype=dtype)
            init(values, shape, generator)
            self.csr = csr
            self._phases: _Phases | None = None
            self._follow()
        self.values = nn.Parameter(values)
        self._reach = region.reach.to(torch.int32)
        zeros = torch.zeros(out_channels, dtype=dtype, device="cpu")
        self.register_parameter("bias", nn.Parameter(zeros) if bias else None)
        self.to(device)

    @staticmethod
    def arguments_of(dense: Dense) -> Mapping[str, object]:
        """Return what builds a layer of the same sizes, on the same device and of the same type.

        Raises
        ------
        ValueError
            If it is no ``nn.Conv1d``.
        """
        if not isinstance(dense, nn.Conv1d):
            raise ValueError(
                f"a SparseConv1d computes what an nn.Conv1d does, not a {type(dense).__name__}"
            )
        return {
            "in_channels": dense.in_channels,
            "out_channels": dense.out_channels,
            "kernel_size": dense.kernel_size[0],
            "stride": dense.stride[0],
            "padding": dense.padding
            if isinstance(dense.padding, str)
            else dense.padding[0],
            "dilation": dense.dilation[0],
            "groups": dense.groups,
            "bias": dense.bias is not None,
            "padding_mode": dense.padding_mode,
            "device": dense.weight.device,
            "dtype": dense.weight.dtype,
        }

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

    @property
    def cells(self) -> int:
        """Number of cells of the region."""
        return int(self.region.room.sum())

    def to_dense(self) -> nn.Conv1d:
        """Return the ``nn.Conv1d`` with the same outputs.

        Raises
        ------
        ValueError
            If the padding is none that ``nn.Conv1d`` knows.
        """
        padding = "same" if self.padding is centered_zeros else self.padding
        if not isinstance(padding, int | str):
            raise ValueError(
                f"nn.Conv1d does not know the padding {self.padding}; only a layer with a padding "
                f"of nn.Conv1d or with padding=centered_zeros has a dense twin"
            )
        weight = self.csr.to_dense(self.values.detach())
        conv = nn.Conv1d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
            device=weight.device,
            dtype=weight.dtype,
        )
        conv.weight.data.copy_(weight.view_as(conv.weight))
        if self.bias is not None and conv.bias is not None:
            conv.bias.data.copy_(self.bias.detach())
        return conv.train(self.training)

    def gradient(
        self,
        inputs: Float[Tensor, "batch channels time"],
        costs: Float[Tensor, "batch some new_time"],
        rows: Int[Tensor, "some"] | None = None,
    ) -> Float[Tensor, "some columns"]:
        r"""Dense gradient of some filters, which growth by gradient reads.

        :math:`\nabla_{o,c,k} = \sum_{b,t} c_{b,o,t} x_{b,c,ts+kd}`; the inputs are never unfolded.

        Raises
        ------
        ValueError
            If there are groups and neither all filters nor `rows`, which names them.
        """
        signals = self._padded(inputs)
        kwargs = {"stride": self.stride, "dilation": self.dilation}
        if self.groups == 1:
            size = (costs.shape[1], self.in_channels, self.kernel_size)
            return conv1d_weight(signals, size, costs, **kwargs).flatten(1)
        if rows is None and costs.shape[1] != self.out_channels:
            raise ValueError(
                f"in a convolution of {self.groups} groups the gradient of {costs.shape[1]} of "
                f"{self.out_channels} filters needs rows=, which names them"
            )
        size = (
            self.out_channels,
            self.in_channels // self.groups,
            self.kernel_size,
        )
        if rows is not None:
            every = costs.new_zeros(
                costs.shape[0], self.out_channels, costs.shape[2]
            )
            costs = every.index_copy(1, rows, costs)
        found = conv1d_weight(
            signals, size, costs, groups=self.groups, **kwargs
        ).flatten(1)
        return found if rows is None else found[rows]

    def forward(
        self, x: Float[Tensor, "*batch channels time"]
    ) -> Float[Tensor, "*batch filters new_time"]:
        """Convolve. One signal may come without the dimension of a batch."""
        if x.ndim == 2:
            return self.forward(x[None])[0]
        if x.ndim != 3 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"a convolution of {self.in_channels} channels cannot read an input of shape "
                f"{tuple(x.shape)}"
            )
        return self.observed(x, self._convolved(x))

    def extra_repr(self) -> str:
        """Sizes, what differs from the defaults of ``nn.Conv1d``, and whether there is a bias."""
        parts = [f"{self.in_channels}, {self.out_channels}, {self.kernel_size}"]
        parts += [f"stride={self.stride}"] if self.stride > 1 else []
        named = getattr(self.padding, "__name__", self.padding)
        parts += (
            [f"padding={named}"] if self.padding not in (0, "valid") else []
        )
        parts += [f"dilation={self.dilation}"] if self.dilation > 1 else []
        parts += [f"groups={self.groups}"] if self.groups > 1 else []
        parts += (
            [f"padding_mode={self.padding_mode!r}"]
            if self.padding_mode != "zeros"
            else []
        )
        return ", ".join([*parts, f"bias={self.bias is not None}"])

    def _convolved(self, x: Tensor) -> Tensor:
        if self.stride > 1 or self.groups > 1:
            return self._by_phases(x)
        if callable(self.padding) or self.padding_mode != "zeros":
            signals = self._padded(x)
            return conv1d(
                self.csr,
                self.values,
                signals,
                self.bias,
                dilation=self.dilation,
            )
        return conv1d(
            self.csr, self.values, x, self.bias, self._margins(), self.dilation
        )

    def _by_phases(self, x: Tensor) -> Tensor:
        """Convolve the phases of the signals, which is the same with a stride of 1."""
        phases = self._followed()
        signals = self._padded(x)
        span = extent(self.kernel_size, self.dilation)
        length = (signals.shape[2] - span) // self.stride + 1
        if length < 1:
            raise ValueError(
                f"{x.shape[2]} points with a padding of {self.padding} are fewer than the {span} "
                f"that a kernel of {self.kernel_size} taps with a dilation of {self.dilation} "
                f"extends over"
            )
        missing = self.stride * (length + phases.taps - 1) - signals.shape[2]
        signals = functional.pad(signals, (0, missing)).unflatten(
            2, (-1, self.stride)
        )
        signals = signals.transpose(2, 3).flatten(1, 2)
        values = (
            self.values if phases.order is None else self.values[phases.order]
        )
        return conv1d(phases.csr, values, signals, self.bias)

    def _followed(self) -> "_Phases":
        phases = self._phases
        is_new = torch.compiler.is_compiling() or (
            phases and phases.version == self.csr.version
        )
        if phases is None or not is_new:
            self._follow()
            phases = self._phases
            assert phases is not None
        return phases

    def _follow(self) -> None:
        """Bring the pattern of the phases up to date with `csr`, in place where it can be."""
        if self.stride == self.groups == 1:
            return
        positions, order, taps = _phase_positions(self)
        shape = (self.out_channels, self.in_channels * self.stride * taps)
        before = self._phases
        if (
            before is None
            or before.csr.nnz != self.csr.nnz
            or before.csr.device != self.csr.device
        ):
            cache = self.csr.cache_transpose
            csr = CSR.from_positions(positions, shape, cache_transpose=cache)
            self._phases = _Phases(csr, order, taps, self.csr.version)
            return
        before.csr._rewire_trusted(positions)
        if before.order is not None and order is not None:
            before.order.copy_(order)
        self._phases = before._replace(version=self.csr.version)

    def _margins(self) -> tuple[int, int]:
        """Count the points that are added before and after each signal."""
        if self.padding == "same":
            total = extent(self.kernel_size, self.dilation) - 1
            return total // 2, total - total // 2
        amount = 0 if self.padding == "valid" else self.padding
        assert isinstance(amount, int)
        return amount, amount

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
        if self._phases is not None:
            csr = self._phases.csr._apply(fn)
            order = self._phases.order
            order = (
                order if order is None or order.is_meta else order.to(device)
            )
            self._phases = _Phases(
                csr, order, self._phases.taps, self.csr.version
            )
            if not csr._is_sound or (
                order is not None and order.device != device
            ):
                self._phases = None
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

    def _padded(self, x: Tensor) -> Tensor:
        if callable(self.padding):
            return self.padding(x, extent(self.kernel_size, self.dilation))
        before, after = self._margins()
        if not (before or after):
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return functional.pad(x, (before, after), mode=mode)


class _Phases(NamedTuple):
    """A convolution with stride or groups as one of stride 1 without groups.

    Point t of phase p of a signal is point ``t * stride + p``. Tap k lies at distance k d, so it
    reads phase ``k d % stride``, ``k d // stride`` points ahead.

    Attributes
    ----------
    csr : CSR
        Pattern of (filters, channels * phases * taps).
    order : Tensor or None
        Takes values from the order of the layer's pattern to the order of this one.
    taps : int
        Points that a kernel extends over in a phase.
    version : int
        That of the layer's pattern.
    """

    csr: CSR
    order: Tensor | None
    taps: int
    version: int


def _phase_positions(layer: SparseConv1d) -> tuple[Tensor, Tensor | None, int]:
    rows = layer.csr.rows
    column = layer.csr.positions % layer.shape[1]
    group = rows // (layer.out_channels // layer.groups)
    channel = column // layer.kernel_size + group * (
        layer.in_channels // layer.groups
    )
    distance = column % layer.kernel_size * layer.dilation
    taps = (layer.kernel_size - 1) * layer.dilation // layer.stride + 1
    phase = rows * layer.in_channels * layer.stride + channel * layer.stride
    positions = (
        phase + distance % layer.stride
    ) * taps + distance // layer.stride
    if layer.stride == 1:
        return positions, None, taps
    positions, order = positions.sort()
    return positions, order, taps


def _single(size: int | tuple[int]) -> int:
    """Return the one number of ``nn.Conv1d``'s tuples, or what is no tuple."""
    return size[0] if isinstance(size, tuple) and len(size) == 1 else size


def _check_sizes(layer: SparseConv1d) -> None:
    sizes = (
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.dilation,
    )
    whole = (*sizes, layer.stride, layer.groups)
    if (
        not all(isinstance(n, int) and not isinstance(n, bool) for n in whole)
        or min(whole) < 1
    ):
        raise ValueError(
            f"channels, kernel size and dilation must be at least 1, not {sizes}, as must stride "
            f"and groups, not {whole[4:]}"
        )
    if layer.in_channels % layer.groups or layer.out_channels % layer.groups:
        raise ValueError(
            f"{layer.groups} groups must divide the {layer.in_channels} channels and the "
            f"{layer.out_channels} filters"
        )
    padding = layer.padding
    is_amount = (
        isinstance(padding, int)
        and not isinstance(padding, bool)
        and padding >= 0
    )
    if not (is_amount or padding in ("same", "valid") or callable(padding)):
        raise ValueError(
            f"padding is a number of points, 'same', 'valid' or a callable, not {padding!r}"
        )
    if padding == "same" and layer.stride != 1:
        raise ValueError(
            "padding='same' keeps the length, which a stride does not"
        )
    if layer.padding_mode not in MODES or (
        callable(padding) and layer.padding_mode != "zeros"
    ):
        raise ValueError(
            f"padding_mode is one of {MODES}, and 'zeros' where padding is a callable, not "
            f"{layer.padding_mode!r}"
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
