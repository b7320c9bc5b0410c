"""One line from an ordinary model to a sparse one."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from sparselib.nn.linear import CSRLinear


def sparsify(
    model: nn.Module, sparsity: float, skip: Iterable[str] = (), fresh: bool = False, **options: Any
) -> nn.Module:
    """Replace every ``nn.Linear`` of `model` by a `CSRLinear`, in place, and return the model.

    Parameters
    ----------
    model : nn.Module
        Any model; a bare ``nn.Linear`` is converted and returned.
    sparsity : float
        Share of absent weights, in [0, 1).
    skip : names
        Layers to leave dense, by their names in ``model.named_modules()``.
    fresh : bool
        Draw a new topology and new weights, to train from scratch. By default the largest
        weights of each layer are kept as they are.
    **options
        Passed on to `CSRLinear`.

    Raises
    ------
    ValueError
        If a name in `skip` is no ``nn.Linear`` of the model, or nothing is left to convert.
    """
    skip = set(skip)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if unknown := skip - linears.keys():
        raise ValueError(
            f"skip names {sorted(unknown)}, but the nn.Linear layers are {sorted(linears)}"
        )
    converted = {
        linear: _convert(linear, sparsity, fresh, options)
        for name, linear in linears.items()
        if name not in skip
    }
    if not converted:
        raise ValueError("there is no nn.Linear to convert in this model")
    if model in converted:
        return converted[model]
    for parent in list(model.modules()):
        # named_children would pass over the second use of a shared layer
        for name, child in parent._modules.items():
            if child in converted:
                setattr(parent, name, converted[child])
    return model


def _convert(linear: nn.Linear, sparsity: float, fresh: bool, options: dict[str, Any]) -> CSRLinear:
    if not fresh:
        return CSRLinear.from_dense(linear, sparsity, **options)
    return CSRLinear(
        linear.in_features,
        linear.out_features,
        sparsity,
        linear.bias is not None,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
        **options,
    ).train(linear.training)
