"""Sparse linear layers one after the other with ReLU between them, and all their gradients."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from sparselib._types import AutogradContext
from sparselib.csr import CSR
from sparselib.ops import operands, products
from sparselib.ops.backends import (
    After,
    Between,
    Norm,
    Weights,
    cpu,
    cpu_batch,
    cpu_descent,
    cpu_passes,
)
from sparselib.ops.backends.cpu_arguments import TILE
from sparselib.ops.backends.cpu_batch import Moments
from sparselib.ops.between import ACTIVATIONS, normalized
from sparselib.ops.dispatch import is_plain, module, note
from sparselib.ops.products import Layer
from sparselib.ops.registration import own

# is given the input of a layer and the gradient of its output
Watch = Callable[[Tensor, Tensor], None]
# a layer's connections, values and biases, or what is between two layers
Step = tuple[CSR, Tensor, Tensor | None] | Between


def sequence(
    patterns: Sequence[CSR],
    tensors: Sequence[Tensor | None],
    x: Tensor,
    watches: Sequence[Sequence[Watch]],
) -> Tensor:
    """Apply layers whose values and biases alternate in `tensors`; differentiable in all of them.

    Biases and ReLU are part of the products, and without a gradient a few samples at a time walk
    through all layers. `sparselib.ops.fast` returns whether it may be called.

    Parameters
    ----------
    patterns : sequence of CSR
        One for each layer.
    tensors : sequence of Tensor or None
        Values and biases of the first layer, of the second, ...
    x : Tensor, shape (batch, columns)
        Input of the first layer.
    watches : sequence of sequences of callables
        For each layer, what is called in the backward pass with its input and the gradient of its
        output, before ReLU.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices do not fit; the sentence names them.
    RuntimeError
        In the backward pass, if a topology changed since the forward pass.
    """
    layers = products.check_network(_layers(patterns, tensors), x)
    given = [x, *(tensor for tensor in tensors if tensor is not None)]
    if torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in given
    ):
        after = [After()] * (len(layers) - 1)
        if not any(watches) and _pass_at_once(layers, after, x):
            return _both_ways(layers, patterns, after, x, tensors)
        note("spmm with ReLU, and gradients at once", patterns, *given)
        x = operands.feature_major(x)
        result: Tensor = _Sequence.apply(layers, patterns, watches, x, *tensors)
        return result
    return _carried(layers, patterns, tensors, operands.resolved(x))


def passed(
    patterns: Sequence[CSR],
    tensors: Sequence[Tensor | None],
    after: Sequence[After],
    x: Tensor,
) -> Tensor | None:
    """Apply layers as `sequence` does, with anything after each but the last; or return None.

    None if no gradient is asked for, or it takes longer at once than one by one.
    """
    learned = [*tensors, *scales_of(after)]
    given = [x, *(tensor for tensor in learned if tensor is not None)]
    if not torch.is_grad_enabled() or not any(
        tensor.requires_grad for tensor in given
    ):
        return None
    layers = products.check_network(_layers(patterns, tensors, after), x)
    if not _pass_at_once(layers, after, x):
        return None
    return _both_ways(layers, patterns, after, x, learned)


def scales_of(after: Sequence[After]) -> list[Tensor]:
    """Return the scale and the shift of each normalization, in order."""
    return [
        tensor
        for of in after
        if of.norm is not None
        for tensor in (of.norm.scale, of.norm.shift)
    ]


def keep_moments(after: Sequence[After], moments: Sequence[Moments]) -> None:
    """Have batch normalizations keep the moments that they have found, one after the other."""
    left = iter(moments)
    for of in after:
        if of.norm is not None and of.norm.keep is not None:
            of.norm.keep(*next(left))


def _with_scales(
    after: Sequence[After], tensors: Sequence[Tensor]
) -> list[After]:
    """Return what follows layers with these tensors in place of those that `scales_of` returns."""
    left = iter(tensors)
    return [
        of
        if of.norm is None
        else of._replace(norm=_scaled(of.norm, next(left), next(left)))
        for of in after
    ]


def _scaled(norm: Norm, scale: Tensor, shift: Tensor) -> Norm:
    return norm._replace(scale=scale, shift=shift)


def _both_ways(
    layers: Sequence[Weights],
    patterns: Sequence[CSR],
    after: Sequence[After],
    x: Tensor,
    tensors: Sequence[Tensor | None],
) -> Tensor:
    """Apply checked layers by a call for each way; `tensors` end with what `scales_of` returns."""
    given = [x, *(tensor for tensor in tensors if tensor is not None)]
    note("outward, and inward with the gradients", patterns, *given)
    y: Tensor = _Passes.apply(layers, patterns, after, x, *tensors)
    return y


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
    return _carried([Weights(*one) for one in layers], patterns, tensors, x)


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
    least = 2 if any(map(cpu_batch.is_of_batch, after)) else 1
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
        relu = number < len(after) and _is_relu_alone(after[number])
        turned = operands.transposed_of(csr) if number else None
        steps.append((Weights(*indices, values, bias, relu), turned))
        width = csr.shape[0]
        sizes += [csr.nnz, width]
    sizes += [len(tensor) for tensor in scales]
    numbers = sum(sizes)
    patterns = [csr for csr, *_ in layers]
    rows = sum(csr.shape[0] for csr in patterns)
    features = _features_apart(after, rows, x.shape[1])
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


def _carried(
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
    return _steps(layers, x)[-1]


def _layers(
    patterns: Sequence[CSR],
    tensors: Sequence[Tensor | None],
    after: Sequence[After] | None = None,
) -> list[Layer]:
    """Return layers whose products do the ReLU that follows; by default all but the last one's."""
    follow = after or [After()] * (len(patterns) - 1)
    relus = [*map(_is_relu_alone, follow), False]
    layers: list[Layer] = []
    for csr, values, bias, relu in zip(
        patterns, tensors[::2], tensors[1::2], relus
    ):
        if values is None:
            raise TypeError("the values of a layer must be a tensor, not None")
        layers.append(Layer(csr, values, bias, relu))
    return layers


