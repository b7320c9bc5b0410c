"""Normalizations of samples that lie feature by feature, and the activations behind them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from sparselib._types import AutogradContext
from sparselib.ops import operands
from sparselib.ops.backends import After, Norm, cpu, cpu_norm
from sparselib.ops.dispatch import fast
from sparselib.ops.fused import ACTIVATIONS
from sparselib.ops.registration import own

NOTHING = After("nothing")
# samples of a tile from which on it takes less time than torch takes for them alone
FEWEST = 16


def layer_normalized(
    x: Tensor, norm: Norm, of: After = NOTHING
) -> Tensor | None:
    r"""Return :math:`f(\gamma h + \beta)`, of each sample's features with mean 0 and variance 1.

    :math:`h = (x - \mu) / \sqrt{\sigma^2 + \varepsilon}` with the mean and the variance over the
    features (Ba, Kiros and Hinton, 2016, Equation 4). Differentiable, also twice.

    Parameters
    ----------
    x : Tensor, shape (samples, features)
        Activations.
    norm : Norm
        :math:`\gamma`, :math:`\beta` and :math:`\varepsilon`.
    of : After, optional
        The activation f; by default none.

    Returns
    -------
    Tensor or None
        As x, feature by feature; None where no kernel does it, x does not lie that way, or there
        are too few samples.
    """
    if len(x) < FEWEST or not _is_for_kernels(x, norm):
        return None
    y: Tensor = _LayerNorm.apply(of, norm.epsilon, x, norm.scale, norm.shift)
    return y


def batch_normalized(
    x: Tensor, norm: Norm, of: After = NOTHING
) -> tuple[Tensor, Tensor, Tensor] | None:
    r"""Return :math:`f(\gamma h + \beta)`, of each feature with mean 0 and variance 1 in the batch.

    :math:`h = (x - \mu) / \sqrt{\sigma^2 + \varepsilon}` with the mean and the variance over the
    samples (Ioffe and Szegedy, 2015, Algorithm 1). Differentiable, also twice.

    Parameters
    ----------
    x, norm, of
        As in `layer_normalized`.

    Returns
    -------
    tuple of Tensor, or None
        The result, feature by feature, the mean and the variance; None where no kernel does it.
    """
    if not _is_for_kernels(x, norm):
        return None
    y: Tensor
    y, moments = _BatchNorm.apply(of, norm.epsilon, x, norm.scale, norm.shift)
    return y, moments[:, 0], moments[:, 1]


def _is_for_kernels(x: Tensor, norm: Norm) -> bool:
    """Whether there are kernels for x, and it lies feature by feature."""
    return (
        fast(x, norm.scale, norm.shift) is cpu
        and x.ndim == 2
        and len(x) > 1
        and x.stride() == (1, len(x))
        and norm.scale.shape == norm.shift.shape == x.shape[1:]
    )


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: AutogradContext,
        of: After,
        epsilon: float,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
    ) -> Tensor:
        norm = Norm(scale, shift, epsilon)
        y, kept = cpu_norm.layer_outward(x.t(), norm, of)
        ctx.save_for_backward(x, kept, scale, shift)
        ctx.of = of
        ctx.epsilon = epsilon
        return own(y.t())

    @staticmethod
    def backward(ctx: AutogradContext, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, scale, shift = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _again(ctx, _of_samples, x, scale, shift, dy)
        norm = Norm(scale, shift, ctx.epsilon)
        dy = operands.feature_major(dy)
        dx, *others = cpu_norm.layer_inward(kept, dy.t(), norm, ctx.of)
        return None, None, own(dx.t()), *others


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: AutogradContext,
        of: After,
        epsilon: float,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
    ) -> tuple[Tensor, Tensor]:
        norm = Norm(scale, shift, epsilon)
        y, moments = cpu_norm.batch_outward(x.t(), norm, of)
        ctx.save_for_backward(x, moments, scale, shift)
        ctx.mark_non_differentiable(moments)
        ctx.of = of
        ctx.epsilon = epsilon
        return own(y.t()), moments

    @staticmethod
    def backward(
        ctx: AutogradContext, dy: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, moments, scale, shift = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _again(ctx, _of_batch, x, scale, shift, dy)
        norm = Norm(scale, shift, ctx.epsilon)
        dy = operands.feature_major(dy)
        dx, *others = cpu_norm.batch_inward(
            x.t(), moments, dy.t(), norm, ctx.of
        )
        return None, None, own(dx.t()), *others


def _of_samples(x: Tensor, norm: Norm) -> Tensor:
    return functional.layer_norm(x, x.shape[1:], *norm)


def _of_batch(x: Tensor, norm: Norm) -> Tensor:
    scale, shift, epsilon = norm
    return functional.batch_norm(
        x, None, None, scale, shift, training=True, eps=epsilon
    )


def _again(
    ctx: AutogradContext,
    normalized: Callable[[Tensor, Norm], Tensor],
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    dy: Tensor,
) -> tuple[Tensor | None, ...]:
    """Compute the gradients by steps that have derivatives themselves."""
    y = ACTIVATIONS[ctx.of.kind](
        ctx.of, normalized(x, Norm(scale, shift, ctx.epsilon))
    )
    needed = ctx.needs_input_grad[2:]
    given = [
        tensor for tensor, needs in zip((x, scale, shift), needed) if needs
    ]
    found = iter(torch.autograd.grad(y, given, dy, create_graph=True))
    return None, None, *(next(found) if needs else None for needs in needed)
