"""One line from an ordinary model to a sparse one, and back."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Unpack, final

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparselib import distribution as distributions
from sparselib import topology
from sparselib.nn._candidates import (
    KINDS,
    Chosen,
    adapted,
    given_by_name,
    is_conv1d_of_transformers,
    keep_ties,
    kept_whole,
    matrix_of,
    nothing_to_convert,
    reason_of,
    skip_chosen,
    taken_apart,
    weighty_of,
)
from sparselib.nn._options import KeptOptions, LayerOptions
from sparselib.nn.attention import (
    INPUTS,
    SparseMultiheadAttention,
    assembled,
    initialization_of,
    packed,
)
from sparselib.nn.encoder import (
    decline_fused_inference,
    encoders,
    let_torch_decide,
)
from sparselib.nn.sparse_layer import Dense, SparseLayer, sparse_layers

Distribution = Callable[[Sequence[Tensor], float], list[float]]


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
        whole = kept_whole(model) | adapted(model)
        modules, self._owners = taken_apart(model, whole)
        weighty = weighty_of(modules)
        reasons = {
            name: whole.get(module) or reason_of(module, convolutions)
            for name, module in weighty.items()
        }
        skip_chosen(list(skip), weighty, self._owners, reasons)
        given = given_by_name(sparsity, weighty, reasons)
        keep_ties(modules, weighty, reasons, set(given))
        chosen = [name for name, reason in reasons.items() if not reason]
        if not chosen:
            raise ValueError(nothing_to_convert(reasons, weighty, convolutions))
        self._shares = _divided(
            {name: matrix_of(weighty[name]) for name in chosen},
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
            raise ValueError(nothing_to_convert(reasons, weighty, convolutions))
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
        if not fresh and matrix_of(weighty[name]).is_meta:
            raise ValueError(
                f"layer {name!r} is on the device meta and has no weights of which the largest "
                f"could be kept; fresh=True draws new ones"
            )


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
        weight = matrix_of(module)
        after = topology.connections(len(weight), weight[0].numel(), sparsity)
    return Entry(name, kind.__name__, before, after, reason)


def _convert(
    layer: nn.Module, sparsity: float, fresh: bool, options: LayerOptions
) -> SparseLayer:
    if is_conv1d_of_transformers(layer):
        layer = _linear_twin(layer)
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    kind = KINDS[type(layer)]
    if not fresh:
        kept: KeptOptions = options
        return kind.from_dense(layer, sparsity, **kept)
    return kind(sparsity=sparsity, **kind.arguments_of(layer), **options).train(
        layer.training
    )


def _linear_twin(layer: nn.Module) -> nn.Linear:
    """Return the ``nn.Linear`` that computes what a ``Conv1D`` of transformers does."""
    weight = matrix_of(layer).detach()
    bias = layer.bias
    rows, columns = weight.shape
    twin = nn.Linear(
        columns, rows, bias is not None, device="meta", dtype=weight.dtype
    )
    twin.weight = nn.Parameter(weight)
    if isinstance(bias, Tensor):
        twin.bias = nn.Parameter(bias.detach())
    return twin.train(layer.training)
