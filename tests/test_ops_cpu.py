"""The CPU kernels against the definition in float64, for awkward sizes, threads and values."""

import os
from concurrent.futures import ThreadPoolExecutor

import apart
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparselib as sl
from sparselib.ops import dispatch
from sparselib.ops.backends import cpu, cpu_launch, reference

# around the widths of a register, of a row of the result, and of the smaller ones without AVX-512
BATCHES = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    15,
    16,
    17,
    32,
    37,
    40,
    48,
    63,
    64,
    65,
    100,
    255,
    256,
    257,
    300,
    511,
    512,
    513,
    777,
]
sizes = st.integers(1, 40)


def layer(rows, columns, sparsity, seed=0):
    torch.manual_seed(seed)
    linear = sl.CSRLinear(columns, rows, sparsity=sparsity)
    return linear.csr, linear.values.detach()


def poisoned(*shape):
    """Fill the memory that the next tensor of this shape will get with NaN."""
    torch.full(shape, torch.nan)


def double(tensor):
    return tensor.double() if tensor.is_floating_point() else tensor


def test_little_work_wakes_no_other_thread(monkeypatch):
    """Whatever it is: samples by a layer, its gradients, a copy, a convolution."""
    started = []
    start = cpu_launch.start
    monkeypatch.setattr(cpu_launch, "start", lambda *of: started.append(of[2]) or start(*of))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for width, samples, threads in ((64, 17, {1}), (512, 256, {2})):
        net = sl.MLP(width, width, width, layer=sl.CSRLinear, sparsity=0.9)
        x = torch.randn(samples, width, requires_grad=True)
        started.clear()
        net(x).sum().backward()
        net.eval()(x.detach())
        assert set(started) == threads
    for length, threads in ((20, {1}), (4000, {2})):
        layer = sl.SparseConv1d(4, 4, 5, sparsity=0.5)
        started.clear()
        layer(torch.randn(8, 4, length, requires_grad=True)).sum().backward()
        assert set(started) == threads


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_products_equal_the_definition(batch, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        # the last ones have rows enough for copies, and features enough for blocks of them, of
        # which rows have even and odd numbers of connections
        shapes = [(33, 70, 0.9), (10, 5, 0.0), (3, 300, 0.99), (64, 64, 0.5), (61, 611, 0.37)]
        for rows, columns, sparsity in shapes:
            csr, values = layer(rows, columns, sparsity)
            x, dy, bias = torch.randn(batch, columns), torch.randn(batch, rows), torch.randn(rows)
            indices = csr.indices()
            poisoned(rows, batch)
            y = cpu.spmm(values, *indices, x, bias)
            exact = reference.spmm(values.double(), *indices, x.double(), bias.double())
            torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
            poisoned(csr.nnz)
            dvalues, dbias = cpu.sddmm(*indices, dy, x)
            exact, sums = reference.sddmm(*indices, dy.double(), x.double())
            torch.testing.assert_close(dvalues.double(), exact, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(dbias.double(), sums, rtol=1e-5, atol=1e-4)
    finally:
        torch.set_num_threads(before)


@given(sizes, sizes, st.integers(0, 300), st.data())
def test_any_pattern_with_empty_and_full_rows(rows, columns, batch, data):
    cells = st.lists(st.integers(0, rows * columns - 1), unique=True, max_size=60)
    positions = torch.tensor(sorted(data.draw(cells)), dtype=torch.int64)
    csr = sl.CSR.from_positions(positions, (rows, columns))
    values, x = torch.randn(csr.nnz), torch.randn(batch, columns)
    y = cpu.spmm(values, *csr.indices(), x)
    dense = torch.zeros(rows * columns, dtype=torch.float64)
    dense[positions] = values.double()
    exact = x.double() @ dense.view(rows, columns).t()
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)


@given(sizes, sizes, st.integers(1, 17), st.booleans(), st.booleans(), st.data())
def test_few_samples_through_any_pattern_and_strides(rows, columns, batch, biased, relu, data):
    cells = data.draw(st.sets(st.integers(0, rows * columns - 1)))
    csr = sl.CSR.from_positions(torch.tensor(sorted(cells), dtype=torch.int64), (rows, columns))
    values = torch.randn(csr.nnz)
    bias = torch.randn(rows) if biased else None
    wide = torch.randn(columns, batch + 3)
    x = data.draw(
        st.sampled_from(
            [torch.randn(batch, columns), wide.t()[:batch], wide[:, :batch].clone().t()]
        )
    )
    poisoned(rows, 16)
    y = cpu.spmm(values, *csr.indices(), x, bias, relu=relu)
    exact = None if bias is None else bias.double()
    exact = reference.spmm(values.double(), *csr.indices(), x.double(), exact, relu=relu)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)


