"""The GPU's kernels in Triton's interpreter; `test_ops_gpu_interpret` runs this file.

It needs a process of its own, in which TRITON_INTERPRET is set before Triton is imported.
"""

import copy

import pytest
import torch

import sparselib as sl
from sparselib.ops import dispatch
from sparselib.ops.backends import gpu, reference

HALVES = {torch.float16: 2e-3, torch.bfloat16: 2e-2}
BATCHES = [1, 37, 40, 64]  # tails of a tile, of a vector, none


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fill what kernels are to write with NaN, so that nothing unwritten can pass."""

    def new_empty(tensor, *shape, **options):
        made = allocate(tensor, *shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    allocate = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)


def pattern(rows=17, columns=29, density=0.3):
    """Draw a pattern with an empty row, a full row and an empty column."""
    mask = torch.rand(rows, columns) < density
    mask[rows // 4] = False
    mask[rows // 2] = True
    mask[:, columns // 3] = False
    csr = sl.CSR.from_dense(mask.float())
    return csr, torch.randn(csr.nnz)


def close(ours, exact, tolerance=1e-5, **options):
    torch.testing.assert_close(
        ours.double(), exact.double(), rtol=tolerance, atol=tolerance, **options
    )


def double(*tensors):
    return [tensor.double() for tensor in tensors]


def test_the_kernels_are_interpreted():
    assert gpu.INTERPRETED
    assert dispatch.module(torch.zeros(1)) is gpu
    assert dispatch.module(torch.zeros(1).double()) is reference


@pytest.mark.parametrize("shape", [*gpu.TILES, *gpu.ODD_TILES])
def test_every_tile_gives_the_product(shape, monkeypatch):
    monkeypatch.setattr(gpu, "tile", lambda *_: shape)
    csr, values = pattern()
    x, bias = torch.randn(36 if shape in gpu.TILES else 37, 29), torch.randn(17)
    indices = csr.indices()
    exact = reference.spmm(values.double(), *indices, *double(x, bias))
    close(gpu.spmm(values, *indices, x, bias), exact)


@pytest.mark.parametrize("batch", BATCHES)
def test_products_equal_the_definition(batch):
    csr, values = pattern()
    crow, col, permutation = csr.transposed_indices()
    x, dy = torch.randn(batch, 29), torch.randn(batch, 17)
    indices = csr.indices()
    close(gpu.spmm(values, *indices, x), reference.spmm(values.double(), *indices, x.double()))
    exact = reference.spmm(values.double(), crow, col, dy.double(), None, permutation)
    close(gpu.spmm(values, crow, col, dy, None, permutation), exact)
    for ours, exact in zip(gpu.sddmm(*indices, dy, x), reference.sddmm(*indices, *double(dy, x))):
        close(ours, exact)


def test_rows_are_taken_by_length_and_sorted_anew_in_place():
    csr, _ = pattern()
    with torch.inference_mode():
        order = gpu.by_length(csr.indices()[0])
    lengths = csr.fan_in()[order.long()]
    assert torch.equal(lengths, lengths.sort(descending=True).values)
    assert gpu.by_length(csr.indices()[0]) is order
    csr.rewire(torch.arange(csr.nnz))
    sl.ops.dispatch.refresh()
    lengths = csr.fan_in()[order.long()]
    assert torch.equal(lengths, lengths.sort(descending=True).values)
    assert gpu.by_length(csr.indices()[0]) is order


def test_relu_keeps_nan_and_drops_what_is_negative():
    csr, values = pattern()
    x = torch.randn(37, 29)
    x[5] = torch.nan
    indices = csr.indices()
    exact = reference.spmm(values, *indices, x).relu()
    close(gpu.spmm(values, *indices, x, relu=True), exact, equal_nan=True)
    assert exact[5].isnan().any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_passes_as_in_the_definition(bad):
    csr, values = pattern()
    x, dy = torch.randn(37, 29), torch.randn(37, 17)
    x[36, 3], dy[2, 5] = bad, bad
    indices = csr.indices()
    close(gpu.spmm(values, *indices, x), reference.spmm(values, *indices, x), equal_nan=True)
    for ours, exact in zip(gpu.sddmm(*indices, dy, x), reference.sddmm(*indices, dy, x)):
        close(ours, exact, equal_nan=True)


@pytest.mark.parametrize("kind", HALVES)
def test_activations_of_sixteen_bits_are_summed_in_float32(kind):
    csr, values = pattern()
    x, dy, bias = torch.randn(40, 29).to(kind), torch.randn(40, 17).to(kind), torch.randn(17)
    indices = csr.indices()
    y = gpu.spmm(values, *indices, x, bias)
    exact = reference.spmm(values.double(), *indices, *double(x, bias))
    assert y.dtype == kind
    close(y, exact.to(kind), HALVES[kind])
    for ours, exact in zip(gpu.sddmm(*indices, dy, x), reference.sddmm(*indices, *double(dy, x))):
        assert ours.dtype == torch.float32
        close(ours, exact, 1e-4)


def test_nothing_is_left_unwritten_where_there_is_nothing():
    csr = sl.CSR.from_dense(torch.zeros(3, 4))
    indices, none = csr.indices(), torch.zeros(0)
    assert torch.equal(gpu.spmm(none, *indices, torch.ones(2, 4)), torch.zeros(2, 3))
    assert gpu.spmm(none, *indices, torch.ones(0, 4)).shape == (0, 3)
    dvalues, dbias = gpu.sddmm(*indices, torch.ones(2, 3), torch.ones(2, 4))
    assert (dvalues.shape, dbias.tolist()) == ((0,), [2.0, 2.0, 2.0])


def gradients(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    y.float().sin().sum().backward()
    return [y.detach(), x.grad, layer.values.grad, layer.bias.grad]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("strides", ["batch-major", "feature-major"])
def test_a_layer_and_its_gradients_equal_the_dense_twin(cached, strides):
    layer = sl.CSRLinear(29, 17, sparsity=0.7, cache_transpose=cached)
    torch.nn.init.normal_(layer.bias)
    twin = copy.deepcopy(layer).double()
    twin.product = sl.masked_product
    x = torch.randn(37, 29) if strides == "batch-major" else torch.randn(29, 37).t()
    for ours, exact in zip(gradients(layer, x), gradients(twin, x.double())):
        close(ours, exact)


@pytest.mark.parametrize("kind", HALVES)
def test_a_layer_takes_activations_of_sixteen_bits(kind):
    layer = sl.CSRLinear(29, 17, sparsity=0.7)
    twin = copy.deepcopy(layer).double()
    x = torch.randn(37, 29).to(kind)
    ours, exact = gradients(layer, x), gradients(twin, x.double())
    assert [g.dtype for g in ours] == [kind, kind, torch.float32, torch.float32]
    for one, other in zip(ours, exact):
        close(one, other, 4 * HALVES[kind])
    with sl.ops.backend("cpu"), pytest.raises(ValueError, match="convert one of them"):
        layer(x)


def test_second_derivatives():
    csr, values = pattern(8, 9, 0.5)
    x = torch.randn(7, 9)

    def second(product, values, x):
        values, x = values.clone().requires_grad_(), x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(product(csr, values, x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [values, x])

    exact = second(sl.masked_product, *double(values, x))
    for one, other in zip(second(sl.ops.spmm, values, x), exact):
        close(one, other, 1e-4)


@pytest.mark.parametrize("kind", [torch.float32, *HALVES])
@pytest.mark.parametrize("sizes", [(29, 17, 33, 5), (7, 5), (12, 20, 3)])
@pytest.mark.parametrize("programs", [1, 10**9])
def test_a_network_gives_what_its_layers_give(kind, sizes, programs, monkeypatch):
    monkeypatch.setattr(gpu, "PROGRAMS", programs)
    model = sl.MLP(*sizes, layer=sl.CSRLinear, sparsity=0.7).eval()
    for layer in model.layers:
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(40, sizes[0]).to(kind)
    x[7] = torch.nan
    with torch.no_grad():
        assert sl.ops.fast(x, *model.parameters()) is not None
        y, exact = model(x), copy.deepcopy(model).double()(x.double())
    assert y.dtype == kind
    close(y, exact, HALVES.get(kind, 1e-5), equal_nan=True)
    assert y[7].isnan().all()
    assert y[8:].isfinite().all()


@pytest.mark.parametrize("rule", [sl.SET, sl.GradientGrowth, sl.RigL])
def test_training_and_evolution_take_the_steps_of_the_definition(rule):
    histories = []
    for name in ("interpret", "reference"):
        torch.manual_seed(0)
        model = sl.MLP(29, 17, 5, layer=sl.CSRLinear, sparsity=0.7)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        evolution = rule(model, optimizer, 0.2)
        x, labels = torch.randn(37, 29), torch.randint(5, (37,))
        with sl.ops.backend(name):
            for _ in range(2):
                sl.training.step(model, optimizer, x, labels, sl.sigmoid_squared_error)
                evolution.step()
        histories.append(([layer.positions for layer in model.layers], model.layers))
    assert all(map(torch.equal, histories[0][0], histories[1][0]))
    for one, other in zip(histories[0][1], histories[1][1]):
        close(one.values.detach(), other.values.detach(), 1e-4)
