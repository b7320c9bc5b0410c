"""Sparse linear layers one after the other with ReLU between them, and all their gradients."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from sparselib._types import AutogradContext
from sparselib.csr import CSR
from sparselib.ops import operands, products
from sparselib.ops.backends import (
    After,
    Weights,
    cpu,
    cpu_batch,
    cpu_descent,
    cpu_passes,
)
from sparselib.ops.backends.cpu_arguments import TILE
from sparselib.ops.between import (
    ACTIVATIONS,
    features_apart,
    is_relu_alone,
    keep_moments,
    normalized,
    scales_of,
    with_scales,
)
from sparselib.ops.carrying import carried, outputs
from sparselib.ops.dispatch import module, note
from sparselib.ops.products import Layer
from sparselib.ops.registration import own

# is given the input of a layer and the gradient of its output
Watch = Callable[[Tensor, Tensor], None]


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
    return carried(layers, patterns, tensors, operands.resolved(x))


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


def _layers(
    patterns: Sequence[CSR],
    tensors: Sequence[Tensor | None],
    after: Sequence[After] | None = None,
) -> list[Layer]:
    """Return layers whose products do the ReLU that follows; by default all but the last one's."""
    follow = after or [After()] * (len(patterns) - 1)
    relus = [*map(is_relu_alone, follow), False]
    layers: list[Layer] = []
    for csr, values, bias, relu in zip(
        patterns, tensors[::2], tensors[1::2], relus
    ):
        if values is None:
            raise TypeError("the values of a layer must be a tensor, not None")
        layers.append(Layer(csr, values, bias, relu))
    return layers


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
        *inputs, y = outputs(layers, x)
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


def _pass_at_once(
    layers: Sequence[Weights], after: Sequence[After], x: Tensor
) -> bool:
    """Whether one call for each way is faster than one for each product."""
    numbers = sum(map(cpu_descent.parameters_of, layers))
    rows = sum(layer.crow.shape[0] - 1 for layer in layers)
    features = features_apart(after, rows, x.shape[1])
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
        after = with_scales(ctx.after, scales)
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
