"""The dynamic sparse network for time series (Xiao and others, 2022)."""

from collections.abc import Mapping
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselib import init, topology
from sparselib.nn import SparseConv1d, replicate_right
from sparselib.nn._options import ConvolutionOptions
from sparselib.nn.gate import Channels


class DSN(nn.Module):
    """Four wide convolutions of sparse kernels in three groups, each with a reach of its own.

    A layer is a convolution to ``groups * channels`` filters without bias, batch normalization and
    ReLU; from the second on a dense convolution of one tap comes first and brings the signals down
    to `channels`. The head averages over `pooled` stretches of time, scores each by a convolution
    of one tap with batch normalization, and averages the scores. Return values are scores, for
    ``cross_entropy``.

    Vanwinsen and others (2023) speak of "47 filters"; 621,955 parameters are those of 47 filters
    in each of the three groups.

    Parameters
    ----------
    channels : int
        Filters of a group.
    layers : int
        Number of convolutions.
    kernel_size : int
        Taps; group g of G reaches ``(g + 1) * (kernel_size // G)`` of them.
    sparsity : float
        Share of absent weights among those within reach. At 0 the network is its dense twin: all
        kernels have all taps, and there is nothing to evolve.
    classes : int
        Number of scores.
    groups : int
        Number of groups.
    bounded : bool
        If False, filters of all groups reach all taps.
    inputs : int
        Channels of the signals.
    pooled : int
        Stretches of time that are scored.
    **options
        Passed on to `SparseConv1d`; where the sparsity is 0, `dilation` alone has a meaning.

    Raises
    ------
    ValueError
        If there are no layers, or an option that the dense twin does not know.

    Attributes
    ----------
    scales : tuple of str
        The pool alone, a short map of all filters: before it nothing gets shorter.
    """

    scales = ("pool",)

    def __init__(
        self,
        channels: int = 47,
        layers: int = 4,
        kernel_size: int = 30,
        sparsity: float = 0.95,
        classes: int = 2,
        *,
        groups: int = 3,
        bounded: bool = True,
        inputs: int = 1,
        pooled: int = 50,
        **options: Unpack[ConvolutionOptions],
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"a DSN needs at least one layer, not {layers}")
        if not sparsity:
            _check_dense(options)
        width = groups * channels
        options["reach"] = topology.kernel_regions(
            width, kernel_size, groups if bounded else 1
        )
        drawn: ConvolutionOptions = {
            "padding": replicate_right,
            "init": init.linear_,
            **options,
        }
        blocks = []
        for layer in range(layers):
            squeeze = (
                [nn.Conv1d(width, channels, 1, bias=False)] if layer else []
            )
            read = channels if layer else inputs
            conv = (
                SparseConv1d(
                    read,
                    width,
                    kernel_size,
                    bias=False,
                    sparsity=sparsity,
                    **drawn,
                )
                if sparsity
                else _dense(
                    read, width, kernel_size, options.get("dilation", 1)
                )
            )
            modules = [
                *squeeze,
                conv,
                nn.BatchNorm1d(width),
                nn.ReLU(inplace=True),
            ]
            blocks.append(nn.Sequential(*modules))
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool1d(pooled)
        self.head = nn.Sequential(
            nn.Conv1d(width, classes, 1, bias=False), nn.BatchNorm1d(classes)
        )

    def forward(
        self, x: Float[Tensor, "batch *channels time"]
    ) -> Float[Tensor, "batch classes"]:
        """Return one score a class; signals of one channel may come without that dimension."""
        x = x[:, None] if x.ndim == 2 else x
        return torch.mean(self.head(self.pool(self.blocks(x))), 2)

    def prunable(self) -> list[Channels]:
        """Filters of the convolutions, and the signals that bottlenecks bring down.

        The filters of the last convolution stay: they are the scale that a selector reads.

        Raises
        ------
        ValueError
            If kernels are sparse: what a filter costs then differs from filter to filter.
        """
        found = []
        for number in range(len(self.blocks)):
            place = 1 if number else 0
            conv = f"blocks.{number}.{place}"
            norm = f"blocks.{number}.{place + 1}"
            if isinstance(self.get_submodule(conv), SparseConv1d):
                raise ValueError(
                    f"{conv} has sparse kernels, and what a filter costs differs from filter to "
                    f"filter: cut the dense twin, DSN(sparsity=0.0)"
                )
            conv = f"{conv}.1"
            if number:
                found.append(Channels((f"blocks.{number}.0",), conv))
            if number + 1 < len(self.blocks):
                found.append(Channels((conv, norm), f"blocks.{number + 1}.0"))
        return found


def _check_dense(options: Mapping[str, object]) -> None:
    """Refuse what the dense twin would not do."""
    padding = options.get("padding", replicate_right)
    unknown = sorted(options.keys() - {"dilation", "padding"})
    if unknown or padding is not replicate_right:
        what = ", ".join(unknown) or f"the padding {padding!r}"
        raise ValueError(
            f"a dense DSN (sparsity=0.0) has convolutions of torch, which replicate the last point "
            f"on the right; it does not know {what}"
        )


def _dense(
    inputs: int, width: int, kernel_size: int, dilation: int
) -> nn.Module:
    pad = nn.ReplicationPad1d((0, (kernel_size - 1) * dilation))
    conv = nn.Conv1d(inputs, width, kernel_size, dilation=dilation, bias=False)
    return nn.Sequential(pad, conv)
