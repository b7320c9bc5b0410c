"""Where connections are at initialization.

Every function returns sorted positions row * columns + column.

Sparsity, in [0, 1), is the only public measure of emptiness; counts come from it here.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparselib.ranking import ascending, draw


def connections(out_features: int, in_features: int, sparsity: float) -> int:
    """Number of weights N_w = N_in N_out (1 - sparsity), to the nearest integer (Ertl, 3.2.1).

    Raises
    ------
    ValueError
        If `sparsity` is outside [0, 1) or a size is negative.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), not {sparsity}")
    if out_features < 0 or in_features < 0:
        raise ValueError(
            f"sizes cannot be negative: {out_features} x {in_features}"
        )
    return round(out_features * in_features * (1 - sparsity))


def even_fan_in(
    out_features: int,
    in_features: int,
    sparsity: float,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "nnz"]:
    r"""Ertl's topology: :math:`n_w = N_w / N_{out}` weights per neuron, one in each equal slice.

    The inputs of a neuron with :math:`n` weights are cut into :math:`n` slices
    :math:`[\lfloor j N_{in}/n \rfloor, \lfloor (j+1) N_{in}/n \rfloor)` and one input is drawn
    uniformly from each (Ertl, Section 3.2.1). The paper does not state what happens when
    :math:`n_w` is no integer. Here the total :math:`N_w` is kept exactly: every neuron has
    :math:`\lfloor n_w \rfloor` weights, and the remaining :math:`N_w \bmod N_{out}` go one each to
    neurons drawn at random. So where :math:`n_w < 1`, as with the 28 inputs of HIGGS at 97 %, some
    neurons start with none.
    """
    total = connections(out_features, in_features, sparsity)
    counts = torch.full((out_features,), total // max(out_features, 1))
    counts[draw(out_features, total % max(out_features, 1), generator)] += 1
    rows = torch.repeat_interleave(torch.arange(out_features), counts)
    slices = torch.arange(total) - (counts.cumsum(0) - counts)[rows]
    start = slices * in_features // counts[rows]
    width = (slices + 1) * in_features // counts[rows] - start
    # below 1 by at least 2^-53, so that its product with a width never rounds up to it
    uniform = torch.rand(total, dtype=torch.float64, generator=generator)
    return rows * in_features + start + (uniform * width).long()


def erdos_renyi(
    out_features: int,
    in_features: int,
    sparsity: float,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "nnz"]:
    """Exactly N_in N_out (1 - sparsity) connections, every set of that size equally likely.

    The random graph G(n, M) of Erdős and Rényi (1959). Mocanu et al. (2018) and Radu (Eq. 1) give
    every cell the same probability instead, so that the count holds on average only.
    """
    count = connections(out_features, in_features, sparsity)
    return draw(out_features * in_features, count, generator)


def epsilon_to_sparsity(
    out_features: int, in_features: int, epsilon: float
) -> float:
    r"""Sparsity of a layer with :math:`\epsilon (n^k + n^{k-1})` connections (Radu, Eq. 1).

    Clipped at 0, where the layer has no more cells than that.

    Raises
    ------
    ValueError
        If `epsilon` is not above 0, or the layer has no cells.
    """
    cells = out_features * in_features
    if not epsilon > 0 or cells <= 0:
        raise ValueError(
            f"epsilon must be above 0 and the layer have cells, not epsilon={epsilon} for "
            f"{out_features} x {in_features}"
        )
    return max(0.0, 1 - epsilon * (out_features + in_features) / cells)


def sparsity_to_epsilon(
    out_features: int, in_features: int, sparsity: float
) -> float:
    """Invert `epsilon_to_sparsity`, except where it was clipped."""
    cells = out_features * in_features
    if not 0 <= sparsity < 1 or cells <= 0:
        raise ValueError(
            f"sparsity must lie in [0, 1) and the layer have cells, not sparsity={sparsity} for "
            f"{out_features} x {in_features}"
        )
    return (1 - sparsity) * cells / (out_features + in_features)


class Region(NamedTuple):
    """The cells of a matrix that may hold a connection: the first taps of its kernels.

    The columns of a convolution are (channel, tap). Filter `o` may read the first ``reach[o]`` of
    its `taps` in every channel. Where all columns are open, they are one kernel of full reach.

    Attributes
    ----------
    reach : Tensor, int64, shape (rows,)
        Open taps of each row.
    taps : int
        Length of a kernel.
    columns : int
        Channels times taps.
    is_whole : bool
        Whether it is known that every cell is open, so that nothing has to be looked at.
    order : Tensor, int64, shape (taps,), optional
        The taps as they are opened, the first one first; by default as they are numbered.
    """

    reach: Tensor
    taps: int
    columns: int
    is_whole: bool = False
    order: Tensor | None = None

    @classmethod
    def outward(
        cls, reach: Int[Tensor, "rows"], kernel: Sequence[int], channels: int
    ) -> "Region":
        """Return a region of kernels that are opened from the middle, ring by ring.

        A ring of an image's kernel is a square without its inside. Within a ring taps are opened
        as they are numbered. ``reach`` 9 leaves the inner 3 x 3 taps of a kernel of 5 x 5.
        """
        taps = math.prod(kernel)
        order = _rings(kernel).sort(stable=True).indices.to(reach.device)
        return cls(reach, taps, channels * taps, order=order)

    @property
    def room(self) -> Int[Tensor, "rows"]:
        """Number of open cells of each row."""
        return self.reach * (self.columns // self.taps)

    def mask(self, rows: Int[Tensor, "some"]) -> Bool[Tensor, "some columns"]:
        """Return which cells of some rows are open."""
        tap = torch.arange(self.columns, device=rows.device) % self.taps
        return self._opened(tap) < self.reach[rows, None]

    def number(
        self, cells: Int[Tensor, "cells"], rows: Int[Tensor, "some"]
    ) -> Int[Tensor, "cells"]:
        """Count open cells of some rows as if no others existed; `cells` are counted with all."""
        if self.is_whole:
            return cells
        place = cells // self.columns
        column = cells % self.columns
        room = self.room[rows]
        reach = self.reach[rows]
        before = (room.cumsum(0) - room)[place]
        tap = column % self.taps
        if self.order is not None:
            tap = (self._open().cumsum(1) - 1)[reach[place], tap]
        return before + column // self.taps * reach[place] + tap

    def position(
        self, numbers: Int[Tensor, "cells"], rows: Int[Tensor, "some"]
    ) -> Int[Tensor, "cells"]:
        """Return the position of each cell that `number` counts."""
        if self.is_whole and rows.numel() == self.reach.numel():
            return numbers
        room = self.room[rows]
        ends = room.cumsum(0)
        place = torch.searchsorted(ends, numbers, right=True)
        rest = numbers - (ends - room)[place]
        row = rows[place]
        reach = self.reach[row]
        tap = rest % reach
        if self.order is not None:
            tap = (~self._open()).int().argsort(dim=1, stable=True)[reach, tap]
        return row * self.columns + rest // reach * self.taps + tap

    def check(self, positions: Int[Tensor, "nnz"]) -> None:
        """Raise ValueError, naming the first, if a position lies outside; other faults pass."""
        if self.is_whole:
            return
        outside = self.holds(positions).logical_not().nonzero()
        if outside.numel():
            position = int(positions[outside[0]])
            row = int(self._rows(positions[outside[0]]))
            few = int(self.reach[row])
            which = (
                f"the first {few} taps"
                if self.order is None
                else f"taps {sorted(self.order[:few].tolist())}"
            )
            raise ValueError(
                f"position {position} is tap {position % self.taps} of filter {row}, which may use "
                f"only {which}"
            )

    def holds(self, positions: Int[Tensor, "nnz"]) -> Bool[Tensor, "nnz"]:
        """Return which positions are open cells."""
        if self.is_whole:
            return torch.ones_like(positions, dtype=torch.bool)
        opened = self._opened(positions % self.taps)
        return opened < self.reach[self._rows(positions)]

    def _rows(self, positions: Int[Tensor, "nnz"]) -> Int[Tensor, "nnz"]:
        last = max(len(self.reach) - 1, 0)
        return (positions // max(self.columns, 1)).clamp(0, last)

    def _opened(self, taps: Int[Tensor, "some"]) -> Int[Tensor, "some"]:
        """Return how many taps are opened before each."""
        return taps if self.order is None else self.order.argsort()[taps]

    def _open(self) -> Bool[Tensor, "reaches taps"]:
        """Return which taps a kernel of each reach, from 0 on, may use."""
        taps = torch.arange(self.taps, device=self.reach.device)
        reach = torch.arange(self.taps + 1, device=self.reach.device)
        return self._opened(taps) < reach[:, None]

    def groups(self) -> list[Int[Tensor, "group"]]:
        """Return the rows of each run of equal reach."""
        sizes = torch.unique_consecutive(self.reach, return_counts=True)[1]
        return list(
            torch.arange(len(self.reach), device=self.reach.device).split(
                sizes.tolist()
            )
        )


def kernel_regions(
    out_channels: int, kernel_size: int | tuple[int, int], groups: int = 3
) -> Int[Tensor, "filters"]:
    r"""Return how many taps each filter may use, so that receptive fields differ (Xiao, 2022).

    The filters are cut into equal groups, the last one smaller if need be, and group
    :math:`g = 0, 1, \dots` reads the first :math:`(g + 1) \lfloor k / groups \rfloor` taps. With
    three groups and 30 taps that is 10, 20 and 30. Where `groups` does not divide the kernel size,
    the last taps are open to no filter, as in the authors' program.

    For kernels of images, which the paper does not have, it is as many rings around the middle
    instead of taps: with three groups of 5 x 5 they are 1 x 1, 3 x 3 and 5 x 5.

    Raises
    ------
    ValueError
        If a group would have no tap.
    """
    if isinstance(kernel_size, Sequence):
        unit = "ring of taps"
        rings = _rings(kernel_size)
    else:
        unit = "tap"
        rings = torch.arange(kernel_size, device="cpu")
    sizes = torch.bincount(rings).cumsum(0)  # taps of the first rings
    if not 1 <= groups <= len(sizes):
        raise ValueError(
            f"{groups} groups of filters need at least one {unit} each; a kernel of {kernel_size} "
            f"has too few"
        )
    group = torch.arange(out_channels, device="cpu") // max(
        math.ceil(out_channels / groups), 1
    )
    return sizes[(group + 1) * (len(sizes) // groups) - 1]


def _rings(kernel: Sequence[int]) -> Int[Tensor, "taps"]:
    """Return how far each tap of a kernel is from the middle, in the direction of the farthest."""
    away = [
        (torch.arange(k, device="cpu") - (k - 1) // 2).abs() for k in kernel
    ]
    return torch.cartesian_prod(*away).view(-1, len(kernel)).amax(1)


def scattered(
    region: Region, sparsity: float, generator: torch.Generator | None = None
) -> Int[Tensor, "nnz"]:
    r"""Draw connections uniformly in a region, :math:`\lfloor (1 - S) n_g \rfloor` per group.

    Sparsity is relative to the :math:`n_g` open cells of a group, so the kernels as a whole are
    sparser than `sparsity`. ``remain_random`` in the program of Xiao and others (2022).

    Raises
    ------
    ValueError
        If `sparsity` is outside [0, 1).
    """
    found = [
        region.position(
            draw(int(region.room[rows].sum()), count, generator), rows
        )
        for rows, count in _shares(region, sparsity)
    ]
    return torch.cat(found)


def first_taps(
    region: Region, sparsity: float, generator: torch.Generator | None = None
) -> Int[Tensor, "nnz"]:
    """Put as many connections as `scattered` on the first tap of all kernels, then on the next.

    ``remain_sort`` in the program of Xiao and others (2022), which its instructions use. Nothing
    is drawn; at 95 % the kernels are one or two taps wide at initialization.
    """
    channels = region.columns // region.taps
    found = []
    for rows, count in _shares(region, sparsity):
        order = torch.arange(count)
        tap = order // (len(rows) * channels)
        pair = order % (len(rows) * channels)
        found.append(
            rows[pair // channels] * region.columns
            + pair % channels * region.taps
            + (tap if region.order is None else region.order[tap])
        )
    return ascending(torch.cat(found))


def _shares(region: Region, sparsity: float) -> Iterator[tuple[Tensor, int]]:
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), not {sparsity}")
    for rows in region.groups():
        # rounded first, because 1 - 0.8 is a little less than 0.2
        yield (
            rows,
            math.floor(round(int(region.room[rows].sum()) * (1 - sparsity), 6)),
        )
