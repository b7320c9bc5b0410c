"""The one training loop: it learns, repeats itself exactly, and reports when it breaks."""

import copy
import functools
import io
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

import sparselib as sl


def two_classes(samples=130, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (samples,), generator=generator)
    x = torch.randn(samples, 6, generator=generator) + 3.0 * y[:, None]
    part = SimpleNamespace(x=x, y=y)
    return SimpleNamespace(train=part, valid=part)


def start(seed=0):
    torch.manual_seed(seed)
    model = sl.MLP(6, 16, 2, layer=sl.CSRLinear, sparsity=0.5)
    return model, torch.optim.SGD(model.parameters(), lr=0.5)


def run(epochs=6, seed=0, **options):
    model, optimizer = start()
    data = two_classes()
    return sl.fit(
        model, data, optimizer, epochs, batch_size=32, seed=seed, progress=False, **options
    )


def test_it_learns_two_separated_classes():
    history = run()
    assert history["accuracy"][-1] > 0.95
    assert history["loss"][-1] < history["loss"][0]
    assert {len(column) for column in history.values()} == {6}


def test_the_same_seed_repeats_every_number_and_another_does_not():
    assert run()["loss"] == run()["loss"]
    assert run()["loss"] != run(seed=1)["loss"]


def test_hooks_run_between_epochs_and_after_every_step():
    epochs, steps = [], []
    run(3, after_epoch=lambda: epochs.append(1), after_step=[lambda: steps.append(1)])
    assert len(epochs) == 2
    assert len(steps) == 3 * 5


def test_the_last_incomplete_batch_is_trained_on_unless_it_is_dropped():
    """130 samples are four batches of 32 and one of 2; the mean of the loss is over samples."""
    sizes, losses = [], []

    def loss(model, batch):
        error = functional.cross_entropy(model(batch.x), batch.y)
        sizes.append(len(batch.indices))
        losses.append(error.item())
        return error

    history = run(1, loss=loss)
    assert sizes == [32, 32, 32, 32, 2]
    mean = sum(size * error for size, error in zip(sizes, losses)) / 130
    assert history["loss"] == pytest.approx([mean])
    sizes.clear()
    losses.clear()
    history = run(1, loss=loss, drop_last=True)
    assert sizes == [32, 32, 32, 32]
    assert history["loss"] == pytest.approx([sum(losses) / 4])


def test_a_batch_knows_which_samples_it_holds():
    """Every sample once per epoch, with its own numbers and label, in another order each time."""
    data = two_classes()
    seen = []

    def loss(model, batch):
        assert torch.equal(batch.x, data.train.x[batch.indices])
        assert torch.equal(batch.y, data.train.y[batch.indices])
        seen.extend(batch.indices.tolist())
        return functional.cross_entropy(model(batch.x), batch.y)

    run(2, loss=loss)
    assert sorted(seen[:130]) == sorted(seen[130:]) == list(range(130))
    assert seen[:130] != seen[130:]


def test_a_batch_larger_than_the_data_is_one_batch():
    steps = []
    model, optimizer = start()
    sl.fit(
        model,
        two_classes(5),
        optimizer,
        2,
        batch_size=512,
        progress=False,
        after_step=lambda: steps.append(1),
    )
    assert len(steps) == 2


def test_a_loss_that_is_not_finite_is_an_error_with_the_epoch():
    model, optimizer = start()
    model.layers[-1].bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="became nan in epoch 1 of 3; lower"):
        sl.fit(model, two_classes(), optimizer, 3, progress=False)


