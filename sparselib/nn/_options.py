"""What may be passed on to sparse layers by whoever builds them, by name."""

from collections.abc import Callable
from typing import Literal, TypedDict

import torch
from torch import Tensor

from sparselib.csr import CSR

# fills values in place, given the shape of the matrix
Initialize = Callable[[Tensor, tuple[int, int], torch.Generator | None], object]
# y = x W^T + b, given pattern, values, x and bias
Product = Callable[[CSR, Tensor, Tensor, Tensor | None], Tensor]
# pads a signal by what a kernel of this extent needs
Padding = Callable[[Tensor, int], Tensor]
Mode = Literal["zeros", "reflect", "replicate", "circular"]


class KeptOptions(TypedDict, total=False):
    """What does not change which weights of a dense layer are kept."""

    product: Product  # of a `CSRLinear` alone
    cache_transpose: bool
    generator: torch.Generator | None


class LinearOptions(KeptOptions, total=False):
    """What a `CSRLinear` takes besides its sizes, its bias and its sparsity."""

    topology: Callable[..., Tensor]
    init: Initialize


class LayerOptions(KeptOptions, total=False):
    """The same, and where connections are drawn and how their weights are initialized."""

    topology: Callable[..., Tensor]
    init: Initialize
    reach: Tensor | None  # of a `SparseConv1d` alone


class ConvolutionOptions(TypedDict, total=False):
    """What a `SparseConv1d` takes besides its channels, kernel size, groups, bias and sparsity."""

    stride: int | tuple[int]
    padding: int | tuple[int] | str | Padding
    dilation: int
    padding_mode: Mode
    device: torch.device | str | None
    dtype: torch.dtype | None
    reach: Tensor | None
    topology: Callable[..., Tensor]
    init: Initialize
    cache_transpose: bool
    generator: torch.Generator | None
