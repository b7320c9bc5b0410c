"""Layers carried out at once give what they give one by one, and what has to be seen is seen."""

import copy
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import sparselib as sl
from sparselib.nn import fusion
from sparselib.ops.backends import cpu, cpu_descent
from sparselib.ops.fused import _Passes, _Sequence

SIZES = [(20, 33, 10), (7, 5), (40, 64, 17, 3), (12, 300, 12)]


def network(*sizes, sparsity=0.8, **options):
    torch.manual_seed(0)
    model = sl.MLP(*sizes, layer=sl.CSRLinear, sparsity=sparsity, **options).eval()
    for layer in model.layers:
        if layer.bias is not None:
            torch.nn.init.normal_(layer.bias)
    return model


def one_by_one(model, x):
    """Apply the same layers as a user's own module would."""
    for layer in model.layers[:-1]:
        x = torch.relu(layer(x))
    return model.layers[-1](x)


@pytest.fixture
def fused(monkeypatch):
    """List the calls of the ways to carry out layers at once."""
    calls = []
    network, apply, passes = cpu.network, _Sequence.apply, _Passes.apply
    monkeypatch.setattr(cpu, "network", lambda *a: calls.append("network") or network(*a))
    monkeypatch.setattr(_Sequence, "apply", lambda *a: calls.append("training") or apply(*a))
    monkeypatch.setattr(_Passes, "apply", lambda *a: calls.append("both passes") or passes(*a))
    return calls


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("samples", [192, 255, 256, 1000])
def test_a_network_gives_what_its_layers_give(samples, threads, fused):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for sizes in SIZES:
            model, x = network(*sizes), torch.randn(samples, sizes[0])
            with torch.no_grad():
                y = model(x)
                assert len(sizes) == 2 or fused == ["network"]
                torch.testing.assert_close(y, one_by_one(model, x), rtol=1e-5, atol=1e-5)
            fused.clear()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("samples", [511, 512, 2000])
@pytest.mark.parametrize("sizes", [(300, 200), (1500, 800), (40, 1)])
def test_many_samples_of_one_layer_are_read_as_they_lie(samples, sizes, fused):
    """Where they are more than features, and a tile stays in the cache: without a copy before."""
    layer = network(*sizes, sparsity=0.9).layers[0]
    x = torch.randn(samples, sizes[0])
    with torch.no_grad():
        y = layer(x)
        torch.testing.assert_close(layer(x.t().contiguous().t()), y, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.to_dense()(x), y, rtol=1e-5, atol=1e-5)
    assert fused == (["network"] if samples >= 512 and sum(sizes) <= 2000 else [])


def test_many_weights_are_read_layer_by_layer(fused):
    model, x = network(500, 400, 10, sparsity=0.3), torch.randn(1000, 500)
    with torch.no_grad():
        torch.testing.assert_close(model(x), one_by_one(model, x), rtol=1e-4, atol=1e-4)
    assert fused == []


def test_nan_reaches_the_end_of_a_network():
    model, x = network(20, 30, 10), torch.randn(300, 20)
    x[7] = torch.nan
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(y, one_by_one(model, x), rtol=1e-5, atol=1e-5, equal_nan=True)
    assert y[7].isnan().all()
    assert y[8:].isfinite().all()


