"""Sparse linear layers one after the other, carried out at once where nobody looks in between."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselib.nn._joining import (
    Activation,
    applied_in_order,
    joined,
    one_by_one,
    parts,
    runs,
)
from sparselib.nn._known import (
    ABSENT_IN_EVALUATION,
    KNOWN,
    LINKS,
    are_unobserved,
    has_hooks,
    is_active_dropout,
    is_every_module_observed,
    is_joined,
    is_known,
    is_of_batch,
    normalizes,
)
from sparselib.nn._watch import keepers
from sparselib.nn.linear import CSRLinear
from sparselib.ops.backends.cpu_arguments import TILE

Model = TypeVar("Model", bound=nn.Module)
# as torch's layers of encoders and decoders keep them
FUNCTIONS: dict[object, nn.Module] = {
    nn.functional.relu: nn.ReLU(),
    nn.functional.gelu: nn.GELU(),
}


@final
class Sequential(nn.Sequential):
    """An ``nn.Sequential`` that carries out its sparse linear layers at once.

    Where `CSRLinear` layers follow each other with one ``nn.LayerNorm`` or ``nn.BatchNorm1d``
    between them, or one ``nn.ReLU``, ``nn.LeakyReLU``, ``nn.GELU``, ``nn.SiLU`` or ``nn.Tanh``, or
    the first and then the second, and perhaps a dropout behind it, they are computed as one
    `chain`. Without a gradient that is also done with any of these, but for a normalization by the
    batch, in any number and order between them, before and after. In training a normalization that
    is not part of a chain is computed with the activation behind it, in the order in which sparse
    layers write. What is between other layers, or has a hook, is called as ever.
    Dropouts are passed over where they do nothing. The state dictionary is that of an
    ``nn.Sequential``, and so are the results, to rounding; the random numbers of an active dropout
    may fall on other activations, as they follow the order of memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the modules in order."""
        if is_every_module_observed():
            result: Tensor = super().forward(x)
            return result
        return applied_in_order(list(self), x)


@final
class TransformerEncoderLayer(nn.TransformerEncoderLayer):
    """An ``nn.TransformerEncoderLayer`` whose feed-forward network is carried out at once."""

    def _ff_block(self, x: Tensor) -> Tensor:
        return _fed_forward(self, self.dropout2, x)


@final
class TransformerDecoderLayer(nn.TransformerDecoderLayer):
    """An ``nn.TransformerDecoderLayer`` whose feed-forward network is carried out at once."""

    def _ff_block(self, x: Tensor) -> Tensor:
        return _fed_forward(self, self.dropout3, x)


def _fed_forward(
    layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer,
    last: nn.Module,
    x: Tensor,
) -> Tensor:
    """Return what the feed-forward network of torch's layers makes of x."""
    activation = FUNCTIONS.get(layer.activation, layer.activation)
    if is_every_module_observed() or not isinstance(activation, nn.Module):
        hidden = layer.dropout(layer.activation(layer.linear1(x)))
        result: Tensor = last(layer.linear2(hidden))
        return result
    modules = [layer.linear1, activation, layer.dropout, layer.linear2, last]
    return applied_in_order(modules, x)


# torch's layers of which the feed-forward network is found, and what takes their place
FUSED = {
    nn.TransformerEncoderLayer: TransformerEncoderLayer,
    nn.TransformerDecoderLayer: TransformerDecoderLayer,
}
# what carries out its layers at once
AT_ONCE = (Sequential, *FUSED.values())


