"""What a sparse layer is: a pattern, its values, and one way to change both together."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparselib import topology
from sparselib.csr import CSR
from sparselib.nn._watch import Watches, observe
from sparselib.ranking import largest
from sparselib.topology import Region

Layer = TypeVar("Layer", bound="SparseLayer")


class SparseLayer(nn.Module, ABC):
    """A layer whose weight tensor exists only at its connections.

    A topology is a sorted vector of flat positions, ``row * columns + column`` of the matrix
    (outputs, everything that one output reads); a kernel tensor is flattened for it. Drop rules,
    grow rules and evolutions know layers by what stands here, and by nothing else. A class that
    derives from this one is final.

    Attributes
    ----------
    csr : CSR
        Where the connections are.
    values : nn.Parameter, shape (nnz,)
        The weights at these positions, in their order.
    bias : nn.Parameter or None
        One number per row.
    watches : Watches or None
        Who gathers what the layer reads and the gradients of what it writes.
    sample_dimensions : int
        Number of dimensions of one sample; those before it are batches.
    """

    csr: CSR
    values: nn.Parameter
    bias: nn.Parameter | None
    watches: Watches | None = None
    sample_dimensions: ClassVar[int] = 1

    @property
    @abstractmethod
    def region(self) -> Region:
        """The cells that may hold a connection."""

    @property
    @abstractmethod
    def cells(self) -> int:
        """Number of cells that may hold a connection."""

    @staticmethod
    @abstractmethod
    def arguments_of(dense: Any) -> dict[str, Any]:
        """Return what builds a layer of the same sizes, on the same device and of the same type.

        Raises
        ------
        ValueError
            If no layer of this class computes what the dense one does.
        """

    @abstractmethod
    def to_dense(self) -> nn.Module:
        """Return the dense layer with the same outputs."""

    @abstractmethod
    def gradient(
        self, inputs: Float[Tensor, "batch ..."], costs: Float[Tensor, "batch some ..."]
    ) -> Float[Tensor, "some columns"]:
        """Dense gradient of some rows, which growth by gradient reads.

        Parameters
        ----------
        inputs : Tensor
            What the layer read; the first dimension is the batch.
        costs : Tensor
            Gradient of the loss with respect to these rows of the output.
        """

    @classmethod
    def from_dense(
        cls: type[Layer], dense: Any, sparsity: float | None = None, **options: Any
    ) -> Layer:
        """Build from a dense layer, keeping its largest weights by magnitude, and its bias.

        Without `sparsity`, exactly the nonzero weights are kept.

        Raises
        ------
        ValueError
            As `arguments_of`, or if the sparsity is outside [0, 1).
        """
        weight = dense.weight.detach()
        flat, columns = weight.flatten(), weight[0].numel()
        if sparsity is None:
            positions = flat.nonzero().flatten()
        else:
            positions = largest(flat.abs(), topology.connections(len(weight), columns, sparsity))
        layer = cls(
            **cls.arguments_of(dense),
            topology=lambda *_: positions,
            init=lambda values, *_: values.copy_(flat[positions]),
            **options,
        )
        if layer.bias is not None:
            layer.bias.data.copy_(dense.bias.detach())
        return layer.train(dense.training)

    def batched(self, tensor: Tensor) -> Tensor:
        """Return inputs or outputs with one dimension for the batch, whatever they came with."""
        return tensor.reshape(-1, *tensor.shape[-self.sample_dimensions :])

    def observed(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the outputs of a pass, seen by the watches; every forward method ends in it."""
        if self.watches is not None and self.watches.references:
            observe(self, inputs, outputs)
        return outputs

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, columns)`` of the matrix."""
        return self.csr.shape

    @property
    def positions(self) -> Int[Tensor, "nnz"]:
        """Sorted flat positions ``row * columns + column`` of the connections."""
        return self.csr.positions

    @property
    def sparsity(self) -> float:
        """Share of absent weights."""
        return self.csr.sparsity

    @torch.no_grad()
    def rewire(
        self, positions: Int[Tensor, "nnz"], values: Float[Tensor, "nnz"], check: bool = True
    ) -> None:
        """Replace connections and values in place; their number never changes.

        Parameters
        ----------
        positions : Tensor, int64, shape (nnz,)
            Flat positions, ascending.
        values : Tensor, shape (nnz,)
            The weights at these positions.
        check : bool
            See that the positions are valid, for which the processor has to wait for the device.

        Raises
        ------
        ValueError
            If the numbers differ, or positions do not ascend strictly within the region. The layer
            is then unchanged.
        """
        if values.shape != self.values.shape:
            raise ValueError(
                f"{self.values.numel()} connections need as many values, not {tuple(values.shape)}"
            )
        if check:
            self.region.check(positions)
        self.csr.rewire(positions, check)
        self.values.copy_(values)


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """Return the sparse layers of a model by name, in order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}
