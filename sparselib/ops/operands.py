"""The gate: what is checked before a kernel is given an address.

A kernel reads where its indices point and checks nothing, so it is entered in two ways only:

- with the pattern of a `CSR`, which is always valid, by `indices_of` and `transposed_of`;
- with arrays that somebody else holds, by `verified`, which compares them with what it has seen.

Numbers (values, activations, biases, gradients) are checked at every call, also in the backward
pass, since Python may have exchanged their memory in between.
"""

import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sparselib import csr as patterns
from sparselib.csr import CSR, Transposed, transpose
from sparselib.ops.backends import Indices, reference
from sparselib.ops.dispatch import PLAIN, autocasts, fits, is_written, module

STALE = "the topology changed between the forward and the backward pass; evolve after it"
STRIDED = torch.strided


def indices_of(csr: CSR) -> tuple[Tensor, Tensor]:
    """Return the row pointers and column indices of a pattern: the one place that reads them."""
    return csr.indices()


def transposed_of(csr: CSR) -> Transposed:
    """Return row pointers, column indices and permutation of the transposed pattern."""
    return csr.transposed_indices()


def operator_indices(csr: CSR) -> list[Tensor]:
    """Return what an operator has to know of a pattern; the transposed one where it is cached."""
    indices = [*indices_of(csr)]
    if csr.cache_transpose:
        indices.extend(transposed_of(csr))
    if not torch.compiler.is_compiling():
        _owners[indices[1]] = weakref.ref(csr)
    return indices


def check(
    csr: CSR, values: Tensor, x: Tensor, name: str, bias: Tensor | None = None
) -> None:
    """Refuse what does not go together: sizes of weights, and layouts, devices and types of all."""
    check_values(values, csr.nnz)
    device = values.device
    if x.device != device or csr.device != device:
        raise ValueError(
            f"{name} needs one device; the input is on {x.device}, the values on {device}, "
            f"the indices on {csr.device}"
        )
    if bias is not None:
        check_bias(bias, values, csr.shape[0])
    if not (fits(x, values) or autocasts(x)):
        raise ValueError(
            f"the input is {x.dtype} but the values are {values.dtype}; convert one of them, or "
            f"use autocast"
        )


def check_features(
    csr: CSR,
    values: Tensor,
    x: Tensor,
    features: int,
    name: str,
    bias: Tensor | None = None,
) -> None:
    """Refuse an input of another last dimension, and as `check`."""
    check_numbers(x, "input")
    if x.ndim == 0 or x.shape[-1] != features:
        raise ValueError(
            f"{name} with a {csr.shape[0]} x {csr.shape[1]} matrix needs a last dimension of "
            f"{features}; the input has shape {tuple(x.shape)}"
        )
    check(csr, values, x, name, bias)


def check_values(values: Tensor, nnz: int) -> None:
    """Refuse values that are not one floating point number for each connection."""
    check_numbers(values, "values")
    if values.shape != (nnz,):
        raise ValueError(
            f"{nnz} connections need as many values, not {tuple(values.shape)}"
        )
    if not values.dtype.is_floating_point:
        raise ValueError(
            f"values must be floating point numbers, not {values.dtype}"
        )


def check_bias(bias: Tensor, values: Tensor, rows: int) -> None:
    """Refuse biases that are not one number for each row, of the values' type and device."""
    check_numbers(bias, "bias")
    if bias.shape != (rows,):
        raise ValueError(
            f"{rows} rows need as many biases, not {tuple(bias.shape)}"
        )
    if bias.dtype != values.dtype or bias.device != values.device:
        raise ValueError(
            f"the bias is {bias.dtype} on {bias.device} but the values are {values.dtype} on "
            f"{values.device}; convert one of them"
        )


def check_numbers(tensor: Tensor, name: str) -> None:
    """Refuse what is no tensor, or one whose memory does not hold its numbers one by one."""
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"the {name} must be a tensor, not {type(tensor).__name__}"
        )
    if tensor.layout is not STRIDED:
        raise ValueError(
            f"the {name} must be a dense tensor, not one of layout {tensor.layout}"
        )


