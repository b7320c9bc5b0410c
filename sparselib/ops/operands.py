"""What an operator asks of its tensors, and how it wants them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparselib.csr import CSR, transpose
from sparselib.ops.backends import reference
from sparselib.ops.dispatch import fits
from sparselib.ops.dispatch import module as _backend
from sparselib.ops.registration import autocasts, transformed

STALE = "the topology changed between the forward and the backward pass; evolve after it"


def fast(x: Tensor, *parameters: Tensor) -> Any:
    """Return the module with the kernels for x and the parameters, or None.

    None if there are none for their dtype and device, or if something has to see every operation:
    a compiler, a tracer, autocast, a transform of functions.
    """
    kernels = _backend(x)
    known = all(tensor.device == x.device and fits(x, tensor) for tensor in parameters)
    return kernels if known and kernels is not reference and is_eager(x) else None


def check(csr: CSR, values: Tensor, x: Tensor, name: str) -> None:
    """Refuse values that are not the pattern's, and tensors of unlike devices or types."""
    if values.shape != (csr.nnz,):
        raise ValueError(f"{csr.nnz} connections need as many values, not {tuple(values.shape)}")
    if x.device != values.device or x.device != csr.device:
        raise ValueError(
            f"{name} needs one device; the input is on {x.device}, the values on "
            f"{values.device}, the indices on {csr.device}"
        )
    if not (fits(x, values) or autocasts(x)):
        raise ValueError(
            f"the input is {x.dtype} but the values are {values.dtype}; convert one of them, or "
            f"use autocast"
        )


def check_features(csr: CSR, values: Tensor, x: Tensor, features: int, name: str) -> None:
    """Refuse an input of another last dimension, and as `check`."""
    if x.ndim == 0 or x.shape[-1] != features:
        raise ValueError(
            f"{name} with a {csr.shape[0]} x {csr.shape[1]} matrix needs a last dimension of "
            f"{features}; the input has shape {tuple(x.shape)}"
        )
    check(csr, values, x, name)


# crow, col and, where cached, the transposed crow, col and permutation
Indices = Sequence[Tensor]


def indices_of(csr: CSR) -> list[Tensor]:
    """Return what an operator has to know of a pattern."""
    pattern = [*csr.indices()]
    return [*pattern, *csr.transposed_indices()] if csr.cache_transpose else pattern


def transposed(indices: Indices, columns: int) -> Indices:
    """Return crow, col and permutation of the transposed pattern: the cached ones, or new."""
    return indices[2:] if len(indices) == 5 else transpose(indices[0], indices[1], columns)


def is_eager(x: Tensor) -> bool:
    """Whether autograd may be written down directly, without a custom operator's cost."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or type(x) is not Tensor
        or autocasts(x)
        or transformed()
    )


def feature_major(x: Tensor) -> Tensor:
    """Return x with the samples of a feature side by side, as the kernels read it."""
    if x.t().is_contiguous() or _backend(x) is reference:
        return x
    return _Flip.apply(x) if x.requires_grad else _backend(x).features_first(x).t()


class _Flip(torch.autograd.Function):
    """The same numbers, stored feature-major."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _backend(x).features_first(x).t()

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Tensor:
        return dx