def _is_relu_alone(of: After) -> bool:
    """Whether the product itself does what follows, but for a dropout."""
    return of.kind == "relu" and of.norm is None


def _steps(layers: Iterable[Weights], x: Tensor) -> list[Tensor]:
    """Return the input of each layer, and the output of the last."""
    passed = [x]
    backend = module(x)
    for crow, col, values, bias, relu in layers:
        x = backend.spmm(values, crow, col, x, bias, relu=relu)
        passed.append(x)
    return passed


def _remember(
    ctx: AutogradContext,
    patterns: Sequence[CSR],
    watches: Sequence[Sequence[Watch]],
) -> None:
    ctx.patterns = patterns
    ctx.watches = watches
    ctx.versions = [csr.version for csr in patterns]


def _check_topology(ctx: AutogradContext) -> None:
    """Refuse to go back through connections that are not those of the way out."""
    if ctx.versions != [csr.version for csr in ctx.patterns]:
        raise RuntimeError(operands.STALE)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: AutogradContext,
        layers: Sequence[Weights],
        patterns: Sequence[CSR],
        watches: Sequence[Sequence[Watch]],
        x: Tensor,
        *tensors: Tensor | None,
    ) -> Tensor:
        *inputs, y = _steps(layers, x)
        ctx.save_for_backward(*inputs, *tensors)
        _remember(ctx, patterns, watches)
        return own(y)

    @staticmethod
    def backward(ctx: AutogradContext, dy: Tensor) -> tuple[Tensor | None, ...]:
        _check_topology(ctx)
        count = len(ctx.patterns)
        if torch.is_grad_enabled():
            x, *saved = ctx.saved_tensors
            return _again(ctx, x, saved[count - 1 :], dy)
        inputs = ctx.saved_tensors[:count]
        values = ctx.saved_tensors[count::2]
        needed = ctx.needs_input_grad[3:]
        gradients: list[Tensor] = []
        for number in reversed(range(count)):
            x = inputs[number]
            csr = ctx.patterns[number]
            for watch in ctx.watches[number]:
                watch(x.detach(), dy)
            further = number > 0 or needed[0]
            dvalues, dbias, dx = products.gradients(
                values[number], csr, dy, x, further, number > 0
            )
            gradients[:0] = [dvalues, dbias]
            dy = dy if dx is None else dx
        return None, None, None, *_needed((dy, *gradients), needed)


def _features_apart(after: Sequence[After], rows: int, width: int) -> int:
    """Return how many features a tile has in a buffer of its own, if it waits for others."""
    is_waiting = any(map(cpu_batch.is_of_batch, after))
    return width + 2 * rows if is_waiting else 0


def _pass_at_once(
    layers: Sequence[Weights], after: Sequence[After], x: Tensor
) -> bool:
    """Whether one call for each way is faster than one for each product."""
    numbers = sum(map(cpu_descent.parameters_of, layers))
    rows = sum(layer.crow.shape[0] - 1 for layer in layers)
    features = _features_apart(after, rows, x.shape[1])
    most = cpu_descent.MOST_OF_PASSES
    return (
        module(x) is cpu
        and len(layers) > 1
        and len(x) >= TILE  # fewer are computed as a whole tile, too
        and cpu_descent.descends(len(x), numbers, most, features)
    )


