"""What a model costs on paper: parameters, bytes and operations, counted at its nonzeros."""

import warnings
from collections import Counter
from typing import Any, Literal

import torch
from torch import nn

from sparselib.nn.evolvable import evolvable_layers

Count = Literal["nonzero", "dense"]


def parameters(model: nn.Module, count: Count = "nonzero") -> int:
    """Count trainable numbers; ``count="dense"`` counts absent connections too."""
    stored = sum(parameter.numel() for parameter in model.parameters())
    return stored + (_absent(model) if count == "dense" else 0)


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
    biases = sum(p.nbytes for name, p in model.named_parameters() if name.endswith("bias"))
    weights = sum(p.nbytes for p in model.parameters()) - biases
    arrays: Counter[str] = Counter()
    for name, buffer in model.named_buffers():
        arrays[name.split(".")[-1]] += buffer.nbytes
    indices = arrays["crow_indices"] + arrays["col_indices"]
    transposed = sum(size for name, size in arrays.items() if name.startswith("transposed_"))
    if count == "dense":
        weights += sum(
            _absent(layer) * layer.values.element_size()
            for layer in evolvable_layers(model).values()
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


def flops(
    model: nn.Module,
    shape: tuple[int, ...],
    unit: Literal["mac", "flop"] = "mac",
    count: Count = "nonzero",
) -> int:
    """Multiply-accumulates of one forward pass, counted by fvcore at the nonzeros.

    Parameters
    ----------
    model : nn.Module
        Any model fvcore can trace.
    shape : tuple of int
        Of the input, batch included.
    unit : {"mac", "flop"}
        A multiply-accumulate counts once or as two.
    count : {"nonzero", "dense"}
        Whether absent connections are counted.
    """
    from fvcore.nn import FlopCountAnalysis

    first = next(model.parameters())
    example = torch.zeros(shape, dtype=first.dtype, device=first.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        analysis = FlopCountAnalysis(model, example)
        analysis.set_op_handle("sparselib::spmm", _nonzero if count == "nonzero" else _dense)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        total = int(analysis.total())
    return total * (2 if unit == "flop" else 1)


def _absent(model: nn.Module) -> int:
    return sum(
        layer.shape[0] * layer.shape[1] - layer.values.numel()
        for layer in evolvable_layers(model).values()
    )


def _batch(inputs: list[Any]) -> int:
    return int(inputs[1].type().sizes()[0])


def _nonzero(inputs: list[Any], outputs: list[Any]) -> int:
    return _batch(inputs) * int(inputs[0].type().sizes()[0])


def _dense(inputs: list[Any], outputs: list[Any]) -> int:
    _, columns = inputs[1].type().sizes()
    return _batch(inputs) * int(columns) * int(outputs[0].type().sizes()[1])
