"""Which backend computes a product, and how it is called: every such decision stands here.

A call depends on the device and type of its tensors, on the backend that the user chose, on what
is installed, and on who has to see the operations: autograd alone, a compiler or tracer, autocast,
or a transform of functions.
"""

import functools
import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparselib.csr import CSR
from sparselib.ops.backends import Backend, cpu, reference
from sparselib.ops.registration import tell_counter

BACKENDS = ("auto", "reference", "cpu", "gpu", "interpret")
OLDEST_TRITON = (3, 6)
HALVES = (torch.float16, torch.bfloat16)
# the types that autograd may see directly; a subclass of Tensor wants to see operators
PLAIN = frozenset((Tensor, nn.Parameter))
FLOAT = torch.float32
STRIDED = torch.strided


def _allowed(name: str, sentence: str) -> str:
    if name not in BACKENDS:
        raise ValueError(
            f"{sentence} {name!r}; it can be {', '.join(BACKENDS)}"
        )
    if name == "cpu" and not _is_installed("numba"):
        raise ValueError(
            "the backend 'cpu' needs numba; pip install numba, or use 'auto'"
        )
    if name == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            "the backend 'gpu' needs a CUDA device, and torch sees none; use 'auto'"
        )
    if name in ("gpu", "interpret") and (missing := _missing_triton()):
        raise ValueError(
            f"the backend {name!r} needs triton; {missing}, or use 'auto'"
        )
    if name == "gpu" and (missing := _missing_compiler()):
        raise ValueError(
            f"the backend 'gpu' needs a C compiler; {missing}, or use 'auto'"
        )
    if name == "interpret" and not _can_interpret():
        raise ValueError(
            "the backend 'interpret' needs Triton 3.7 or numpy before 2.4: the interpreter of "
            f"Triton {metadata.version('triton')} fails with numpy {metadata.version('numpy')}"
        )
    if name == "interpret" and "triton.language" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    return name


@functools.cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _missing_triton() -> str:
    """What to do for a Triton that knows what our kernels use; empty if there is one."""
    if not _is_installed("triton"):
        return "pip install triton"
    if _release("triton") < OLDEST_TRITON:
        return f"Triton {metadata.version('triton')} is older than 3.6; upgrade triton and torch"
    return ""


def _missing_compiler() -> str:
    """What to do for the compiler that builds Triton's launchers; empty if there is one."""
    named = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return "" if named else "install gcc or clang, or name one in CC"


def _can_interpret() -> bool:
    return _release("triton") >= (3, 7) or _release("numpy") < (2, 4)


def _release(package: str) -> tuple[int, ...]:
    return tuple(map(int, metadata.version(package).split(".")[:2]))


CHOSEN = _allowed(
    os.environ.get("SPARSELIB_BACKEND", "auto"), "SPARSELIB_BACKEND is"
)


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
        If there is no such backend, or it cannot run here; the message names what is missing.
    """
    global CHOSEN
    before = CHOSEN
    CHOSEN = _allowed(name, "there is no backend")
    try:
        yield
    finally:
        CHOSEN = before


def module(tensor: Tensor) -> Backend:
    """Return the backend that computes with this tensor: `cpu`, `gpu` or `reference`."""
    if CHOSEN == "reference":
        return reference
    is_float = tensor.dtype == torch.float32
    is_known = is_float or tensor.dtype in HALVES
    if tensor.is_cpu:
        if CHOSEN == "interpret" and is_known:
            return _gpu(interpreted=True)
        return cpu if is_float and _has_cpu_kernels() else reference
    if (
        CHOSEN in ("auto", "gpu")
        and tensor.is_cuda
        and is_known
        and _has_gpu_kernels()
    ):
        return _gpu(interpreted=False)
    return reference


def module_of_extrema(s: Tensor) -> Backend:
    """Return the backend that marks extrema: its kernel knows float64 too."""
    known = s.dtype in (torch.float32, torch.float64)
    if CHOSEN in ("auto", "cpu") and s.is_cpu and known and _has_cpu_kernels():
        return cpu
    return reference


def fast(x: Tensor, *parameters: Tensor) -> Backend | None:
    """Return the backend with kernels for x and the parameters, or None.

    None if there are none for their dtype and device, or if something has to see every operation:
    a compiler, a tracer, autocast, a transform of functions.
    """
    if not is_eager(x, *parameters):
        return None
    kernels = module(x)
    if kernels is reference:
        return None
    known = all(p.device == x.device and fits(x, p) for p in parameters)
    return kernels if known else None


def fits(x: Tensor, values: Tensor) -> bool:
    """Whether activations x go with these values: one type, or x in 16 bits on a GPU."""
    return x.dtype == values.dtype or (
        values.dtype == torch.float32 and takes_halves(x)
    )


def takes_halves(x: Tensor) -> bool:
    """Whether x has 16 bits and is summed in float32."""
    return x.dtype in HALVES and module(x) is not reference


def is_overseen(x: Tensor) -> bool:
    """Whether anybody but autograd has to see each operation on x.

    A compiler, a tracer, autocast, a transform of functions, a subclass of Tensor or a mode such as
    torch's ``FlopCounterMode`` wants that.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return True
    if torch._C._len_torch_dispatch_stack():
        tell_counter()
        return True
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._functorch.maybe_current_level() is not None
        or (torch.is_autocast_enabled("cpu") if x.is_cpu else autocasts(x))
    )