class _Passes(torch.autograd.Function):
    """As `_Sequence`, with one call of a kernel for all layers, and nobody watching."""

    @staticmethod
    def forward(
        ctx: AutogradContext,
        layers: Sequence[Weights],
        patterns: Sequence[CSR],
        after: Sequence[After],
        x: Tensor,
        *tensors: Tensor | None,
    ) -> Tensor:
        held = [cpu.contiguous(layer) for layer in layers]
        noises = cpu_descent.drawn(held, after, len(x))
        known = cpu_batch.known_of(after)
        y, kept, found = cpu_passes.outward(
            held, after, noises, known, operands.resolved(x).contiguous()
        )
        keep_moments(after, found)
        ctx.save_for_backward(x, kept, *noises, *known, *tensors)
        _remember(ctx, patterns, [()] * len(patterns))
        ctx.after = after
        return own(y)

    @staticmethod
    def backward(ctx: AutogradContext, dy: Tensor) -> tuple[Tensor | None, ...]:
        _check_topology(ctx)
        x, kept, *saved = ctx.saved_tensors
        links = len(ctx.after)
        noises = saved[:links]
        known = saved[links : 2 * links]
        last = 2 * links + 2 * len(ctx.patterns)
        tensors = saved[2 * links : last]
        scales = saved[last:]
        after = _with_scales(ctx.after, scales)
        if torch.is_grad_enabled():
            return _again(ctx, x, tensors, dy, after, noises)
        needed = ctx.needs_input_grad[3:]
        layers: list[tuple[Weights, operands.Transposed | None]] = []
        sizes: list[int] = []
        for number, layer in enumerate(_layers(ctx.patterns, tensors, after)):
            csr, values, bias, relu = layer
            is_read = number > 0 or needed[0]
            turned = operands.transposed_of(csr) if is_read else None
            weights = Weights(*operands.indices_of(csr), values, bias, relu)
            layers.append((cpu.contiguous(weights), turned))
            sizes += [csr.nnz, csr.shape[0]]
        sizes += [len(scale) for scale in scales]
        x = operands.resolved(x).contiguous()
        dy = operands.feature_major(dy)
        dx, gradients = cpu_passes.inward(
            layers, after, noises, known, x, kept, dy
        )
        found = [dx, *gradients.split(sizes)]
        return None, None, None, *_needed(found, needed)


def _needed(
    gradients: Iterable[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    return [
        gradient if needs else None
        for gradient, needs in zip(gradients, needed)
    ]


def _again(
    ctx: AutogradContext,
    x: Tensor,
    tensors: Sequence[Tensor | None],
    dy: Tensor,
    after: Sequence[After] = (),
    noises: Sequence[Tensor | None] = (),
) -> tuple[Tensor | None, ...]:
    """Compute the gradients by steps that have derivatives themselves.

    Between layers is ReLU, or what is given with what its dropouts drew.
    """
    needed = ctx.needs_input_grad[3:]
    given = [
        tensor
        for tensor, needs in zip((x, *tensors, *scales_of(after)), needed)
        if needs and tensor is not None
    ]
    read: list[Tensor] = []
    written: list[Tensor] = []
    links = after or [After()] * (len(ctx.patterns) - 1)
    drawn = noises or [None] * len(links)
    for number, layer in enumerate(_layers(ctx.patterns, tensors)):
        csr, values, bias, _ = layer
        read.append(x)
        x = products.spmm(csr, values, x, bias)
        written.append(x)
        if number < len(links):
            norm = links[number].norm
            if norm is not None:
                x = normalized(x, norm)
            x = ACTIVATIONS[links[number].kind](links[number], x)
            noise = drawn[number]
            x = x if noise is None else x * noise.t()
    is_seen = [
        watched and y.requires_grad for watched, y in zip(ctx.watches, written)
    ]
    seen = [y for y, sees in zip(written, is_seen) if sees]
    found = iter(torch.autograd.grad(x, [*given, *seen], dy, create_graph=True))
    gradients = [next(found) if needs else None for needs in needed]
    for inputs, watches, sees in zip(read, ctx.watches, is_seen):
        if sees:
            costs = next(found).detach()
            for watch in watches:
                watch(inputs.detach(), costs)
    return None, None, None, *gradients
