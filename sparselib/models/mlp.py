"""The multilayer perceptron of Ertl and of Radu."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from sparselib.nn import Dropout, chain


class MLP(nn.Module):
    """Layers of the given sizes with an activation between them.

    Parameters
    ----------
    *sizes : int
        Features of the input, of each hidden layer and of the output.
    layer : callable
        ``(in_features, out_features, **options) -> nn.Module``: ``nn.Linear``, `CSRLinear`, ...
    sparsity : float or sequence of float, optional
        One number for all layers, or one for each, as Ertl's 95-99-99-90 %. A None in the sequence
        makes that layer an ``nn.Linear``.
    activation : callable
        Makes the activation module.
    dropout : float
        Probability that an activation is set to zero in training.
    **options
        Passed on to every layer.

    Raises
    ------
    ValueError
        If there are fewer than two sizes, or not one sparsity per layer.
    """

    def __init__(
        self,
        *sizes: int,
        layer: Callable[..., nn.Module] = nn.Linear,
        sparsity: float | Sequence[float | None] | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
        **options: object,
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(
                f"an MLP needs at least two sizes, input and output, not {sizes}"
            )
        count = len(sizes) - 1
        makers: list[Callable[..., nn.Module]] = [
            partial(layer, **options)
        ] * count
        if sparsity is not None:
            sparsities = (
                [sparsity] * count
                if isinstance(sparsity, float | int)
                else sparsity
            )
            if len(sparsities) != count:
                raise ValueError(
                    f"{count} layers need {count} sparsities or one number, not {list(sparsities)}"
                )
            makers = [
                nn.Linear
                if s is None
                else partial(layer, sparsity=s, **options)
                for s in sparsities
            ]
        self.layers = nn.ModuleList(
            make(*pair) for make, pair in zip(makers, pairwise(sizes))
        )
        self.activation, self.dropout = activation(), Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch classes"]:
        """Flatten each sample and return the last layer's outputs, without activation."""
        activation = self.activation
        if self.training and self.dropout.p > 0:
            activation = nn.Sequential(activation, self.dropout)
        return chain(list(iter(self.layers)), activation, x.flatten(1))
