r"""The 2-D convolution with few weights, as one of signals.

The rows of an image, one behind the other with zeros between them, are a signal, and a kernel of
several rows is one whose taps lie further apart where its row ends. So images are convolved by the
products of signals, and what these compute between two rows is left out.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sparselib._types import AutogradContext
from sparselib.csr import CSR
from sparselib.ops import operands
from sparselib.ops.backends import Layout, Sizes
from sparselib.ops.conv import check_numbers, convolved, input_gradient
from sparselib.ops.dispatch import fast, module, note
from sparselib.ops.operands import STALE, indices_of
from sparselib.ops.registration import own

Pair = tuple[int, int]
# before and after the rows, before and after the columns
Margins = tuple[int, int, int, int]


class Frame(NamedTuple):
    """What a convolution of images is, beside its weights.

    Attributes
    ----------
    height, width : int
        Of an image, without its margins.
    margins : (int, int, int, int)
        Zeros above, below, left and right of it.
    kernel : (int, int)
        Rows and columns of a kernel.
    dilation : (int, int)
        Points from one tap to the next below it, and to the next beside it.
    """

    height: int
    width: int
    margins: Margins
    kernel: Pair
    dilation: Pair

    def output(self) -> Pair:
        """Height and width of an output."""
        above, below, left, right = self.margins
        rows = (self.kernel[0] - 1) * self.dilation[0]
        columns = (self.kernel[1] - 1) * self.dilation[1]
        return (
            self.height + above + below - rows,
            self.width + left + right - columns,
        )

    def row(self) -> int:
        """Points from a row to the next: what is right of one is left of the other."""
        return max(self.width + max(self.margins[2:]), self.output()[1])

    def start(self) -> int:
        """Points before an image's first one."""
        return self.margins[0] * self.row() + self.margins[2]

    def written(self) -> int:
        """Points of the output, those between its rows included."""
        height, width = self.output()
        return (height - 1) * self.row() + width

    def read(self) -> int:
        """Points of the input, zeros included, from the first one that is read to the last."""
        rows, across = self.kernel
        down = (rows - 1) * self.dilation[0] * self.row()
        return self.written() + down + (across - 1) * self.dilation[1]

    def sizes(self, channels: int) -> Sizes:
        """Return the convolution of signals that this is."""
        rows, across = self.kernel
        down = self.dilation[0] * self.row()
        return Sizes(
            channels, rows * across, 0, 0, self.dilation[1], across, down
        )

    def layout(self, channels: int) -> Layout:
        """Return how its images are laid."""
        points = (self.height, self.width)
        sizes = self.sizes(channels)
        return Layout(sizes, points, self.output(), self.row(), self.start())


def conv2d(
    csr: CSR,
    values: Float[Tensor, "nnz"],
    x: Float[Tensor, "batch channels height width"],
    bias: Float[Tensor, "filters"] | None = None,
    kernel_size: Pair = (1, 1),
    margins: Margins = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
) -> Float[Tensor, "batch filters new_height new_width"]:
    """Cross-correlate images with sparse kernels.

    y[o, i, j] = b[o] + sum w[o, c, k, l] x[c, i + k d - p, j + l e - q] with dilations d and e, p
    zeros above the image and q left of it.

    Parameters
    ----------
    csr : CSR
        Pattern of the kernels, (filters, channels * rows * columns).
    values : Tensor, shape (nnz,)
        Weights at the pattern's positions.
    x : Tensor, shape (batch, channels, height, width)
        Images.
    bias : Tensor, shape (filters,), optional
        One number per filter.
    kernel_size : (int, int)
        Rows and columns of a kernel.
    margins : (int, int, int, int)
        Zeros above, below, left and right of an image.
    dilation : (int, int)
        Points from one tap to the next below it, and to the next beside it.

    Raises
    ------
    ValueError
        If shapes, types or devices do not fit, or the images are smaller than a kernel or too
        large for 32-bit indices.
    """
    frame = _frame(csr, x, kernel_size, margins, dilation)
    sizes = frame.sizes(int(x.shape[1]))  # a tensor while torch.jit traces
    check_numbers(csr, values, x, bias, sizes, frame.read())
    if not fast(x, values, *([] if bias is None else [bias])):
        return _composed(csr, values, x, bias, frame)
    note("spmm of taps", (csr,), x, values, bias)
    x = operands.resolved(x)
    result: Tensor = _Convolution.apply(values, bias, x, csr, frame)
    return result


