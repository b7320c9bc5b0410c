"""Weight initialization: the distributions of a sparse layer's values."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def fan_in_(
    values: Float[Tensor, "nnz"],
    shape: tuple[int, int],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "nnz"]:
    r"""Fill uniformly in :math:`\pm 1 / \sqrt n`, where n is the mean number of inputs of a row.

    The distribution of ``nn.Linear`` and ``nn.Conv1d``, with the connections that there are in
    place of the columns: a weight has variance :math:`1 / 3n`, so that the outputs of a sparse
    layer vary as much as those of the dense one. The default of `CSRLinear` and `SparseConv1d`.
    """
    mean = values.numel() / max(shape[0], 1)
    bound = max(mean, 1e-12) ** -0.5
    return values.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def sparse_xavier_(
    values: Float[Tensor, "nnz"],
    shape: tuple[int, int],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "nnz"]:
    r"""Fill from Ertl's normal, :math:`\sigma = 2 / \sqrt{(N_{in} + N_{out})(1 - s)}` (3.2.1).

    The density :math:`1 - s` is that of the layer as it is, nnz / cells.
    """
    density = values.numel() / max(shape[0] * shape[1], 1)
    return (
        xavier_(values, shape, generator).div_(math.sqrt(density))
        if density
        else values
    )


@torch.no_grad()
def xavier_(
    values: Float[Tensor, "nnz"],
    shape: tuple[int, int],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "nnz"]:
    r"""Fill from Ertl's "Xavier" normal, :math:`\sigma = 2 / \sqrt{N_{in} + N_{out}}` (3.2.1).

    Glorot and Bengio's normal has :math:`\sqrt{2 / (N_{in} + N_{out})}`, smaller by
    :math:`\sqrt 2`; the paper's is kept as printed.
    """
    return values.normal_(
        0.0, 2 / math.sqrt(max(sum(shape), 1)), generator=generator
    )


@torch.no_grad()
def linear_(
    values: Float[Tensor, "nnz"],
    shape: tuple[int, int],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "nnz"]:
    r"""Fill from the distribution of ``nn.Linear``, uniform in :math:`\pm 1 / \sqrt{N_{in}}`.

    What is left if the weights of a dense layer are masked, as in Radu's program: the sparser the
    layer, the smaller its outputs.
    """
    bound = max(shape[1], 1) ** -0.5
    return values.uniform_(-bound, bound, generator=generator)