@given(sizes, sizes)
def test_features_first_is_the_transpose(rows, columns):
    for factor in (1, 7):
        x = torch.randn(rows * factor, columns * factor)
        assert torch.equal(cpu.features_first(x), x.t())
        assert cpu.features_first(x).is_contiguous()
    view = torch.randn(columns, rows).t()
    assert cpu.features_first(view).data_ptr() == view.data_ptr()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("batch", [5, 64, 300])
def test_what_is_not_finite_passes_as_in_the_definition(bad, batch):
    csr, values = layer(20, 30, 0.8)
    x = torch.randn(batch, 30)
    x[batch // 2, 3] = bad
    indices = csr.indices()
    y, exact = cpu.spmm(values, *indices, x), reference.spmm(values, *indices, x)
    torch.testing.assert_close(y, exact, rtol=1e-5, atol=1e-5, equal_nan=True)


def gradients(product, csr, values, x, bias):
    leaves = [tensor.clone().requires_grad_() for tensor in (values, x, bias)]
    product(csr, leaves[0], leaves[1], leaves[2]).sin().sum().backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("strides", ["batch-major", "feature-major"])
def test_gradients_equal_those_of_the_dense_twin(strides):
    csr, values = layer(40, 50, 0.85)
    x = torch.randn(300, 50) if strides == "batch-major" else torch.randn(50, 300).t()
    bias = torch.randn(40, generator=torch.Generator())
    ours = gradients(sl.ops.spmm, csr, values, x, bias)
    doubles = (tensor.double() for tensor in (values, x, bias))
    exact = gradients(sl.masked_product, csr, *doubles)
    for one, other in zip(ours, exact):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


def test_second_derivatives_in_float32():
    csr, values = layer(8, 9, 0.5)
    x = torch.randn(7, 9)

    def second(product, values, x):
        values, x = values.clone().requires_grad_(), x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(product(csr, values, x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [values, x])

    for one, other in zip(
        second(sl.ops.spmm, values, x), second(sl.masked_product, values.double(), x.double())
    ):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "columns", "sparsity"), [(50, 60, 0.8), (61, 600, 0.4), (90, 300, 0.97)]
)
@pytest.mark.parametrize("batch", [16, 40, 64, 100, 513, 700])
def test_a_sum_has_one_order_whatever_the_threads(rows, columns, sparsity, batch):
    csr, values = layer(rows, columns, sparsity)
    dy, x, before = torch.randn(batch, rows), torch.randn(batch, columns), torch.get_num_threads()
    indices = (*csr.indices(), *csr.transposed_indices())
    results = []
    for threads in (1, 2, 3, 40):
        torch.set_num_threads(threads)
        y = cpu.spmm(values, *csr.indices(), x)
        dvalues, dbias, dx = cpu.gradients(values, indices, dy, x)
        results.append((y, dvalues, dbias, dx))
        results.append((y, *cpu.sddmm(*csr.indices(), dy, x), dx))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))


@pytest.mark.parametrize("time", [66, 70, 250])
def test_a_convolution_has_one_order_whatever_the_threads(time):
    torch.manual_seed(0)
    conv = sl.SparseConv1d(3, 40, 5, sparsity=0.3)
    x, before = torch.randn(7, 3, time), torch.get_num_threads()
    results = []
    for threads in (1, 5, 5, 5):
        torch.set_num_threads(threads)
        results.append(conv(x).detach())
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results)


