"""Dropout that takes no longer than a sparse layer."""

import torch
from torch import Tensor, nn

from sparselib.ops.backends import cpu, cpu_noise
from sparselib.ops.dispatch import fast


class Dropout(nn.Module):
    r"""Set each activation to zero with probability p in training, and divide the rest by 1 - p.

    The distribution of ``nn.Dropout`` (Srivastava et al., 2014), whose random numbers take longer
    on the CPU than a sparse product does. Four activations share one draw of 64 bits here, so that
    p is a multiple of :math:`2^{-16}`: 0.3 is 0.300003, and what is kept is divided by its
    complement. In float32 on the CPU a kernel draws them by SplitMix64 (Steele, Lea and Flood,
    2014), with a seed from torch's generator; elsewhere torch does.

    Parameters
    ----------
    p : float
        Probability of zero, in [0, 1].

    Raises
    ------
    ValueError
        If `p` is no probability.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"a dropout is a probability, in [0, 1], not {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with zeros in training, else `x` itself."""
        if not self.training or self.p == 0:
            return x
        return x * self.factors(x)

    def factors(self, x: Tensor) -> Tensor:
        """Draw what `x` is multiplied by in training: 0, or 1 over the probability to be kept.

        In the order of x in memory, which a sparse product returns feature by feature.
        """
        kept = round((1 - self.p) * 2**16)
        if fast(x) is cpu:
            return cpu_noise.draw(torch.empty_like(x), kept)
        draws = torch.empty(
            -(-x.numel() // 4), dtype=torch.int64, device=x.device
        )
        draws.random_(-(2**63), None)
        strides = torch.empty_like(x, device="meta").stride()
        lanes = draws.view(torch.int16).as_strided(x.shape, strides)
        # compared as signed numbers, of which 2^15 are negative; all 2^16 need a step more
        keep = (
            lanes <= kept - 2**15 - 1
            if kept
            else torch.zeros_like(lanes, dtype=torch.bool)
        )
        return keep.to(x.dtype).mul_(2**16 / max(kept, 1))

    def extra_repr(self) -> str:
        """Return the probability."""
        return f"p={self.p}"
