"""The CSR layer of Ertl, Section 3: dense biases and a sparse weight matrix with fixed count."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparselib import init, ops, topology
from sparselib.csr import CSR
from sparselib.nn._options import Initialize, Product
from sparselib.nn.sparse_layer import Dense, SparseLayer, check_spelling
from sparselib.topology import Region

Topology = Callable[..., Tensor]


class CSRLinear(SparseLayer):
    """A linear layer whose weight matrix exists only at its connections: y = x W^T + b.

    Drop-in for ``nn.Linear``, whose arguments come first and in its order. `values` is an
    ordinary 1-D ``nn.Parameter``, so any optimizer trains it; the connections are in `csr`.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the input and output samples.
    bias : bool
        Learn an additive bias, zero at initialization.
    device, dtype
        As for ``nn.Linear``.
    sparsity : float
        Share of absent weights, in [0, 1).
    topology : callable
        ``(out_features, in_features, sparsity, generator) -> positions``;
        `sparselib.topology.even_fan_in` is the paper's.
    init : callable
        ``(values, shape, generator)`` fills the values in place. The default,
        `sparselib.init.fan_in_`, keeps the variance that the outputs of ``nn.Linear`` have;
        `sparselib.init.sparse_xavier_` is the paper's.
    product : callable
        ``(csr, values, x, bias) -> y``. The default is the sparse product;
        `masked_product` multiplies by the dense twin instead, as a control.
    cache_transpose : bool
        Keep the transposed pattern for the input gradient (8 bytes a connection).
    generator : torch.Generator, optional
        Source of the topology and the weights; torch's default otherwise.

    Raises
    ------
    ValueError
        If the sparsity or a size is impossible, a sparsity stands in the place of the bias, or an
        input does not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool | float = True,  # a number is refused with advice
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        sparsity: float | int = 0.9,
        topology: Topology = topology.even_fan_in,
        init: Initialize = init.fan_in_,
        product: Product = ops.spmm,
        cache_transpose: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_spelling(type(self), (in_features, out_features), sparsity, bias)
        self.in_features = in_features
        self.out_features = out_features
        self.product = product
        shape = (out_features, in_features)
        # in torch 2.6 `get_default_device` does not see `with torch.device(...)`
        device = torch.empty(0).device if device is None else device
        with torch.device("cpu"):  # a seed means the same layer everywhere
            positions = topology(out_features, in_features, sparsity, generator)
            csr = CSR.from_positions(
                positions, shape, cache_transpose=cache_transpose
            )
            values = torch.empty(csr.nnz, dtype=dtype)
            init(values, shape, generator)
        self.csr = csr.to(device)
        self.values = nn.Parameter(values.to(device))
        zeros = torch.zeros(out_features, dtype=dtype, device=device)
        self.register_parameter("bias", nn.Parameter(zeros) if bias else None)

    @classmethod
    def arguments_of(cls, dense: Dense) -> Mapping[str, object]:
        """Return what builds a layer of the same sizes, on the same device and of the same type.

        Raises
        ------
        ValueError
            If it is no ``nn.Linear``.
        """
        if not isinstance(dense, nn.Linear):
            raise ValueError(
                f"a CSRLinear computes what an nn.Linear does, not a {type(dense).__name__}"
            )
        return {
            "in_features": dense.in_features,
            "out_features": dense.out_features,
            "bias": dense.bias is not None,
            "device": dense.weight.device,
            "dtype": dense.weight.dtype,
        }

    def to_dense(self) -> nn.Linear:
        """Return the ``nn.Linear`` with the same outputs."""
        weight = self.csr.to_dense(self.values.detach())
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        linear.weight.data.copy_(weight)
        if self.bias is not None:
            linear.bias.data.copy_(self.bias.detach())
        return linear.train(self.training)

    @property
    def region(self) -> Region:
        """Every cell."""
        rows, columns = self.shape
        reach = torch.full((rows,), columns, device=self.values.device)
        return Region(reach, max(columns, 1), columns, is_whole=True)

    @property
    def cells(self) -> int:
        """Number of cells of the matrix."""
        return self.csr.cells

    def gradient(
        self,
        inputs: Float[Tensor, "batch columns"],
        costs: Float[Tensor, "batch some"],
        rows: Int[Tensor, "some"] | None = None,
    ) -> Float[Tensor, "some columns"]:
        r"""Dense gradient :math:`\nabla_i = \sum_b c_{bi} v_b` of some neurons (Ertl, 3.2.4)."""
        return costs.t() @ inputs

    def forward(
        self, input: Float[Tensor, "*batch columns"]
    ) -> Float[Tensor, "*batch rows"]:
        """Return x W^T + b of an input x, which may be nested."""
        if input.is_nested:
            return _of_parts(self.forward, input)
        csr, values, bias = self.weights
        return self.observed(input, self.product(csr, values, input, bias))

    @property
    def weights(self) -> tuple[CSR, Tensor, Tensor | None]:
        """Connections, values and biases, as ``nn.Module.__getattr__`` finds them, but sooner."""
        parameters = self._parameters
        if "values" in parameters and "bias" in parameters:
            csr = self._modules["csr"]
            values = parameters["values"]
            assert isinstance(csr, CSR)
            assert values is not None
            return csr, values, parameters["bias"]
        return (
            self.csr,
            self.values,
            self.bias,
        )  # a parametrization computes them

    def extra_repr(self) -> str:
        """Sizes, and whether there is a bias."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def _of_parts(function: Callable[[Tensor], Tensor], nested: Tensor) -> Tensor:
    """Apply what maps the last dimension to all parts of a nested tensor at once."""
    if nested.layout == torch.jagged:
        return torch.nested.nested_tensor_from_jagged(
            function(nested.values()),
            nested.offsets(),  # type: ignore[attr-defined]
            nested.lengths(),  # type: ignore[attr-defined]
        )
    parts = nested.unbind()
    rows = [part.flatten(0, -2) for part in parts]
    outputs = function(torch.cat(rows)).split([len(row) for row in rows])
    return torch.nested.as_nested_tensor(
        [
            output.unflatten(0, part.shape[:-1])
            for output, part in zip(outputs, parts)
        ]
    )