class Line(nn.Module):
    """One number w: an autoencoder that answers w x."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x):
        return self.w * x


def distance(outputs, x):
    return (outputs - x).square().mean() / (2 * x.square().mean())


def autoencode(epochs, lr=0.25, **options):
    model = Line(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    options = {"measure": lambda model, _: {"distance": abs(1 - model.w)}} | options
    history = sl.fit(
        model,
        two_classes(),
        optimizer,
        epochs,
        batch_size=1000,
        loss=sl.reconstruction(distance),
        progress=False,
        **options,
    )
    return model, history


def test_an_autoencoder_is_compared_with_its_samples():
    """The gradient of (w - 1)^2 / 2 is w - 1: each step of rate 1/4 leaves 3/4 of the distance."""
    _, history = autoencode(4)
    assert history["distance"] == pytest.approx([0.75, 0.75**2, 0.75**3, 0.75**4])
    assert history.keys() == {"loss", "distance", "seconds"}


def test_the_lowest_epoch_is_kept_if_asked_for():
    """With a rate of 2.5 each step overshoots to -1.5 times the distance: the first is the best."""
    assert autoencode(3, 2.5)[0].w.item() == pytest.approx(1 + 1.5**3)
    model, history = autoencode(3, 2.5, keep="distance")
    assert history["distance"] == pytest.approx([1.5, 1.5**2, 1.5**3])
    assert model.w.item() == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"start_epoch": -1}, "counts epochs from 0, not -1"),
        ({"history": {"loss": [1.0]}}, r"has entries {'loss': 1}, but 0 epochs were trained"),
        ({"keep": "phi"}, r"called \['distance'\].* keep='phi' has to be"),
        (
            {"measure": lambda *_: {"loss": 1.0}},
            r"called \['loss'\]: 'loss' and 'seconds' are taken",
        ),
    ],
)
def test_what_cannot_be_measured_or_kept_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        autoencode(1, **options)


def test_evaluate_restores_the_mode_and_counts_right():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    model[1].weight.data = torch.tensor([[1.0], [-1.0]])
    samples = SimpleNamespace(x=torch.tensor([[1.0], [2.0], [-1.0]]), y=torch.tensor([0, 1, 1]))
    assert sl.evaluate(model.train(), samples) == pytest.approx(2 / 3)
    assert model.training
    assert not model.eval().training
    assert sl.evaluate(model, samples, batch_size=2) == pytest.approx(2 / 3)


def test_ertl_s_cost_is_half_the_squared_distance_of_sigmoid_outputs():
    outputs, labels = torch.tensor([[0.0, 100.0], [0.0, 0.0]]), torch.tensor([1, 0])
    assert sl.sigmoid_squared_error(outputs, labels) == pytest.approx((0.25 / 2 + 0.5 / 2) / 2)


def test_accuracy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="accuracy of no samples"):
        sl.metrics.accuracy(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))


def test_nothing_to_monitor_is_refused_before_training():
    model, optimizer = start()
    data = two_classes()
    data.valid = SimpleNamespace(x=data.train.x[:0], y=data.train.y[:0])
    before = model.layers[0].values.detach().clone()
    with pytest.raises(ValueError, match="no samples to measure on"):
        sl.fit(model, data, optimizer, 1, progress=False)
    assert torch.equal(model.layers[0].values, before)


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (functional.cross_entropy, r"pass loss=sl\.criterion\(cross_entropy\)"),
        (nn.MSELoss(), r"loss=sl\.reconstruction\(MSELoss\(\.\.\.\)\)"),
        (functools.partial(functional.l1_loss, reduction="sum"), r"sl\.criterion\(l1_loss\)"),
        (sl.sigmoid_squared_error, r"sl\.criterion\(sigmoid_squared_error\)"),
        (distance, r"unsupported operand .* pass loss=sl\.criterion\(distance\)"),
        (lambda outputs: outputs, "takes 1 positional argument"),
        (lambda model, batch: model(batch.x), r"one number, .* not \(130, 2\)"),
        (lambda model, batch: 0.5, "one number, .* not float"),
    ],
)
def test_a_function_of_outputs_and_targets_is_shown_how_to_be_passed(loss, sentence):
    model, optimizer = start()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match=sentence):
        sl.fit(model, two_classes(), optimizer, 1, loss=loss, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not optimizer.state


def test_an_error_inside_of_the_model_is_left_as_it_is():
    class Broken(nn.Linear):
        def forward(self, x):
            return super().forward(x) + "one"

    model = Broken(6, 2)
    with pytest.raises(TypeError, match=r"unsupported operand|must be Tensor") as caught:
        sl.fit(model, two_classes(), torch.optim.SGD(model.parameters(), 0.1), 1, progress=False)
    assert "sl.criterion" not in str(caught.value)


class Pair(nn.Module):
    """Reads tokens and numbers, by position or by name."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.sparse = sl.CSRLinear(10, 2, sparsity=0.5)

    def forward(self, tokens, numbers):
        assert tokens.dtype == torch.int64
        assert numbers.dtype == self.embed.weight.dtype
        return self.sparse(torch.cat([self.embed(tokens).mean(1), numbers], 1))