def test_threads_of_python_may_call_at_once():
    csr, values = layer(100, 100, 0.9)
    x = torch.randn(1000, 100)
    alone = cpu.spmm(values, *csr.indices(), x)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(cpu.spmm, values, *csr.indices(), x) for _ in range(40)]
        assert all(torch.equal(call.result(), alone) for call in calls)


def test_without_openmp_threads_of_python_share_the_work(monkeypatch):
    csr, values = layer(100, 100, 0.9)
    x, before = torch.randn(1000, 100), torch.get_num_threads()
    torch.set_num_threads(1)
    alone = cpu.spmm(values, *csr.indices(), x)
    monkeypatch.setattr(cpu_launch, "_openmp", lambda: None)
    torch.set_num_threads(3)
    poisoned(100, 1000)
    together = cpu.spmm(values, *csr.indices(), x)
    torch.set_num_threads(before)
    assert torch.equal(together, alone)


def run(code, **environment):
    answer = apart.run("-c", code, env=os.environ | environment)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


PRODUCT = """
import torch, sparselib as sl
torch.manual_seed(0)
layer = sl.CSRLinear(60, 40, sparsity=0.8)
x = torch.randn(300, 60)
exact = sl.masked_product(layer.csr, layer.values, x, layer.bias)
torch.testing.assert_close(layer(x), exact, rtol=1e-5, atol=1e-5)
"""


def test_where_kernels_do_not_load_the_definition_computes_with_a_warning(monkeypatch):
    def kernels():
        raise ImportError("no llvmlite for this machine")

    monkeypatch.setattr(cpu, "kernels", kernels)
    dispatch._has_cpu_kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"ImportError: no llvmlite.*pip install numba"):
            assert not dispatch._has_cpu_kernels()
    finally:
        dispatch._has_cpu_kernels.cache_clear()


@pytest.mark.slow
def test_a_forked_worker_of_a_dataloader_multiplies():
    code = PRODUCT + (
        "class Rows(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return layer(x).detach()[i]\n"
        "loader = torch.utils.data.DataLoader(Rows(), num_workers=2, batch_size=2)\n"
        "got = torch.cat(list(loader))\n"
        "torch.testing.assert_close(got, exact.detach()[:4], rtol=1e-5, atol=1e-5)\n"
        "print('fine')"
    )
    assert run(code) == "fine\n"


@pytest.mark.slow
def test_without_avx512_the_kernels_are_narrower_and_right(tmp_path):
    code = PRODUCT + "from sparselib.ops.backends import cpu_kernels as k; print(k.WIDE, k.LANES)"
    plain = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""}
    import platform

    if platform.machine() != "x86_64":
        pytest.skip("another architecture")
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path), **plain) == "64 8\n"


@pytest.mark.slow
def test_the_backend_can_be_forced_and_a_wrong_name_is_refused():
    code = PRODUCT + "import sys; print('sparselib.ops.backends.cpu_kernels' in sys.modules)"
    assert run(code, SPARSELIB_BACKEND="reference") == "False\n"
    assert run(code) == "True\n"
    code = "try:\n    import sparselib\nexcept ValueError as error: print(error)"
    said = run(code, SPARSELIB_BACKEND="gpuu")
    assert said == "SPARSELIB_BACKEND is 'gpuu'; it can be auto, reference, cpu, gpu, interpret\n"


@pytest.mark.parametrize("batch", [17, 300])
def test_inf_in_a_sample_counts_once_in_the_gradient(batch):
    csr, _ = layer(6, 9, 0.5)
    dy, x = torch.randn(batch, 6), torch.randn(batch, 9)
    x[0, :] = torch.inf
    indices = csr.indices()
    ours, exact = cpu.sddmm(*indices, dy, x)[0], reference.sddmm(*indices, dy, x)[0]
    torch.testing.assert_close(ours, exact, equal_nan=True)
    assert ours.isinf().all()
