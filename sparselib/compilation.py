"""What is not traced: compiled code calls it as it is, between two compiled pieces."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def untraced(
    function: Callable[Parameters, Result],
) -> Callable[Parameters, Result]:
    """Keep ``torch.compile`` from tracing a function.

    As ``torch.compiler.disable``, which loads the compiler, and Triton with it, where it decorates.
    Here the compiler is loaded by code that is compiled, and by nothing else.

    Parameters
    ----------
    function : callable
        What has to run in Python, since it acts on what a compiler cannot see.
    """
    # torch's own decorator without the import; the first call would load the compiler
    from_compiled_code = torch._disable_dynamo(function)

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if torch.compiler.is_compiling():
            return from_compiled_code(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def is_exported_to_onnx() -> bool:
    """Whether ``torch.onnx.export`` looks on, whose format has no sparse product."""
    exporter = sys.modules.get("torch.onnx")
    return exporter is not None and bool(exporter.is_in_onnx_export())
