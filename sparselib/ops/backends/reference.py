"""The definition of the three products, by torch's own CSR products, in a few lines each.

Activations are (batch, features). The products run on feature-major data, which torch's CSR
kernels prefer, and return a transposed view; the next layer takes that view without a copy.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


def spmm(
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    x: Tensor,
    bias: Tensor | None = None,
    permutation: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Y = X W^T + b for W (out, in) in CSR and X (batch, in), or max(Y, 0).

    With a permutation the weight of nonzero j is ``values[permutation[j]]``.
    """
    values = values if permutation is None else values.index_select(0, permutation)
    shape = (crow_indices.numel() - 1, x.shape[1])
    if values.numel() == 0 or x.shape[0] == 0 or x.is_meta:
        y = x.new_zeros((shape[0], x.shape[0])).t()
    else:
        weight = torch.sparse_csr_tensor(
            crow_indices, col_indices, _wide(values), size=shape, check_invariants=False
        )
        y = (weight @ _wide(x).t().contiguous()).t().to(x.dtype)
    y = y if bias is None else y + bias
    return y.relu() if relu else y


def sddmm(
    crow_indices: Tensor, col_indices: Tensor, dy: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Entries of dY^T X at the nonzeros, and the sums of dY over the batch."""
    shape = (dy.shape[1], x.shape[1])
    zeros = x.new_zeros(col_indices.numel())
    if zeros.numel() == 0 or x.shape[0] == 0:
        return zeros, dy.sum(0)
    pattern = torch.sparse_csr_tensor(
        crow_indices, col_indices, _wide(zeros), size=shape, check_invariants=False
    )
    left, right = _wide(dy).t().contiguous(), _wide(x).t().contiguous().t()
    sums = torch.sparse.sampled_addmm(pattern, left, right, beta=0.0).values()
    return sums.to(x.dtype), dy.sum(0)


def gradients(
    values: Tensor, indices: Sequence[Tensor], dy: Tensor, x: Tensor, relu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`sddmm`, and dX = dY W by the transposed pattern; with `relu`, X is what a ReLU returned."""
    crow, col, tcrow, tcol, permutation = indices
    dx = spmm(values, tcrow, tcol, dy, permutation=permutation)
    return *sddmm(crow, col, dy, x), dx.masked_fill(x <= 0, 0.0) if relu else dx


def _wide(x: Tensor) -> Tensor:
    """Return numbers of 16 bits in 32: torch has no CSR products of them on every device."""
    return x.float() if x.dtype.itemsize < 4 else x