def is_eager(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether autograd may be written down directly, without a custom operator's cost."""
    if is_overseen(x):
        return False
    is_direct = is_written(x)
    for tensor in parameters:
        if tensor is not None:
            is_direct = (
                type(tensor) in PLAIN and is_written(tensor) and is_direct
            )
    return is_direct


def is_plain(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether nothing but a kernel has to see a call: as `is_eager`, and there is no gradient.

    All tensors then hold float32 on the CPU, and there are kernels for them.
    """
    if is_overseen(x):
        return False
    is_recording = torch.is_grad_enabled()
    for tensor in (x, *parameters):
        if tensor is not None and (
            type(tensor) not in PLAIN
            or tensor.dtype is not FLOAT
            or not tensor.is_cpu
            or tensor.layout is not STRIDED
            or tensor.is_neg()
            or not tensor.data_ptr()
            or (is_recording and tensor.requires_grad)
        ):
            return False
    return CHOSEN in ("auto", "cpu") and _has_cpu_kernels()


def is_written(x: Tensor) -> bool:
    """Whether the numbers of x are in its memory: no sign is pending, and no zero implied.

    Raises
    ------
    RuntimeError
        If the memory of x was taken away.
    """
    if x.is_neg():
        return False
    if x.data_ptr() or not x.numel():
        return True
    if x._is_zerotensor() or x.is_meta:
        return False
    raise RuntimeError(
        f"a tensor of shape {tuple(x.shape)} has no memory; it was freed"
    )


def transformed() -> bool:
    """Whether torch.func transforms the call: our operators and functions do not support it."""
    compiling = torch.compiler.is_compiling()
    return (
        not compiling and torch._C._functorch.maybe_current_level() is not None
    )


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on where x is."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


class Way(NamedTuple):
    """How products were computed.

    Attributes
    ----------
    kernel : str
        What computed them, such as ``"cpu: spmm"``.
    patterns : tuple of CSR
        The connections of the layers that it computed at once.
    obstacles : tuple of str
        Why it was not the fastest that there is.
    samples : int
        How many it read; of images and signals, those of one channel.
    """

    kernel: str
    patterns: tuple[CSR, ...]
    obstacles: tuple[str, ...]
    samples: int


_ways: list[Way] | None = None


@contextmanager
def noting() -> Iterator[list[Way]]:
    """Return a list of the ways that products take within the block."""
    global _ways
    before = _ways
    _ways = []
    try:
        yield _ways
    finally:
        _ways = before


def note(
    kernel: str, patterns: Sequence[CSR], x: Tensor, *parameters: Tensor | None
) -> None:
    """Note the way of a product, if somebody wants to know."""
    if _ways is None or torch.compiler.is_compiling():
        return
    name = module(x).__name__.rpartition(".")[2]
    found = tuple(_obstacles(x, *(p for p in parameters if p is not None)))
    samples = x.numel() // max(x.shape[-1], 1) if x.ndim else 0
    _ways.append(Way(f"{name}: {kernel}", tuple(patterns), found, samples))


def _obstacles(x: Tensor, *parameters: Tensor) -> Iterator[str]:
    """Sentences, each of which alone keeps a product from the fastest kernel."""
    if CHOSEN in ("reference", "interpret"):
        yield f"the backend {CHOSEN!r} was chosen"
    elif x.is_cpu and not _has_cpu_kernels():
        yield "numba, which compiles the kernels, does not load"
    elif x.is_cuda and not _has_gpu_kernels():
        yield "Triton, which compiles the kernels, cannot be used"
    else:
        known = (torch.float32, *(HALVES if x.is_cuda else ()))
        types = {tensor.dtype for tensor in (x, *parameters)} - set(known)
        if types:
            names = ", ".join(str(kind) for kind in sorted(types, key=str))
            yield f"there are no kernels for {names} on {x.device.type}"
    yield from _overseers(x)
    if type(x) is not Tensor:
        yield f"the input is a {type(x).__name__}, not a plain tensor"
    strange = {type(p) for p in parameters} - PLAIN
    if strange:
        names = ", ".join(sorted(kind.__name__ for kind in strange))
        yield f"the weights are {names}, not plain tensors"


def _overseers(x: Tensor) -> Iterator[str]:
    """Say who wants to see each operation."""
    if torch.jit.is_tracing():
        yield "torch.jit traces the call"
    if autocasts(x):
        yield "autocast is on, so that the product is an operator of its own"
    if transformed():
        yield "torch.func transforms the call"
    if torch._C._len_torch_dispatch_stack():
        yield "a mode, such as FlopCounterMode, wants to see every operation"


def refresh() -> None:
    """Bring up to date what the GPU's kernels know of topologies that changed between replays."""
    if loaded := sys.modules.get("sparselib.ops.backends.gpu"):
        loaded.refresh()


@functools.cache
def _has_cpu_kernels() -> bool:
    """Whether the CPU's kernels can be compiled here; warns once if they cannot."""
    try:
        cpu.kernels()
    except (
        Exception
    ) as error:  # whatever a compiler that does not fit this machine raises
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"sparselib computes by its definition, which is right and slow: numba, which compiles "
            f"its CPU kernels, does not load ({reason}); pip install numba",
            stacklevel=2,
        )
        return False
    return True


@functools.cache
def _has_gpu_kernels() -> bool:
    """Whether the GPU's kernels can be compiled here; warns once if they cannot."""
    missing = _missing_triton() or _missing_compiler()
    if missing:
        warnings.warn(
            "sparselib computes by its definition, which is right and slow: Triton, which compiles "
            f"its GPU kernels, cannot be used here; {missing}",
            stacklevel=2,
        )
    return not missing


@functools.cache
def _gpu(interpreted: bool) -> Backend:
    from sparselib.ops.backends import gpu

    _check_interpreter(gpu, interpreted)
    return gpu


def _check_interpreter(gpu: ModuleType, interpreted: bool) -> None:
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
