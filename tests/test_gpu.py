"""What needs a CUDA device: the kernels as they run, graphs, evolution between replays."""

import copy
from functools import partial

import pytest
import torch
from apart import run_plain
from torch.nn import functional

import sparselib as sl
from sparselib import cuda_graphs as graphs
from sparselib.evolution import resident
from sparselib.ops import dispatch
from sparselib.ops.backends import reference

pytestmark = pytest.mark.gpu

# around the vector of four or eight, the tiles of 32 and 64, and the small and the large tile
BATCHES = [1, 4, 7, 8, 31, 32, 33, 64, 100, 257, 512, 4096]
HALVES = {torch.float16: 2e-3, torch.bfloat16: 2e-2}
RULES = ["GradientGrowth", "SET", "RigL"]


@pytest.fixture
def poisoned(monkeypatch):
    """Fill what kernels are to write with NaN, so that nothing unwritten can pass."""

    def new_empty(tensor, *shape, **options):
        made = allocate(tensor, *shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    allocate = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)


def close(ours, exact, tolerance=1e-4, **options):
    torch.testing.assert_close(
        ours.double().cpu(), exact.double().cpu(), rtol=tolerance, atol=tolerance, **options
    )


def pattern(rows, columns, density=0.2):
    """Draw a pattern with an empty row, a full row and an empty column."""
    mask = torch.rand(rows, columns) < density
    mask[rows // 4] = False
    mask[rows // 2] = True
    mask[:, columns // 3] = False
    csr = sl.CSR.from_dense(mask.float()).cuda()
    return csr, torch.randn(csr.nnz, device="cuda")


def network(*sizes, sparsity=0.8, seed=0):
    torch.manual_seed(seed)
    model = sl.MLP(*sizes, layer=sl.CSRLinear, sparsity=sparsity)
    for layer in model.layers:
        torch.nn.init.normal_(layer.bias)
    return model


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", [torch.float32, *HALVES])
@pytest.mark.parametrize("shape", [(17, 29), (300, 784), (10, 1000)])
def test_products_equal_the_definition_in_float64(batch, kind, shape, poisoned):
    csr, values = pattern(*shape)
    x, dy = (torch.randn(batch, n, device="cuda").to(kind) for n in reversed(shape))
    bias, indices = torch.randn(shape[0], device="cuda"), csr.indices()
    module, tolerance = dispatch.module(x), HALVES.get(kind, 1e-4)
    assert module.__name__ == "sparselib.ops.backends.gpu"
    doubles = [tensor.double() for tensor in (values, x, dy, bias)]
    y = module.spmm(values, *indices, x, bias)
    exact = reference.spmm(doubles[0], *indices, doubles[1], doubles[3])
    assert y.dtype == kind
    close(y, exact, tolerance * exact.abs().max().item())
    crow, col, permutation = csr.transposed_indices()
    dx = module.spmm(values, crow, col, dy, None, permutation)
    exact = reference.spmm(doubles[0], crow, col, doubles[2], None, permutation)
    close(dx, exact, tolerance * exact.abs().max().item())
    for ours, exact in zip(
        module.sddmm(*indices, dy, x), reference.sddmm(*indices, doubles[2], doubles[1])
    ):
        assert ours.dtype == torch.float32
        close(ours, exact, 1e-5 * batch**0.5 * exact.abs().max().item())


@pytest.mark.parametrize("kind", [torch.float32, *HALVES])
def test_a_layer_and_its_gradients_equal_the_dense_twin(kind):
    layer = sl.CSRLinear(100, 70, sparsity=0.8).cuda()
    twin = copy.deepcopy(layer).double()
    twin.product = sl.masked_product
    x = torch.randn(257, 100, device="cuda").to(kind)
    results = []
    for module, inputs in ((layer, x.clone()), (twin, x.double())):
        inputs.requires_grad_()
        y = module(inputs)
        y.double().sin().sum().backward()
        results.append([y.detach(), inputs.grad, module.values.grad, module.bias.grad])
    for ours, exact in zip(*results):
        close(ours, exact, HALVES.get(kind, 1e-5) * max(1, exact.abs().max().item()))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_passes_as_in_the_definition(bad):
    csr, values = pattern(40, 50)
    x, dy = torch.randn(100, 50, device="cuda"), torch.randn(100, 40, device="cuda")
    x[99, 3], dy[2, 5] = bad, bad
    indices = csr.indices()
    module = dispatch.module(x)
    close(module.spmm(values, *indices, x), reference.spmm(values, *indices, x), equal_nan=True)
    exact = (dy.t() @ x).flatten()[csr.positions]
    close(module.sddmm(*indices, dy, x)[0], exact, equal_nan=True)


@pytest.mark.parametrize("samples", [100, 4224, 10000, 10001])
@pytest.mark.parametrize("kind", [torch.float32, *HALVES])
def test_a_network_gives_what_its_layers_give(samples, kind):
    model = network(784, 512, 512, 10).eval()
    x = torch.randn(samples, 784).to(kind)
    x[7] = torch.nan
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        y = model.cuda()(x.cuda())
    assert y.dtype == kind
    scale = exact[8:].abs().max().item()
    close(y, exact, HALVES.get(kind, 1e-5) * scale, equal_nan=True)


def test_offsets_beyond_two_to_the_thirty_first():
    # the last feature of the input lies 2.2e9 elements from the first
    features, batch = 34_000, 65_536
    csr = sl.CSR.from_positions(torch.tensor([0, features - 1, 2 * features - 1]), (2, features))
    csr, values = csr.cuda(), torch.tensor([1.0, 2.0, 3.0], device="cuda")
    x = torch.zeros(features, batch, device="cuda", dtype=torch.bfloat16)
    x[0], x[-1] = 1, 4
    y = dispatch.module(x).spmm(values, *csr.indices(), x.t())
    assert torch.equal(y[[0, -1]].float().cpu(), torch.tensor([[9.0, 12.0]] * 2))
    dy = torch.ones(batch, 2, device="cuda", dtype=torch.bfloat16)
    dvalues, _ = dispatch.module(x).sddmm(*csr.indices(), dy, x.t())
    assert dvalues.tolist() == [batch, 4 * batch, 4 * batch]


def test_the_same_numbers_come_every_time():
    model = network(784, 256, 256, 10).cuda()
    x, y = torch.randn(512, 784, device="cuda"), torch.randint(10, (512,), device="cuda")
    runs = []
    for _ in range(3):
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        runs.append([p.grad.clone() for layer in model.layers for p in layer.parameters()])
    assert all(all(map(torch.equal, runs[0], other)) for other in runs[1:])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        ("CSRLinear(64, 48, sparsity=0.8)", (96, 64)),
        ("SparseConv1d(3, 9, 6, padding=5, dilation=2, sparsity=0.7)", (2, 3, 90)),
    ],
)
def test_compiled_layers_give_the_same(layer, shape):
    program = f"""
import torch, sparselib as sl
layer, x = sl.{layer}.to("cuda"), torch.randn({shape}, device="cuda")
torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x), rtol=1e-3, atol=1e-3)
"""
    run_plain(program)


def test_autocast_multiplies_in_float32():
    layer, x = sl.CSRLinear(64, 48, sparsity=0.8).cuda(), torch.randn(96, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype == torch.float32
    y.sum().backward()
    assert layer.values.grad.dtype == torch.float32


def plain_step(model, optimizer, loss, x, y):
    return sl.training.step(model, optimizer, x, y, loss)


def recorded(seed=0, rules=None, rule="GradientGrowth"):
    """Return a model with its evolution, its plain twin, and a step for each of them."""
    models, steps, evolutions = [], [], []
    x, y = torch.randn(64, 100, device="cuda"), torch.randint(10, (64,), device="cuda")
    for is_recorded in (True, False):
        model = network(100, 80, 10, seed=seed).cuda()
        optimizer = torch.optim.Adam(model.parameters(), 0.01, capturable=True)
        evolution = getattr(rules or sl, rule)(model, optimizer, 0.2)
        parts = model, optimizer, sl.sigmoid_squared_error
        call = graphs.training(*parts, x, y) if is_recorded else partial(plain_step, *parts)
        models.append(model), steps.append(call), evolutions.append(evolution)
    return models, steps, evolutions


def test_a_replayed_step_is_a_step():
    models, steps, _ = recorded()
    for _ in range(5):
        x, y = torch.randn(64, 100, device="cuda"), torch.randint(10, (64,), device="cuda")
        close(*(step(x, y) for step in steps), 1e-6)
    for one, other in zip(*(model.parameters() for model in models)):
        close(one.detach(), other.detach(), 1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rules", [sl, resident])
def test_evolution_between_replays_is_evolution_between_steps(rule, rules):
    models, steps, evolutions = recorded(rules=rules, rule=rule)
    for turn in range(20):
        x, y = torch.randn(64, 100, device="cuda"), torch.randint(10, (64,), device="cuda")
        errors = [step(x, y) for step in steps]
        close(*errors, 1e-5)
        if turn % 4 == 3:
            for evolution in evolutions:
                evolution.step()
            for layers in zip(*(model.layers for model in models)):
                assert torch.equal(*(layer.positions for layer in layers))


def test_a_recorded_forward_pass_sees_new_weights_and_connections():
    model = network(100, 80, 10).cuda()
    x = torch.randn(64, 100, device="cuda")
    call = graphs.inference(model, x)
    for seed in range(3):
        model.load_state_dict(network(100, 80, 10, seed=seed).state_dict())
        x = torch.randn(64, 100, device="cuda")
        with torch.no_grad():
            close(call(x), model(x), 1e-6)
    with pytest.raises(ValueError, match="record another graph"):
        call(x[:5])


def test_an_optimizer_that_counts_on_the_cpu_is_refused():
    model = network(100, 80, 10).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    x, y = torch.randn(64, 100, device="cuda"), torch.randint(10, (64,), device="cuda")
    with pytest.raises(ValueError, match="capturable=True"):
        graphs.training(model, optimizer, functional.cross_entropy, x, y)


@pytest.mark.parametrize("rule", RULES)
def test_evolution_on_the_device_waits_for_nothing(rule):
    model = network(100, 80, 10).cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    evolution = getattr(resident, rule)(model, optimizer, 0.2)
    x, y = torch.randn(64, 100, device="cuda"), torch.randint(10, (64,), device="cuda")
    for _ in range(2):  # first calls load modules and libraries
        sl.training.step(model, optimizer, x, y, sl.sigmoid_squared_error)
        evolution.step()
    sl.training.step(model, optimizer, x, y, sl.sigmoid_squared_error)
    torch.cuda.set_sync_debug_mode("error")
    try:
        evolution.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rules", [sl, resident])
def test_cpu_and_gpu_choose_the_same_connections(rule, rules):
    histories = []
    for device in ("cpu", "cuda"):
        model = network(100, 80, 10).double().to(device)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        evolution = getattr(rules, rule)(model, optimizer, 0.2)
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            x = torch.randn(64, 100, generator=generator, dtype=torch.float64)
            y = torch.randint(10, (64,), generator=generator)
            batch = x.to(device), y.to(device)
            sl.training.step(model, optimizer, *batch, sl.sigmoid_squared_error)
            evolution.step()
        histories.append([layer.positions.cpu() for layer in model.layers])
    assert all(map(torch.equal, *histories))
