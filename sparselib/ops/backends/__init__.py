"""What computes the products of sparse layers: the contract of a backend, and its three keepers.

A backend is a module with the functions of `Backend`. There are three:

=============  ============  ==============================  =================================
backend        device        activations                     weights, sums and their gradients
=============  ============  ==============================  =================================
``reference``  any           any floating point type         the type of the activations
``cpu``        CPU           float32                         float32
``gpu``        CUDA          float32, float16, bfloat16      float32
=============  ============  ==============================  =================================

`reference` is the definition: it computes every product, by torch's own operators, in a few lines
each. The other two compute the same numbers faster, but for the order in which sums are added.
What a backend does not compute (another type, another device, a product it has no kernel for) the
definition computes: `sparselib.ops.dispatch` chooses it, or the backend names the definition's
function as its own. So a new backend may begin with the one product that it makes faster.

What every backend may take for granted, because `sparselib.ops.operands` has checked it before:

- indices are valid, contiguous int32 arrays of one pattern, on the device of the activations;
- numbers are strided tensors of the backend's types, on one device, and their sizes fit;
- nothing else: tensors may have any strides, be empty, and hold NaN or infinities.

What every backend owes:

- results are new tensors, and no argument is changed;
- NaN and infinities reach what they reach in the dense product of the same connections;
- no sum depends on the number of threads or on the order in which programs run;
- nothing of the size of the dense matrix, and nothing of batch x connections, is allocated
  (`reference` alone may build the dense kernels of a convolution).

Fused are the bias and ReLU of a product, the gradients of a layer, and whole networks.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

# crow, col and, where they are available, crow, col and permutation of the transposed pattern
Indices = Sequence[Tensor]


class Weights(NamedTuple):
    """One layer of a network, as a backend reads it.

    Attributes
    ----------
    crow, col : Tensor, int32, shapes (rows + 1,) and (nnz,)
        The pattern.
    values : Tensor, shape (nnz,)
        The weights at its connections.
    bias : Tensor, shape (rows,), or None
        What is added to each output.
    relu : bool
        Whether max(., 0) follows.
    """

    crow: Tensor
    col: Tensor
    values: Tensor
    bias: Tensor | None
    relu: bool


class Between(NamedTuple):
    """What a network does after a layer, or before the first one, as a backend reads it.

    Attributes
    ----------
    kind : str
        ``"relu"``, ``"leaky relu"``, ``"gelu"``, ``"gelu of tanh"``, ``"silu"`` or ``"tanh"``;
        ``"scaled"``, which multiplies and shifts each feature; ``"normalized"``, which brings each
        sample to mean 0 and variance 1 before that.
    scale, shift : Tensor, shape (features,), or None
        What features are multiplied by, and what is added then.
    number : float
        What is added to a variance; what a leaky ReLU multiplies by below 0.
    """

    kind: str
    scale: Tensor | None = None
    shift: Tensor | None = None
    number: float = 0.0


class Norm(NamedTuple):
    """A normalization in training: mean 0 and variance 1, then scaled.

    That of a layer is over the features of each sample, that of a batch over the samples of each
    feature.

    Attributes
    ----------
    scale, shift : Tensor, shape (features,)
        What features are multiplied by, and what is added then.
    epsilon : float
        What is added to a variance.
    keep : callable, optional
        ``(mean, variance) -> None``: keeps those of a batch, the variance as if divided by one
        sample less. None is the normalization of a layer.
    """

    scale: Tensor
    shift: Tensor
    epsilon: float
    keep: Callable[[Tensor, Tensor], None] | None = None


class After(NamedTuple):
    """What follows a layer in training, if another layer reads it.

    Attributes
    ----------
    kind : str
        An activation of `Between`, or ``"nothing"``.
    number : float
        What a leaky ReLU multiplies by below 0.
    draw : callable, optional
        ``(features, samples) -> Tensor, float32``: draws what a dropout multiplies by.
    norm : Norm, optional
        What comes before the activation.
    """

    kind: str = "relu"
    number: float = 0.0
    draw: Callable[[int, int], Tensor] | None = None
    norm: Norm | None = None

    @property
    def is_of_batch(self) -> bool:
        """Whether it needs the whole batch, and not each sample alone."""
        return self.norm is not None and self.norm.keep is not None


class Sizes(NamedTuple):
    """What a convolution is, beside its weights and signals.

    The taps of an image's kernel are counted row by row, as are the points of its flattened rows:
    after every `across` taps a kernel goes on `down` points further. Kernels of one row have
    `across` equal to `taps`.
    """

    channels: int
    taps: int
    before: int
    after: int
    dilation: int
    across: int
    down: int

    def extent(self) -> int:
        """Points from the first tap of a kernel to its last, both included."""
        last = (self.taps // self.across - 1) * self.down
        return last + (self.across - 1) * self.dilation + 1

    def offset(self, tap: Tensor) -> Tensor:
        """Return how many points a tap lies behind the first one."""
        row = tap // self.across
        return row * self.down + tap % self.across * self.dilation

    def length(self, time: int) -> int:
        """Count the points of the output."""
        return time + self.before + self.after - self.extent() + 1

    def layout(self, time: int) -> "Layout":
        """Return how signals of so many points are laid."""
        row = max(time + self.after, self.before + time)
        size = self.length(time)
        return Layout(self, (1, time), (1, size), row, self.before)


class Layout(NamedTuple):
    """How the points of signals and images lie in memory while they are convolved.

    The rows of an image lie one behind the other, with zeros around them; a signal is an image of
    one row. So each weight reads one stretch of a channel, and what is computed between the rows
    of an output is left out.

    Attributes
    ----------
    sizes : Sizes
        The convolution, with the places of its taps.
    points : (int, int)
        Height and width of an input.
    output : (int, int)
        Height and width of an output.
    row : int
        Points from a row to the next one, of inputs and outputs.
    start : int
        Points before an input's first one; an output begins at 0.
    """

    sizes: Sizes
    points: tuple[int, int]
    output: tuple[int, int]
    row: int
    start: int

    @property
    def held(self) -> int:
        """Points of an input, from its first one to its last, those between its rows included."""
        return (self.points[0] - 1) * self.row + self.points[1]

    @property
    def written(self) -> int:
        """Points of an output, likewise."""
        return (self.output[0] - 1) * self.row + self.output[1]

    @property
    def read(self) -> int:
        """Points that are read, from point 0 on."""
        return self.written + self.sizes.extent() - 1

    @property
    def before(self) -> int:
        """Zeros before an output's gradient, where that of the input is computed from it."""
        return max(0, self.sizes.extent() - 1 - self.start)

    @property
    def span(self) -> int:
        """Points of an output's gradient with the zeros around it."""
        return self.before + max(self.written, self.start + self.held)


