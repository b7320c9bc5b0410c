"""A step at once is the ordinary step to rounding, and where somebody looks it is that itself."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import sparselib as sl
from sparselib import training
from sparselib.descent import descended, obstacle
from sparselib.training import sigmoid_squared_error

LOSSES = {"cross-entropy": functional.cross_entropy, "squared error": sigmoid_squared_error}


def network(*sizes, sparsity=0.8, **options):
    torch.manual_seed(0)
    model = sl.MLP(*sizes, layer=sl.CSRLinear, sparsity=sparsity, **options)
    for layer in model.layers:
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
    return model


def batch(samples, width, classes):
    source = torch.Generator().manual_seed(samples)
    x = torch.randn(samples, width, generator=source)
    return x, torch.randint(classes, (samples,), generator=source)


def ordinary(model, x, labels, function):
    """Loss and gradients by autograd, in float64, layer by layer."""
    twin = copy.deepcopy(model).double()
    error = function(twin(x.double()), labels)
    gradients = torch.autograd.grad(error, tuple(twin.parameters()))
    return error.detach(), gradients


def agrees(model, x, labels, name):
    """Compare what is computed at once with the ordinary step."""
    error, gradients = ordinary(model, x, labels, LOSSES[name])
    found = descended(model, x, labels, name)
    assert found is not None
    torch.testing.assert_close(found.double(), error, rtol=1e-5, atol=1e-6)
    for parameter, gradient in zip(model.parameters(), gradients):
        close = {"rtol": 1e-4, "atol": 1e-5 * float(gradient.abs().max()) + 1e-7}
        torch.testing.assert_close(parameter.grad.double(), gradient, **close)


ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky relu": partial(nn.LeakyReLU, 0.2),
    "rising relu": partial(nn.LeakyReLU, -0.5),
    "gelu": nn.GELU,
    "gelu of tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


@given(
    sizes=st.lists(st.integers(1, 80), min_size=2, max_size=5),
    samples=st.integers(1, 200),
    sparsity=st.floats(0, 0.95),
    bias=st.booleans(),
    name=st.sampled_from(list(LOSSES)),
    activation=st.sampled_from(list(ACTIVATIONS)),
)
def test_any_network_descends_as_by_autograd(sizes, samples, sparsity, bias, name, activation):
    options = {"bias": bias, "activation": ACTIVATIONS[activation]}
    model = network(*sizes, sparsity=sparsity, **options)
    if all(layer.csr.nnz for layer in model.layers):
        agrees(model, *batch(samples, sizes[0], sizes[-1]), name)


@given(
    samples=st.integers(1, 200),
    activation=st.sampled_from(list(ACTIVATIONS)),
    kind=st.sampled_from([sl.nn.Dropout, nn.Dropout]),
    p=st.sampled_from([0.1, 0.5, 0.9]),
    loss=st.sampled_from(list(LOSSES)),
)
def test_a_dropout_draws_as_in_the_ordinary_step(samples, activation, kind, p, loss):
    """The same random numbers on the same activations, so that losses and gradients agree."""
    layers = network(40, 50, 30, 10).layers
    make = ACTIVATIONS[activation]
    model = nn.Sequential(layers[0], make(), kind(p), layers[1], make(), kind(p), layers[2])
    x, labels = batch(samples, 40, 10)
    torch.manual_seed(3)
    error = LOSSES[loss](model(x), labels)
    gradients = torch.autograd.grad(error, tuple(model.parameters()))
    state = torch.get_rng_state()
    torch.manual_seed(3)
    found = descended(model, x, labels, loss)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(found, error.detach(), rtol=1e-5, atol=1e-6)
    for parameter, gradient in zip(model.parameters(), gradients):
        close = {"rtol": 1e-4, "atol": 1e-5 * float(gradient.abs().max()) + 1e-7}
        torch.testing.assert_close(parameter.grad, gradient, **close)


@given(
    sizes=st.lists(st.integers(2, 70), min_size=3, max_size=5),
    samples=st.integers(1, 200),
    activations=st.lists(st.sampled_from(["", *ACTIVATIONS]), min_size=3, max_size=3),
    affine=st.booleans(),
    shifted=st.booleans(),
    loss=st.sampled_from(list(LOSSES)),
)
def test_normalized_layers_descend_as_by_autograd(
    sizes, samples, activations, affine, shifted, loss
):
    layers = network(*sizes).layers
    modules = [layers[0]]
    for layer, name in zip(layers[1:], activations):
        modules.append(nn.LayerNorm(layer.in_features, 1e-2, affine, shifted))
        for parameter in modules[-1].parameters():
            nn.init.normal_(parameter)
        modules += [ACTIVATIONS[name](), layer] if name else [layer]
    model = nn.Sequential(*modules)
    if all(layer.csr.nnz for layer in layers):
        agrees(model, *batch(samples, sizes[0], sizes[-1]), loss)


@given(
    sizes=st.lists(st.integers(2, 70), min_size=3, max_size=5),
    samples=st.integers(8, 200),
    activations=st.lists(st.sampled_from(["", *ACTIVATIONS]), min_size=3, max_size=3),
    norms=st.lists(st.sampled_from(["batch", "layer", "none"]), min_size=3, max_size=3),
    affine=st.booleans(),
    momentum=st.sampled_from([0.3, None]),
)
def test_layers_normalized_by_the_batch_descend_as_by_autograd(
    sizes, samples, activations, norms, affine, momentum
):
    """And keep the statistics that torch keeps."""
    layers = network(*sizes).layers
    modules = [layers[0]]
    for layer, name, norm in zip(layers[1:], activations, norms):
        width = layer.in_features
        if norm == "batch":
            modules.append(nn.BatchNorm1d(width, 1e-2, momentum, affine))
        if norm == "layer":
            modules.append(nn.LayerNorm(width, 1e-2, affine))
        if name or norm == "none":
            modules.append(ACTIVATIONS[name or "relu"]())
        modules.append(layer)
    model = nn.Sequential(*modules)
    if not all(layer.csr.nnz for layer in layers):
        return
    x, labels = batch(samples, sizes[0], sizes[-1])
    twin = copy.deepcopy(model).double()
    error = functional.cross_entropy(twin(x.double()), labels)
    gradients = torch.autograd.grad(error, tuple(twin.parameters()))
    found = descended(model, x, labels, "cross-entropy")
    torch.testing.assert_close(found.double(), error.detach(), rtol=1e-5, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for parameter, gradient in zip(model.parameters(), gradients):
        close = {"rtol": 1e-3, "atol": 1e-4 * largest}
        torch.testing.assert_close(parameter.grad.double(), gradient, **close)
    for ours, exact in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), exact.double(), rtol=1e-4, atol=1e-5)


def batch_normed():
    layers = network(12, 20, 30, 10).layers
    norms = nn.BatchNorm1d(20), nn.BatchNorm1d(30)
    return nn.Sequential(layers[0], norms[0], nn.ReLU(), layers[1], norms[1], layers[2])


def test_statistics_of_the_batch_are_kept_by_a_step_alone():
    model = batch_normed()
    x, labels = batch(70, 12, 10)
    before = copy.deepcopy(model.state_dict())
    assert obstacle(model, x, labels) == ""
    assert descended(model, x, labels - 1, "cross-entropy") is None
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert descended(model, x, labels, "cross-entropy") is not None
    assert model[1].num_batches_tracked == 1


def test_a_batch_of_one_sample_is_refused_by_torch():
    model = batch_normed()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        training.step(model, optimizer, *batch(1, 12, 10), functional.cross_entropy)


@pytest.mark.parametrize("samples", [2, 3, 64, 65])
def test_a_step_of_few_samples_is_normalized_by_them(samples):
    model = batch_normed()
    x, labels = batch(samples, 12, 10)
    twin = copy.deepcopy(model).double()
    error = functional.cross_entropy(twin(x.double()), labels)
    found = descended(model, x, labels, "cross-entropy")
    torch.testing.assert_close(found.double(), error.detach(), rtol=1e-4, atol=1e-4)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_one_sample_that_is_not_a_number_spoils_its_batch():
    model = batch_normed()
    x, labels = batch(150, 12, 10)
    x[149] = torch.nan
    assert descended(model, x, labels, "cross-entropy").isnan()
    assert model[4].running_mean.isnan().all()


def test_a_batch_whose_activations_would_fill_the_memory_is_left_to_autograd():
    """All tiles are kept at once; the limit is 64 MiB of them."""
    model = batch_normed()
    rows = 12 + 2 * (20 + 30 + 10)
    most = (1 << 24) // (64 * rows) * 64
    for samples, is_at_once in ((most, True), (most + 1, False)):
        x = torch.zeros(1, 12).expand(samples, 12)
        labels = torch.zeros(samples, dtype=torch.int64)
        found = descended(model, x, labels, "cross-entropy")
        assert (found is not None) == is_at_once


def test_a_frozen_normalization_gets_no_gradient_in_a_step_at_once():
    layers = network(12, 20, 10).layers
    model = nn.Sequential(layers[0], nn.LayerNorm(20), nn.ReLU(), layers[1])
    model[1].bias.requires_grad_(False)
    x, labels = batch(70, 12, 10)
    assert descended(model, x, labels, "cross-entropy") is not None
    assert model[1].bias.grad is None
    assert model[1].weight.grad is not None
    model[1].weight.register_hook(lambda gradient: 2 * gradient)
    assert descended(model, x, labels, "cross-entropy") is None
    assert "see or change the gradient" in obstacle(model, x, labels)


def test_who_asks_and_who_is_refused_draw_no_random_numbers():
    model = network(12, 20, 10, dropout=0.5)
    x, labels = batch(70, 12, 10)
    state = torch.get_rng_state()
    assert obstacle(model, x, labels) == ""
    assert descended(model, x, labels - 1, "cross-entropy") is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_what_is_not_a_number_passes_every_activation(activation):
    model = network(12, 20, 10, activation=ACTIVATIONS[activation], dropout=0.3)
    x, labels = batch(70, 12, 10)
    x[5] = torch.nan
    assert descended(model, x, labels, "cross-entropy").isnan()


@given(
    width=st.integers(1, 70),
    order=st.lists(st.integers(0, 49), min_size=1, max_size=150),
    name=st.sampled_from(list(LOSSES)),
)
def test_a_batch_may_be_any_of_the_samples_where_they_lie(width, order, name):
    """In any order, and some of them twice: the same bits as of those side by side."""
    model = network(width, 20, 10, sparsity=0.5)
    x, labels = batch(50, width, 10)
    indices = torch.tensor(order)
    found = [descended(model, x, labels, name, indices), gradients_of(model)]
    model.zero_grad()
    expected = [descended(model, x[indices], labels[indices], name), gradients_of(model)]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def gradients_of(model):
    return [parameter.grad for parameter in model.parameters()]


WRONG = {
    "below": torch.tensor([3, -1]),
    "above": torch.tensor([3, 50]),
    "another type": torch.tensor([3, 4], dtype=torch.int32),
    "rows of them": torch.tensor([[3, 4]]),
    "none": torch.tensor([], dtype=torch.int64),
}


@pytest.mark.parametrize("kind", list(WRONG))
def test_samples_that_are_not_there_are_left_to_who_refuses_them(kind):
    model = network(30, 20, 10)
    x, labels = batch(50, 30, 10)
    assert descended(model, x, labels, "cross-entropy", WRONG[kind]) is None
    assert all(parameter.grad is None for parameter in model.parameters())


WAYS = {
    "as they are": lambda x: x,
    "between others": lambda x: torch.stack([x, x], 1)[:, 1],
    "of another type": lambda x: x.double(),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_inputs_may_lie_as_they_like(way, monkeypatch):
    """What the kernel cannot read in place is gathered first, and the training is the same."""
    data = sl.datasets.digits()
    histories = []
    drawn = []

    def noted(*arguments):
        drawn.append(len(arguments))
        return descended(*arguments)

    monkeypatch.setattr(training, "descended", noted)
    for change in (WAYS["as they are"], WAYS[way]):
        model = network(64, 40, 10)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        train = SimpleNamespace(x=change(data.train.x), y=data.train.y)
        samples = SimpleNamespace(train=train, valid=data.valid)
        histories.append(sl.fit(model, samples, optimizer, 2, progress=False))
    assert histories[0]["loss"] == histories[1]["loss"]
    assert (drawn[-1] == 5) == (way == "as they are")


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("name", list(LOSSES))
def test_the_number_of_threads_changes_no_bit(name, normed):
    model = network(50, 120, 90, 10)
    if normed:
        first, second, last = model.layers
        norms = nn.BatchNorm1d(120), nn.BatchNorm1d(90)
        model = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], last)
    x, labels = batch(1000, 50, 10)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            model.zero_grad()
            error = descended(model, x, labels, name)
            found.append([error, *(parameter.grad for parameter in model.parameters())])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


@pytest.mark.parametrize(("samples", "is_at_once"), [(128, True), (64, False)])
def test_much_work_of_few_samples_is_left_to_all_threads(samples, is_at_once):
    model = network(600, 600, 10, sparsity=0.5)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = descended(model, *batch(samples, 600, 10), "cross-entropy")
    finally:
        torch.set_num_threads(before)
    assert (found is not None) == is_at_once


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("scale", [1e-30, 50.0, 1e4])
def test_outputs_of_any_size_have_a_finite_loss(name, scale):
    model = network(20, 30, 10)
    with torch.no_grad():
        model.layers[-1].values.mul_(scale)
    agrees(model, *batch(100, 20, 10), name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_reaches_the_loss(value):
    data = sl.datasets.digits()
    model = network(64, 20, 10)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data.train.x[3] = value
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 1"):
        sl.fit(model, data, optimizer, 1, progress=False)


def sequences():
    """Write the same network in the ways that are known."""
    mlp = network(12, 20, 10)
    first, last = mlp.layers
    yield mlp
    yield nn.Sequential(first, nn.ReLU(), last)
    yield sl.nn.Sequential(first, nn.ReLU(), last)
    yield nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Dropout(0.0), last)
    yield nn.Sequential(first, nn.ReLU(), nn.Dropout(0.5), last).eval()
    yield nn.Sequential(first, nn.SiLU(inplace=True), last)


@pytest.mark.parametrize("number", range(6))
def test_known_models_descend_at_once(number):
    model = list(sequences())[number]
    agrees(model, *batch(70, 12, 10), "cross-entropy")


@pytest.mark.parametrize("number", [0, 3])
def test_samples_are_flattened_by_who_does_that(number):
    model = list(sequences())[number]
    x, labels = batch(70, 12, 10)
    agrees(model, x.view(70, 3, 4), labels, "cross-entropy")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_dense_layer_among_sparse_ones_descends_with_them(place):
    model = network(24, 40, 24, 10, sparsity=0.0)
    model.layers[place] = model.layers[place].to_dense()
    agrees(model, *batch(70, 24, 10), "cross-entropy")


def test_many_dense_weights_and_networks_without_sparse_ones_are_torchs():
    model = network(12, 300, 300, 10, sparsity=0.5)
    model.layers[1] = nn.Linear(300, 300)
    x, labels = batch(70, 12, 10)
    assert descended(model, x, labels, "cross-entropy") is None
    assert descended(sl.MLP(12, 20, 10), x, labels, "cross-entropy") is None


def hooked(model):
    model.layers[0].register_forward_hook(lambda *_: None)


def hooked_itself(model):
    model.register_forward_pre_hook(lambda *_: None)


def hooked_between(model):
    model.activation.register_forward_hook(lambda *_: None)


def hooked_gradient(model):
    model.layers[1].values.register_hook(lambda gradient: 2 * gradient)


def frozen(model):
    model.layers[0].bias.requires_grad_(False)


def doubled(model):
    model.double()


def with_dropout_of_all(model):
    model.dropout.p = 1.0


def of_another_activation(model):
    model.activation = nn.Softplus()


def of_a_hooked_dropout(model):
    model.dropout.p = 0.5
    model.dropout.register_forward_hook(lambda *_: None)


def masked(model):
    model.layers[0].product = sl.masked_product


def watched(model):
    model.evolution = sl.RigL(model, torch.optim.SGD(model.parameters(), 0.1))


def of_another_end(model):
    model.layers[-1] = nn.Sequential(model.layers[-1], nn.ReLU())


def of_another_class(model):
    model.__class__ = type("Mine", (sl.MLP,), {"forward": lambda self, x: 2 * self.layers[0](x)})


def dense_and_hooked(model):
    model.layers[0] = sl.CSRLinear(12, 20, sparsity=0.0)
    model.layers[1] = nn.Linear(20, 10)
    model.layers[1].register_forward_hook(lambda *_: None)


OBSTACLES = {
    hooked: "a hook, or another product",
    hooked_itself: "a hook wants to see what the model does",
    hooked_between: "a dropout that kernels know, in this order, or a hook",
    hooked_gradient: "a hook wants to see or change the gradient",
    frozen: "a parameter does not learn",
    doubled: "there are no kernels for torch.float64",
    with_dropout_of_all: "something else than a normalization, an activation and a dropout",
    of_another_activation: "something else than a normalization, an activation and a dropout",
    of_a_hooked_dropout: "a dropout that kernels know, in this order, or a hook",
    masked: "another product than the sparse one",
    watched: "an evolution by gradient needs what the layers read",
    of_another_end: "it does not end with a CSRLinear or nn.Linear",
    of_another_class: "Mine is no MLP or nn.Sequential",
    dense_and_hooked: "a hook, or another product",
}


@pytest.mark.parametrize(("change", "sentence"), OBSTACLES.items())
def test_where_somebody_looks_the_step_is_the_ordinary_one(change, sentence):
    model = network(12, 20, 10)
    change(model)
    x, labels = batch(70, 12, 10)
    x = x.to(next(model.parameters()).dtype)
    before = copy.deepcopy(model.state_dict())
    assert sentence in obstacle(model, x, labels)
    assert descended(model, x, labels, "cross-entropy") is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


def test_nothing_stands_against_a_known_model_and_asking_changes_nothing():
    for model in sequences():
        model.zero_grad()
        assert obstacle(model, *batch(70, 12, 10)) == ""
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_hook_on_every_module_sees_the_layers():
    model = network(12, 20, 10)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        training.step(model, optimizer, *batch(70, 12, 10), functional.cross_entropy)
    finally:
        handle.remove()
    assert {*model.layers} <= {*seen}


def test_contexts_that_want_to_see_operations_see_them():
    model = network(12, 20, 10)
    x, labels = batch(70, 12, 10)
    for context in (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.detect_anomaly(check_nan=True),
        sl.ops.backend("reference"),
    ):
        with context:
            assert descended(model, x, labels, "cross-entropy") is None
            assert obstacle(model, x, labels)
    for inputs, targets, sentence in (
        (x.clone().requires_grad_(), labels, "needs a gradient itself"),
        ({"x": x}, labels, "not one tensor each"),
        (x[:0], labels[:0], "the sizes do not fit"),
        (x[:, :4], labels, "the sizes do not fit"),
        (x, labels[:4], "the sizes do not fit"),
        (x, labels - 1, "a label is the number of no class"),
    ):
        assert descended(model, inputs, targets, "cross-entropy") is None
        assert sentence in obstacle(model, inputs, targets)


LABELS = {
    "of no class": (torch.full((70,), 10), IndexError, "Target 10 is out of bounds"),
    "too few": (torch.zeros(69, dtype=torch.int64), ValueError, "batch_size"),
    "of another type": (torch.zeros(70, dtype=torch.int32), RuntimeError, "Int"),
}


@pytest.mark.parametrize("kind", list(LABELS))
def test_labels_that_do_not_fit_are_refused_as_by_torch(kind):
    model = network(12, 20, 10)
    labels, error, sentence = LABELS[kind]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=sentence):
        training.step(model, optimizer, batch(70, 12, 10)[0], labels, functional.cross_entropy)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


FUNCTIONS = (
    functional.cross_entropy,
    sigmoid_squared_error,
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(label_smoothing=0.1),
    nn.CrossEntropyLoss(torch.arange(10.0)),
    nn.CrossEntropyLoss(ignore_index=3),
    nn.CrossEntropyLoss(reduction="sum"),
)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("ignored", [False, True])
def test_a_step_follows_the_loss_that_it_is_given(function, ignored):
    """Class -100, or another that a loss is told to ignore, counts nothing in torch's."""
    model = network(12, 20, 10)
    x, labels = batch(70, 12, 10)
    if ignored and function is sigmoid_squared_error:
        pytest.skip("it has no class that counts nothing")
    if ignored:
        labels[::3] = getattr(function, "ignore_index", -100)
    twin = copy.deepcopy(model)
    error = function(twin(x), labels)
    error.backward()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    found = training.step(model, optimizer, x, labels, function)
    torch.testing.assert_close(found, error.detach(), rtol=1e-5, atol=1e-6)
    for mine, own in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(mine.grad, own.grad, rtol=1e-4, atol=1e-5)


