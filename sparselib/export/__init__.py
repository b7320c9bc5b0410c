"""A trained network as one C99 file, for devices of low resources: no library, no allocation.

The network is written down by ``torch.export``; each of its operations becomes a call of a small
C function, its constants become ``const`` tables, and its activations share one static array,
whose places are taken again when nothing reads them any more.
"""

import torch
from torch import Tensor, nn

from sparselib.export._operations import OPERATIONS
from sparselib.export._writer import Source as Source
from sparselib.export._writer import Writer

KEYWORDS = frozenset(
    [
        *("auto", "break", "case", "char", "const", "continue", "default"),
        *("do", "double", "else", "enum", "extern", "float", "for"),
        *("goto", "if", "inline", "int", "long", "main", "register"),
        *(
            "restrict",
            "return",
            "short",
            "signed",
            "sizeof",
            "static",
            "struct",
        ),
        *(
            "switch",
            "typedef",
            "union",
            "unsigned",
            "void",
            "volatile",
            "while",
        ),
    ]
)


def c(model: nn.Module, example: Tensor, name: str = "network") -> Source:
    """Write a network as one C99 file.

    Parameters
    ----------
    model : nn.Module
        Computes with linear layers and one-dimensional convolutions, sparse or dense, batch
        normalization, ReLU, sigmoid, tanh, padding, pooling, means, sums of activations and
        changes of shape. It is written as it is in evaluation mode.
    example : Tensor, float32, shape (1, ...)
        One sample; the network is written for its shape.
    name : str
        Of the C function.

    Raises
    ------
    ValueError
        If an operation of the model has no form in C here, a weight is not finite, the example is
        not one sample of float32, or the name is no name in C.
    """
    is_name = isinstance(name, str) and name.isidentifier() and name.isascii()
    if not is_name or name in KEYWORDS:
        raise ValueError(f"a function in C cannot be called {name!r}")
    if not isinstance(example, Tensor):
        raise ValueError(
            f"the example is a tensor, one sample, not a {type(example).__name__}"
        )
    if example.dtype != torch.float32 or example.ndim < 2 or len(example) != 1:
        raise ValueError(
            f"the example is one sample of float32, (1, ...), not {tuple(example.shape)} of "
            f"{example.dtype}"
        )
    is_training = model.training
    try:
        program = torch.export.export(model.eval(), (example,), strict=False)
    finally:
        model.train(is_training)
    return Writer(program, name, OPERATIONS).source()
