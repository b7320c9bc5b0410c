"""The definition of the three products, by torch's own CSR products, in a few lines each.

Activations are (batch, features). The products run on feature-major data, which torch's CSR
kernels prefer, and return a transposed view; the next layer takes that view without a copy.
"""

import warnings

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
) -> Tensor:
    """Y = X W^T + b for W (out, in) in CSR and X (batch, in).

    With a permutation the weight of nonzero j is ``values[permutation[j]]``.
    """
    values = values if permutation is None else values.index_select(0, permutation)
    shape = (crow_indices.numel() - 1, x.shape[1])
    if values.numel() == 0 or x.shape[0] == 0:
        y = x.new_zeros((shape[0], x.shape[0])).t()
        return y if bias is None else y + bias
    weight = torch.sparse_csr_tensor(
        crow_indices, col_indices, values, size=shape, check_invariants=False
    )
    y = (weight @ x.t().contiguous()).t()
    return y if bias is None else y + bias


def sddmm(
    crow_indices: Tensor, col_indices: Tensor, dy: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Entries of dY^T X at the nonzeros, and the sums of dY over the batch."""
    shape = (dy.shape[1], x.shape[1])
    zeros = x.new_zeros(col_indices.numel())
    if zeros.numel() == 0 or x.shape[0] == 0:
        return zeros, dy.sum(0)
    pattern = torch.sparse_csr_tensor(
        crow_indices, col_indices, zeros, size=shape, check_invariants=False
    )
    left, right = dy.t().contiguous(), x.t().contiguous().t()
    return torch.sparse.sampled_addmm(pattern, left, right, beta=0.0).values(), dy.sum(0)