@runtime_checkable
class Backend(Protocol):
    """The products, as functions of arrays; nothing here is differentiable.

    W is (rows, columns) in CSR with `crow`, `col` and `values`; X is (batch, columns), Y and its
    gradient dY are (batch, rows), in any strides. Results of (batch, features) are returned as the
    transposed view of a contiguous (features, batch), which the next product reads without a copy.
    """

    __name__: str

    def spmm(
        self,
        values: Tensor,
        crow: Tensor,
        col: Tensor,
        x: Tensor,
        bias: Tensor | None = None,
        permutation: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """Y = X W^T + b, or max(Y, 0) with `relu`, of the type of X.

        With a permutation the weight of nonzero j is ``values[permutation[j]]``.
        """

    def sddmm(
        self, crow: Tensor, col: Tensor, dy: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Entries of dY^T X at the nonzeros (nnz,), and the sums of dY over the batch (rows,)."""

    def gradients(
        self,
        values: Tensor,
        indices: Indices,
        dy: Tensor,
        x: Tensor,
        relu: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both results of `sddmm`, and dX = dY W (batch, columns), from all five indices.

        With `relu` X is what a ReLU returned, and dX is the gradient of its argument.
        """

    def network(self, layers: Sequence[Weights], x: Tensor) -> Tensor:
        """Carry a batch through all layers, as `spmm` after `spmm` would."""

    def fuses(self, samples: int, weights: int, cells: int) -> bool:
        """Whether `network` is faster than one product after the other.

        `weights` counts the connections of all layers, `cells` the entries of their matrices.
        """

    def features_first(self, x: Tensor) -> Tensor:
        """Return (features, batch) of a (batch, features), as the products read it fastest."""

    def convolve(
        self,
        values: Tensor,
        indices: Indices,
        x: Tensor,
        layout: Layout,
        bias: Tensor | None = None,
    ) -> Tensor:
        """y[s, o, t] = b[o] + sum of w[o, c, k] x[s, c, t + offset(k)], on points as laid.

        x is (samples, channels, height * width), y (samples, filters, height * width); the kernels
        (filters, channels, taps) are a matrix of channels * taps columns.
        """

    def convolve_t(
        self, values: Tensor, indices: Indices, dy: Tensor, layout: Layout
    ) -> Tensor:
        """Gradient of the inputs (samples, channels, height * width), from that of the outputs."""

    def correlate(
        self, indices: Indices, dy: Tensor, x: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the weights (nnz,), and the sums of dy over samples and points (filters,)."""

    def extrema(
        self, s: Tensor, distance: int, signed: bool, across: bool
    ) -> Tensor:
        """Mark the extrema that are kept, see `sparselib.nn.activation.extrema`."""