@given(
    st.sampled_from(SIZES),
    st.integers(0, 300),
    *([st.booleans()] * 4),
)
def test_training_gives_the_gradients_of_the_layers(
    sizes, batch, bias, wants_x, rows_first, is_small
):
    """By one call for each way, and as larger networks do it, by one for each product."""
    model = network(*sizes, bias=bias)
    x = torch.randn(batch, sizes[0]) if rows_first else torch.randn(sizes[0], batch).t()
    dy = torch.randn(batch, sizes[-1])
    found = []
    for function in (model, lambda x: one_by_one(model, x)):
        given = x.detach().clone().requires_grad_(wants_x)
        model.zero_grad()
        with patch.object(cpu_descent, "descends", lambda *_: is_small):
            y = function(given)
        y.backward(dy)
        found.append([y, *([given.grad] if wants_x else []), *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


LINKS = {
    "leaky relu": lambda n: [nn.LeakyReLU(0.2)],
    "gelu": lambda n: [nn.GELU()],
    "gelu of tanh": lambda n: [nn.GELU("tanh")],
    "silu": lambda n: [nn.SiLU(inplace=True)],
    "tanh": lambda n: [nn.Tanh()],
    "relu and dropout": lambda n: [nn.ReLU(), nn.Dropout(0.4)],
    "leaky relu and ours": lambda n: [nn.LeakyReLU(), sl.nn.Dropout(0.4)],
    "gelu and dropout": lambda n: [nn.GELU(), nn.Dropout(0.1)],
    "layer norm": lambda n: [nn.LayerNorm(n, eps=1e-3)],
    "layer norm and relu": lambda n: [nn.LayerNorm(n, eps=1e-3), nn.ReLU(inplace=True)],
    "layer norm and tanh": lambda n: [nn.LayerNorm(n, 1e-3, elementwise_affine=False), nn.Tanh()],
    "layer norm and dropout": lambda n: [nn.LayerNorm(n, 1e-3, bias=False), nn.Dropout(0.2)],
    "layer norm, gelu and dropout": lambda n: [nn.LayerNorm(n, 1e-3), nn.GELU(), nn.Dropout(0.2)],
    "batch norm": lambda n: [nn.BatchNorm1d(n, eps=1e-2)],
    "batch norm and relu": lambda n: [nn.BatchNorm1d(n, 1e-2, momentum=None), nn.ReLU()],
    "batch norm and tanh": lambda n: [nn.BatchNorm1d(n, 1e-2, affine=False), nn.Tanh()],
    "batch norm and dropout": lambda n: [nn.BatchNorm1d(n, 1e-2), nn.Dropout(0.2)],
    "batch norm, gelu and dropout": lambda n: [
        nn.BatchNorm1d(n, 1e-2, track_running_stats=False),
        nn.GELU(),
        nn.Dropout(0.2),
    ],
}


class ByFeatures:
    """Writes the samples of a feature side by side, so that a dropout draws in that order."""

    def forward(self, x):
        return super().forward(x).t().contiguous().t()


class LayerNorm(ByFeatures, nn.LayerNorm):
    pass


class BatchNorm1d(ByFeatures, nn.BatchNorm1d):
    pass


def linked(sizes, names):
    """Layers with links between them, as a module that is fused and one that is not."""
    layers = network(*sizes).layers
    modules = [layers[0]]
    for layer, name in zip(layers[1:], names):
        modules += [*LINKS[name](layer.in_features), layer]
    for module in modules:
        if isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
            for parameter in module.parameters():
                nn.init.normal_(parameter)
    # a normalization by the batch keeps statistics of its own
    plain = [
        copy.deepcopy(module) if isinstance(module, nn.BatchNorm1d) else copy.copy(module)
        for module in modules
    ]
    for module in plain:
        if type(module) in (nn.LayerNorm, nn.BatchNorm1d):
            module.__class__ = LayerNorm if type(module) is nn.LayerNorm else BatchNorm1d
    return sl.fuse(nn.Sequential(*modules)), nn.Sequential(*plain)


@given(
    st.lists(st.integers(2, 70), min_size=3, max_size=5),
    st.lists(st.sampled_from(sorted(LINKS)), min_size=4, max_size=4),
    st.integers(64, 300),
    st.booleans(),
)
def test_links_between_layers_have_the_gradients_of_their_modules(sizes, names, samples, wants_x):
    """With the same random numbers, which dropouts draw in the same order."""
    source = torch.Generator().manual_seed(samples)
    x, dy = (torch.randn(samples, width, generator=source) for width in (sizes[0], sizes[-1]))
    found = []
    for model in linked(sizes, names):
        torch.manual_seed(4)
        given = x.clone().requires_grad_(wants_x)
        model.zero_grad()
        y = model.train()(given)
        y.backward(dy)
        found.append([y, *([given.grad] if wants_x else []), *(p.grad for p in model.parameters())])
        found[-1] += model.buffers()
    # that of a bias in front of a normalization by the batch is what rounding leaves of sums
    largest = max(float(p.grad.abs().max()) for p in model.parameters())
    for ours, theirs in zip(*found, strict=True):
        scale = max(1.0, float(theirs.detach().abs().max()))
        close = {"rtol": 1e-4, "atol": max(1e-4 * scale, 1e-5 * largest)}
        torch.testing.assert_close(ours, theirs, **close)


@pytest.mark.parametrize("name", sorted(LINKS))
def test_links_are_passed_at_once_and_back_as_often_as_asked(name, fused):
    model, _ = linked((20, 33, 40, 10), [name] * 2)
    x = torch.randn(100, 20, requires_grad=True)
    y = model.train()(x)
    given, dy = [x, *model.parameters()], torch.randn_like(y)
    first = torch.autograd.grad(y, given, dy, retain_graph=True)
    torch.autograd.grad(y, given, -dy, retain_graph=True)
    assert all(map(torch.equal, torch.autograd.grad(y, given, dy), first))
    assert fused == ["both passes"]
    with torch.no_grad():
        model(x)
    assert "both passes" not in fused[1:]


@pytest.mark.parametrize("name", sorted(LINKS))
def test_links_have_gradients_of_gradients(name):
    found = []
    x = torch.randn(70, 9, generator=torch.Generator().manual_seed(5))
    for model in linked((9, 14, 12, 5), [name] * 2):
        torch.manual_seed(4)
        given = x.clone().requires_grad_()
        values = [p for p in model.train().parameters() if p.ndim == 1]
        y = model(given)
        slopes = torch.autograd.grad(y.pow(2).sum(), given, create_graph=True)[0]
        found.append(torch.autograd.grad(slopes.pow(2).sum(), values, allow_unused=True))
    # a bias in front of a normalization by the batch has none
    scale = max(float(theirs.abs().max()) for theirs in found[1] if theirs is not None)
    for ours, theirs in zip(*found):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * scale + 1e-6)


def test_no_bit_of_links_depends_on_the_number_of_threads(fused):
    names = ["gelu and dropout", "layer norm and relu", "batch norm and relu", "batch norm"]
    model, _ = linked((50, 120, 90, 70, 60, 10), names)
    x = torch.randn(1000, 50, requires_grad=True)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(4)
            y = model.train()(x)
            found.append([y, *torch.autograd.grad(y.sum(), [x, *model.parameters()])])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))
    assert fused == ["both passes"] * 3


