"""One line from an ordinary model to a sparse one."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from sparselib.nn.conv import SparseConv1d
from sparselib.nn.linear import CSRLinear


def sparsify(
    model: nn.Module,
    sparsity: float,
    skip: Iterable[str] = (),
    fresh: bool = False,
    *,
    convolutions: bool = False,
    **options: Any,
) -> nn.Module:
    """Replace every ``nn.Linear`` of `model` by a `CSRLinear`, in place, and return the model.

    Parameters
    ----------
    model : nn.Module
        Any model; a bare layer is converted and returned. Classes derived from ``nn.Linear`` stay
        dense, for whoever wrote them reads the weight: the output of ``nn.MultiheadAttention``.
    sparsity : float
        Share of absent weights, in [0, 1).
    skip : names
        Layers to leave dense, by their names in ``model.named_modules()``.
    fresh : bool
        Draw a new topology and new weights, to train from scratch. By default the largest
        weights of each layer are kept as they are.
    convolutions : bool
        Replace every ``nn.Conv1d`` by a `SparseConv1d` too.
    **options
        Passed on to `CSRLinear` and `SparseConv1d`.

    Raises
    ------
    ValueError
        If a name in `skip` is no layer that would be converted, nothing is left to convert, or a
        convolution has a stride or does not keep the length.
    """
    kinds = (nn.Linear, nn.Conv1d) if convolutions else (nn.Linear,)
    what = " and ".join(f"nn.{kind.__name__}" for kind in kinds)
    skip = set(skip)
    layers = {name: m for name, m in model.named_modules() if type(m) in kinds}
    if unknown := skip - layers.keys():
        raise ValueError(
            f"skip names {sorted(unknown)}, but the {what} layers are {sorted(layers)}"
        )
    converted = {
        layer: _convert(layer, sparsity, fresh, options)
        for name, layer in layers.items()
        if name not in skip
    }
    if not converted:
        raise ValueError(f"there is no {what} to convert in this model")
    if model in converted:
        return converted[model]
    for parent in list(model.modules()):
        # named_children would pass over the second use of a shared layer
        for name, child in parent._modules.items():
            if child in converted:
                setattr(parent, name, converted[child])
                if isinstance(parent, nn.TransformerEncoderLayer):
                    parent.activation_relu_or_gelu = 0  # its fused inference reads dense weights
    return model


def _convert(layer: Any, sparsity: float, fresh: bool, options: dict[str, Any]) -> nn.Module:
    kind: Any = SparseConv1d if isinstance(layer, nn.Conv1d) else CSRLinear
    if not fresh:
        return kind.from_dense(layer, sparsity, **options)
    return kind(sparsity=sparsity, **kind.arguments_of(layer), **options).train(layer.training)
