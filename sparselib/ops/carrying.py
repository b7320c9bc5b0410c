"""A batch through sparse linear layers and what is between them, without a gradient."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from sparselib.csr import CSR
from sparselib.ops import operands, products
from sparselib.ops.backends import Between, Weights, cpu
from sparselib.ops.dispatch import is_plain, module, note

# a layer's connections, values and biases, or what is between two layers
Step = tuple[CSR, Tensor, Tensor | None] | Between


def at_once(
    patterns: Sequence[CSR], tensors: Sequence[Tensor | None], x: Tensor
) -> Tensor | None:
    """Carry samples through all layers without a gradient, or return None where more is asked for.

    As `sequence` with as little Python as can be: what few samples cost is the call.
    """
    if not (is_plain(x, *tensors) and x.ndim == 2):
        return None
    layers: list[tuple[Tensor, Tensor, Tensor, Tensor | None, bool]] = []
    width = x.shape[1]
    last = len(patterns) - 1
    for number, csr in enumerate(patterns):
        values = tensors[2 * number]
        bias = tensors[2 * number + 1]
        if values is None or not products.fit_exactly(csr, values, bias, width):
            return None
        layers.append((*operands.indices_of(csr), values, bias, number < last))
        width = csr.shape[0]
    if cpu.are_few(x.shape[0], sum(csr.nnz for csr in patterns)):
        note("few_through", patterns, x, *tensors)
        return cpu.few_through(layers, x)
    return carried([Weights(*one) for one in layers], patterns, tensors, x)


def through(steps: Sequence[Step], x: Tensor) -> Tensor | None:
    """Carry samples through layers and what is between them, or return None where no kernel does.

    Without a gradient, as `at_once`. Few samples begin with a layer, and nothing normalizes them.

    Parameters
    ----------
    steps : sequence of (CSR, Tensor, Tensor or None) or Between
        Connections, values and biases of a layer; or what is done after it, or before the first.
    x : Tensor, shape (batch, columns)
        Input of the first step.
    """
    checked = _checked(steps, x.shape[1]) if x.ndim == 2 else None
    if checked is None:
        return None
    patterns = [step[0] for step in steps if not isinstance(step, Between)]
    tensors = [
        tensor
        for step in checked
        for tensor in (
            (step.scale, step.shift)
            if isinstance(step, Between)
            else (step.values, step.bias)
        )
    ]
    if not is_plain(x, *tensors):
        return None
    weights = sum(csr.nnz for csr in patterns)
    if cpu.are_few(len(x), weights) and _are_for_few(checked):
        note("few_through", patterns, x, *tensors)
        return cpu.few_through(checked, x)
    if not cpu.fuses(len(x), weights, sum(csr.cells for csr in patterns)):
        return None
    note("network", patterns, x, *tensors)
    return cpu.network(checked, x)


def _checked(
    steps: Sequence[Step], width: int
) -> list[Weights | Between] | None:
    """Return the steps as kernels read them, or None if one does not fit the one before it."""
    checked: list[Weights | Between] = []
    for step in steps:
        last = checked[-1] if checked else None
        if not isinstance(step, Between):
            csr, values, bias = step
            if not products.fit_exactly(csr, values, bias, width):
                return None
            indices = operands.indices_of(csr)
            checked.append(Weights(*indices, values, bias, False))
            width = csr.shape[0]
        elif not _fits(step, width):
            return None
        elif step.kind == "relu" and isinstance(last, Weights):
            checked[-1] = last._replace(relu=True)
        else:
            checked.append(step)
    return checked


def _fits(step: Between, width: int) -> bool:
    """Whether what is between two layers has a number for each feature, as kernels read them."""
    return all(
        tensor is None or (tensor.shape == (width,) and tensor.is_contiguous())
        for tensor in (step.scale, step.shift)
    )


def _are_for_few(steps: Sequence[Weights | Between]) -> bool:
    """Whether the kernel of few samples knows these steps."""
    if isinstance(steps[0], Between):
        return False
    return not any(
        isinstance(step, Between) and step.kind == "normalized"
        for step in steps
    )


def carried(
    layers: Sequence[Weights],
    patterns: Sequence[CSR],
    tensors: Sequence[Tensor | None],
    x: Tensor,
) -> Tensor:
    """Return what checked layers make of a batch, without a gradient."""
    weights = sum(csr.nnz for csr in patterns)
    cells = sum(csr.cells for csr in patterns)
    backend = module(x)
    if backend.fuses(len(x), weights, cells):
        note("network", patterns, x, *tensors)
        return backend.network(layers, x)
    note("spmm with ReLU", patterns, x, *tensors)
    return outputs(layers, x)[-1]


def outputs(layers: Iterable[Weights], x: Tensor) -> list[Tensor]:
    """Return the input of each layer, and the output of the last."""
    passed = [x]
    backend = module(x)
    for crow, col, values, bias, relu in layers:
        x = backend.spmm(values, crow, col, x, bias, relu=relu)
        passed.append(x)
    return passed
