"""The definition of the three products, by torch's own CSR products, in a few lines each.

Activations are (batch, features). The products run on feature-major data, which torch's CSR
kernels prefer, and return a transposed view; the next layer takes that view without a copy.
"""

import warnings

import torch
from torch import Tensor

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


def spmm(values: Tensor, crow_indices: Tensor, col_indices: Tensor, x: Tensor) -> Tensor:
    """Y = X W^T for W (out, in) in CSR and X (batch, in)."""
    shape = (crow_indices.numel() - 1, x.shape[1])
    if values.numel() == 0 or x.shape[0] == 0:
        return x.new_zeros((shape[0], x.shape[0])).t()
    weight = torch.sparse_csr_tensor(
        crow_indices, col_indices, values, size=shape, check_invariants=False
    )
    return (weight @ x.t().contiguous()).t()


def sddmm(crow_indices: Tensor, col_indices: Tensor, dy: Tensor, x: Tensor) -> Tensor:
    """Entries of dY^T X at the nonzeros: sum over the batch of dy[b, row] x[b, col]."""
    shape = (dy.shape[1], x.shape[1])
    zeros = x.new_zeros(col_indices.numel())
    if zeros.numel() == 0 or x.shape[0] == 0:
        return zeros
    pattern = torch.sparse_csr_tensor(
        crow_indices, col_indices, zeros, size=shape, check_invariants=False
    )
    left, right = dy.t().contiguous(), x.t().contiguous().t()
    return torch.sparse.sampled_addmm(pattern, left, right, beta=0.0).values()
