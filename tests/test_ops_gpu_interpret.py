"""The GPU's kernels equal the definition, in Triton's interpreter; and who chooses them."""

import os
from pathlib import Path

import apart
import pytest

from sparselib.ops import dispatch

pytest.importorskip("triton", "3.6", reason="no Triton 3.6 is installed; it exists for Linux only")
interpreted = pytest.mark.skipif(
    not dispatch._can_interpret(), reason="this Triton's interpreter fails with this numpy"
)


def run(*arguments, **environment):
    return apart.run(*arguments, env=os.environ | environment)


@interpreted
@pytest.mark.slow
def test_every_kernel_in_the_interpreter():
    tests = [Path(__file__).with_name(name) for name in ("interpreted.py", "interpreted_conv.py")]
    chosen = {"SPARSELIB_BACKEND": "interpret", "TRITON_INTERPRET": "1"}
    plain = ["-q", "-p", "no:cacheprovider", "-o", "addopts="]  # without checks of shapes
    answer = run("-m", "pytest", *plain, *tests, **chosen)
    assert answer.returncode == 0, answer.stdout[-5000:]
    print(answer.stdout.splitlines()[-1])


LAYER = """
import sys, torch, sparselib as sl
layer, x = sl.CSRLinear(6, 4, sparsity=0.5), torch.randn(3, 6)
def attempt(call):
    try: call()
    except (ValueError, RuntimeError) as error: print(error)
"""


@interpreted
@pytest.mark.slow
def test_the_operators_are_registered_as_torch_demands():
    code = """
import torch, sparselib as sl
csr = sl.CSRLinear(7, 5, sparsity=0.6).csr
values, x, y = (torch.randn(shape, requires_grad=True) for shape in (csr.nnz, (3, 7), (3, 5)))
indices = [*csr.indices(), *csr.transposed_indices()]
halves = x.detach().bfloat16(), y.detach().bfloat16()
for operator, arguments in (
    (torch.ops.sparselib.spmm.default, (values, x, 7, indices)),
    (torch.ops.sparselib.spmm_t.default, (values, y, 7, indices)),
    (torch.ops.sparselib.sddmm.default, (y, x, indices)),
    (torch.ops.sparselib.spmm.default, (values, halves[0], 7, indices)),
    (torch.ops.sparselib.sddmm.default, (halves[1], halves[0], indices)),
):
    print(*torch.library.opcheck(operator, arguments).values())
"""
    answer = run("-c", code, SPARSELIB_BACKEND="interpret")
    assert answer.stdout.splitlines() == ["SUCCESS SUCCESS SUCCESS SUCCESS"] * 5, answer.stderr


@interpreted
@pytest.mark.slow
def test_triton_is_loaded_by_nobody_but_the_kernels():
    code = LAYER + "layer(x).sum().backward(); print('triton' in sys.modules)"
    assert run("-c", code).stdout == "False\n"
    code = LAYER + "layer(x).sum().backward(); print('triton' in sys.modules)"
    assert run("-c", code, SPARSELIB_BACKEND="interpret").stdout == "True\n"


@interpreted
@pytest.mark.slow
def test_the_interpreter_is_refused_once_triton_compiles():
    code = LAYER + (
        "import triton.language\nwith sl.ops.backend('interpret'): attempt(lambda: layer(x))"
    )
    assert run("-c", code).stdout.startswith("Triton was loaded already, to compile")


@pytest.mark.slow
def test_without_triton_the_definition_computes_and_the_kernels_are_refused():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        + LAYER
        + (
            "from sparselib.ops import dispatch\n"
            "with torch._subclasses.FakeTensorMode():\n"
            "    print(dispatch.module(torch.empty(3, device='cuda')).__name__)\n"
            "attempt(lambda: sl.ops.backend('interpret').__enter__())"
        )
    )
    assert run("-c", code).stdout.splitlines() == [
        "sparselib.ops.backends.reference",
        "the backend 'interpret' needs triton; pip install triton, or use 'auto'",
    ]


@pytest.mark.slow
def test_without_a_compiler_for_triton_the_definition_computes_and_says_so_once(tmp_path):
    code = LAYER + (
        "import warnings\n"
        "from sparselib.ops import dispatch\n"
        "with warnings.catch_warnings(record=True) as caught, \\\n"
        "        torch._subclasses.FakeTensorMode():\n"
        "    for _ in range(2):\n"
        "        print(dispatch.module(torch.empty(3, device='cuda')).__name__)\n"
        "print(*(warning.message for warning in caught))\n"
    )
    answer = run("-c", code, PATH=str(tmp_path), CC="")
    assert answer.stdout.splitlines() == [
        *["sparselib.ops.backends.reference"] * 2,
        "sparselib computes by its definition, which is right and slow: Triton, which compiles its "
        "GPU kernels, cannot be used here; install gcc or clang, or name one in CC",
    ]


@pytest.mark.parametrize("version", ["3.2.0", "3.5.1"])
def test_a_triton_that_is_too_old_is_named(monkeypatch, version):
    monkeypatch.setattr(dispatch.metadata, "version", lambda name: version)
    with pytest.raises(ValueError, match=rf"triton; Triton {version} is older than 3.6; upgrade"):
        dispatch._allowed("interpret", "there is no backend")


def test_a_triton_that_cannot_interpret_is_named(monkeypatch):
    monkeypatch.setattr(dispatch, "_can_interpret", lambda: False)
    with pytest.raises(
        ValueError, match=r"needs Triton 3\.7 or numpy before 2\.4: the interpreter"
    ):
        dispatch._allowed("interpret", "there is no backend")


@pytest.mark.slow
def test_the_gpu_is_refused_where_there_is_none():
    code = LAYER + "attempt(lambda: sl.ops.backend('gpu').__enter__())"
    answer = run("-c", code, CUDA_VISIBLE_DEVICES="")
    assert answer.stdout == (
        "the backend 'gpu' needs a CUDA device, and torch sees none; use 'auto'\n"
    )


@pytest.mark.slow
def test_tensors_of_a_gpu_go_to_the_kernels_by_themselves():
    code = LAYER + (
        "from sparselib.ops import dispatch\n"
        "with torch._subclasses.FakeTensorMode():\n"
        "    for kind in (torch.float32, torch.bfloat16, torch.float64):\n"
        "        print(dispatch.module(torch.empty(3, device='cuda', dtype=kind)).__name__)\n"
    )
    names = [f"sparselib.ops.backends.{name}" for name in ("gpu", "gpu", "reference")]
    assert run("-c", code).stdout.splitlines() == names
