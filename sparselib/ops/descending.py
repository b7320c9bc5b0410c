"""Loss and gradients of sparse linear layers, and of what is between them, by one call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparselib.csr import CSR
from sparselib.ops import operands, products
from sparselib.ops.backends import After, Weights, cpu_descent
from sparselib.ops.backends.cpu_batch import Moments
from sparselib.ops.between import features_apart, is_relu_alone, scales_of
from sparselib.ops.dispatch import is_plain, note


def descend(
    layers: Sequence[tuple[CSR, Tensor, Tensor | None]],
    after: Sequence[After],
    x: Tensor,
    labels: Tensor,
    loss: str,
    order: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], list[Moments]] | None:
    """Return the mean loss of layers, and what follows each but the last, and its gradients.

    Those of biases that are None are there too, and last those of what `scales_of` returns. With
    them are the moments that each batch normalization has found, and not kept. None if there is no
    kernel, or products take longer than its calls.

    Parameters
    ----------
    layers : sequence of (CSR, Tensor, Tensor or None)
        Connections, values and biases.
    after : sequence of After
        What follows each but the last.
    x : Tensor, shape (count, columns)
        Input of the first layer.
    labels : Tensor, int64, shape (count,)
        Numbers of the classes.
    loss : {"cross-entropy", "squared error"}
        What `sparselib.ops.backends.cpu_descent.LOSSES` names.
    order : Tensor, int64, shape (batch,), optional
        The samples that are meant; by default all.
    """
    count, width = x.shape
    samples = count if order is None else order.numel()
    scales = scales_of(after)
    tensors = [tensor for _, *both in layers for tensor in both] + scales
    least = 2 if any(of.is_of_batch for of in after) else 1
    if samples < least or not is_plain(x, *tensors):
        return None
    if not _are_labels(labels, count):
        return None
    if order is not None and not _are_labels(order, samples):
        return None
    steps: list[tuple[Weights, operands.Transposed | None]] = []
    sizes: list[int] = []
    for number, (csr, values, bias) in enumerate(layers):
        if not products.fit_exactly(csr, values, bias, width):
            return None
        indices = operands.indices_of(csr)
        relu = number < len(after) and is_relu_alone(after[number])
        turned = operands.transposed_of(csr) if number else None
        steps.append((Weights(*indices, values, bias, relu), turned))
        width = csr.shape[0]
        sizes += [csr.nnz, width]
    sizes += [len(tensor) for tensor in scales]
    numbers = sum(sizes)
    patterns = [csr for csr, *_ in layers]
    rows = sum(csr.shape[0] for csr in patterns)
    features = features_apart(after, rows, x.shape[1])
    most = cpu_descent.MOST_OF_STEP
    if not cpu_descent.descends(samples, numbers, most, features):
        return None
    note("descent", patterns, x, *tensors)
    found = cpu_descent.descend(
        steps,
        after,
        x.contiguous(),
        labels.contiguous(),
        loss,
        None if order is None else order.contiguous(),
    )
    if found is None:
        return None
    *gradients, error = found[0].split([*sizes, 1])
    return error.squeeze(0), gradients, found[1]


def _are_labels(labels: Tensor, samples: int) -> bool:
    """Whether these are the numbers of as many classes, as the kernel reads them."""
    return (
        type(labels) is Tensor
        and labels.dtype is torch.int64
        and labels.is_cpu
        and labels.shape == (samples,)
    )