@pytest.mark.parametrize("kind", [tuple, dict])
def test_inputs_may_be_tuples_or_dictionaries_and_integers(kind):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, (70, 5), generator=generator)
    numbers = torch.randn(70, 2, generator=generator, dtype=torch.float64)
    y = ((tokens < 10).sum(1) > 2).long()
    x = (tokens, numbers) if kind is tuple else {"numbers": numbers, "tokens": tokens}
    part = SimpleNamespace(x=x, y=y)
    torch.manual_seed(0)
    model = Pair()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    data = SimpleNamespace(train=part, valid=part)
    history = sl.fit(model, data, optimizer, 30, batch_size=32, progress=False)
    assert history["accuracy"][-1] > 0.9
    assert sl.predict(model, x, 32).shape == (70, 2)
    assert sl.evaluate(model, part) == history["accuracy"][-1]


def test_tokens_reach_an_embedding_as_integers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), sl.CSRLinear(40, 4, sparsity=0.5))
    part = SimpleNamespace(x=torch.randint(20, (64, 5)), y=torch.randint(4, (64,)))
    data = SimpleNamespace(train=part, valid=part)
    optimizer = torch.optim.Adam(model.parameters())
    history = sl.fit(model, data, optimizer, 1, batch_size=16, progress=False)
    assert sl.evaluate(model, part) == history["accuracy"][0]


@pytest.mark.parametrize(
    ("x", "y", "fault", "sentence"),
    [
        (torch.zeros(3, 6), torch.zeros(4), ValueError, r"differ in their number .* \[3, 4\]"),
        (torch.zeros(0, 6), torch.zeros(0), ValueError, "no samples to train on"),
        ({1, 2}, torch.zeros(2), TypeError, "tuple or dictionary of tensors, not set"),
    ],
)
def test_samples_that_do_not_fit_are_refused(x, y, fault, sentence):
    model, optimizer = start()
    data = SimpleNamespace(train=SimpleNamespace(x=x, y=y), valid=two_classes().valid)
    with pytest.raises(fault, match=sentence):
        sl.fit(model, data, optimizer, 1, progress=False)


def trio(kind):
    """A model with dropout, an optimizer, an evolution by gradients and a scheduler."""
    torch.manual_seed(0)
    sparse = sl.MLP(6, 32, 2, layer=sl.CSRLinear, sparsity=0.8)
    model = nn.Sequential(nn.Dropout(0.1), sparse)
    optimizer = kind(model.parameters(), lr=0.01)
    evolution = sl.GradientGrowth(model, optimizer, 0.2)
    return model, optimizer, evolution, torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.9)


def trained(parts, epochs, **options):
    model, optimizer, evolution, schedule = parts
    hooks = {"after_epoch": evolution.step, "after_step": schedule.step}
    options = {"batch_size": 32, "progress": False, "seed": 3} | hooks | options
    return sl.fit(model, two_classes(), optimizer, epochs, **options)


def same(first, second):
    values = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in values)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_two_calls_are_one_call_bit_for_bit(kind, cut):
    """Saved explicitly after `cut` of 5 epochs and loaded into objects that are new."""
    whole = trio(kind)
    expected = trained(whole, 5)
    first = trio(kind)
    history = trained(first, cut)
    file = io.BytesIO()
    states = [part.state_dict() for part in first]
    torch.save([*states, torch.get_rng_state()], file)
    file.seek(0)
    *states, random = torch.load(file, weights_only=True)
    second = trio(kind)
    for part, state in zip(second, states):
        part.load_state_dict(state)
    torch.set_rng_state(random)
    history = trained(second, 5 - cut, history=history)
    assert same(second[0], whole[0])
    assert second[2].steps == whole[2].steps == 4
    assert history["loss"] == expected["loss"]
    assert len(history["seconds"]) == 5


def test_a_run_goes_on_from_a_hook_that_saves_between_epochs():
    whole = trio(torch.optim.AdamW)
    saved = []

    def save():
        states = copy.deepcopy([part.state_dict() for part in whole])
        saved.append((states, torch.get_rng_state()))

    trained(whole, 4, after_epoch=[whole[2].step, save])
    states, random = saved[1]
    resumed = trio(torch.optim.AdamW)
    for part, state in zip(resumed, states):
        part.load_state_dict(state)
    torch.set_rng_state(random)
    trained(resumed, 2)
    assert same(resumed[0], whole[0])
    assert resumed[2].steps == whole[2].steps == 3


def test_a_run_can_start_anew_with_an_optimizer_that_was_used():
    orders = []

    def loss(model, batch):
        orders.append(batch.indices.tolist())
        return functional.cross_entropy(model(batch.x), batch.y)

    parts = trio(torch.optim.SGD)
    for start_epoch in (None, 0, None):
        trained(parts, 1, loss=loss, start_epoch=start_epoch)
    assert orders[:5] == orders[5:10]
    assert orders[:5] != orders[10:]
    assert parts[2].steps == 1