def test_gradients_are_added_and_who_waits_for_them_is_called():
    model = network(12, 20, 10)
    x, labels = batch(70, 12, 10)
    seen = []
    values = model.layers[0].values
    values.register_post_accumulate_grad_hook(lambda found: seen.append(found.grad.clone()))
    descended(model, x, labels, "cross-entropy")
    once = [parameter.grad.clone() for parameter in model.parameters()]
    descended(model, x, labels, "cross-entropy")
    for parameter, gradient in zip(model.parameters(), once):
        torch.testing.assert_close(parameter.grad, 2 * gradient)
    assert torch.equal(seen[0], once[0])
    assert len(seen) == 2


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_training_is_a_loop_of_ordinary_steps(optimizer, monkeypatch):
    """The same batches, with the same optimizer, one way and the other."""
    data = sl.datasets.digits()
    models = [network(64, 40, 10) for _ in range(2)]
    histories = []
    calls = []
    for model in models:
        histories.append(
            sl.fit(model, data, optimizer(model.parameters(), 0.01), 3, batch_size=100)
        )
        monkeypatch.setattr(training, "descended", lambda *_: calls.append(1))
    assert calls
    assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], rel=1e-3)
    for mine, own in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(mine, own, rtol=1e-2, atol=1e-3)


def test_modules_may_have_watches_of_their_own():
    """The name is not reserved in the modules of others."""
    data = sl.datasets.digits()
    model = network(64, 10)
    model.activation.watches = ["seiko"]
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    history = sl.fit(model, data, optimizer, 1, progress=False)
    assert len(history["loss"]) == 1