def check_batches(dy: Tensor, x: Tensor, csr: CSR) -> None:
    """Refuse an output gradient and an input of other sizes than a matrix and one batch have."""
    check_numbers(dy, "output gradient")
    check_numbers(x, "input")
    rows, columns = csr.shape
    if (
        dy.ndim != 2
        or x.ndim != 2
        or dy.shape[1] != rows
        or x.shape[1] != columns
    ):
        raise ValueError(
            f"a {rows} x {columns} matrix needs an output gradient (batch, {rows}) and an input "
            f"(batch, {columns}), not {tuple(dy.shape)} and {tuple(x.shape)}"
        )
    if dy.shape[0] != x.shape[0]:
        raise ValueError(
            f"the output gradient has {dy.shape[0]} rows but the input {x.shape[0]}; both are "
            f"of one batch"
        )


def check_gradient(dy: Tensor, x: Tensor, values: Tensor) -> None:
    """Refuse an output gradient of another type or device than its input."""
    if dy.device != x.device or values.device != x.device:
        raise ValueError(
            f"gradients need one device; the output gradient is on {dy.device}, the input on "
            f"{x.device}, the values on {values.device}"
        )
    if dy.dtype != x.dtype or not fits(x, values):
        raise ValueError(
            f"the output gradient is {dy.dtype}, the input {x.dtype} and the values "
            f"{values.dtype}; convert them to one type"
        )


def check_devices(*tensors: Tensor) -> None:
    """Refuse what is no tensor, and several devices; where nothing is known but shapes, too."""
    device = None
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"an operator needs tensors, not {type(tensor).__name__}"
            )
        device = device or tensor.device
        if tensor.device != device:
            raise ValueError(
                f"an operator needs one device, not {device} and {tensor.device}"
            )


def check_raw(
    values: Tensor, nnz: int, *activations: Tensor, indices: Indices
) -> None:
    """Refuse operands of an operator that was called with arrays instead of a pattern."""
    check_values(values, nnz)
    check_devices(values, *activations, *indices)
    for x in activations:
        check_numbers(x, "input")
        if not fits(x, values):
            raise ValueError(
                f"the input is {x.dtype} but the values are {values.dtype}"
            )


def resolved(x: Tensor) -> Tensor:
    """Return x, or a copy whose memory holds the numbers, if that of x does not."""
    if is_written(x):
        return x
    return torch.zeros_like(x) if x._is_zerotensor() else x.resolve_neg()


def plus(
    y: Tensor, bias: Tensor | None, shape: tuple[int, ...] = (-1,)
) -> Tensor:
    """Add the biases, if there are any, by an operator of torch."""
    if bias is None:
        return y
    # torch 2.6 compiles no question to a set
    if not torch.compiler.is_compiling() and type(bias) in PLAIN:
        bias = resolved(bias)
    return y + bias.view(shape).to(y.dtype)


def feature_major(x: Tensor) -> Tensor:
    """Return x with the samples of a feature side by side, as the kernels read it."""
    x = resolved(x)
    if x.t().is_contiguous() or module(x) is reference:
        return x
    if x.requires_grad and torch.is_grad_enabled():
        flipped: Tensor = _Flip.apply(x)
        return flipped
    return module(x).features_first(x).t()


