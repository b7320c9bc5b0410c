"""One line from an ordinary model to a sparse one, and back."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Unpack, final

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

from sparselib import distribution as distributions
from sparselib import topology
from sparselib.nn._known import has_hooks
from sparselib.nn._options import KeptOptions, LayerOptions
from sparselib.nn.attention import (
    INPUTS,
    SparseMultiheadAttention,
    assembled,
    initialization_of,
    packed,
    projections_of,
)
from sparselib.nn.conv import SparseConv1d
from sparselib.nn.conv2d import SparseConv2d
from sparselib.nn.encoder import (
    decline_fused_inference,
    encoders,
    let_torch_decide,
)
from sparselib.nn.linear import CSRLinear
from sparselib.nn.sparse_layer import Dense, SparseLayer, sparse_layers

Distribution = Callable[[Sequence[Tensor], float], list[float]]
Chosen = str | type | Callable[[str, nn.Module], bool]
_KINDS: Mapping[type[nn.Module], type[SparseLayer]] = {
    nn.Linear: CSRLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
}


def sparsify(
    model: nn.Module,
    sparsity: float | Mapping[str, float],
    skip: Iterable[Chosen] = (),
    fresh: bool = False,
    *,
    distribution: Distribution = distributions.uniform,
    convolutions: bool = False,
    **options: Unpack[LayerOptions],
) -> nn.Module:
    """Replace the linear layers of `model` by sparse ones, in place, and return the model.

    What is converted, and why the rest is not, says ``print(Conversion(model, sparsity, ...))``,
    which takes the same arguments and changes nothing.

    Parameters
    ----------
    model : nn.Module
        Any model; a bare layer is converted and returned. Converted are ``nn.Linear``, the
        ``Conv1D`` of the package transformers, which is a linear layer, the four projections of
        ``nn.MultiheadAttention``, which becomes a `sparselib.nn.SparseMultiheadAttention`, and on
        demand ``nn.Conv1d`` and ``nn.Conv2d``. Classes derived from them stay dense, for whoever
        wrote them may read the weight. Weights that several converted layers share are shared by
        the sparse ones; layers that share theirs with anything else, such as an embedding, stay
        dense, and so do adapters of the package peft and the layers under them.
    sparsity : float or mapping of str to float
        Share of absent weights, in [0, 1). A mapping gives it for names of layers, or of modules
        that contain them; what it does not name stays dense.
    skip : names, types or functions
        What to leave dense: names in ``model.named_modules()`` of layers or of modules that
        contain them, types of modules, or functions ``(name, module) -> bool``. The projections of
        an attention are linear layers with the names q_proj, k_proj, v_proj and out_proj within it.
    fresh : bool
        Draw a new topology and new weights, to train from scratch, by default such that outputs
        vary as those of the dense layer (`sparselib.init.fan_in_`). Otherwise the largest weights
        of each layer are kept as they are.
    distribution : callable
        ``(weights, sparsity) -> sparsities`` divides the sparsity among the layers:
        `sparselib.distribution.uniform`, `erdos_renyi_kernel` or `global_magnitude`.
    convolutions : bool
        Replace every ``nn.Conv1d`` by a `SparseConv1d` and every ``nn.Conv2d`` by a `SparseConv2d`
        too.
    **options
        Passed on to `CSRLinear`, `SparseConv1d` and `SparseConv2d`.

    Raises
    ------
    ValueError
        If a name is no layer that would be converted, a sparsity is impossible or leaves a layer
        without a weight, or nothing is left to convert. The model is then unchanged.

    Notes
    -----
    Give the optimizer the groups that a sparse model needs, whose step follows the density:

    >>> model = sl.sparsify(model, 0.9, fresh=True)
    >>> groups = sl.parameter_groups(model, lr=1e-3, weight_decay=0.1)
    >>> optimizer = torch.optim.AdamW(groups)
    """
    return Conversion(
        model,
        sparsity,
        skip,
        fresh,
        distribution=distribution,
        convolutions=convolutions,
        **options,
    ).apply()


class Entry(NamedTuple):
    """What becomes of one layer.

    Attributes
    ----------
    name : str
        Its name in the model.
    kind : str
        Its class.
    before, after : int
        Numbers of its weights.
    reason : str
        Why it stays dense; empty if it is converted.
    """

    name: str
    kind: str
    before: int
    after: int
    reason: str = ""

    @property
    def sparsity(self) -> float:
        """Share of the weights that will be absent."""
        return 1 - self.after / self.before if self.before else 0.0


@final
class Conversion:
    """What `sparsify` does to a model: printed, it is a table with a line per layer.

    It is checked whole when it is built, and changes nothing before `apply`. Arguments and errors
    are those of `sparsify`.

    Attributes
    ----------
    entries : tuple of Entry
        A layer each, in the order of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | Mapping[str, float],
        skip: Iterable[Chosen] = (),
        fresh: bool = False,
        *,
        distribution: Distribution = distributions.uniform,
        convolutions: bool = False,
        **options: Unpack[LayerOptions],
    ) -> None:
        drawn = sorted({"topology", "init", "reach"} & options.keys())
        if drawn and not fresh:
            raise ValueError(
                f"{' and '.join(drawn)} would draw connections and weights anew, where the largest "
                f"weights are kept; fresh=True draws"
            )
        self.model = model
        self._fresh = fresh
        self._options = options
        whole = _kept_whole(model) | _adapted(model)
        modules, self._owners = _taken_apart(model, whole)
        weighty = _weighty(modules)
        reasons = {
            name: whole.get(module) or _reason(module, convolutions)
            for name, module in weighty.items()
        }
        _skip(list(skip), weighty, self._owners, reasons)
        given = _given(sparsity, weighty, reasons)
        _keep_ties(modules, weighty, reasons, set(given))
        chosen = [name for name, reason in reasons.items() if not reason]
        if not chosen:
            raise ValueError(_nothing(reasons, weighty, convolutions))
        self._shares = _divided(
            {name: _matrix(weighty[name]) for name in chosen},
            given,
            sparsity,
            distribution,
        )
        for name in chosen:
            if (
                self._shares[name] == 0
                and not isinstance(sparsity, Mapping)
                and sparsity
            ):
                reasons[name] = "the distribution leaves it full"
        _check_fresh(weighty, self._shares, fresh)
        self._layers = {
            name: weighty[name] for name in chosen if not reasons[name]
        }
        if not self._layers:
            raise ValueError(_nothing(reasons, weighty, convolutions))
        self.entries = tuple(
            _entry(
                name,
                type(self._owners.get(name, module)),
                module,
                self._shares.get(name, 0.0),
                reasons[name],
            )
            for name, module in weighty.items()
        )

    def apply(self) -> nn.Module:
        """Carry it out in place, and return the model."""
        model = _replaced(self.model, self._made())
        for encoder in encoders(model):
            decline_fused_inference(encoder)
        return model

    def __str__(self) -> str:
        """Return the table."""
        lines = [_HEAD, *map(_line, self.entries)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        rows = [
            "  ".join(
                [
                    *(text.ljust(w) for text, w in zip(line[:2], widths)),
                    *(text.rjust(w) for text, w in zip(line[2:5], widths[2:])),
                    line[5],
                ]
            ).rstrip()
            for line in lines
        ]
        before = sum(entry.before for entry in self.entries)
        after = sum(entry.after for entry in self.entries)
        return "\n".join([*rows, f"{before:,} weights become {after:,}"])

    __repr__ = __str__

    def _made(self) -> dict[nn.Module, nn.Module]:
        """Build the sparse layers; those whose parameters were tied share theirs."""
        made: dict[nn.Module, nn.Module] = {}
        heads: dict[nn.Parameter, SparseLayer] = {}
        biases: dict[nn.Parameter, nn.Parameter] = {}
        for name, dense in self._layers.items():
            layer = _convert(
                dense, self._shares[name], self._fresh, self._options_of(name)
            )
            weight = dense.weight
            bias = dense.bias
            assert isinstance(weight, nn.Parameter)
            head = heads.setdefault(weight, layer)
            if head is not layer:
                layer.csr = head.csr
                layer.values = head.values
            layer.values.requires_grad_(weight.requires_grad)
            if isinstance(bias, nn.Parameter) and layer.bias is not None:
                layer.bias = biases.setdefault(bias, layer.bias)
                layer.bias.requires_grad_(bias.requires_grad)
            made[dense] = layer
        return {**made, **self._attentions(made)}

    def _options_of(self, name: str) -> LayerOptions:
        """Return the options of a layer, whose weights are drawn as the dense layer's are."""
        owner = self._owners.get(name)
        if not self._fresh or owner is None or not name.endswith(INPUTS):
            return self._options
        return {"init": initialization_of(owner), **self._options}

    def _attentions(
        self, made: Mapping[nn.Module, nn.Module]
    ) -> Mapping[nn.Module, nn.Module]:
        """Build the attentions of which a projection is sparse."""
        found: dict[nn.MultiheadAttention, dict[str, nn.Module]] = {}
        for name, dense in self._layers.items():
            if name in self._owners:
                parts = found.setdefault(self._owners[name], {})
                parts[name.rpartition(".")[2]] = made[dense]
        return {
            owner: assembled(owner, parts) for owner, parts in found.items()
        }


_DERIVED = "it is derived from a layer, and may read the weight itself"
_HOOKED = "hooks of yours would be lost; register them after the conversion"
_HEAD = ("layer", "kind", "weights", "kept", "sparsity", "")


def _line(entry: Entry) -> tuple[str, str, str, str, str, str]:
    note = f"stays dense: {entry.reason}" if entry.reason else ""
    return (
        entry.name or "(the model)",
        entry.kind,
        f"{entry.before:,}",
        f"{entry.after:,}",
        f"{entry.sparsity:.1%}",
        note,
    )


def densify(model: nn.Module) -> nn.Module:
    """Replace every sparse layer of `model` by its dense twin, in place, and return the model.

    The inverse of `sparsify`: the same numbers, with the zeros stored. A layer that is used twice
    remains one layer, and parameters that layers share remain one.

    Parameters
    ----------
    model : nn.Module
        Any model; a bare sparse layer is converted and returned.

    Raises
    ------
    ValueError
        If there is no sparse layer, a convolution's padding has no name in ``nn.Conv1d``, or
        ``nn.MultiheadAttention`` cannot pack the projections of an attention, since one is shared
        or frozen alone. The model is then unchanged.
    """
    converted: dict[nn.Module, Dense] = {
        layer: layer.to_dense() for layer in sparse_layers(model).values()
    }
    if not converted:
        raise ValueError("there is no sparse layer to convert in this model")
    attentions = [
        module
        for module in model.modules()
        if isinstance(module, SparseMultiheadAttention)
    ]
    _check_packable(model, attentions)
    affected = encoders(model)
    shared: dict[nn.Parameter, nn.Parameter] = {}
    for layer in sparse_layers(model).values():
        dense = converted[layer]
        if layer.bias is not None and isinstance(dense.bias, nn.Parameter):
            dense.bias = shared.setdefault(layer.bias, dense.bias)
            dense.bias.requires_grad_(layer.bias.requires_grad)
        if isinstance(dense.weight, nn.Parameter):
            dense.weight = shared.setdefault(layer.values, dense.weight)
        dense.weight.requires_grad_(layer.values.requires_grad)
    model = _replaced(model, converted)
    model = _replaced(
        model, {one: packed(one, _dense(one)) for one in attentions}
    )
    for encoder in reversed(affected):  # an encoder asks its layers
        let_torch_decide(encoder)
    return model


def _replaced(
    model: nn.Module, made: Mapping[nn.Module, nn.Module]
) -> nn.Module:
    """Put other modules in the places of some, and return the model."""
    if model in made:
        return made[model]
    for parent in list(model.modules()):
        # named_children would pass over the second use of a shared layer
        for name, child in parent._modules.items():
            if child is not None and child in made:
                setattr(parent, name, made[child])
    return model


def _check_packable(
    model: nn.Module, attentions: Iterable[SparseMultiheadAttention]
) -> None:
    """Refuse projections that ``nn.MultiheadAttention``, which packs them, has no place for.

    Raises
    ------
    ValueError
        If one is shared with another layer, or frozen while others are not.
    """
    users = Counter[Tensor](
        parameter
        for parent in model.modules()
        for module in parent._modules.values()
        if module is not None
        for parameter in module._parameters.values()
        if parameter is not None
    )
    names = {module: name for name, module in model.named_modules()}
    for attention in attentions:
        for parameters in _packed_parameters(attention):
            if any(users[parameter] > 1 for parameter in parameters):
                raise ValueError(
                    f"projections of {names[attention]!r} are shared with another layer, and an "
                    f"nn.MultiheadAttention packs them; untie them first"
                )
            if len({parameter.requires_grad for parameter in parameters}) > 1:
                raise ValueError(
                    f"some input projections of {names[attention]!r} are frozen and others are "
                    f"not, and an nn.MultiheadAttention packs them; freeze all or none"
                )


def _packed_parameters(
    attention: SparseMultiheadAttention,
) -> list[list[Tensor]]:
    """Return the parameters that become one, for each one."""
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    biases: list[Tensor] = [
        layer.bias for layer in layers if layer.bias is not None
    ]
    if not attention.is_packed:
        return [biases]
    weights = [
        layer.weight if isinstance(layer, nn.Linear) else layer.values
        for layer in layers
    ]
    return [weights, biases]


def _dense(attention: SparseMultiheadAttention) -> dict[str, nn.Linear]:
    """Return the projections of an attention all of whose layers have become dense."""
    return {
        name: layer
        for name, layer in attention.projections.items()
        if isinstance(layer, nn.Linear)
    }


def _kept_whole(model: nn.Module) -> dict[nn.Module, str]:
    """Return why attentions, and the layers in them that they read, stay as they are."""
    users = Counter(
        child
        for parent in model.modules()
        for child in parent._modules.values()
        if child is not None
    )
    places = _places(dict(model.named_modules()))
    whole: dict[nn.Module, str] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            reason = _obstacle(module, users, places)
            if reason:
                whole[module] = reason
                whole[module.out_proj] = "the attention reads its weight itself"
    return whole


def _adapted(model: nn.Module) -> dict[nn.Module, str]:
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
        return _DERIVED
    if type(output) not in (nn.Linear, NonDynamicallyQuantizableLinear):
        return f"its out_proj is a {type(output).__name__}"
    if has_hooks(attention) or has_hooks(output):
        return _HOOKED
    if users[output] > 1:
        return "its out_proj is also used by another module"
    for key in ("in_proj_weight", "in_proj_bias"):
        parameter = attention._parameters[key]
        for place in () if parameter is None else places[parameter]:
            if place.module is not attention:
                return f"its {key} is also {place.name}.{place.key}"
    return ""


def _taken_apart(
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


def _weighty(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
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


def _reason(module: nn.Module, convolutions: bool) -> str:
    """Return why a module cannot be converted, or nothing."""
    if any(is_lazy(p) for p in module._parameters.values() if p is not None):
        return "its sizes are not known before its first call"
    kind = type(module)
    if kind in (nn.Conv1d, nn.Conv2d) and not convolutions:
        return "convolutions=True converts it"
    if kind not in _KINDS and not _is_conv1d_of_transformers(module):
        return _stranger(module)
    if has_hooks(module):
        return _HOOKED
    return ""


def _stranger(module: nn.Module) -> str:
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        return _DERIVED
    if isinstance(module, _ConvNd):
        return "there is no sparse layer for this convolution"
    return "there is no sparse layer that computes the same"


def _is_conv1d_of_transformers(module: nn.Module) -> bool:
    """Whether it is the linear layer with a transposed weight of the package transformers."""
    package = sys.modules.get("transformers.pytorch_utils")
    return package is not None and type(module) is package.Conv1D


def _matrix(module: nn.Module) -> Tensor:
    """Return the weight of a layer that can be converted, (outputs, inputs, ...)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.t() if _is_conv1d_of_transformers(module) else weight


def _is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".") or not module


def _skip(
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


def _given(
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


def _places(modules: Mapping[str, nn.Module]) -> dict[Tensor, list[Place]]:
    """Return where each parameter is used."""
    places: dict[Tensor, list[Place]] = {}
    for name, module in modules.items():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                place = Place(module, name, key)
                places.setdefault(parameter, []).append(place)
    return places


def _keep_ties(
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
    places = _places(modules)
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


def _divided(
    weights: Mapping[str, Tensor],
    given: Mapping[str, float],
    sparsity: float | Mapping[str, float],
    distribution: Distribution,
) -> dict[str, float]:
    """Return the sparsity of each layer.

    Raises
    ------
    ValueError
        If one is impossible, or a layer would keep no weight.
    """
    if isinstance(sparsity, Mapping):
        shares = {name: given[name] for name in weights}
    else:
        found = distribution(list(weights.values()), sparsity)
        shares = dict(zip(weights, found, strict=True))
    for name, share in shares.items():
        weight = weights[name]
        columns = weight[0].numel()
        is_empty = share >= 1 and not isinstance(sparsity, Mapping)
        if is_empty or not topology.connections(len(weight), columns, share):
            raise ValueError(
                f"a sparsity of {share:.6g} leaves the layer {name!r}, {len(weight)} x {columns}, "
                f"without a weight; lower it, or skip the layer"
            )
    return shares


def _check_fresh(
    weighty: Mapping[str, nn.Module], shares: Mapping[str, float], fresh: bool
) -> None:
    for name in shares:
        if not fresh and _matrix(weighty[name]).is_meta:
            raise ValueError(
                f"layer {name!r} is on the device meta and has no weights of which the largest "
                f"could be kept; fresh=True draws new ones"
            )


def _nothing(
    reasons: Mapping[str, str],
    weighty: Mapping[str, nn.Module],
    convolutions: bool,
) -> str:
    what = "nn.Linear, nn.Conv1d and nn.Conv2d" if convolutions else "nn.Linear"
    why = "; ".join(
        f"{name!r} ({type(weighty[name]).__name__}): {reason}"
        for name, reason in reasons.items()
    )
    sentence = f"there is no {what} to convert in this model"
    return f"{sentence}; {why}" if why else sentence


def _entry(
    name: str, kind: type, module: nn.Module, sparsity: float, reason: str
) -> Entry:
    before = sum(
        parameter.numel()
        for parameter in module._parameters.values()
        if parameter is not None
        and not is_lazy(parameter)
        and parameter.ndim > 1
    )
    after = before
    if not reason:
        weight = _matrix(module)
        after = topology.connections(len(weight), weight[0].numel(), sparsity)
    return Entry(name, kind.__name__, before, after, reason)


def _convert(
    layer: nn.Module, sparsity: float, fresh: bool, options: LayerOptions
) -> SparseLayer:
    if _is_conv1d_of_transformers(layer):
        layer = _linear_twin(layer)
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    kind = _KINDS[type(layer)]
    if not fresh:
        kept: KeptOptions = options
        return kind.from_dense(layer, sparsity, **kept)
    return kind(sparsity=sparsity, **kind.arguments_of(layer), **options).train(
        layer.training
    )


def _linear_twin(layer: nn.Module) -> nn.Linear:
    """Return the ``nn.Linear`` that computes what a ``Conv1D`` of transformers does."""
    weight = _matrix(layer).detach()
    bias = layer.bias
    rows, columns = weight.shape
    twin = nn.Linear(
        columns, rows, bias is not None, device="meta", dtype=weight.dtype
    )
    twin.weight = nn.Parameter(weight)
    if isinstance(bias, Tensor):
        twin.bias = nn.Parameter(bias.detach())
    return twin.train(layer.training)