def fuse(model: Model) -> Model:
    """Have a model carry out sparse linear layers that follow each other at once.

    Every ``nn.Sequential`` of exactly that type in which two `CSRLinear` follow each other with
    nothing but what a kernel knows between them becomes a `sparselib.nn.Sequential`, and every
    ``nn.TransformerEncoderLayer`` and ``nn.TransformerDecoderLayer`` with a sparse feed-forward
    network likewise, in place: each is the same object, with the same modules, hooks and state
    dictionary. `sparselib.fit`, `sparselib.evaluate` and `sparselib.predict` do that by themselves,
    for the time that they need.

    Parameters
    ----------
    model : nn.Module
        The model, or an ``nn.Sequential`` itself.

    Returns
    -------
    nn.Module
        The same model.

    Raises
    ------
    ValueError
        If there is no such place in the model.
    """
    found = _with_chains(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no nn.Sequential in which CSRLinear layers follow each "
            f"other with nothing between them but {_names(KNOWN)} or dropout, and no layer of an "
            f"encoder or decoder with two of them, so that nothing can be carried out at once"
        )
    _change(found)
    return model


@contextmanager
def fused(model: Model) -> Iterator[Model]:
    """Have a model carry out its layers at once, as by `fuse`, for the time of a ``with`` block.

    A model without such a place, and one that `torch.compile` has compiled as it is, stay as they
    are.
    """
    is_compiled = any(map(_is_compiled, model.modules()))
    found = [] if is_compiled else _with_chains(model)
    # not what another thread has changed, and will change back
    found = [module for module in found if type(module) not in AT_ONCE]
    kinds = [*map(type, found)]
    _change(found)
    try:
        yield model
    finally:
        for module, kind in zip(found, kinds):
            module.__class__ = kind