def test_samples_that_a_tile_lacks_add_nothing_to_normalized_ones():
    """With no epsilon, and outputs of an absent sample that are all alike."""
    model, plain = linked((20, 33, 40, 10), ["layer norm", "layer norm and relu"])
    for module in [*model, *plain]:
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.0
    for layer in (module for module in plain if isinstance(module, sl.CSRLinear)):
        nn.init.zeros_(layer.bias)
    x = torch.randn(70, 20)
    found = []
    for one in model, plain:
        found.append(torch.autograd.grad(one(x).square().sum(), tuple(one.parameters())))
    for ours, theirs in zip(*found):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_a_frozen_normalization_gets_no_gradient(fused):
    model, _ = linked((20, 33, 40, 10), ["layer norm and relu"] * 2)
    model[1].weight.requires_grad_(False)
    model(torch.randn(100, 20)).sum().backward()
    assert model[1].weight.grad is None
    assert model[1].bias.grad is not None
    assert fused == ["both passes"]


def test_a_normalization_of_another_width_is_refused_as_by_torch():
    model, plain = linked((20, 33, 10), ["layer norm"])
    model[1].normalized_shape = (32,)
    model[1].weight.data = torch.ones(32)
    model[1].bias.data = torch.ones(32)
    for one in model, plain:
        with pytest.raises(RuntimeError, match="normalized_shape"):
            one(torch.randn(100, 20))


def test_an_evolution_by_gradient_sees_layers_between_other_links(fused):
    model, plain = linked((20, 30, 30, 10), ["gelu", "layer norm and tanh"])
    x, y = torch.randn(64, 20), torch.randint(10, (64,))
    positions = []
    for twin in copy.deepcopy(model), copy.deepcopy(plain):
        optimizer = torch.optim.SGD(twin.parameters(), 0.1)
        evolution = sl.GradientGrowth(twin, optimizer, fraction=0.3)
        torch.nn.functional.cross_entropy(twin(x), y).backward()
        evolution.step()
        positions.append([layer.csr.positions for layer in twin if hasattr(layer, "csr")])
    assert all(map(torch.equal, *positions))
    assert fused == []


