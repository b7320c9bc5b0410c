"""Batch normalizations in kernels that carry a tile of samples at a time through a whole network.

Tiles wait in front of each: a kernel is called once for each stage of its way, and between two
calls is found what all tiles together have to know.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparselib.ops.backends import After, Norm
from sparselib.ops.backends.cpu_arguments import (
    COUNTERS,
    TILE,
    Descent,
    Inward,
    Level,
    Outward,
    Parts,
    bits_of,
)
from sparselib.ops.backends.cpu_launch import Made, kernels_of, launch, start

# OUT or BACK, and where it begins in the table of levels, or NOWHERE
Stage = tuple[int, int]
# mean, and variance as if divided by one sample less, of each feature of a batch
Moments = tuple[Tensor, Tensor]


class Waiting(NamedTuple):
    """A layer behind whose sums tiles wait for each other."""

    begin: int  # where it stands in the table of levels
    level: Level
    norm: Norm
    known: Tensor  # float32 [4, rows], see `known_of`

    def go_on(self, written: Tensor, samples: int) -> Moments:
        """Put together what a kernel has noted of the features of each tile of samples."""
        first = self.level.sums + self.level.rows * TILE
        found = torch.empty(2, self.level.rows)
        self._run("moments", written[:, first:], samples, self.known, found)
        return found[0], found[1]

    def go_back(self, gradients: Tensor, samples: int) -> None:
        """Put together what tiles have written as gradients of the scaling."""
        parts = gradients[:, self.level.dscale :]
        self._run("means", parts, samples, self.known[2:], None)

    def _run(
        self,
        name: str,
        parts: Tensor,
        samples: int,
        known: Tensor,
        found: Tensor | None,
    ) -> None:
        block = Parts(
            rows=self.level.rows,
            samples=samples,
            parts=parts.data_ptr(),
            stride=parts.stride(0),
            epsilon=bits_of(self.norm.epsilon),
            known=known.data_ptr(),
            found=0 if found is None else found.data_ptr(),
        )
        kernel = getattr(kernels_of("cpu_norm_kernels"), name)
        launch(kernel, block, products=0)


def known_of(after: Sequence[After]) -> list[Tensor | None]:
    """Return room for what is known of the batch behind each layer: (4, features), or None.

    Mean and 1 / sigma of each feature, and on the way back the mean of its gradient times the
    normalized feature, and of its gradient.
    """
    return [
        torch.empty(4, len(of.norm.scale))
        if of.norm is not None and of.is_of_batch
        else None
        for of in after
    ]


def parts(features: int) -> int:
    """Return how many times `TILE` numbers hold what a tile notes of its features."""
    return -(-2 * features // TILE)


def run(
    kernel: Callable[[], Made],
    shared: "array[int]",
    places: Descent | Outward | Inward,
    stage: Stage,
    threads: int,
) -> None:
    """Run a kernel on a stage of its way, with arguments that are otherwise as they were."""
    way, begin = stage
    for counter in range(COUNTERS):
        shared[counter] = 0
    shared[places.way] = way
    shared[places.begin] = begin
    start(kernel, shared.buffer_info()[0], threads)
