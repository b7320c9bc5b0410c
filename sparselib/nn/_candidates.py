"""Which layers of a model can become sparse, and why others stay as they are."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

from sparselib.nn._known import has_hooks
from sparselib.nn.attention import projections_of
from sparselib.nn.conv import SparseConv1d
from sparselib.nn.conv2d import SparseConv2d
from sparselib.nn.linear import CSRLinear
from sparselib.nn.sparse_layer import SparseLayer

Chosen = str | type | Callable[[str, nn.Module], bool]
KINDS: Mapping[type[nn.Module], type[SparseLayer]] = {
    nn.Linear: CSRLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
}
DERIVED = "it is derived from a layer, and may read the weight itself"
HOOKED = "hooks of yours would be lost; register them after the conversion"


def kept_whole(model: nn.Module) -> dict[nn.Module, str]:
    """Return why attentions, and the layers in them that they read, stay as they are."""
    users = Counter(
        child
        for parent in model.modules()
        for child in parent._modules.values()
        if child is not None
    )
    places = places_of(dict(model.named_modules()))
    whole: dict[nn.Module, str] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            reason = _obstacle(module, users, places)
            if reason:
                whole[module] = reason
                whole[module.out_proj] = "the attention reads its weight itself"
    return whole


def adapted(model: nn.Module) -> dict[nn.Module, str]:
    """Return why layers under an adapter of the package peft, and it, stay as they are."""
    package = sys.modules.get("peft.tuners.tuners_utils")
    if package is None:
        return {}
    return {
        inside: "an adapter of peft reads the weight itself"
        for module in model.modules()
        if isinstance(module, package.BaseTunerLayer)
        for inside in module.modules()
    }


def _obstacle(
    attention: nn.MultiheadAttention,
    users: Mapping[nn.Module, int],
    places: "Mapping[Tensor, list[Place]]",
) -> str:
    """Return why an attention cannot be taken apart, or nothing."""
    output = attention.out_proj
    if type(attention) is not nn.MultiheadAttention:
        return DERIVED
    if type(output) not in (nn.Linear, NonDynamicallyQuantizableLinear):
        return f"its out_proj is a {type(output).__name__}"
    if has_hooks(attention) or has_hooks(output):
        return HOOKED
    if users[output] > 1:
        return "its out_proj is also used by another module"
    for key in ("in_proj_weight", "in_proj_bias"):
        parameter = attention._parameters[key]
        for place in () if parameter is None else places[parameter]:
            if place.module is not attention:
                return f"its {key} is also {place.name}.{place.key}"
    return ""


def taken_apart(
    model: nn.Module, whole: Mapping[nn.Module, str]
) -> tuple[dict[str, nn.Module], dict[str, nn.MultiheadAttention]]:
    """Return all modules, with the projections in the places of attentions, and whose they are."""
    modules: dict[str, nn.Module] = {}
    owners: dict[str, nn.MultiheadAttention] = {}
    outputs: set[nn.Module] = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.MultiheadAttention) or module in whole:
            if module not in outputs:
                modules[name] = module
            continue
        outputs.add(module.out_proj)
        for part, projection in projections_of(module).items():
            full = f"{name}.{part}" if name else part
            modules[full] = projection
            owners[full] = module
    return modules, owners


def weighty_of(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the modules with a matrix or kernel of their own, but for tables of embeddings."""
    kinds = nn.Embedding | nn.EmbeddingBag | SparseLayer
    return {
        name: module
        for name, module in modules.items()
        if not isinstance(module, kinds)
        and any(
            is_lazy(parameter) or parameter.ndim > 1
            for parameter in module._parameters.values()
            if parameter is not None
        )
    }


def reason_of(module: nn.Module, convolutions: bool) -> str:
    """Return why a module cannot be converted, or nothing."""
    if any(is_lazy(p) for p in module._parameters.values() if p is not None):
        return "its sizes are not known before its first call"
    kind = type(module)
    if kind in (nn.Conv1d, nn.Conv2d) and not convolutions:
        return "convolutions=True converts it"
    if kind not in KINDS and not is_conv1d_of_transformers(module):
        return _stranger(module)
    if has_hooks(module):
        return HOOKED
    return ""


def _stranger(module: nn.Module) -> str:
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        return DERIVED
    if isinstance(module, _ConvNd):
        return "there is no sparse layer for this convolution"
    return "there is no sparse layer that computes the same"


def is_conv1d_of_transformers(module: nn.Module) -> bool:
    """Whether it is the linear layer with a transposed weight of the package transformers."""
    package = sys.modules.get("transformers.pytorch_utils")
    return package is not None and type(module) is package.Conv1D