def test_a_backward_pass_changes_nothing_that_another_needs(fused):
    model, x = network(20, 33, 40, 10), torch.randn(100, 20, requires_grad=True)
    y = model(x)
    given, dy = [x, *model.parameters()], torch.randn_like(y)
    first = torch.autograd.grad(y, given, dy, retain_graph=True)
    torch.autograd.grad(y, given, -dy, retain_graph=True)
    assert all(map(torch.equal, torch.autograd.grad(y, given, dy), first))
    assert fused == ["both passes"]


def test_no_bit_of_a_training_depends_on_the_number_of_threads(fused):
    model, x = network(50, 120, 90, 10), torch.randn(1000, 50, requires_grad=True)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = model(x)
            found.append([y, *torch.autograd.grad(y.sum(), [x, *model.parameters()])])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))
    assert fused == ["both passes"] * 3


def test_what_a_backward_pass_reads_may_not_have_changed(fused):
    model, x = network(20, 33, 10), torch.randn(100, 20)
    y = model(x).sum()
    with torch.no_grad():
        model.layers[1].values.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    assert fused == ["both passes"]


def test_training_is_fused_and_counts_nan_as_the_layers_do(fused):
    model, x = network(20, 30, 10).train(), torch.randn(80, 20)
    x[3] = torch.nan
    gradients = []
    for function in (model, lambda x: one_by_one(model, x)):
        model.zero_grad()
        function(x).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert fused == ["both passes"]


def test_gradients_of_gradients_equal_those_of_the_layers():
    model, x = network(9, 14, 5), torch.randn(40, 9)
    found = []
    for function in (model, lambda x: one_by_one(model, x)):
        given = x.clone().requires_grad_()
        values = [layer.values for layer in model.layers]
        slopes = torch.autograd.grad(function(given).pow(2).sum(), given, create_graph=True)[0]
        found.append(torch.autograd.grad(slopes.pow(2).sum(), values))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_a_frozen_parameter_gets_no_gradient(fused):
    model, x = network(20, 30, 10), torch.randn(80, 20)
    model.layers[0].values.requires_grad_(False)
    model.layers[1].bias.requires_grad_(False)
    model(x).sum().backward()
    assert [p.grad is None for p in model.parameters()] == [True, False, False, True]
    assert fused == ["both passes"]


def test_an_evolution_is_given_what_it_would_have_seen(fused):
    model = network(20, 30, 30, 10).train()
    x, y = torch.randn(64, 20), torch.randint(10, (64,))
    found = []
    for one_sees in (False, True):
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), 0.1)
        evolution = sl.GradientGrowth(twin, optimizer, fraction=0.3)
        if one_sees:
            twin.layers[1].register_forward_hook(lambda *_: None)
        torch.nn.functional.cross_entropy(twin(x), y).backward()
        watches = [watch for layer in twin.layers for watch in layer.watches]
        batches = [tensor for watch in watches for batch in watch.batches for tensor in batch]
        evolution.step()
        found.append((batches, [layer.positions for layer in twin.layers]))
    assert fused == ["training"]
    for ours, theirs in zip(found[0][0], found[1][0]):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(found[0][1], found[1][1]):
        assert torch.equal(ours, theirs)


def test_an_evolution_sees_nothing_of_evaluation(fused):
    model = network(20, 30, 10)
    evolution = sl.RigL(model, torch.optim.SGD(model.parameters(), 0.1))
    x = torch.randn(300, 20, requires_grad=True)
    torch.autograd.grad(model(x).sum(), x)  # as a saliency map does: no weight gets a gradient
    with torch.no_grad():
        model(x)
    assert fused == ["training", "network"]
    assert [watch.batches for layer in model.layers for watch in layer.watches] == [[], []]
    assert len(evolution.layers) == 2


def test_a_topology_that_changed_before_the_backward_pass_is_refused():
    model = network(20, 30, 10)
    for function in (model, lambda x: one_by_one(model, x)):
        y = function(torch.randn(50, 20)).sum()
        layer = model.layers[0]
        layer.rewire(layer.positions, layer.values.detach())
        with pytest.raises(RuntimeError, match=r"topology changed|modified by an inplace"):
            y.backward()