SCHEDULES = {
    "after each epoch": (lambda evolution: {"after_epoch": evolution.step}, [1, 11]),
    "in some steps": (
        lambda evolution: {"after_step": sl.evolution.CosineSchedule(evolution, 20, 5).step},
        [3, 9],
    ),
    "whenever a hook wants": (lambda evolution: {"after_step": lambda: evolution.step()}, [12, 0]),
}


@pytest.mark.parametrize("kind", list(SCHEDULES))
def test_an_evolution_by_gradient_sees_what_it_needs(kind, monkeypatch):
    """Steps that no evolution follows go at once; what grows is what grows with ordinary steps."""
    data = sl.datasets.digits()
    hooks, expected = SCHEDULES[kind]
    taken = []

    def noted(*arguments):
        error = descended(*arguments)
        taken.append(error is not None)
        return error

    found = []
    for step in (noted, lambda *_: None):
        monkeypatch.setattr(training, "descended", step)
        model = network(64, 40, 30, 10)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        evolution = sl.RigL(model, optimizer, 0.3)
        sl.fit(model, data, optimizer, 1, batch_size=100, progress=False, **hooks(evolution))
        sl.fit(model, data, optimizer, 1, batch_size=100, progress=False, **hooks(evolution))
        found.append([layer.csr.positions for layer in model.layers])
    assert all(torch.equal(a, b) for a, b in zip(*found))
    assert [taken[:12].count(False), taken[:12].count(True)] == expected
