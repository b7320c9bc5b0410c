"""Compiled kernels on disk: whatever becomes of the disk, the numbers are right."""

import gc
import importlib.util
import os
import random
import shutil
import sys
from pathlib import Path

import apart
import pytest
from numba import njit
from numba.core.dispatcher import Dispatcher

import sparselib
from sparselib.ops.backends import cpu, cpu_cache, cpu_vectors

TURN = """
import torch
from sparselib.ops.backends import cpu
x = torch.randn(300, 60)
assert torch.equal(cpu.features_first(x), x.t())
print("fine", cpu.kernels().transposed().cache_hits)
"""


def start(code, **environment):
    return apart.Program("-c", code, env=os.environ | environment)


def run(code, **environment):
    process = start(code, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip(), err


def kernels(folder):
    return sorted(folder.rglob("*.kernel"))


@pytest.mark.slow
def test_processes_compile_a_kernel_once_and_a_spoilt_one_again(tmp_path):
    place = {"NUMBA_CACHE_DIR": str(tmp_path)}
    at_once = [start(TURN, **place) for _ in range(3)]
    answers = [process.communicate(timeout=300) for process in at_once]
    assert all(out.startswith("fine") for out, _ in answers), answers
    assert "fine 0\n" in [out for out, _ in answers]
    (path,) = kernels(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [path]
    assert run(TURN, **place)[0] == "fine 1"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert run(TURN, **place)[0] == "fine 0"
    assert run(TURN, **place)[0] == "fine 1"
    assert kernels(tmp_path) == [path]


@pytest.mark.slow
def test_on_a_full_disk_nothing_is_kept(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    assert run(limit + TURN, NUMBA_CACHE_DIR=str(tmp_path))[0] == "fine 0"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# permissions hold for the superuser, too, who has given up all capabilities
NO_PRIVILEGES = """
import ctypes
header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(header, none) == 0
"""


@pytest.mark.slow
def test_where_nothing_can_be_written_nothing_is_kept(tmp_path):
    package = tmp_path / "sparselib"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(sparselib.__file__).parent, package, ignore=ignored)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    nowhere = {"NUMBA_CACHE_DIR": str(tmp_path / "no"), "HOME": str(tmp_path)}
    nowhere |= {"XDG_CACHE_HOME": str(tmp_path)}
    for folder in folders:
        folder.chmod(0o555)
    try:
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        code += f"import sparselib; assert sparselib.__file__.startswith({str(tmp_path)!r})\n"
        assert run(NO_PRIVILEGES + code + TURN, **nowhere)[0] == "fine 0"
        assert kernels(tmp_path) == []
    finally:
        for folder in folders:
            folder.chmod(0o755)


@pytest.fixture
def function(tmp_path, monkeypatch):
    """A function in a file of its own, which a cache can be kept for."""
    path = tmp_path / "some_source.py"
    path.write_text("def add(a, b):\n    return a + 2 * b\n", encoding="utf-8")
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "cache"))
    specification = importlib.util.spec_from_file_location("some_source", path)
    module = importlib.util.module_from_spec(specification)
    # numba finds the globals of what it loads by the name of the module
    monkeypatch.setitem(sys.modules, "some_source", module)
    specification.loader.exec_module(module)
    return module.add


def hits(function, *sources):
    dispatcher = njit(function)
    cpu_cache.keep(dispatcher, function, cpu_cache.stamps(sources))
    assert dispatcher(3, 4) == 11
    return sum(dispatcher.stats.cache_hits.values())