def test_what_has_to_be_seen_is_not_fused(fused):
    x, seen = torch.randn(300, 20), []
    model = network(20, 30, 10)
    handles = [
        model.layers[0].register_forward_hook(lambda *given: seen.append("hook")),
        model.layers[1].register_full_backward_hook(lambda *given: seen.append("backward")),
        model.activation.register_forward_hook(lambda *given: seen.append("activation")),
    ]
    model(x).sum().backward()
    for handle in handles:
        handle.remove()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append("global"))
    model(x)
    handle.remove()
    network(20, 30, 10).double()(x.double())
    network(20, 30, 10, product=sl.masked_product)(x)
    network(20, 30, 10, activation=torch.nn.Softplus)(x)
    with torch.autocast("cpu", torch.bfloat16):
        network(20, 30, 10)(x)
    with sl.ops.backend("reference"):
        network(20, 30, 10)(x)
    with pytest.raises(ValueError, match="needs a last dimension of 20"):
        network(20, 30, 10)(x[:, :19])
    assert not fused
    assert seen == ["hook", "activation", "backward"] + 4 * ["global"]


@pytest.mark.parametrize("samples", [1, 2, 3, 8, 13, 16, 17, 32, 40, 64, 65])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(70, 33, 50, 10), (7, 33, 50, 80, 80, 10)])
def test_one_call_carries_few_samples_through_a_network(sizes, samples, bias):
    torch.manual_seed(0)
    model = sl.MLP(*sizes, layer=sl.CSRLinear, sparsity=0.8, bias=bias).eval()
    dense = sl.densify(copy.deepcopy(model)).eval()
    x = torch.randn(samples, sizes[0])
    with torch.inference_mode():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(x.t().contiguous().t()), dense(x), rtol=1e-4, atol=1e-5)


def test_what_a_call_of_few_samples_cannot_read_takes_the_other_way():
    torch.manual_seed(0)
    layer = sl.CSRLinear(12, 9, sparsity=0.5)
    x = torch.randn(2, 12)
    with torch.no_grad():
        expected = layer(x)
        strided = torch.zeros(2 * layer.csr.nnz)[::2].copy_(layer.values)
        assert torch.equal(sl.ops.spmm(layer.csr, strided, x, layer.bias), expected)
        negative = torch.complex(x, -x).conj().imag  # x, with its sign pending
        assert negative.is_neg()
        torch.testing.assert_close(layer(negative), expected)
        torch.testing.assert_close(layer(x.double().float()[:, :]), expected)
        with pytest.raises(ValueError, match="last dimension of 12"):
            layer(x[:, :11])
        with pytest.raises(ValueError, match="float64"):
            layer(x.double())
        layer.values.data = layer.values.data[:-1]
        with pytest.raises(ValueError, match="connections need as many values"):
            layer(x)


@pytest.mark.parametrize(
    "shape", [(12,), (1, 1, 12), (2, 3, 12), (4, 4, 12), (3, 6, 12), (0, 2, 12)]
)
def test_a_token_at_a_time_of_any_shape(shape):
    torch.manual_seed(0)
    layer = sl.CSRLinear(12, 9, sparsity=0.5)
    nn.init.normal_(layer.bias)
    x = torch.randn(shape)
    with torch.no_grad():
        y = layer(x)
        torch.testing.assert_close(y, layer.to_dense()(x))
        assert y.shape == (*shape[:-1], 9)


PIECES = {
    "sparse": lambda: sl.CSRLinear(8, 8, sparsity=0.5),
    "dense": lambda: nn.Linear(8, 8),
    "relu": nn.ReLU,
    "in place": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "dropout": nn.Dropout,
    "our dropout": sl.nn.Dropout,
    "nothing": nn.Identity,
}


