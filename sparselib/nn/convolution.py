"""What sparse convolutions have in common, whatever the number of dimensions."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import ClassVar, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sparselib._types import StateDict
from sparselib.csr import CSR
from sparselib.guarded import ReadOnly, plain, refuse_assignment, view
from sparselib.nn._options import Initialize, Mode, Padding
from sparselib.nn.sparse_layer import Dense, SparseLayer
from sparselib.topology import Region

MODES = get_args(Mode)
Topology = Callable[[Region, float, torch.Generator | None], Tensor]
# before and after the points of one dimension
Margin = tuple[int, int]


class Window(NamedTuple):
    """How kernels move over the points of each dimension.

    What is computed are methods: torch 2.6 compiles no property of a named tuple.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    def extent(self) -> tuple[int, ...]:
        """Points from the first tap to the last, both included."""
        pairs = zip(self.kernel, self.dilation)
        return tuple((taps - 1) * dilation + 1 for taps, dilation in pairs)

    def reach(self) -> tuple[int, ...]:
        """Points of one phase from the first tap to the last, both included."""
        pairs = zip(self.extent(), self.stride)
        return tuple((extent - 1) // stride + 1 for extent, stride in pairs)


class SparseConvolution(SparseLayer):
    """A convolution whose kernels exist only at their connections.

    The kernels (out, in / groups, taps) are a matrix of ``in / groups * taps`` columns; the taps of
    an image's kernel are counted row by row. With a stride, or groups, the products see the pattern
    of an equal convolution of stride 1 without groups, whose channels are the phases of the inputs:
    with a stride s, point t of phase p is point ``t s + p``.
    """

    dense_class: ClassVar[type[nn.Conv1d | nn.Conv2d]]
    in_channels: int
    out_channels: int
    groups: int
    padding_mode: Mode
    kernel_size: int | tuple[int, int]
    stride: int | tuple[int, int]
    dilation: int | tuple[int, int]
    padding: int | tuple[int, int] | str | Padding
    _phases: "_Phases | None"
    _reach: Tensor

    @property
    @abstractmethod
    def window(self) -> Window:
        """Kernel, stride and dilation, a number for each dimension."""

    @abstractmethod
    def _margins(self) -> Sequence[Margin]:
        """Count the points that are added before and after each dimension."""

    @abstractmethod
    def _convolved(self, x: Tensor) -> Tensor:
        """Convolve a batch."""

    @staticmethod
    @abstractmethod
    def _weight_gradient(
        x: Tensor, size: Sequence[int], costs: Tensor, **how: object
    ) -> Tensor:
        """Return the gradient of a dense kernel tensor, as ``torch.nn.grad`` does."""

    @abstractmethod
    def _region(self, reach: Int[Tensor, "filters"]) -> Region:
        """Return the cells that may hold a connection, for an int64 `reach`."""

    def _draw(
        self,
        reach: Int[Tensor, "filters"] | None,
        sparsity: float,
        topology: Topology,
        init: Initialize,
        cache_transpose: bool,
        generator: torch.Generator | None,
        dtype: torch.dtype | None,
        bias: bool,
    ) -> None:
        """Draw the pattern and the weights, on the CPU."""
        full = torch.full((self.out_channels,), prod(self.window.kernel))
        region = self._checked(full if reach is None else reach)
        positions = topology(region, sparsity, generator)
        shape = (self.out_channels, region.columns)
        csr = CSR.from_positions(
            positions, shape, cache_transpose=cache_transpose
        )
        values = torch.empty(csr.nnz, dtype=dtype)
        init(values, shape, generator)
        self.csr = csr
        self._reach = region.reach.to(torch.int32)
        self._phases = None
        self._follow()
        self.values = nn.Parameter(values)
        zeros = torch.zeros(self.out_channels, dtype=dtype)
        self.register_parameter("bias", nn.Parameter(zeros) if bias else None)

    @classmethod
    def arguments_of(cls, dense: Dense) -> Mapping[str, object]:
        """Return what builds a layer of the same sizes, on the same device and of the same type.

        Raises
        ------
        ValueError
            If it is no dense convolution of as many dimensions.
        """
        if not isinstance(dense, cls.dense_class):
            raise ValueError(
                f"a {cls.__name__} computes what an nn.{cls.dense_class.__name__} does, not a "
                f"{type(dense).__name__}"
            )
        return {
            "in_channels": dense.in_channels,
            "out_channels": dense.out_channels,
            "kernel_size": dense.kernel_size,
            "stride": dense.stride,
            "padding": dense.padding,
            "dilation": dense.dilation,
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
        return self._region(self._reach.to(torch.int64))

    @property
    def cells(self) -> int:
        """Number of cells of the region."""
        return int(self.region.room.sum())

    def _dense_padding(self) -> int | tuple[int, int] | str:
        """Return the padding as the dense layer knows it.

        Raises
        ------
        ValueError
            If it knows none that does the same.
        """
        assert not callable(self.padding)
        return self.padding

    def to_dense(self) -> nn.Conv1d | nn.Conv2d:
        """Return the dense convolution with the same outputs.

        Raises
        ------
        ValueError
            If the padding is none that the dense convolution knows.
        """
        padding = self._dense_padding()
        weight = self.csr.to_dense(self.values.detach())
        conv = self.dense_class(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            stride=self.stride,  # type: ignore[arg-type]
            padding=padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
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
        inputs: Float[Tensor, "batch channels ..."],
        costs: Float[Tensor, "batch some ..."],
        rows: Int[Tensor, "some"] | None = None,
    ) -> Float[Tensor, "some columns"]:
        r"""Dense gradient of some filters, which growth by gradient reads.

        :math:`\nabla_{o,c,k} = \sum_{b,t} c_{b,o,t} x_{b,c,ts+kd}`; the inputs are never unfolded.

        Raises
        ------
        ValueError
            If there are groups and neither all filters nor `rows`, which names them.
        """
        x = self._padded(inputs)
        how = {"stride": self.stride, "dilation": self.dilation}
        kernel = self.window.kernel
        if self.groups == 1:
            size = (costs.shape[1], self.in_channels, *kernel)
            return self._weight_gradient(x, size, costs, **how).flatten(1)
        if rows is None and costs.shape[1] != self.out_channels:
            raise ValueError(
                f"in a convolution of {self.groups} groups the gradient of {costs.shape[1]} of "
                f"{self.out_channels} filters needs rows=, which names them"
            )
        size = (self.out_channels, self.in_channels // self.groups, *kernel)
        if rows is not None:
            every = costs.new_zeros(
                costs.shape[0], self.out_channels, *costs.shape[2:]
            )
            costs = every.index_copy(1, rows, costs)
        found = self._weight_gradient(
            x, size, costs, groups=self.groups, **how
        ).flatten(1)
        return found if rows is None else found[rows]

    def forward(
        self, input: Float[Tensor, "*batch_channels_points"]
    ) -> Float[Tensor, "*batch_filters_points"]:
        """Convolve. One sample may come without the dimension of a batch."""
        if input.is_nested:
            raise ValueError(
                f"a {type(self).__name__} reads no nested tensor; pass a padded one, as "
                f"torch.nested.to_padded_tensor makes it"
            )
        if input.ndim == self.sample_dimensions:
            return self.forward(input[None])[0]
        if (
            input.ndim != self.sample_dimensions + 1
            or input.shape[1] != self.in_channels
        ):
            raise ValueError(
                f"a convolution of {self.in_channels} channels cannot read an input of shape "
                f"{tuple(input.shape)}"
            )
        return self.observed(input, self._convolved(input))

    def extra_repr(self) -> str:
        """Sizes, what differs from the dense layer's defaults, and whether there is a bias."""
        window = self.window
        parts = [f"{self.in_channels}, {self.out_channels}, {self.kernel_size}"]
        parts += [f"stride={self.stride}"] if max(window.stride) > 1 else []
        named = getattr(self.padding, "__name__", self.padding)
        is_shown = callable(self.padding) or self.padding == "same"
        is_shown = is_shown or any(map(max, self._margins()))
        parts += [f"padding={named}"] if is_shown else []
        parts += (
            [f"dilation={self.dilation}"] if max(window.dilation) > 1 else []
        )
        parts += [f"groups={self.groups}"] if self.groups > 1 else []
        parts += (
            [f"padding_mode={self.padding_mode!r}"]
            if self.padding_mode != "zeros"
            else []
        )
        return ", ".join([*parts, f"bias={self.bias is not None}"])

    @property
    def _has_phases(self) -> bool:
        return self.groups > 1 or max(self.window.stride) > 1

    def _padded(self, x: Tensor) -> Tensor:
        """Return the inputs with their margins."""
        margins = self._margins()
        if not any(map(max, margins)):
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return functional.pad(x, _reversed(margins), mode=mode)

    def _checked_points(
        self, x: Tensor, margins: Sequence[Margin]
    ) -> list[int]:
        """Return the sizes of the inputs, which hold the kernel with these margins around them."""
        window = self.window
        # numbers are tensors while torch.jit traces
        sizes = [int(n) if isinstance(n, Tensor) else n for n in x.shape[2:]]
        points = [n + sum(margin) for n, margin in zip(sizes, margins)]
        if any(n < extent for n, extent in zip(points, window.extent())):
            raise ValueError(
                f"{tuple(x.shape[2:])} points with a padding of {self.padding} are fewer than the "
                f"{window.extent()} that a kernel of {window.kernel} taps with a dilation of "
                f"{window.dilation} extends over"
            )
        return sizes

    def _phased(self, x: Tensor) -> Tensor:
        """Return the phases of the inputs as channels, cut to what the outputs read."""
        window = self.window
        margins = self._margins()
        if self.padding_mode != "zeros" or callable(self.padding):
            x = self._padded(x)
            margins = [(0, 0)] * len(margins)
        sizes = self._checked_points(x, margins)
        points = [n + sum(margin) for n, margin in zip(sizes, margins)]
        read = []
        for number, extent, stride, reach, (before, after) in zip(
            points, window.extent(), window.stride, window.reach(), margins
        ):
            length = (number - extent) // stride + 1
            missing = stride * (length + reach - 1) - number
            read.append((before, after + missing))
        if any(map(any, read)):
            x = functional.pad(x, _reversed(read))
        for place, stride in enumerate(window.stride):
            x = x.unflatten(2 + 2 * place, (-1, stride))
        count = len(points)
        order = [0, 1, *range(3, 3 + 2 * count, 2), *range(2, 2 + 2 * count, 2)]
        return x.permute(order).flatten(1, 1 + count)

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
        if not self._has_phases:
            return
        positions, order = _phase_positions(self)
        columns = (
            self.in_channels
            * prod(self.window.stride)
            * prod(self.window.reach())
        )
        before = self._phases
        if (
            before is None
            or before.csr.nnz != self.csr.nnz
            or before.csr.device != self.csr.device
        ):
            cache = self.csr.cache_transpose
            csr = CSR.from_positions(
                positions, (self.out_channels, columns), cache_transpose=cache
            )
            self._phases = _Phases(csr, order, self.csr.version)
            return
        before.csr._rewire_trusted(positions)
        if before.order is not None and order is not None:
            before.order.copy_(order)
        self._phases = before._replace(version=self.csr.version)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "SparseConvolution":
        super()._apply(fn, recurse)
        device = self.csr.device
        if self._reach.is_meta:
            self._reach = self._lost_reach().to(device)
        else:
            self._reach = self._reach.to(device)
        if self._phases is not None:
            csr = self._phases.csr._apply(fn)
            order = self._phases.order
            order = (
                order if order is None or order.is_meta else order.to(device)
            )
            self._phases = _Phases(csr, order, self.csr.version)
            if not csr._is_sound or (
                order is not None and order.device != device
            ):
                self._phases = None
        return self

    def _lost_reach(self) -> Int[Tensor, "filters"]:
        """Return what stands for a reach whose numbers are gone until loading brings them."""
        taps = 0 if self.extras else prod(self.window.kernel)
        return torch.full((self.out_channels,), taps, dtype=torch.int32)

    def _save_to_state_dict(
        self, destination: StateDict, prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if "reach" in self.extras:
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
        return self._checked(plain(reach))

    def _adopt_region(self, region: Region) -> None:
        self._reach = region.reach.to(self.csr.device, torch.int32)

    def _checked(self, reach: Tensor) -> Region:
        """Return the region of a reach.

        Raises
        ------
        ValueError
            If it is on meta, or no number of taps for each filter.
        """
        taps = prod(self.window.kernel)
        if reach.is_meta:
            raise ValueError(
                "reach must hold its numbers in memory, not on meta"
            )
        if (
            reach.shape != (self.out_channels,)
            or int(reach.min()) < 1
            or int(reach.max()) > taps
        ):
            raise ValueError(
                f"reach needs a number from 1 to {taps} for each of {self.out_channels} filters, "
                f"not {reach.tolist()}"
            )
        return self._region(reach.to(torch.int64))


class _Phases(NamedTuple):
    """A convolution with stride or groups as one of stride 1 without groups.

    Tap k lies at distance k d, so it reads phase ``k d % stride``, ``k d // stride`` points ahead.

    Attributes
    ----------
    csr : CSR
        Pattern of (filters, channels * phases * taps), whose kernels have the sizes
        `Window.reach`.
    order : Tensor or None
        Takes values from the order of the layer's pattern to the order of this one.
    version : int
        That of the layer's pattern.
    """

    csr: CSR
    order: Tensor | None
    version: int

    def values(self, layer: SparseLayer) -> Tensor:
        """Return the layer's values in the order of this pattern."""
        return layer.values if self.order is None else layer.values[self.order]


def _phase_positions(layer: SparseConvolution) -> tuple[Tensor, Tensor | None]:
    window = layer.window
    rows = layer.csr.rows
    column = layer.csr.positions % layer.shape[1]
    group = rows // (layer.out_channels // layer.groups)
    taps = prod(window.kernel)
    channel = column // taps + group * (layer.in_channels // layer.groups)
    tap = column % taps
    phase = torch.zeros_like(tap)
    place = torch.zeros_like(tap)
    for number, size in enumerate(window.kernel):
        inner = prod(window.kernel[number + 1 :])
        distance = tap // inner % size * window.dilation[number]
        stride = window.stride[number]
        phase = phase * stride + distance % stride
        place = place * window.reach()[number] + distance // stride
    phases = prod(window.stride)
    kernel = (rows * layer.in_channels + channel) * phases + phase
    positions = kernel * prod(window.reach()) + place
    if phases == 1:
        return positions, None
    positions, order = positions.sort()
    return positions, order


def _reversed(margins: Sequence[Margin]) -> list[int]:
    """Return the margins as ``functional.pad`` takes them, those of the last dimension first."""
    return [number for margin in reversed(margins) for number in margin]


def check_sizes(layer: SparseConvolution) -> None:
    """Refuse sizes that no convolution has.

    Raises
    ------
    ValueError
        If a size is no whole number from 1 on, or the padding none that is known.
    """
    window = layer.window
    sizes = (
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.dilation,
    )
    others = (layer.stride, layer.groups)
    window_sizes = window.kernel + window.stride + window.dilation
    whole = (*sizes[:2], layer.groups, *window_sizes)
    if not all(map(_is_count, whole)) or min(whole) < 1:
        raise ValueError(
            f"channels, kernel size and dilation must be at least 1, not {sizes}, as must stride "
            f"and groups, not {others}"
        )
    if layer.in_channels % layer.groups or layer.out_channels % layer.groups:
        raise ValueError(
            f"{layer.groups} groups must divide the {layer.in_channels} channels and the "
            f"{layer.out_channels} filters"
        )
    if layer.padding == "same" and max(window.stride) > 1:
        raise ValueError(
            "padding='same' keeps the length, which a stride does not"
        )
    if layer.padding_mode not in MODES or (
        callable(layer.padding) and layer.padding_mode != "zeros"
    ):
        raise ValueError(
            f"padding_mode is one of {MODES}, and 'zeros' where padding is a callable, not "
            f"{layer.padding_mode!r}"
        )


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def is_amount(number: object) -> bool:
    """Whether it is a number of points that can be added."""
    return isinstance(number, int) and _is_count(number) and number >= 0


def margin(padding: int | str, extent: int) -> Margin:
    """Return what a padding adds before and after one dimension."""
    if padding == "same":
        return (extent - 1) // 2, extent // 2
    amount = 0 if padding == "valid" else padding
    assert isinstance(amount, int)
    return amount, amount