class _Flip(torch.autograd.Function):
    """The same numbers, stored feature-major."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return module(x).features_first(x).t()

    @staticmethod
    def backward(ctx: object, dx: Tensor) -> Tensor:
        return dx


class _Seen(NamedTuple):
    """Arrays that were found to be a valid pattern of a shape, and as they were."""

    shape: tuple[int, int]
    arrays: tuple[weakref.ref[Tensor], ...]
    versions: tuple[int, ...]
    own: tuple[Tensor, ...]


_owners: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_seen: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def verified(indices: Sequence[Tensor], shape: tuple[int, int]) -> Indices:
    """Return the arrays of a pattern that a kernel may follow, or refuse them in a sentence.

    The arrays of a living `CSR` are valid. All others are checked once, and again whenever their
    memory changed. On the CPU, where numpy can write without torch's knowing, a kernel gets copies
    of what was checked, and these are compared with the arrays at every call.

    Parameters
    ----------
    indices : sequence of Tensor
        Crow and col, and perhaps crow, col and permutation of the transposed pattern.
    shape : (int, int)
        Rows and columns of the matrix.

    Raises
    ------
    ValueError
        If they are not a valid pattern of this shape and, if given, its transposed.
    """
    if shape[1] < 0:
        raise ValueError(f"a matrix cannot have {shape[1]} columns")
    if _is_owned(indices, shape):
        return indices
    for array in indices:
        check_numbers(array, "array of a pattern")
    indices = [*map(resolved, indices)]
    seen = _seen.get(indices[1])
    if seen is None or not _is_unchanged(seen, indices, shape):
        seen = _examined(indices, shape)
        _seen[indices[1]] = seen
    return seen.own


def rows_of_raw(indices: Sequence[Tensor]) -> int:
    """Return the number of rows that arrays of a pattern, of whatever origin, speak of."""
    if len(indices) not in (2, 5):
        raise ValueError(
            f"a pattern is crow and col, perhaps with crow, col and permutation of the transposed "
            f"one; these are {len(indices)} arrays"
        )
    if indices[0].ndim != 1 or not indices[0].numel():
        raise ValueError(
            f"crow needs one number more than there are rows, not the shape "
            f"{tuple(indices[0].shape)}"
        )
    return indices[0].numel() - 1


def _is_owned(indices: Sequence[Tensor], shape: tuple[int, int]) -> bool:
    owner = _owners.get(indices[1])
    csr = None if owner is None else owner()
    if csr is None or csr.shape != tuple(shape):
        return False
    arrays = [*indices_of(csr)]
    if len(indices) == 5 and csr.cache_transpose:
        arrays.extend(transposed_of(csr))
    return len(arrays) == len(indices) and all(
        a is b for a, b in zip(arrays, indices)
    )


def _is_unchanged(
    seen: _Seen, indices: Sequence[Tensor], shape: tuple[int, int]
) -> bool:
    if seen.shape != tuple(shape) or len(seen.arrays) != len(indices):
        return False
    if not all(ref() is array for ref, array in zip(seen.arrays, indices)):
        return False
    if seen.versions != _versions(indices):
        return False
    return not indices[1].is_cpu or _equal(seen.own, indices)


def _equal(own: Sequence[Tensor], indices: Sequence[Tensor]) -> bool:
    same = all(a.shape == b.shape and b.is_cpu for a, b in zip(own, indices))
    return same and all(bool((a == b).all()) for a, b in zip(own, indices))


def _versions(indices: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(
        0 if array.is_inference() else array._version for array in indices
    )


def _examined(indices: Sequence[Tensor], shape: tuple[int, int]) -> _Seen:
    """Check arrays, or on the CPU copies of them that nobody else can write."""
    for array in indices:
        if array.device != indices[0].device:
            raise ValueError(
                f"the arrays of a pattern must be on one device, not {array.device}"
            )
    own = [array.detach().contiguous() for array in indices]
    if own[0].is_cpu:
        own = [array.clone() for array in own]
    patterns.check(own[0], own[1], shape)
    own[:2] = [array.to(torch.int32) for array in own[:2]]
    if len(own) == 5:
        _check_transposed(own, shape)
        own[2:] = [array.to(torch.int32) for array in own[2:]]
    references = tuple(map(weakref.ref, indices))
    return _Seen(
        (shape[0], shape[1]), references, _versions(indices), tuple(own)
    )


def _check_transposed(
    indices: Sequence[Tensor], shape: tuple[int, int]
) -> None:
    right = transpose(indices[0], indices[1], shape[1])
    for name, expected, given in zip(Transposed._fields, right, indices[2:]):
        integer = given.dtype in (torch.int32, torch.int64)
        if (
            not integer
            or given.shape != expected.shape
            or not bool((given == expected).all())
        ):
            raise ValueError(
                f"the transposed pattern's {name} is not that of the pattern; take them from the "
                f"same CSR"
            )