def outputs(model, x):
    """What a model returns, and its gradients, with the same random numbers each time."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return [y.detach(), x.grad, *gradients]


@given(
    st.lists(st.sampled_from(sorted(PIECES)), max_size=7),
    st.booleans(),
    st.sampled_from([(3, 8), (2, 40, 8), (1, 8), (2, 2, 3, 8), (0, 8)]),
)
def test_a_fused_model_gives_what_its_modules_give(names, is_training, shape):
    torch.manual_seed(0)
    names = ["sparse", "relu", "sparse", *names]
    for before, name in enumerate(names[1:]):
        # torch refuses the gradient of what changes in place after another module kept it
        if name == "in place" and names[before] not in ("sparse", "dense"):
            names[before + 1] = "relu"
    modules = [PIECES[name]() for name in names]
    model = nn.Sequential(*modules).train(is_training)
    x = torch.randn(shape)
    expected = outputs(model, x)
    keys = list(model.state_dict())
    with torch.no_grad():
        torch.manual_seed(1)
        without = model(x)
    assert sl.fuse(model) is model
    assert type(model) is sl.nn.Sequential
    assert list(model.state_dict()) == keys
    for ours, theirs in zip(outputs(model, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    if is_training and any("dropout" in name for name in names):
        return  # random numbers fall on activations in the order of memory, which may be another
    with torch.no_grad():
        torch.testing.assert_close(model(x), without, rtol=1e-4, atol=1e-5)


def sequential(*sizes):
    torch.manual_seed(0)
    layers = [sl.CSRLinear(*pair, sparsity=0.8) for pair in pairwise(sizes)]
    between = [module for layer in layers for module in (layer, nn.ReLU(), nn.Dropout(0.3))]
    return nn.Sequential(*between[:-2])


def test_a_fused_sequential_takes_the_way_of_the_mlp(fused):
    model = sl.fuse(sequential(20, 33, 40, 10)).eval()
    with torch.no_grad():
        model(torch.randn(4, 50, 20))
    assert fused == ["network"]
    model(torch.randn(4, 50, 20)).sum().backward()
    assert fused == ["network", "both passes"]


def test_hooks_see_their_module_though_the_model_is_fused(fused):
    model = sl.fuse(sequential(20, 33, 40, 10)).eval()
    x = torch.randn(200, 20)
    seen = []
    for module in model[3], model[1], model[2]:
        handle = module.register_forward_hook(lambda *told: seen.append(told))
        with torch.no_grad():
            expected = nn.Sequential.forward(model, x)
            torch.testing.assert_close(model(x), expected)
        assert len(seen) == 2
        assert seen[0][0] is seen[1][0] is module
        handle.remove()
        seen.clear()
    with nn.modules.module.register_module_forward_hook(lambda *told: seen.append(told)):
        model(x)
    assert [told[0] for told in seen] == [*model, model]
    assert "training" not in fused


def test_only_sequentials_in_which_something_is_gained_are_fused():
    class Own(nn.Sequential):
        """A user's own, whose forward method may do anything."""

    inner = sequential(8, 8, 8)
    model = nn.ModuleDict({"block": nn.Sequential(nn.Sequential(inner), nn.Linear(8, 2))})
    model["own"] = Own(*sequential(8, 8, 8))
    model["dense"] = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    sl.fuse(model)
    fused = [name for name, module in model.named_modules() if type(module) is sl.nn.Sequential]
    assert fused == ["block.0.0"]
    assert model["block"][0][0] is inner
    assert type(copy.deepcopy(model)["block"][0][0]) is sl.nn.Sequential
    assert sl.fuse(model) is model
    for refused in model["dense"], nn.Linear(2, 2), model["own"]:
        with pytest.raises(ValueError, match="nothing can be carried out"):
            sl.fuse(refused)


def test_a_fused_model_evolves_as_its_modules_do():
    grown = []
    for change in (lambda model: model, sl.fuse):
        model = change(sequential(20, 33, 40, 10))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        evolution = sl.Evolution(model, optimizer, sl.drop.magnitude, sl.grow.full_gradient, 0.3)
        model.eval()
        for step in range(3):
            torch.manual_seed(step)
            model(torch.randn(3, 16, 20)).square().sum().backward()
            optimizer.step()
            evolution.step()
            optimizer.zero_grad()
        grown.append(torch.cat([layer.positions for layer in evolution.layers.values()]))
    assert torch.equal(*grown)