def test_the_bar_and_the_sentence_count_from_the_first_epoch(capsys):
    parts = trio(torch.optim.SGD)
    trained(parts, 2)
    trained(parts, 2, progress=True)
    assert "4/4" in capsys.readouterr().err
    parts[0][1].layers[-1].bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="in epoch 5 of 6"):
        trained(parts, 2, after_epoch=())


def test_the_lowest_epoch_of_both_calls_is_kept():
    """With a rate of 2.5 the first epoch of the first call is the best of all."""
    model = Line(0.0)
    optimizer = torch.optim.SGD(model.parameters(), 2.5)
    measure = {"measure": lambda model, _: {"distance": abs(1 - model.w)}, "keep": "distance"}
    options = {"batch_size": 1000, "loss": sl.reconstruction(distance), "progress": False}
    history = sl.fit(model, two_classes(), optimizer, 2, **measure, **options)
    history = sl.fit(model, two_classes(), optimizer, 2, history=history, **measure, **options)
    assert len(history["distance"]) == 4
    assert model.w.item() == pytest.approx(2.5)


@pytest.mark.parametrize("dense", [True, False])
def test_autocast_around_all_steps_is_autocast_around_each(dense):
    """Outside of the outermost context torch keeps weights cast as they were at the first step."""

    def trained(around):
        torch.manual_seed(0)
        layer = {} if dense else {"layer": sl.CSRLinear, "sparsity": 0.5}
        model = sl.MLP(6, 16, 2, **layer)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)

        def loss(model, batch):
            with autocast(enabled=not around):
                return functional.cross_entropy(model(batch.x), batch.y)

        with autocast(enabled=around):
            options = {"batch_size": 32, "progress": False, "loss": loss}
            history = sl.fit(model, two_classes(), optimizer, 3, **options)
        return history["loss"], list(model.parameters())

    within, each = trained(True), trained(False)
    assert within[0] == pytest.approx(each[0], rel=1e-3)  # backward is in half precision too
    torch.testing.assert_close(within[1], each[1], rtol=0.01, atol=0.001)


def normed(is_fused):
    torch.manual_seed(0)
    sizes = (6, 16, 12, 2)
    modules = [sl.CSRLinear(*sizes[:2], sparsity=0.5)]
    for pair in itertools.pairwise(sizes[1:]):
        modules += [nn.BatchNorm1d(pair[0]), nn.GELU(), sl.CSRLinear(*pair, sparsity=0.5)]
    model = nn.Sequential(*modules)
    return sl.fuse(model) if is_fused else model


def smoothed(**options):
    """A loss that no kernel computes, so that steps are autograd's."""
    return sl.criterion(nn.CrossEntropyLoss(label_smoothing=0.1, **options))


def test_a_sequence_is_fitted_and_evaluated_as_if_it_were_fused():
    """Bit for bit, and its class is its own again afterwards."""
    data = two_classes()
    kinds = []
    histories = []
    for is_fused in False, True:
        model = normed(is_fused)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        options = {"batch_size": 64, "loss": smoothed(), "progress": False}
        seen = functools.partial(lambda model: kinds.append(type(model)), model)
        histories.append(sl.fit(model, data, optimizer, 3, after_step=seen, **options))
        histories[-1].pop("seconds")
        assert type(model) is (sl.nn.Sequential if is_fused else nn.Sequential)
        histories[-1]["outputs"] = sl.predict(model, data.train.x).flatten().tolist()
    assert histories[0] == histories[1]
    assert set(kinds) == {sl.nn.Sequential}


def test_a_sequence_has_its_class_again_after_an_error():
    model = normed(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def broken(model, batch):
        raise ArithmeticError(type(model).__name__)

    with pytest.raises(ArithmeticError, match="Sequential"):
        sl.fit(model, two_classes(), optimizer, 1, loss=broken, progress=False)
    assert type(model) is nn.Sequential


def test_a_compiled_sequence_stays_as_it_was_compiled():
    """Another class would have it compiled anew."""
    data = two_classes()
    kinds = []
    whole = normed(False)
    part = normed(False)
    part.compile(backend="eager")
    for model, inner in (torch.compile(whole, backend="eager"), whole), (part, part):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        seen = functools.partial(lambda inner: kinds.append(type(inner)), inner)
        sl.fit(model, data, optimizer, 1, loss=smoothed(), after_step=seen, progress=False)
    assert set(kinds) == {nn.Sequential}
