"""The definition of every product, by torch's own operators, in a few lines each.

Activations are (batch, features). The products run on feature-major data, which torch's CSR
kernels prefer, and return a transposed view; the next layer takes that view without a copy.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv1d_weight, conv2d_weight

from sparselib.csr import rows_of
from sparselib.ops.backends import Indices, Layout, Sizes, Weights, stretches
from sparselib.ops.backends.reference_extrema import extrema as extrema

warnings.filterwarnings(
    "ignore", message="Sparse CSR tensor support is in beta state"
)


def spmm(
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    x: Tensor,
    bias: Tensor | None = None,
    permutation: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Y = X W^T + b for W (out, in) in CSR and X (batch, in), or max(Y, 0).

    With a permutation the weight of nonzero j is ``values[permutation[j]]``.
    """
    if permutation is not None:
        values = values.index_select(0, permutation)
    shape = (crow.numel() - 1, x.shape[1])
    if values.numel() == 0 or x.shape[0] == 0 or x.is_meta:
        y = x.new_zeros((shape[0], x.shape[0])).t()
    else:
        weight = _matrix(crow, col, _wide(values), shape)
        y = (weight @ _wide(x).t().contiguous()).t().to(x.dtype)
    if bias is not None:
        y = y + bias
    return y.relu() if relu else y


def sddmm(
    crow: Tensor, col: Tensor, dy: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Entries of dY^T X at the nonzeros, and the sums of dY over the batch."""
    zeros = x.new_zeros(col.numel())
    if zeros.numel() == 0 or x.shape[0] == 0 or x.is_meta:
        return zeros, dy.sum(0)
    pattern = _matrix(crow, col, _wide(zeros), (dy.shape[1], x.shape[1]))
    left = _wide(dy).t().contiguous()
    right = _wide(x).t().contiguous().t()
    sums = torch.sparse.sampled_addmm(pattern, left, right, beta=0.0).values()
    return sums.to(x.dtype), dy.sum(0)


def gradients(
    values: Tensor, indices: Indices, dy: Tensor, x: Tensor, relu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`sddmm`, and dX = dY W by the transposed pattern; with `relu`, X is what a ReLU returned."""
    crow, col, tcrow, tcol, permutation = indices
    dx = spmm(values, tcrow, tcol, dy, permutation=permutation)
    if relu:
        dx = dx.masked_fill(x <= 0, 0.0)
    return *sddmm(crow, col, dy, x), dx


def network(layers: Sequence[Weights], x: Tensor) -> Tensor:
    """Apply one layer after the other."""
    for crow, col, values, bias, relu in layers:
        x = spmm(values, crow, col, x, bias, relu=relu)
    return x


def fuses(samples: int, weights: int, cells: int) -> bool:
    """Whether `network` is faster than one product after the other: it is the same."""
    return False


def features_first(x: Tensor) -> Tensor:
    """Return the transposed view; the products take any strides."""
    return x.t()


def convolve(
    values: Tensor,
    indices: Indices,
    x: Tensor,
    layout: Layout,
    bias: Tensor | None = None,
) -> Tensor:
    """Cross-correlate what is laid out with the dense kernels."""
    sizes = layout.sizes
    signals = stretches.laid(x, stretches.forward(layout))
    weight = kernels(values, indices, sizes)
    y = functional.conv1d(signals, weight, bias, dilation=_step(sizes))
    return stretches.cut(y, stretches.forward(layout))


def convolve_t(
    values: Tensor, indices: Indices, dy: Tensor, layout: Layout
) -> Tensor:
    """Gradient of the inputs, without that of the zeros around them."""
    sizes = layout.sizes
    costs = stretches.laid(dy, stretches.across(layout))
    weight = kernels(values, indices, sizes)
    signals = functional.conv_transpose1d(costs, weight, dilation=_step(sizes))
    end = layout.start + layout.held
    inside = signals[:, :, layout.start : end].contiguous()
    return stretches.cut(inside, stretches.backward(layout))


def correlate(
    indices: Indices, dy: Tensor, x: Tensor, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Gradient of the dense kernels at the nonzeros, and the sums of dy over samples and points."""
    sizes = layout.sizes
    filters = dy.shape[1]
    if layout.output[0] > 1:
        weight = _images_weight(dy, x, layout)
        cells = (rows_of(indices[0], len(indices[1])), indices[1])
        return weight.flatten(1)[cells], dy.sum((0, 2))
    signals = stretches.laid(x, stretches.forward(layout))
    shape = (filters, sizes.channels, _points(sizes))
    weight = conv1d_weight(signals, shape, dy, dilation=_step(sizes))
    return weight.flatten(1)[_cells(indices, sizes)], dy.sum((0, 2))


def _images_weight(dy: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """Return the gradient of the dense kernels of images.

    As signals, these would multiply the zeros between the rows of dy by points of x, which may
    not be finite.
    """
    sizes = layout.sizes
    above, left = divmod(layout.start, layout.row)
    rows = sizes.taps // sizes.across
    dilation = (max(1, sizes.down // layout.row), sizes.dilation)
    down = (rows - 1) * dilation[0]
    across = (sizes.across - 1) * dilation[1]
    below = layout.output[0] + down - above - layout.points[0]
    right = layout.output[1] + across - left - layout.points[1]
    images = functional.pad(
        x.unflatten(2, layout.points), (left, right, above, below)
    )
    shape = (dy.shape[1], sizes.channels, rows, sizes.across)
    costs = dy.unflatten(2, layout.output)
    return conv2d_weight(images, shape, costs, dilation=dilation)


def kernels(values: Tensor, indices: Indices, sizes: Sizes) -> Tensor:
    """Return the dense kernels (filters, channels, points); differentiable in the values.

    Kernels of several rows get zeros from the end of a row to the begin of the next.
    """
    filters = len(indices[0]) - 1
    points = _points(sizes)
    weight = values.new_zeros(filters, sizes.channels * points)
    weight = weight.index_put(_cells(indices, sizes), values)
    return weight.view(-1, sizes.channels, points)


def _step(sizes: Sizes) -> int:
    """Return the distance of two points of a dense kernel."""
    return sizes.dilation if sizes.taps == sizes.across else 1


def _points(sizes: Sizes) -> int:
    """Count the points of a dense kernel."""
    return (sizes.extent() - 1) // _step(sizes) + 1


def _cells(indices: Indices, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Return the filter of each nonzero, and its place in (channels, points)."""
    column = indices[1].to(torch.int64)
    point = sizes.offset(column % sizes.taps) // _step(sizes)
    place = column // sizes.taps * _points(sizes) + point
    return rows_of(indices[0], len(column)), place


def _matrix(
    crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]
) -> Tensor:
    return torch.sparse_csr_tensor(
        crow, col, values, size=shape, check_invariants=False
    )


def _wide(x: Tensor) -> Tensor:
    """Return numbers of 16 bits in 32: torch has no CSR products of them on every device."""
    return x.float() if x.dtype.itemsize < 4 else x