BETWEEN = {
    "relu": lambda n: [nn.ReLU()],
    "gelu": lambda n: [nn.GELU()],
    "gelu of tanh": lambda n: [nn.GELU("tanh")],
    "silu in place": lambda n: [nn.SiLU(inplace=True)],
    "tanh": lambda n: [nn.Tanh(), nn.Dropout()],
    "layer norm": lambda n: [nn.LayerNorm(n, eps=1e-3), nn.ReLU()],
    "layer norm without weights": lambda n: [nn.LayerNorm(n, elementwise_affine=False)],
    "layer norm without shift": lambda n: [nn.SiLU(), nn.LayerNorm(n, bias=False)],
    "batch norm": lambda n: [nn.BatchNorm1d(n), nn.ReLU()],
    "batch norm without weights": lambda n: [nn.BatchNorm1d(n, affine=False), nn.GELU()],
    "batch norm of each batch": lambda n: [nn.BatchNorm1d(n, track_running_stats=False)],
    "batch norm of all batches": lambda n: [nn.BatchNorm1d(n, momentum=None), nn.SiLU()],
    "not known": lambda n: [nn.Softplus()],
}


def varied(sizes, names, first="nothing"):
    """A network whose normalizations have any weights and statistics."""
    torch.manual_seed(0)
    modules = [] if first == "nothing" else BETWEEN[first](sizes[0])
    for pair, name in zip(pairwise(sizes), [*names, "tanh"]):
        modules += [sl.CSRLinear(*pair, sparsity=0.7), *BETWEEN[name](pair[1])]
    for module in modules:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point() and not isinstance(module, sl.CSRLinear):
                nn.init.uniform_(tensor.data, 0.5, 2)
            if name == "bias":
                nn.init.normal_(tensor.data)
    return nn.Sequential(*modules)


@given(
    st.lists(st.integers(1, 70), min_size=3, max_size=5),
    st.sampled_from([1, 2, 5, 16, 17, 32, 40, 64, 65, 129, 200]),
    st.lists(st.sampled_from(sorted(BETWEEN)), min_size=4, max_size=4),
    st.sampled_from(["nothing", "layer norm", "batch norm", "silu in place"]),
    st.booleans(),
)
def test_what_stands_between_layers_gives_the_same_fused(sizes, samples, names, first, deep):
    assume(set(names[: len(sizes) - 2]) != {"not known"})  # of which nothing could be fused
    assume(samples > 1 or "batch norm of each batch" not in names)  # which torch refuses
    model = varied(sizes, names, first).eval()
    twin = copy.deepcopy(model).double()
    x = torch.randn(samples, sizes[0])
    if deep and not any("batch" in name for name in (first, *names)):
        x = x.unsqueeze(1).expand(samples, 2, sizes[0]).contiguous()
    kept = x.clone()
    exact = twin(x.double().clone())
    fused = sl.fuse(model)
    for way in torch.inference_mode, torch.no_grad:
        with way():
            y = fused(x)
        assert y.shape == exact.shape
        torch.testing.assert_close(y.double(), exact, rtol=1e-3, atol=1e-4)
        if first != "silu in place":
            assert torch.equal(x, kept)
        x = kept.clone()


@pytest.mark.parametrize(
    "names",
    [
        ["batch norm", "layer norm"],
        ["batch norm", "gelu"],
        ["batch norm of each batch", "layer norm without shift"],
        ["batch norm without weights", "batch norm of all batches"],
    ],
)
@pytest.mark.parametrize("samples", [2, 17, 100])
def test_a_fused_model_trains_as_its_modules_do(names, samples):
    model = varied((20, 33, 40, 10), names).train()
    model[-1].p = 0.0
    twin = copy.deepcopy(model)
    fused = sl.fuse(copy.deepcopy(model))
    x = torch.randn(samples, 20)
    for _ in range(3):
        for one, other in zip(outputs(fused, x), outputs(twin, x), strict=True):
            close = {"rtol": 1e-3, "atol": 1e-3 * float(other.abs().max()) + 1e-3}
            torch.testing.assert_close(one, other, **close)
    assert list(fused.state_dict()) == list(twin.state_dict())
    for name, tensor in twin.named_buffers():
        torch.testing.assert_close(fused.get_buffer(name), tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("samples", [2, 200])
def test_what_is_carried_at_once_is_told(fused, samples):
    model = sl.fuse(varied((20, 33, 40, 10), ["gelu", "batch norm"], "layer norm")).eval()
    x = torch.randn(samples, 20)
    with torch.inference_mode():
        model(x)
        explained = sl.timing.explain(model, x)
    assert fused == (["network"] * 2 if samples == 200 else [])
    assert [passage.together for passage in explained] == [3, 3, 3]
    assert not any(passage.reasons for passage in explained)
    with torch.inference_mode():
        before = model(x)
        seen = []
        model[3].register_forward_hook(lambda *told: seen.append(told[0]))
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    assert seen == [model[3]]
    assert "a hook wants to see what the GELU does" in repr(sl.timing.explain(model, x))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["gelu", "gelu of tanh", "silu in place", "tanh", "relu"])
