"""What a model costs on paper: parameters, bytes and operations, counted at its nonzeros."""

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn

from sparselib.modes import in_evaluation
from sparselib.nn.sparse_layer import SparseLayer, sparse_layers

Count = Literal["nonzero", "dense"]
# the shape of an input, or an input: a tensor, positional arguments, keyword arguments
Example = Tensor | Sequence[object] | Mapping[str, object]
Input = Tensor | tuple[object, ...] | Mapping[str, object]
NOT_PRODUCTS = (
    *(f"aten::{kind}_norm" for kind in ("batch", "group", "layer", "instance")),
    *(
        "aten::upsample_nearest2d",
        "aten::upsample_bilinear2d",
        "aten::grid_sampler",
    ),
    "aten::adaptive_avg_pool2d",
)
UNKNOWN = {
    *(
        f"aten::{kind}"
        for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu", "mv", "dot")
    ),
    *(
        f"aten::{kind}"
        for kind in (
            "addmv",
            "addbmm",
            "baddbmm",
            "_trilinear",
            "_cdist_forward",
        )
    ),
}


def parameters(model: nn.Module, count: Count = "nonzero") -> int:
    """Count trainable numbers: a shared parameter once, a frozen one and indices not at all.

    ``count="dense"`` counts the absent connections of trained sparse layers too.
    """
    stored = sum(
        number.numel() for number in model.parameters() if number.requires_grad
    )
    if count == "nonzero":
        return stored
    trained = (
        m for m in sparse_layers(model).values() if m.values.requires_grad
    )
    distinct = {layer.values: layer for layer in trained}
    return stored + sum(
        layer.shape[0] * layer.shape[1] - layer.values.numel()
        for layer in distinct.values()
    )


def memory(model: nn.Module, count: Count = "nonzero") -> dict[str, int]:
    """Bytes a model needs in training besides activations and optimizer state.

    Counted as in Ertl's Figure 7: weights, biases and a gradient for each; for sparse layers also
    the row pointers and column indices, and, on its own line because the paper does not count it,
    the cache of the transposed pattern.

    Parameters
    ----------
    model : nn.Module
        A layer or a whole network.
    count : {"nonzero", "dense"}
        As it is, or as its dense twin would be.

    Returns
    -------
    dict
        Bytes as ``weights``, ``biases``, ``gradients``, ``indices``, ``transposed``.
    """
    biases = sum(
        p.nbytes
        for name, p in model.named_parameters()
        if name.endswith("bias")
    )
    weights = sum(p.nbytes for p in model.parameters()) - biases
    patterns = [layer.csr.nbytes for layer in sparse_layers(model).values()]
    indices, transposed = (
        (sum(sizes) for sizes in zip(*patterns)) if patterns else (0, 0)
    )
    if count == "dense":
        weights += sum(
            _absent(layer) * layer.values.element_size()
            for layer in sparse_layers(model).values()
        )
        indices = transposed = 0
    return {
        "weights": weights,
        "biases": biases,
        "gradients": weights + biases,
        "indices": indices,
        "transposed": transposed,
    }


def compression(model: nn.Module, transposed: bool = False) -> float:
    """How many times less memory the model needs than its dense twin (Ertl, Figure 7).

    For one float32 layer of N_in inputs, N_out neurons and nnz weights this is::

        8 (N_in N_out + N_out) / (12 nnz + 4 (N_out + 1) + 8 N_out)

    Parameters
    ----------
    transposed : bool
        Count the cache of the transposed pattern too.
    """
    sparse = memory(model)
    if not transposed:
        sparse.pop("transposed")
    return sum(memory(model, "dense").values()) / sum(sparse.values())


def lost(model: nn.Module) -> int:
    """Count the weights into neurons that no connection leaves (Ertl, 2021, Figure 11).

    Such a neuron reaches no output, so its weights have no gradient: they cost memory and time,
    and compute nothing. ``repair=True`` of `Evolution` releases them.

    Parameters
    ----------
    model : nn.Module
        A network whose sparse layers follow each other. A layer is looked at if the next sparse one
        reads as many features as it has neurons.
    """
    layers = list(sparse_layers(model).values())
    return sum(
        int(layer.csr.fan_in()[onward.csr.fan_out() == 0].sum())
        for layer, onward in pairwise(layers)
        if layer.shape[0] == onward.shape[1]
    )


def flops(
    model: nn.Module,
    shape: Example,
    unit: Literal["mac", "flop"] = "mac",
    count: Count = "nonzero",
) -> int:
    """Multiply-accumulates of one forward pass in products and convolutions.

    fvcore counts everything but the sparse layers; of those every output takes one operation per
    connection. Biases, normalization, activations and pools are not counted, as in torch's own
    ``FlopCounterMode``, with which dense models agree.

    Parameters
    ----------
    model : nn.Module
        Any model; it is called once, in evaluation mode.
    shape : tuple of int, or an input
        Shape of the input, batch included: it is zeros of the parameters' type, or of int64 if the
        model begins with an embedding. Models that read anything else are called with an input to
        pass here: a tensor, a tuple of tensors (positional arguments) or a dictionary of tensors
        (keyword arguments), on the model's device.
    unit : {"mac", "flop"}
        A multiply-accumulate counts once or as two.
    count : {"nonzero", "dense"}
        Whether absent connections are counted.

    Raises
    ------
    ValueError
        If the model has products that nobody here can count, such as those of an ``nn.LSTM``.
    """
    return sum(flops_of_layers(model, shape, unit, count).values())


