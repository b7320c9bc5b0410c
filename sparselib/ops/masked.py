"""The dense twin of a sparse product."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sparselib.csr import CSR


def masked_product(
    csr: CSR,
    values: Float[Tensor, "nnz"],
    x: Float[Tensor, "*batch columns"],
    bias: Float[Tensor, "rows"] | None = None,
) -> Float[Tensor, "*batch rows"]:
    """Multiply by the dense matrix of the same connections: same numbers, dense cost.

    The control that most of the literature trains, the oracle of the tests, and what the transforms
    of torch.func see, which no operator of ours bears.
    """
    return functional.linear(x, csr.to_dense(values), bias)