@pytest.mark.parametrize("samples", [1, 50, 300])
def test_activations_are_those_of_torch_wherever_they_are_asked(samples, name, bad):
    """From tiny to huge numbers, at the ends of the ranges of their approximations, and beyond."""
    ends = torch.tensor([0.0, 1e-30, 1e-6, 5.65, 5.66, 7.90, 7.91, 9, 20, 88.5, 89, 104, 1e4, 1e30])
    row = torch.cat([ends, -ends, torch.linspace(-12, 12, 400), torch.tensor([bad])])
    width = len(row)
    csr = sl.CSR.from_positions(torch.arange(width) * (width + 1), (width, width))
    model = nn.Sequential()
    for _ in range(2):
        layer = sl.CSRLinear(width, width, sparsity=0.5, bias=False)
        layer.csr = csr
        layer.values = nn.Parameter(torch.ones(width))
        model.extend([layer, *BETWEEN[name](width)])
    module = BETWEEN[name](width)[0]
    with torch.inference_mode():
        x = row.expand(samples, width).contiguous()
        exact = module(module(x.double().clone()))
        y = sl.fuse(model.eval())(x)
        assert sl.timing.explain(model, x)[0].together == 2
    torch.testing.assert_close(y.double(), exact, rtol=2e-6, atol=2e-6, equal_nan=True)


def test_activations_between_the_layers_of_an_mlp_are_carried_along(fused):
    for activation in nn.GELU, nn.SiLU, nn.Tanh:
        model = network(20, 30, 30, 10, activation=activation)
        x = torch.randn(200, 20)
        with torch.inference_mode():
            y = model(x)
        torch.testing.assert_close(y, chained(model, x), rtol=1e-4, atol=1e-5)
    assert fused == ["network"] * 3


def chained(model, x):
    return nn.Sequential(
        model.layers[0], model.activation, model.layers[1], model.activation, model.layers[2]
    )(x)


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        (nn.TransformerEncoderLayer, "relu"),
        (nn.TransformerEncoderLayer, "gelu"),
        (nn.TransformerEncoderLayer, nn.SiLU()),
        (nn.TransformerEncoderLayer, nn.functional.silu),
        (nn.TransformerDecoderLayer, "gelu"),  # torch copies no other of its activations
    ],
)
def test_a_feed_forward_network_of_torch_is_carried_at_once(fused, kind, activation):
    torch.manual_seed(0)
    layer = kind(16, 2, 48, dropout=0.0, activation=activation, batch_first=True)
    with pytest.raises(ValueError, match="no layer of an encoder or decoder"):
        sl.fuse(layer)
    sl.sparsify(layer, 0.5)
    twin = copy.deepcopy(layer)
    x = torch.randn(4, 50, 16)
    given = (x, x) if kind is nn.TransformerDecoderLayer else (x,)
    assert sl.fuse(layer) is layer
    assert list(layer.state_dict()) == list(twin.state_dict())
    assert isinstance(layer, kind)
    is_function = activation is nn.functional.silu
    for one, other in ((layer, twin), (copy.deepcopy(layer), twin)):
        for gradient in (True, False):
            with torch.set_grad_enabled(gradient):
                y = one(*given)
                torch.testing.assert_close(y, other(*given), rtol=1e-4, atol=1e-5)
    layer.eval()
    fused.clear()
    with torch.no_grad():
        layer(*given)
    assert fused == ([] if is_function else ["network"])


def test_a_model_that_two_threads_fuse_for_a_time_has_its_class_again():
    """Whoever comes second finds it changed, and whoever goes first has changed it back."""
    model = varied((20, 33, 10), ["gelu"])
    first, second = fusion.fused(model), fusion.fused(model)
    for each in first, second:
        each.__enter__()
        assert type(model) is sl.nn.Sequential
    for each in first, second:
        each.__exit__(None, None, None)
        assert type(model) is nn.Sequential