def flops_of_layers(
    model: nn.Module,
    shape: Example,
    unit: Literal["mac", "flop"] = "mac",
    count: Count = "nonzero",
) -> dict[str, int]:
    """Break `flops` down to the layers that cost anything, by name, in order.

    What a module computes itself, outside of any layer, stands under the module's own name.
    """
    ours = sparse_layers(model)
    called = _Called(model, _example(model, shape))
    with in_evaluation(model):
        outputs = _shapes(called, ours)
        found = _products(called, ours, outputs)
    table = {name: found[name] for name, _ in model.named_modules()}
    # fvcore adds what is inside a module to what the module itself does
    for name, inside in list(table.items()):
        if name:
            table[name.rpartition(".")[0]] -= inside
    for name, layer in ours.items():
        rows, columns = layer.shape
        each = rows * columns if count == "dense" else layer.values.numel()
        table[name] = each * sum(map(math.prod, outputs[name])) // rows
    return {
        name: macs * (2 if unit == "flop" else 1)
        for name, macs in table.items()
        if macs
    }


class _Called(nn.Module):
    """A model that is called with the tensors of one example, all of them by position."""

    def __init__(self, model: nn.Module, example: Input) -> None:
        super().__init__()
        self.model = model
        self.names: tuple[str, ...] = ()
        if isinstance(example, Mapping):
            self.names = tuple(example)
            example = tuple(example.values())
        self.tensors: tuple[object, ...] = (
            (example,) if isinstance(example, Tensor) else example
        )

    def forward(self, *tensors: object) -> object:
        if self.names:
            return self.model(**dict(zip(self.names, tensors)))
        return self.model(*tensors)


def _example(model: nn.Module, shape: Example) -> Input:
    """Return an input: the one that was passed, or zeros of a shape."""
    if isinstance(shape, Tensor | Mapping):
        return shape
    if not _are_sizes(shape):
        return tuple(shape)
    first = next(model.parameters())
    owner = next(module for module in model.modules() if module._parameters)
    tokens = isinstance(owner, nn.Embedding | nn.EmbeddingBag)
    return torch.zeros(
        shape, dtype=torch.int64 if tokens else first.dtype, device=first.device
    )


def _are_sizes(shape: Sequence[object]) -> TypeGuard[Sequence[int]]:
    return all(isinstance(size, int) for size in shape)


def _shapes(
    called: _Called, ours: dict[str, SparseLayer]
) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes that each of some layers writes, one per call."""
    outputs: dict[str, list[tuple[int, ...]]] = {name: [] for name in ours}
    hooks = [
        layer.register_forward_hook(
            lambda *args, name=name: outputs[name].append(args[2].shape)
        )
        for name, layer in ours.items()
    ]
    try:
        with torch.no_grad():
            called(*called.tensors)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _products(
    called: _Called,
    ours: dict[str, SparseLayer],
    outputs: dict[str, list[tuple[int, ...]]],
) -> Counter[str]:
    """Multiply-accumulates of dense products by module, what is inside included: fvcore's count."""
    from fvcore.nn import FlopCountAnalysis

    # fvcore traces, and a sparse product would be traced as the dense one that defines it
    for name, layer in ours.items():
        calls = iter(outputs[name])
        layer.forward = lambda x, calls=calls: x.new_zeros(next(calls))
    analysis = FlopCountAnalysis(
        called, called.tensors
    ).unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False).tracer_warnings("none")
    # normalization, pools and interpolation are counted by fvcore, and here are not
    analysis.set_op_handle(**dict.fromkeys(NOT_PRODUCTS, lambda *_: Counter()))
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(
        False
    )  # one operator that no one can look into
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", DeprecationWarning)
            counted = {
                name: int(macs) for name, macs in analysis.by_module().items()
            }
            unknown = UNKNOWN & analysis.unsupported_ops().keys()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for layer in ours.values():
            del layer.forward
    if unknown:
        raise ValueError(
            f"operations of {', '.join(sorted(unknown))} cannot be counted"
        )
    names = {
        f"model.{name}" if name else "model": name
        for name, _ in called.model.named_modules()
    }
    return Counter({name: counted.get(full, 0) for full, name in names.items()})


def _attention(
    inputs: Sequence[torch._C.Value], outputs: Sequence[torch._C.Value]
) -> Counter[str]:
    """Count the two products of (..., targets, width) queries with (..., sources, width) keys."""
    from fvcore.nn.jit_handles import get_shape

    query, key, value = map(get_shape, inputs[:3])
    pairs = math.prod(query[:-1]) * key[-2]
    return Counter(attention=pairs * (query[-1] + value[-1]))


def _absent(model: nn.Module) -> int:
    return sum(
        layer.shape[0] * layer.shape[1] - layer.values.numel()
        for layer in sparse_layers(model).values()
    )
