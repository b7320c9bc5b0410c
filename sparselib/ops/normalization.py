"""Normalizations of samples that lie feature by feature, and the activations behind them."""

import torch
from torch import Tensor

from sparselib._types import AutogradContext
from sparselib.ops import between, operands
from sparselib.ops.backends import After, Norm, cpu, cpu_norm
from sparselib.ops.dispatch import fast
from sparselib.ops.registration import own

NOTHING = After("nothing")
# samples from which on a layer's takes less time than torch takes for them: a fourth of a tile
FEWEST = 16


def normalized(x: Tensor, norm: Norm, of: After = NOTHING) -> Tensor | None:
    r"""Return :math:`f(\gamma h + \beta)` of numbers h with mean 0 and variance 1.

    :math:`h = (x - \mu) / \sqrt{\sigma^2 + \varepsilon}` with the mean and the variance over the
    features of each sample (Ba, Kiros and Hinton, 2016, Equation 4), or over the batch for each
    feature (Ioffe and Szegedy, 2015, Algorithm 1), which the normalization keeps then.
    Differentiable, also twice.

    Parameters
    ----------
    x : Tensor, shape (samples, features)
        Activations.
    norm : Norm
        :math:`\gamma`, :math:`\beta` and :math:`\varepsilon`, and of a batch what keeps its
        moments.
    of : After, optional
        The activation f; by default none.

    Returns
    -------
    Tensor or None
        As x, feature by feature; None where no kernel does it, x does not lie that way, or there
        are too few samples.
    """
    if not _is_for_kernels(x, norm):
        return None
    y: Tensor
    y, kept = _Normalized.apply(of, norm, x, norm.scale, norm.shift)
    if norm.keep is not None:
        mean, variance = kept.unbind(1)
        norm.keep(mean, variance * (len(x) / (len(x) - 1)))
    return y


def _is_for_kernels(x: Tensor, norm: Norm) -> bool:
    """Whether there are kernels for x, and it lies feature by feature."""
    return (
        fast(x, norm.scale, norm.shift) is cpu
        and x.ndim == 2
        and len(x) >= (FEWEST if norm.keep is None else 2)
        and x.stride() == (1, len(x))
        and norm.scale.shape == norm.shift.shape == x.shape[1:]
    )


class _Normalized(torch.autograd.Function):
    """Returns what is kept for the way back, too: of a batch, its mean and variance."""

    @staticmethod
    def forward(
        ctx: AutogradContext,
        of: After,
        norm: Norm,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
    ) -> tuple[Tensor, Tensor]:
        y, kept = cpu_norm.outward(x.t(), norm, of)
        ctx.save_for_backward(x, kept, scale, shift)
        ctx.mark_non_differentiable(kept)
        ctx.of = of
        ctx.norm = norm
        return own(y.t()), kept

    @staticmethod
    def backward(
        ctx: AutogradContext, dy: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, kept, scale, shift = ctx.saved_tensors
        norm = ctx.norm._replace(scale=scale, shift=shift)
        if torch.is_grad_enabled():
            return _again(ctx, x, norm, dy)
        dy = operands.feature_major(dy).t()
        dx, *others = cpu_norm.inward(x.t(), kept, dy, norm, ctx.of)
        return None, None, own(dx.t()), *others


def _again(
    ctx: AutogradContext, x: Tensor, norm: Norm, dy: Tensor
) -> tuple[Tensor | None, ...]:
    """Compute the gradients by steps that have derivatives themselves."""
    y = between.ACTIVATIONS[ctx.of.kind](ctx.of, between.normalized(x, norm))
    needed = ctx.needs_input_grad[2:]
    learned = (x, norm.scale, norm.shift)
    given = [tensor for tensor, needs in zip(learned, needed) if needs]
    found = iter(torch.autograd.grad(y, given, dy, create_graph=True))
    return None, None, *(next(found) if needs else None for needs in needed)