def _frame(
    csr: CSR, x: Tensor, kernel: Pair, margins: Margins, dilation: Pair
) -> Frame:
    operands.check_numbers(x, "input")
    filters, columns = csr.shape
    taps = kernel[0] * kernel[1]
    if x.ndim != 4 or taps < 1 or x.shape[1] * taps != columns:
        raise ValueError(
            f"a pattern of {filters} x {columns} with kernels of {kernel[0]} x {kernel[1]} needs "
            f"images (batch, channels, height, width) whose channels times {taps} are {columns}; "
            f"the input has shape {tuple(x.shape)}"
        )
    if min(margins) < 0 or min(dilation) < 1:
        raise ValueError(
            f"margins are at least 0 and dilations at least 1, not {margins} and {dilation}"
        )
    # numbers are tensors while torch.jit traces, and symbols while torch.compile does
    height, width = (
        int(n) if isinstance(n, Tensor) else n for n in x.shape[2:]
    )
    frame = Frame(height, width, margins, kernel, dilation)
    if min(frame.output()) < 1:
        raise ValueError(
            f"images of {frame.height} x {frame.width} with margins of {margins} are smaller than "
            f"a kernel of {kernel[0]} x {kernel[1]} with a dilation of {dilation}"
        )
    return frame


def _composed(
    csr: CSR, values: Tensor, x: Tensor, bias: Tensor | None, frame: Frame
) -> Tensor:
    """Convolve by operators that autograd, `torch.compile` and transforms know."""
    above, below, left, right = frame.margins
    whole = x
    if any(frame.margins):
        whole = functional.pad(x, (left, right, above, below))
    height = frame.height + above + below
    width = frame.width + left + right
    inside = Frame(height, width, (0, 0, 0, 0), frame.kernel, frame.dilation)
    sizes = inside.sizes(x.shape[1])
    y = convolved(csr, values, whole.flatten(2), bias, sizes)
    rows, columns = inside.output()
    if columns == width:
        return y.unflatten(2, (rows, width))
    y = functional.pad(y, (0, width - columns))
    return y.unflatten(2, (rows, width))[..., :columns].contiguous()


class _Convolution(torch.autograd.Function):
    """A convolution of images that is written down directly, as that of signals is."""

    @staticmethod
    def forward(
        ctx: AutogradContext,
        values: Tensor,
        bias: Tensor | None,
        x: Tensor,
        csr: CSR,
        frame: Frame,
    ) -> Tensor:
        ctx.save_for_backward(values, bias, x)
        ctx.csr = csr
        ctx.version = csr.version
        ctx.frame = frame
        layout = frame.layout(x.shape[1])
        y = module(x).convolve(
            values, indices_of(csr), x.flatten(2), layout, bias
        )
        return own(y.unflatten(2, frame.output()))

    @staticmethod
    def backward(ctx: AutogradContext, dy: Tensor) -> tuple[Tensor | None, ...]:
        values, bias, x = ctx.saved_tensors
        csr = ctx.csr
        frame = ctx.frame
        if csr.version != ctx.version:
            raise RuntimeError(STALE)
        if torch.is_grad_enabled():
            return _differentiable(ctx, values, bias, x, dy)
        operands.check_numbers(dy, "output gradient")
        operands.check_gradient(dy, x, values)
        layout = frame.layout(x.shape[1])
        # memory may have been exchanged since the forward pass
        check_numbers(csr, values, x, bias, layout.sizes, frame.read())
        signals = operands.resolved(x).flatten(2)
        costs = operands.resolved(dy).flatten(2)
        dvalues, dbias = module(x).correlate(
            indices_of(csr), costs, signals, layout
        )
        _, has_bias, has_x, *_ = ctx.needs_input_grad
        dx = None
        if has_x:
            values = operands.resolved(values)
            found = input_gradient(values, csr, costs, layout)
            dx = own(found.unflatten(2, (frame.height, frame.width)))
        return dvalues, dbias if has_bias else None, dx, None, None


def _differentiable(
    ctx: AutogradContext,
    values: Tensor,
    bias: Tensor | None,
    x: Tensor,
    dy: Tensor,
) -> tuple[Tensor | None, ...]:
    """Return gradients that can be differentiated again."""
    wanted = [
        tensor
        for tensor, is_needed in zip((values, bias, x), ctx.needs_input_grad)
        if is_needed and tensor is not None
    ]
    y = _composed(ctx.csr, values, x, bias, ctx.frame)
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return (
        *(next(found) if need else None for need in ctx.needs_input_grad[:3]),
        None,
        None,
    )
