"""The one training loop: it learns, repeats itself exactly, and says when it breaks."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

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
    assert len(steps) == 3 * (130 // 32)


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
    model.layers[0].values.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="became nan in epoch 1 of 3; lower"):
        sl.fit(model, two_classes(), optimizer, 3, progress=False)


class Line(nn.Module):
    """One number w: an autoencoder that answers w x."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x):
        return self.w * x


def autoencode(epochs, lr=0.25, **options):
    model = Line(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    options = {"target": "x", "measure": lambda model, _: {"distance": abs(1 - model.w)}} | options
    history = sl.fit(
        model,
        two_classes(),
        optimizer,
        epochs,
        batch_size=1000,
        loss=lambda outputs, x: (outputs - x).square().mean() / (2 * x.square().mean()),
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
        ({"target": "z"}, "the samples, not 'z'"),
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


def test_nothing_to_monitor_is_said_before_training():
    model, optimizer = start()
    data = two_classes()
    data.valid = SimpleNamespace(x=data.train.x[:0], y=data.train.y[:0])
    before = model.layers[0].values.detach().clone()
    with pytest.raises(ValueError, match="no samples to measure on"):
        sl.fit(model, data, optimizer, 1, progress=False)
    assert torch.equal(model.layers[0].values, before)
