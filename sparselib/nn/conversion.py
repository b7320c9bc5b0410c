"""One line from an ordinary model to a sparse one."""

from collections.abc import Iterable
from typing import Unpack

from torch import nn

from sparselib.nn._options import KeptOptions, LayerOptions
from sparselib.nn.conv import SparseConv1d
from sparselib.nn.linear import CSRLinear
from sparselib.nn.sparse_layer import Dense, SparseLayer, sparse_layers


def sparsify(
    model: nn.Module,
    sparsity: float,
    skip: Iterable[str] = (),
    fresh: bool = False,
    *,
    convolutions: bool = False,
    **options: Unpack[LayerOptions],
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
        Draw a new topology and new weights, to train from scratch, by default such that outputs
        vary as those of the dense layer (`sparselib.init.fan_in_`). Otherwise the largest weights
        of each layer are kept as they are.
    convolutions : bool
        Replace every ``nn.Conv1d`` by a `SparseConv1d` too.
    **options
        Passed on to `CSRLinear` and `SparseConv1d`.

    Raises
    ------
    ValueError
        If a name in `skip` is no layer that would be converted, or nothing is left to convert.

    Notes
    -----
    Give the optimizer the groups that a sparse model needs, whose step follows the density:

    >>> model = sl.sparsify(model, 0.9, fresh=True)
    >>> groups = sl.parameter_groups(model, lr=1e-3, weight_decay=0.1)
    >>> optimizer = torch.optim.AdamW(groups)
    """
    kinds = (nn.Linear, nn.Conv1d) if convolutions else (nn.Linear,)
    what = " and ".join(f"nn.{kind.__name__}" for kind in kinds)
    skip = set(skip)
    layers = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, kinds) and type(m) in kinds
    }
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
                    parent.activation_relu_or_gelu = (
                        0  # its fused inference reads dense weights
                    )
    return model


def densify(model: nn.Module) -> nn.Module:
    """Replace every sparse layer of `model` by its dense twin, in place, and return the model.

    The inverse of `sparsify`: the same numbers, with the zeros stored. A layer that is used twice
    remains one layer, and a bias that two layers share remains one parameter.

    Parameters
    ----------
    model : nn.Module
        Any model; a bare sparse layer is converted and returned.

    Raises
    ------
    ValueError
        If there is no sparse layer, or a convolution's padding has no name in ``nn.Conv1d``. The
        model is then unchanged.
    """
    converted: dict[nn.Module, Dense] = {
        layer: layer.to_dense() for layer in sparse_layers(model).values()
    }
    if not converted:
        raise ValueError("there is no sparse layer to convert in this model")
    shared: dict[nn.Parameter, nn.Parameter] = {}
    for layer in sparse_layers(model).values():
        dense = converted[layer]
        if layer.bias is not None and isinstance(dense.bias, nn.Parameter):
            dense.bias = shared.setdefault(layer.bias, dense.bias)
            dense.bias.requires_grad_(layer.bias.requires_grad)
        dense.weight.requires_grad_(layer.values.requires_grad)
    if model in converted:
        return converted[model]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in converted:
                setattr(parent, name, converted[child])
    return model


def _convert(
    layer: Dense, sparsity: float, fresh: bool, options: LayerOptions
) -> SparseLayer:
    kind: type[SparseLayer] = (
        SparseConv1d if isinstance(layer, nn.Conv1d) else CSRLinear
    )
    if not fresh:
        kept: KeptOptions = options
        return kind.from_dense(layer, sparsity, **kept)
    return kind(sparsity=sparsity, **kind.arguments_of(layer), **options).train(
        layer.training
    )
