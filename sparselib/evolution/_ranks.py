"""The processes that train one model together, as ``torch.distributed`` knows them."""

from typing import Literal

import torch
from torch import Tensor, distributed

from sparselib.csr import CSR, fingerprint

Group = distributed.ProcessGroup | Literal["alone"] | None


class Ranks:
    """The processes that evolve alike; this one alone where nothing else was set up.

    Parameters
    ----------
    group : ProcessGroup, "alone" or None
        Who trains together. None is all processes if ``torch.distributed`` is initialized.
        ``"alone"`` is for a process that trains a model of its own although it is.
    """

    def __init__(self, group: Group = None) -> None:
        is_set_up = distributed.is_available() and distributed.is_initialized()
        self._group = None if isinstance(group, str) else group
        self.count = 1
        if is_set_up and group != "alone":
            self.count = distributed.get_world_size(self._group)

    def average(self, tensor: Tensor) -> Tensor:
        """Return the mean over all processes, equal in every bit on each of them."""
        if self.count == 1:
            return tensor
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=self._group)
        return total / self.count

    def share(self, tensor: Tensor) -> Tensor:
        """Return the tensor of the first process."""
        if self.count == 1:
            return tensor
        first = (
            0
            if self._group is None
            else distributed.get_global_rank(self._group, 0)
        )
        shared = tensor.detach().clone(memory_format=torch.contiguous_format)
        distributed.broadcast(shared, first, group=self._group)
        return shared

    def is_true_everywhere(self, fact: bool, like: Tensor) -> bool:
        """Whether a fact holds in every process."""
        if self.count == 1:
            return fact
        share = self.average(torch.full((1,), float(fact), device=like.device))
        return float(share) == 1.0

    def hold_the_same(self, csr: CSR, values: Tensor) -> bool:
        """Whether connections and, but for rounding, weights are equal in every process."""
        if self.count == 1:
            return True
        number = fingerprint(csr.positions)
        pattern = torch.stack([torch.full_like(number, csr.nnz), number])
        is_equal = torch.equal(pattern, self.share(pattern))
        if not self.is_true_everywhere(is_equal, values):
            return False
        first = self.share(values)
        distance = (values.detach() - first).norm()
        is_near = bool(distance <= 1e-3 * first.norm())
        return self.is_true_everywhere(is_near, values)