def test_no_file_is_believed_that_is_not_as_it_was_written(function, tmp_path, monkeypatch):
    assert (hits(function), hits(function)) == (0, 1)
    gc.collect()  # what was compiled here; numba would take it instead of the file's
    (path,) = kernels(tmp_path)
    whole, generator = path.read_bytes(), random.Random(0)
    loads = []
    original = cpu_cache.pickle.loads
    monkeypatch.setattr(cpu_cache.pickle, "loads", lambda data: loads.append(1) or original(data))
    cache = cpu_cache.KernelCache(function)
    signature = njit(["int64(int64, int64)"])(function).nopython_signatures[0]
    from numba.core.registry import cpu_target

    key = cache._index_key(signature.args, cpu_target.target_context.codegen())
    assert cache._cache_file.load(key) is not None
    del loads[:]
    for _ in range(300):
        spoilt = bytearray(whole)
        place = generator.randrange(len(whole))
        spoilt[place] ^= 1 << generator.randrange(8)
        path.write_bytes(spoilt)
        assert cache._cache_file.load(key) is None
    for length in (0, 1, 31, 32, 33, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert cache._cache_file.load(key) is None
    assert loads == []
    path.unlink()
    path.mkdir()
    assert cache._cache_file.load(key) is None
    assert hits(function) == 0


def test_another_source_is_another_kernel(function, tmp_path):
    assert hits(function) == 0
    source = tmp_path / "some_source.py"
    source.write_text(source.read_text(encoding="utf-8") + "# more\n", encoding="utf-8")
    assert hits(function) == 0


def test_another_file_that_a_kernel_is_made_of_makes_another_kernel(function, tmp_path):
    part = tmp_path / "part.py"
    part.write_text("a = 1\n", encoding="utf-8")
    assert (hits(function, part), hits(function, part)) == (0, 1)
    part.write_text("a = 12\n", encoding="utf-8")
    assert (hits(function, part), hits(function, part)) == (0, 1)


def test_a_file_that_is_edited_before_its_kernel_compiles_makes_another_kernel(function, tmp_path):
    """What a program has read is kept under the stamp of that, not of what has come since."""
    part = tmp_path / "part.py"
    part.write_text("a = 1\n", encoding="utf-8")
    read = cpu_cache.stamps([part])
    part.write_text("a = 12\n", encoding="utf-8")
    dispatcher = njit(function)
    cpu_cache.keep(dispatcher, function, read)
    dispatcher(1, 2)
    assert hits(function, part) == 0


def test_every_file_that_kernels_are_made_of_is_known():
    from sparselib.ops.backends import cpu_vectors

    names = {name for name, *_ in cpu_vectors.SOURCES}
    assert {"cpu_vectors.py", "cpu_arguments.py", "cpu_kernels.py", "cpu_few.py"} <= names


WITHOUT = """
import sys, warnings
sys.modules["numba"] = None
import torch, sparselib as sl
layer, x = sl.CSRLinear(60, 40, sparsity=0.8), torch.randn(300, 60)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        y = layer(x)
        sl.nn.activation.extrema(torch.randn(2, 3, 50), 4)
    y.sum().backward()
    sl.MLP(60, 40, 10, layer=sl.CSRLinear, sparsity=0.8)(x).sum().backward()
    sl.SparseConv1d(2, 3, 5)(torch.randn(2, 2, 30)).sum().backward()
exact = sl.masked_product(layer.csr, layer.values, x, layer.bias)
torch.testing.assert_close(y, exact, rtol=1e-5, atol=1e-5)
found = [w for w in caught if "sparselib" in str(w.message)]
print(len(found), sl.ops.dispatch.module(x).__name__, "numba" in str(found[0].message))
try:
    sl.ops.backend("cpu").__enter__()
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_without_numba_the_definition_computes_and_says_so_once():
    assert run(WITHOUT)[0].splitlines() == [
        "1 sparselib.ops.backends.reference True",
        "the backend 'cpu' needs numba; pip install numba, or use 'auto'",
    ]


@pytest.mark.slow
def test_where_numba_must_not_compile_the_definition_computes():
    code = WITHOUT.replace('sys.modules["numba"] = None\n', "").split("try:")[0]
    answer, _ = run(code, NUMBA_DISABLE_JIT="1")
    assert answer == "1 sparselib.ops.backends.reference True"


@pytest.mark.slow
def test_a_numba_that_does_not_load_is_as_none():
    code = "import sys; sys.modules['llvmlite'] = None\n"
    code += WITHOUT.replace('sys.modules["numba"] = None\n', "").split("try:")[0]
    assert run(code)[0] == "1 sparselib.ops.backends.reference True"


# numbers what is compiled as another process may have done: those of this name come first
NUMBERED = """
import inspect, itertools, sys
from numba.core import bytecode
made = bytecode.FunctionIdentity.from_function.__func__
numbers = {}

def numbered(cls, function):
    self = made(cls, function)
    closed = inspect.getclosurevars(self.func).nonlocals
    if "n" in closed and "rows" in self.func_name:
        numbers[closed["n"]] = self.unique_id
        if closed["n"] == 1 and len(sys.argv) > 1:
            self.unique_id = int(sys.argv[1])
            self.unique_name = f"{self.func_qualname}${self.unique_id}"
    return self

bytecode.FunctionIdentity.from_function = classmethod(numbered)
"""
STORED = """
from sparselib.ops.backends import cpu_kernels
cpu_kernels.gradients()
print(numbers[32])
"""
LOADED = """
import torch
import sparselib as sl
from sparselib.ops.backends import cpu_kernels
cpu_kernels.spmm()
assert cpu_kernels.gradients().cache_hits == 1
layer = sl.CSRLinear(20, 33, sparsity=0.5)
x = torch.randn(32, 20, requires_grad=True)
twin = x.detach().clone().requires_grad_()
layer(x).square().sum().backward()
layer.to_dense()(twin).square().sum().backward()
torch.testing.assert_close(x.grad, twin.grad, rtol=1e-4, atol=1e-4)
print("fine")
"""


@pytest.mark.slow
def test_kernels_of_two_processes_do_not_take_each_other_s_functions(tmp_path):
    """Machine code knows functions by names, which numba numbers anew in each process."""
    place = {"NUMBA_CACHE_DIR": str(tmp_path)}
    number, _ = run(NUMBERED + STORED, **place)
    process = apart.Program("-c", NUMBERED + LOADED, number, env=os.environ | place)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out == "fine\n"


def test_what_closes_over_numbers_is_named_after_them():
    cpu.kernels()
    from sparselib.ops.backends import cpu_conv_kernels, cpu_descent_kernels, cpu_few, cpu_kernels

    named = {}
    for module in cpu_kernels, cpu_conv_kernels, cpu_descent_kernels, cpu_few:
        for value in vars(module).values():
            if isinstance(value, Dispatcher):
                function = value.py_func
                key = function.__module__, function.__qualname__
                assert named.setdefault(key, value) is value
    assert len(named) > 30


def test_what_closes_over_something_else_is_refused():
    something = object()

    def closed():
        return something

    with pytest.raises(TypeError, match="closes over something, which is no number"):
        cpu_vectors.inline(closed)
