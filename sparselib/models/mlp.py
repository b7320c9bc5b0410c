"""The multilayer perceptron of Ertl and of Radu."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from sparselib.nn import chain


class MLP(nn.Module):
    """Layers of the given sizes with an activation between them.

    Parameters
    ----------
    *sizes : int
        Features of the input, of each hidden layer and of the output.
    layer : callable
        ``(in_features, out_features, **options) -> nn.Module``: ``nn.Linear``, `CSRLinear`, ...
    sparsity : float or sequence of float, optional
        One number for all layers, or one for each, as Ertl's 95-99-99-90 %.
    activation : callable
        Makes the activation module.
    **options
        Passed on to every layer.

    Raises
    ------
    ValueError
        If there are fewer than two sizes, or not one sparsity a layer.
    """

    def __init__(
        self,
        *sizes: int,
        layer: Callable[..., nn.Module] = nn.Linear,
        sparsity: float | Sequence[float] | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        **options: Any,
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"an MLP needs at least two sizes, input and output, not {sizes}")
        count = len(sizes) - 1
        sparsities = [sparsity] * count if isinstance(sparsity, float | int | None) else sparsity
        if len(sparsities) != count:
            raise ValueError(
                f"{count} layers need {count} sparsities or one number, not {list(sparsities)}"
            )
        self.layers = nn.ModuleList(
            layer(*pair, **options, **({} if s is None else {"sparsity": s}))
            for pair, s in zip(pairwise(sizes), sparsities)
        )
        self.activation = activation()

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Flatten each sample and return the last layer's outputs, without activation."""
        return chain(list(self.layers), self.activation, x.flatten(1))
