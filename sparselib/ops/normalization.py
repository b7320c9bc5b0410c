"""Normalizations of samples that lie feature by feature, and the activations behind them."""

import torch
from torch import Tensor

from sparselib._types import AutogradContext
from sparselib.ops import operands
from sparselib.ops.backends import After, Norm, cpu, cpu_norm
from sparselib.ops.between import ACTIVATIONS, normalized
from sparselib.ops.dispatch import fast
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
    y: Tensor = _LayerNorm.apply(of, norm, x, norm.scale, norm.shift)
    return y


def batch_normalized(
    x: Tensor, norm: Norm, of: After = NOTHING
) -> Tensor | None:
    r"""Return :math:`f(\gamma h + \beta)`, of each feature with mean 0 and variance 1 in the batch.

    :math:`h = (x - \mu) / \sqrt{\sigma^2 + \varepsilon}` with the mean and the variance over the
    samples (Ioffe and Szegedy, 2015, Algorithm 1). Differentiable, also twice.

    Parameters
    ----------
    x, of
        As in `layer_normalized`.
    norm : Norm
        Likewise; mean and variance are kept by it.

    Returns
    -------
    Tensor or None
        As x, feature by feature; None where no kernel does it.
    """
    if norm.keep is None or not _is_for_kernels(x, norm):
        return None
    y: Tensor
    y, moments = _BatchNorm.apply(of, norm, x, norm.scale, norm.shift)
    mean, variance = moments.unbind(1)
    norm.keep(mean, variance * (len(x) / (len(x) - 1)))
    return y


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
        norm: Norm,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
    ) -> Tensor:
        y, kept = cpu_norm.layer_outward(x.t(), norm, of)
        ctx.save_for_backward(x, kept, scale, shift)
        ctx.of = of
        ctx.norm = norm
        return own(y.t())

    @staticmethod
    def backward(ctx: AutogradContext, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, scale, shift = ctx.saved_tensors
        norm = ctx.norm._replace(scale=scale, shift=shift)
        if torch.is_grad_enabled():
            return _again(ctx, x, norm, dy)
        dy = operands.feature_major(dy)
        dx, *others = cpu_norm.layer_inward(kept, dy.t(), norm, ctx.of)
        return None, None, own(dx.t()), *others


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: AutogradContext,
        of: After,
        norm: Norm,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
    ) -> tuple[Tensor, Tensor]:
        y, moments = cpu_norm.batch_outward(x.t(), norm, of)
        ctx.save_for_backward(x, moments, scale, shift)
        ctx.mark_non_differentiable(moments)
        ctx.of = of
        ctx.norm = norm
        return own(y.t()), moments

    @staticmethod
    def backward(
        ctx: AutogradContext, dy: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, moments, scale, shift = ctx.saved_tensors
        norm = ctx.norm._replace(scale=scale, shift=shift)
        if torch.is_grad_enabled():
            return _again(ctx, x, norm, dy)
        dy = operands.feature_major(dy)
        dx, *others = cpu_norm.batch_inward(
            x.t(), moments, dy.t(), norm, ctx.of
        )
        return None, None, own(dx.t()), *others


def _again(
    ctx: AutogradContext, x: Tensor, norm: Norm, dy: Tensor
) -> tuple[Tensor | None, ...]:
    """Compute the gradients by steps that have derivatives themselves."""
    y = ACTIVATIONS[ctx.of.kind](ctx.of, normalized(x, norm))
    needed = ctx.needs_input_grad[2:]
    learned = (x, norm.scale, norm.shift)
    given = [tensor for tensor, needs in zip(learned, needed) if needs]
    found = iter(torch.autograd.grad(y, given, dy, create_graph=True))
    return None, None, *(next(found) if needs else None for needs in needed)
