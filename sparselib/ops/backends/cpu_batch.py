"""Batch normalizations in kernels that carry a tile of samples at a time through a whole network.

Tiles wait in front of each: a kernel is called once for each stage of its way, and between two
calls is found what all tiles together have to know.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparselib.ops.backends import After, Norm, cpu_work
from sparselib.ops.backends.cpu_arguments import (
    BACK,
    COUNTERS,
    OUT,
    TILE,
    Descent,
    Inward,
    Level,
    Outward,
    Parts,
    bits_of,
)
from sparselib.ops.backends.cpu_launch import Made, kernels_of, launch, start

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
    return cpu_work.ceil(2 * features, TILE)


def further_out(
    kernel: Callable[[], Made],
    shared: "array[int]",
    places: Descent | Outward,
    waiting: Sequence[Waiting],
    written: Tensor,
    samples: int,
    threads: int,
) -> list[Moments]:
    """Have tiles go on behind each layer where they wait, in order; return what each has found.

    The kernel has been started with these arguments, of which `places` tells where each stands, and
    has written of each tile.
    """
    found: list[Moments] = []
    for layer in waiting:
        found.append(layer.go_on(written, samples))
        _go_on(kernel, shared, places, OUT, layer, threads)
    return found


def further_back(
    kernel: Callable[[], Made],
    shared: "array[int]",
    places: Descent | Inward,
    waiting: Sequence[Waiting],
    gradients: Tensor,
    samples: int,
    threads: int,
) -> None:
    """Have tiles go on in front of each layer where they wait on the way back, in reverse order."""
    for layer in reversed(waiting):
        layer.go_back(gradients, samples)
        _go_on(kernel, shared, places, BACK, layer, threads)


def _go_on(
    kernel: Callable[[], Made],
    shared: "array[int]",
    places: Descent | Outward | Inward,
    way: int,
    layer: Waiting,
    threads: int,
) -> None:
    """Start a kernel where tiles wait, with arguments that are otherwise as they were."""
    for counter in range(COUNTERS):
        shared[counter] = 0
    shared[places.way] = way
    shared[places.begin] = layer.begin
    start(kernel, shared.buffer_info()[0], threads)
