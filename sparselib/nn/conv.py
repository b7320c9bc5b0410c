"""The sparse convolution of dynamic sparse networks (Xiao and others, 2022)."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv1d_weight

from sparselib import init, topology
from sparselib.csr import CSR
from sparselib.guarded import ReadOnly, plain, refuse_assignment, view
from sparselib.nn.sparse_layer import SparseLayer
from sparselib.ops.conv import conv1d, extent
from sparselib.topology import Region

Padding = Callable[[Tensor, int], Tensor]
Topology = Callable[[Region, float, torch.Generator | None], Tensor]


def replicate_right(
    x: Float[Tensor, "batch channels time"], extent: int
) -> Float[Tensor, "batch channels padded"]:
    """Repeat the last value ``extent - 1`` times: tap 0 reads the present, the others look ahead.

    What the program of dynamic sparse networks does. A kernel extends over as many points as it
    has taps, or, dilated, over ``(taps - 1) * dilation + 1``.
    """
    return functional.pad(x, (0, extent - 1), mode="replicate") if extent > 1 else x


def centred_zeros(
    x: Float[Tensor, "batch channels time"], extent: int
) -> Float[Tensor, "batch channels padded"]:
    """Put ``(extent - 1) // 2`` zeros before, ``extent // 2`` behind: torch's ``padding="same"``.

    As for `replicate_right`, the extent is that of a kernel.
    """
    return functional.pad(x, ((extent - 1) // 2, extent // 2))


class SparseConv1d(SparseLayer):
    r"""A 1-D convolution whose kernels exist only at their connections, of stride 1.

    .. math:: y_{o,t} = b_o + \sum_{c,k} w_{o,c,k} \, x_{c,t+kd}

    with dilation d, on padded signals, so that the length stays. The kernels (out, in, tap) are a
    matrix of ``in * taps`` columns, so that `positions`, `values`, `shape` and `rewire` mean what
    they mean in a `CSRLinear`, and every drop and grow rule works. No dense kernel is stored.

    Parameters
    ----------
    in_channels, out_channels, kernel_size : int
        As for ``nn.Conv1d``.
    sparsity : float
        Share of absent weights among those that `reach` allows, in [0, 1).
    bias : bool
        Learn an additive bias, zero at birth.
    dilation : int
        Points from one tap to the next.
    reach : Tensor, integers, shape (out_channels,), optional
        How many of the first taps each filter may use, see `sparselib.topology.kernel_regions`;
        by default all. No evolution leaves them.
    topology : callable
        ``(region, sparsity, generator) -> positions``: `sparselib.topology.scattered` or
        `sparselib.topology.first_taps`.
    init : callable
        ``(values, shape, generator)`` fills the values in place; by default the law of
        ``nn.Conv1d``.
    padding : callable
        ``(x, extent) -> padded x``, longer by ``extent - 1`` where a kernel extends over
        ``(kernel_size - 1) * dilation + 1`` points: `replicate_right` or `centred_zeros`.
    cache_transpose : bool
        Keep the transposed pattern for the input gradient (8 bytes a connection).
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
        kernel_size: int,
        sparsity: float = 0.9,
        bias: bool = True,
        *,
        dilation: int = 1,
        reach: Int[Tensor, "filters"] | None = None,
        topology: Topology = topology.scattered,
        init: Callable[..., Any] = init.linear_,
        padding: Padding = replicate_right,
        cache_transpose: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.dilation, self.padding = kernel_size, dilation, padding
        device = torch.get_default_device() if device is None else device
        with torch.device("cpu"):  # a seed means the same layer everywhere
            full = torch.full((out_channels,), kernel_size)
            region = _checked(full if reach is None else reach.to(torch.int64), self)
            positions = topology(region, sparsity, generator)
            shape = (out_channels, region.columns)
            csr = CSR.from_positions(positions, shape, cache_transpose=cache_transpose)
            values = torch.empty(csr.nnz, dtype=dtype)
            init(values, shape, generator)
        self.csr = csr.to(device)
        self._reach = region.reach.to(torch.int32).to(device)
        self.values = nn.Parameter(values.to(device))
        zeros = torch.zeros(out_channels, dtype=dtype, device=device)
        self.register_parameter("bias", nn.Parameter(zeros) if bias else None)

    @staticmethod
    def arguments_of(conv: nn.Conv1d) -> dict[str, Any]:
        """Return what builds a layer of the same sizes, on the same device and of the same type.

        Raises
        ------
        ValueError
            If the convolution has a stride or groups, or does not keep the length by zeros on both
            sides.
        """
        (taps,), (dilation,) = conv.kernel_size, conv.dilation
        kept = conv.padding == "same" or 2 * conv.padding[0] == (taps - 1) * dilation
        plain = (conv.stride, conv.groups) == ((1,), 1)
        if not (kept and plain and conv.padding_mode == "zeros"):
            raise ValueError(
                f"{conv} cannot become sparse: it needs a stride and groups of 1, and as many "
                f"zeros on both sides as keep the length"
            )
        return {
            "in_channels": conv.in_channels,
            "out_channels": conv.out_channels,
            "kernel_size": taps,
            "bias": conv.bias is not None,
            "padding": centred_zeros,
            "dilation": dilation,
            "device": conv.weight.device,
            "dtype": conv.weight.dtype,
        }

    @property
    def reach(self) -> Int[Tensor, "filters"]:
        """How many of the first taps each filter may use, int32, read-only."""
        return view(self._reach, ReadOnly)

    @reach.setter
    def reach(self, array: Any) -> None:
        refuse_assignment("reach", self._reach, array)

    @property
    def region(self) -> Region:
        """The cells that may hold a connection."""
        return Region(self._reach.to(torch.int64), self.kernel_size, self.shape[1])

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
        if self.padding is not centred_zeros:
            raise ValueError(
                f"nn.Conv1d does not know the padding {self.padding}; only a layer with "
                f"padding=centred_zeros has a dense twin"
            )
        weight = self.csr.to_dense(self.values.detach())
        conv = nn.Conv1d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            padding="same",
            dilation=self.dilation,
            bias=self.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        conv.weight.data.copy_(weight.view_as(conv.weight))
        if self.bias is not None and conv.bias is not None:
            conv.bias.data.copy_(self.bias.detach())
        return conv.train(self.training)

    def gradient(
        self, inputs: Float[Tensor, "batch channels time"], costs: Float[Tensor, "batch some time"]
    ) -> Float[Tensor, "some columns"]:
        r"""Dense gradient of some filters, which growth by gradient reads.

        :math:`\nabla_{o,c,k} = \sum_{b,t} c_{b,o,t} x_{b,c,t+kd}`; the inputs are never unfolded.
        """
        size = (costs.shape[1], self.in_channels, self.kernel_size)
        found = conv1d_weight(self._padded(inputs), size, costs, dilation=self.dilation)
        return found.flatten(1)

    def forward(
        self, x: Float[Tensor, "*batch channels time"]
    ) -> Float[Tensor, "*batch filters time"]:
        """Convolve; the length stays. One signal may come without the dimension of a batch."""
        if x.ndim == 2:
            return self.forward(x[None])[0]
        if x.ndim != 3 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"a convolution of {self.in_channels} channels cannot read an input of shape "
                f"{tuple(x.shape)}"
            )
        signals = self._padded(x)
        y = conv1d(self.csr, self.values, signals, self.bias, dilation=self.dilation)
        return self.observed(x, y)

    def extra_repr(self) -> str:
        """Sizes, a dilation if there is one, and whether there is a bias."""
        sizes = f"{self.in_channels}, {self.out_channels}, {self.kernel_size}"
        apart = f", dilation={self.dilation}" if self.dilation > 1 else ""
        return f"{sizes}{apart}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseConv1d":
        super()._apply(fn, recurse)
        device = self.csr.device
        if self._reach.is_meta:  # what it would have held is lost, and loading brings it
            self._reach = torch.zeros_like(self._reach, device=device)
        else:
            self._reach = self._reach.to(device)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "reach"] = self.reach

    def _proposed_region(self, entries: dict[str, Any]) -> Region | None:
        if "reach" not in entries:
            return None
        reach = entries["reach"]
        if not isinstance(reach, Tensor) or reach.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"reach must be a tensor of int32 or int64, not {reach}")
        return _checked(plain(reach).to(torch.int64), self)

    def _adopt_region(self, region: Region) -> None:
        self._reach = region.reach.to(self.csr.device, torch.int32)

    def _padded(self, x: Tensor) -> Tensor:
        return self.padding(x, extent(self.kernel_size, self.dilation))


def _checked(reach: Tensor, layer: SparseConv1d) -> Region:
    sizes = layer.in_channels, layer.out_channels, layer.kernel_size
    if min(*sizes, layer.dilation) < 1:
        raise ValueError(
            f"channels, kernel size and dilation must be at least 1, not {(*sizes, layer.dilation)}"
        )
    if reach.is_meta:
        raise ValueError("reach must hold its numbers in memory, not on meta")
    if reach.shape != (sizes[1],) or int(reach.min()) < 1 or int(reach.max()) > sizes[2]:
        raise ValueError(
            f"reach needs a number from 1 to {sizes[2]} for each of {sizes[1]} filters, not "
            f"{reach.tolist()}"
        )
    return Region(reach, sizes[2], sizes[0] * sizes[2])
