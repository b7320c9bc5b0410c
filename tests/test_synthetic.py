"""Synthetic stand-ins: seeded, shaped like the real data, and worth a hidden layer."""

import pytest
import torch
from threadpoolctl import threadpool_limits

from sparselib.datasets import synthetic

KINDS = ("ecg", "eeg", "respiration", "emg")


def score(model, split):
    with threadpool_limits(1):
        model.fit(split.train.x.numpy(), split.train.y.numpy())
        return model.score(split.test.x.numpy(), split.test.y.numpy())


def test_synthetic_images_look_like_mnist():
    split = synthetic.images()
    x = split.train.x
    assert split.checksum == synthetic.images().checksum == "84db63ce238e"
    assert synthetic.images(train=60, valid=6, test=6, seed=1).checksum != split.checksum
    assert (x.shape, x.min(), x.max()) == ((6000, 784), 0, 1)
    assert torch.equal((x * 255).round() / 255, x)
    assert 0.05 < x.mean() < 0.2
    square = x.reshape(-1, 28, 28)
    assert square[:, 2:-2, 2:-2].count_nonzero() == square.count_nonzero()
    assert "synthetic" in split.note


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_synthetic_images_need_a_hidden_layer():
    from sklearn.linear_model import RidgeClassifier
    from sklearn.neural_network import MLPClassifier

    split = synthetic.images()
    deep = score(MLPClassifier((64,), learning_rate_init=4e-3, max_iter=8, random_state=0), split)
    assert 0.94 < deep < 0.995
    assert score(RidgeClassifier(100), split) < deep - 0.05


def test_synthetic_collisions_look_like_higgs():
    split = synthetic.collisions()
    x = split.train.x
    assert split.checksum == synthetic.collisions().checksum == "aeb5fbbcd471"
    assert synthetic.collisions(seed=1).checksum != split.checksum
    assert (x.shape, len(split.valid), len(split.test)) == ((5000, 28), 500, 1000)
    assert split.classes == len(split.train.y.unique()) == 2
    torch.testing.assert_close(x.mean(0), torch.zeros(28), rtol=0, atol=1e-4)
    torch.testing.assert_close(x.std(0), torch.ones(28), rtol=0, atol=1e-3)
    assert 0.5 < split.train.y.double().mean() < 0.56
    assert "synthetic" in split.note


def test_synthetic_collisions_need_a_hidden_layer():
    from sklearn.linear_model import RidgeClassifier
    from sklearn.neural_network import MLPClassifier

    split = synthetic.collisions()
    model = MLPClassifier((64,), learning_rate_init=3e-3, early_stopping=True, random_state=0)
    assert 0.69 < score(model, split) < 0.77
    assert 0.56 < score(RidgeClassifier(), split) < 0.66


def test_synthetic_sizes_are_free():
    split = synthetic.images(train=20, valid=0, test=5, side=12, classes=3)
    assert (split.train.x.shape, split.valid.x.shape, split.classes) == ((20, 144), (0, 144), 3)


def test_synthetic_letters_can_be_learned_and_are_seeded():
    split = synthetic.letters(600, 50, 200, features=60)
    assert split.checksum == synthetic.letters(600, 50, 200, features=60).checksum
    assert split.train.x.abs().max() <= 1
    whole = synthetic.letters()
    assert (len(whole.train), len(whole.test), whole.features, whole.classes) == (
        6238,
        1559,
        617,
        26,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_synthetic_signals_are_seeded_and_standardized(kind):
    split = synthetic.signals([kind])
    assert (split.train.x.shape, split.valid.x.shape, split.test.x.shape) == (
        (6, 1000),
        (2, 1000),
        (4, 1000),
    )
    assert split.checksum == synthetic.signals([kind]).checksum
    assert split.checksum != synthetic.signals([kind], seed=1).checksum
    x = split.train.x
    assert x.mean(1).abs().max() < 1e-4
    assert (x.std(1) - 1).abs().max() < 1e-3
    assert torch.equal(x, (x.double() * 1e4).round().div(1e4).float())


def rhythm(x):
    """Distance in samples at which a signal is most like itself, between 50 and 400."""
    flat = x.flatten() - x.mean()
    power = torch.fft.rfft(flat, 2 * flat.numel()).abs() ** 2
    return int(torch.fft.irfft(power)[50:400].argmax()) + 50


def test_hearts_beat_every_four_fifths_of_a_second_and_breaths_come_every_second():
    assert 185 < rhythm(synthetic.signals(["ecg"]).train.x) < 215
    assert 215 < rhythm(synthetic.signals(["respiration"]).train.x) < 285


def test_an_eeg_has_waves_of_ten_a_second():
    x = synthetic.signals(["eeg"], train=40, valid=0, test=0).train.x
    power = (torch.fft.rfft(x).abs() ** 2).mean(0)
    hertz = torch.arange(len(power)) / 4
    near = power[(hertz > 8) & (hertz < 12)].mean()
    assert near > 3 * power[(hertz > 14) & (hertz < 18)].mean()


def test_kinds_of_signals_are_labels():
    split = synthetic.signals(KINDS, train=200, valid=20, test=20, length=178)
    assert split.classes == 4
    assert min(split.train.y.bincount()) > 30
    kurtosis = [float((split.train.x[split.train.y == k] ** 4).mean()) for k in range(4)]
    assert kurtosis[0] > 5 > kurtosis[2]


def test_unknown_kinds_are_refused():
    for kinds in ([], ["ecg", "radio"]):
        with pytest.raises(ValueError, match="kinds are some of ecg, eeg, respiration, emg, not"):
            synthetic.signals(kinds)


def test_synthetic_documents_follow_their_law():
    split = synthetic.documents(words=2000, classes=4)
    again = synthetic.documents(words=2000, classes=4)
    assert split.checksum == again.checksum
    assert synthetic.documents(words=2000, classes=4, seed=1).checksum != split.checksum
    x = split.train.x
    assert (x.shape, split.classes, len(split.train.y.unique())) == ((1200, 2000), 4, 4)
    assert (x > 0).double().mean() < 0.05
    torch.testing.assert_close(x.square().mean(1), torch.ones(1200), rtol=0, atol=1e-3)
    # one log-frequency falls with the shifted rank by a power of -1, but for a topic's own words
    frequent = (x > 0).sum(0)[:400].double()
    rank = torch.arange(1, 401) + 2.7
    slope = torch.linalg.lstsq(
        torch.stack([rank.log(), torch.ones(400)], 1).double(), frequent.log()[:, None]
    ).solution[0, 0]
    assert -1.1 < slope < -0.8
    assert "no real text" in split.note


def test_the_law_of_synthetic_documents_bounds_what_a_classifier_reaches():
    from sklearn.linear_model import LogisticRegression

    split = synthetic.documents(words=5000, classes=5)
    known = float(split.note.split("right about ")[1].split("%")[0]) / 100
    reached = score(LogisticRegression(C=0.01, max_iter=200), split)
    assert known > 0.95
    assert 0.5 < reached < known


def test_a_topic_needs_its_words():
    with pytest.raises(ValueError, match="words=199 are fewer than the 200 that a topic has"):
        synthetic.documents(words=199)
    assert len(synthetic.documents(9, 3, 0, words=200).test) == 0
