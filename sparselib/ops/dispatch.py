"""Which module computes a product: by device and type, or as the user says."""

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from sparselib.ops.backends import cpu, reference

BACKENDS = ("auto", "reference", "cpu", "gpu", "interpret")
HALVES = (torch.float16, torch.bfloat16)


def _allowed(name: str, sentence: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{sentence} {name!r}; it can be {', '.join(BACKENDS)}")
    if name == "gpu" and not torch.cuda.is_available():
        raise ValueError("the backend 'gpu' needs a CUDA device, and torch sees none; use 'auto'")
    if name in ("gpu", "interpret") and not _has_triton():
        raise ValueError(f"the backend {name!r} needs triton; pip install triton, or use 'auto'")
    if name == "interpret" and not _can_interpret():
        raise ValueError(
            "the backend 'interpret' needs Triton 3.7 or numpy before 2.4: the interpreter of "
            f"Triton {metadata.version('triton')} fails with numpy {metadata.version('numpy')}"
        )
    if name == "interpret" and "triton.language" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    return name


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _can_interpret() -> bool:
    return _release("triton") >= (3, 7) or _release("numpy") < (2, 4)


def _release(package: str) -> tuple[int, ...]:
    return tuple(map(int, metadata.version(package).split(".")[:2]))


CHOSEN = _allowed(os.environ.get("SPARSELIB_BACKEND", "auto"), "SPARSELIB_BACKEND is")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Compute by the named backend within the block.

    Parameters
    ----------
    name : str
        ``"auto"`` takes the fastest that fits device and type, ``"reference"`` the definition
        everywhere. ``"cpu"`` is kernels for float32 on the CPU and else the definition. ``"gpu"``
        is ``"auto"``, but refused where there is no CUDA device or no Triton. ``"interpret"`` runs
        the GPU's kernels on CPU tensors, slowly, to see that they are right; it has to come before
        anything else loads Triton, and lasts for the process.

    Raises
    ------
    ValueError
        If there is no such backend, or it cannot run here; the sentence says what is missing.
    """
    global CHOSEN
    before, CHOSEN = CHOSEN, _allowed(name, "there is no backend")
    try:
        yield
    finally:
        CHOSEN = before


def module(tensor: Tensor) -> Any:
    """Return the module that computes with this tensor: `cpu`, `gpu` or `reference`."""
    device, kind = tensor.device.type, tensor.dtype
    if CHOSEN == "interpret" and device == "cpu" and kind in (torch.float32, *HALVES):
        return _kernels(interpreted=True)
    if CHOSEN != "reference" and device == "cpu" and kind == torch.float32:
        return cpu
    if CHOSEN in ("auto", "gpu") and device == "cuda" and kind in (torch.float32, *HALVES):
        return _kernels(interpreted=False) if _has_triton() else reference
    return reference


def fits(x: Tensor, values: Tensor) -> bool:
    """Whether activations x go with these values: one type, or x in 16 bits on a GPU."""
    return x.dtype == values.dtype or (values.dtype == torch.float32 and takes_halves(x))


def takes_halves(x: Tensor) -> bool:
    """Whether x has 16 bits and is summed in float32."""
    return x.dtype in HALVES and module(x) is not reference


def refresh() -> None:
    """Bring up to date what the GPU's kernels know of topologies that changed between replays."""
    if loaded := sys.modules.get("sparselib.ops.backends.gpu"):
        loaded.refresh()


@functools.cache
def _kernels(interpreted: bool) -> Any:
    from sparselib.ops.backends import gpu

    if interpreted and not gpu.INTERPRETED:
        raise RuntimeError(
            "Triton was loaded already, to compile and not to interpret; start Python with "
            "SPARSELIB_BACKEND=interpret and TRITON_INTERPRET=1"
        )
    if gpu.INTERPRETED and not interpreted:
        raise RuntimeError(
            "Triton was loaded to interpret kernels, so nothing can run on the GPU; start Python "
            "without TRITON_INTERPRET"
        )
    return gpu
