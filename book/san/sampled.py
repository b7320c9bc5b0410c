"""One kernel that is read at several scales: a sampled kernel of Bizopoulos and Koutsouris."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

import sparselib as sl


class Sampled(nn.Module):
    """A network whose kernels are one kernel at several scales, each of its norm (Section V).

    Parameters
    ----------
    kernel : tensor
        The kernel at initialization; it is copied.
    scales : sequence of float
        Lengths of the kernels in units of its own; they are read by linear interpolation.
    """

    def __init__(self, kernel: Tensor, scales: Sequence[float]) -> None:
        super().__init__()
        self.kernel = nn.Parameter(kernel.detach().clone())
        self.sizes = [max(round(share * len(kernel)), 2) for share in scales]
        across = partial(sl.nn.extrema, tolerance=3, across=True)
        options = {"together": True, "definition": "code", "dtype": kernel.dtype}
        # in a list, so that its kernels, which are replaced, are no parameters
        self.frame = [sl.SAN(self.sizes, across, **options)]

    def kernels(self) -> dict[str, Tensor]:
        """Return the kernel at every scale, under the names of the network's parameters."""
        norm = self.kernel.norm()
        grown = (
            functional.interpolate(self.kernel[None, None], m, mode="linear", align_corners=True)
            for m in self.sizes
        )
        return {f"kernels.{i}": k[0, 0] * norm / k.norm() for i, k in enumerate(grown)}

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction."""
        return torch.func.functional_call(self.frame[0], self.kernels(), x)