def _is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` has made this module, or compiled it in place."""
    return "_orig_mod" in module._modules or (
        module._compiled_call_impl is not None
    )


def _with_chains(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if _has_a_chain(module)]


def _change(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        module.__class__ = FUSED.get(type(module), Sequential)


def apart(model: nn.Module, name: str, samples: int) -> tuple[str, ...]:
    """Return why a sparse layer of a model is not computed together with the next one.

    Parameters
    ----------
    model : nn.Module
        The model.
    name : str
        The name of the layer in it.
    samples : int
        How many the layer has read.

    Returns
    -------
    tuple of str
        Sentences; none if the layer has no sparse layer beside it that it could be joined with.
    """
    layer = model.get_submodule(name)
    parent = model.get_submodule(name.rpartition(".")[0])
    modules = _in_order(parent)
    if type(layer) is not CSRLinear or layer not in modules:
        return ()
    if type(parent) is nn.Sequential or type(parent) in FUSED:
        run = next(run for run in runs(modules) if layer in run)
        learns = torch.is_grad_enabled()
        split = list(parts(run)) if learns else [run]
        part = next(part for part in split if layer in part)
        if len(part) > 1:
            return ("sparselib.fuse joins it with its neighbors",)
        behind = split[split.index(part) + 1 :]
        if behind and normalizes(behind[0][0]):
            name = type(behind[0][0]).__name__
            return (f"sparselib.fuse has a kernel for the {name} behind it",)
    place = modules.index(layer)
    for beside in modules[place + 1 :], modules[:place][::-1]:
        kinds = [type(module) for module in beside]
        if CSRLinear in kinds:
            between = beside[: kinds.index(CSRLinear)]
            found = _separations(layer, between, samples)
            reasons = tuple(dict.fromkeys(found))
            return reasons or ("there is nothing between it and another",)
    return ()


def _in_order(parent: nn.Module) -> list[nn.Module]:
    """Return the modules that a parent applies one after the other, as far as that is known."""
    if isinstance(parent, nn.Sequential):
        return list(parent)
    kinds = nn.TransformerEncoderLayer | nn.TransformerDecoderLayer
    if not isinstance(parent, kinds):
        return []
    activation = FUNCTIONS.get(parent.activation, parent.activation)
    between = [activation] if isinstance(activation, nn.Module) else []
    return [parent.linear1, *between, parent.dropout, parent.linear2]


def _separations(
    layer: nn.Module, modules: Sequence[nn.Module], samples: int
) -> Iterator[str]:
    """What keeps a sparse layer from another one, with these modules between them."""
    for module in layer, *modules:
        name = type(module).__name__
        if has_hooks(module):
            yield f"a hook wants to see what the {name} does"
    learns = torch.is_grad_enabled()
    if learns and isinstance(layer, CSRLinear) and keepers(layer):
        yield "an evolution by gradient wants to see what it reads"
    for before, module in zip([None, *modules], modules):
        reason = _separation(before, module, learns, samples)
        if reason:
            yield reason


def _separation(
    before: nn.Module | None, module: nn.Module, learns: bool, samples: int
) -> str:
    """What a module behind another one does to keep layers apart; empty if nothing."""
    name = type(module).__name__
    if isinstance(module, ABSENT_IN_EVALUATION):
        if not (module.training and module.p > 0):
            return ""
        linked = (*LINKS, nn.LayerNorm, nn.BatchNorm1d)
        is_link = is_active_dropout(module) and type(before) in linked
        if not (learns and is_link):
            return f"the {name} between it and another works in training"
    elif is_of_batch(module) and not learns:
        return f"the {name} between it and another needs the whole batch"
    elif not (is_known(module) or is_of_batch(module)):
        return f"no kernel does the {name} between it and another"
    elif type(module) is nn.ReLU:
        return ""
    elif learns and not (
        type(module) in LINKS
        or (normalizes(module) and type(before) not in LINKS)
    ):
        return (
            f"with a gradient no kernel does the {name} between it and another"
        )
    return (
        f"with the {name} between it and another {_excess(samples)} to be carried through all "
        f"layers at once"
    )


def _excess(samples: int) -> str:
    """Return what is too few or too many for one call of all layers."""
    threads = torch.get_num_threads()
    if samples < TILE:
        return f"{samples} samples are too few"
    if samples <= TILE * (threads - 1):
        return f"{samples} samples are too few for so many weights and {threads} threads"
    return "the weights are too many"


def _has_a_chain(module: nn.Module) -> bool:
    """Whether sparse layers follow each other with only known modules between, dropouts aside."""
    if type(module) in (*FUSED, *FUSED.values()):
        layers = module.linear1, module.linear2
        return all(type(layer) is CSRLinear for layer in layers)
    if type(module) not in (nn.Sequential, Sequential):
        return False
    assert isinstance(module, nn.Sequential)
    is_behind_a_layer = False
    has_any_between = False
    for part in module:
        if type(part) is CSRLinear:
            if is_behind_a_layer and has_any_between:
                return True
            is_behind_a_layer = True
            has_any_between = False
        elif type(part) in KNOWN:
            has_any_between = True
        elif type(part) not in ABSENT_IN_EVALUATION:
            is_behind_a_layer = False
    return False


def _names(kinds: Iterable[type]) -> str:
    return ", ".join(f"nn.{kind.__name__}" for kind in kinds)


def chain(
    layers: Sequence[nn.Module],
    activation: Activation,
    x: Float[Tensor, "*batch columns"],
) -> Float[Tensor, "*batch rows"]:
    """Apply layers with an activation between them; fused where that gives the same numbers.

    Fused means that biases and ReLU are part of the products, and that a few samples at a time walk
    through all layers, and the activations that a `Sequential` knows, without leaving the cache. It
    needs `CSRLinear` layers, a backend with kernels of its own, and no hook on a layer. The watches
    of an evolution are served; `torch.compile` sees the layers one by one then.
    """
    if not isinstance(activation, nn.Module):
        return one_by_one(layers, activation, x)
    between = [activation]
    if type(activation) is nn.Sequential and not has_hooks(activation):
        between = list(activation)
    # with one layer there is nothing to join
    if (
        not between
        or not all(is_joined(one) or is_active_dropout(one) for one in between)
        or sum(type(layer) is CSRLinear for layer in layers) < 2
        or is_every_module_observed()
    ):
        return one_by_one(layers, activation, x)
    if type(activation) is nn.ReLU and are_unobserved(layers):
        return joined(layers, activation, x)
    row = [module for layer in layers for module in (layer, *between)]
    return applied_in_order(row[: -len(between)], x)