def matrix_of(module: nn.Module) -> Tensor:
    """Return the weight of a layer that can be converted, (outputs, inputs, ...)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.t() if is_conv1d_of_transformers(module) else weight


def _is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".") or not module


def skip_chosen(
    skip: list[Chosen],
    weighty: Mapping[str, nn.Module],
    owners: Mapping[str, nn.Module],
    reasons: dict[str, str],
) -> None:
    """Note what the user leaves dense."""
    convertible = [name for name, reason in reasons.items() if not reason]
    names = [chosen for chosen in skip if isinstance(chosen, str)]
    unknown = [
        name
        for name in names
        if not name or not any(_is_within(layer, name) for layer in convertible)
    ]
    if unknown:
        raise ValueError(
            f"skip names {sorted(unknown)}, but the layers that would be converted are "
            f"{sorted(convertible)}"
        )
    for layer in convertible:
        module = weighty[layer]
        kinds = (module, owners.get(layer))
        if any(_is_chosen(chosen, layer, *kinds) for chosen in skip):
            reasons[layer] = "you skip it"


def _is_chosen(
    chosen: Chosen, name: str, module: nn.Module, owner: nn.Module | None
) -> bool:
    if isinstance(chosen, str):
        return _is_within(name, chosen)
    if isinstance(chosen, type):
        return isinstance(module, chosen) or isinstance(owner, chosen)
    return bool(chosen(name, module))


def given_by_name(
    sparsity: float | Mapping[str, float],
    weighty: Mapping[str, nn.Module],
    reasons: dict[str, str],
) -> dict[str, float]:
    """Return the sparsities that the user gave layers by name; what is not named stays dense."""
    if not isinstance(sparsity, Mapping):
        return {}
    found: dict[str, float] = {}
    for key in sorted(sparsity, key=len):  # a name within another one decides
        inside = [name for name in weighty if _is_within(name, key)]
        open_ones = [name for name in inside if not reasons[name]]
        if not open_ones:
            why = "; ".join(f"{name!r}: {reasons[name]}" for name in inside)
            raise ValueError(
                f"sparsity names {key!r}, where nothing can be converted"
                + (f" ({why})" if why else "")
            )
        found.update(dict.fromkeys(open_ones, float(sparsity[key])))
    for name, reason in reasons.items():
        if not reason and name not in found:
            reasons[name] = "no sparsity is given for it"
    return found


class Place(NamedTuple):
    """Where a parameter is used: the module, its name, and the parameter's name in it."""

    module: nn.Module
    name: str
    key: str


def places_of(modules: Mapping[str, nn.Module]) -> dict[Tensor, list[Place]]:
    """Return where each parameter is used."""
    places: dict[Tensor, list[Place]] = {}
    for name, module in modules.items():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                place = Place(module, name, key)
                places.setdefault(parameter, []).append(place)
    return places


def keep_ties(
    modules: Mapping[str, nn.Module],
    weighty: Mapping[str, nn.Module],
    reasons: dict[str, str],
    named: set[str],
) -> None:
    """Leave dense what shares its weight or bias with something that stays dense.

    Raises
    ------
    ValueError
        If a sparsity names such a layer.
    """
    places = places_of(modules)
    is_settled = False
    while not is_settled:
        is_settled = True
        for name in [name for name, reason in reasons.items() if not reason]:
            tie = _tie_to_dense(weighty[name], places, reasons)
            if tie and name in named:
                raise ValueError(
                    f"sparsity names {name!r}, but {tie}; untie them first, or leave it out"
                )
            if tie:
                reasons[name] = tie
                is_settled = False


def _tie_to_dense(
    module: nn.Module,
    places: Mapping[Tensor, list[Place]],
    reasons: Mapping[str, str],
) -> str:
    """Return with what that stays dense a layer shares weight or bias, or nothing."""
    for key in ("weight", "bias"):
        parameter = module._parameters.get(key)
        for place in () if parameter is None else places.get(parameter, ()):
            is_alike = key == "bias" or type(place.module) is type(module)
            stays = reasons.get(place.name, "dense")
            if place.key != key or not is_alike or stays:
                return f"its {key} is also {place.name}.{place.key}, which stays dense"
    return ""


def nothing_to_convert(
    reasons: Mapping[str, str],
    weighty: Mapping[str, nn.Module],
    convolutions: bool,
) -> str:
    """Return why there is nothing to convert, layer by layer."""
    what = "nn.Linear, nn.Conv1d and nn.Conv2d" if convolutions else "nn.Linear"
    why = "; ".join(
        f"{name!r} ({type(weighty[name]).__name__}): {reason}"
        for name, reason in reasons.items()
    )
    sentence = f"there is no {what} to convert in this model"
    return f"{sentence}; {why}" if why else sentence
