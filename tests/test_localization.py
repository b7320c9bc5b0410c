"""Digits in clutter and spells in an ECG lie where the data set states."""

import numpy as np
import pytest
import torch

from sparselib import datasets


def test_placed_spells_lie_where_the_data_set_states() -> None:
    data, spells = datasets.placed_spells(90, 20, 20, seconds=20)
    x, y = data.train.x[:, 0], data.train.y
    inside = torch.stack([x[n, a + 25 : b - 25] for n, (a, b) in enumerate(spells["train"])])
    height = torch.quantile(x, 0.999, dim=1)
    assert data.train.x.shape == (90, 1, 2000)
    assert (spells["train"][:, 1] - spells["train"][:, 0]).unique().tolist() == [400]
    assert int(spells["train"].min()) >= 100
    assert int(spells["train"].max()) <= 1900
    pause = y == 0
    assert bool((inside[pause].amax(1) < 0.5 * height[pause]).all())
    assert bool((inside[y == 1].std(1) > inside[pause].std(1).max()).all())
    saw = torch.fft.rfft(inside - inside.mean(1, keepdim=True)).abs()
    assert float(saw[y == 2][:, 17:19].sum(1).median()) > float(saw[pause][:, 17:19].sum(1).max())
    again, _ = datasets.placed_spells(90, 20, 20, seconds=20)
    assert again.checksum == data.checksum
    assert datasets.placed_spells(9, 3, 3, seconds=20)[0].checksum == "cad40e34c982"
    with pytest.raises(ValueError, match="5 seconds have no room"):
        datasets.placed_spells(1, 1, 1, seconds=5)


def test_hearts_beat_at_an_even_pace_outside_of_the_spell() -> None:
    data, spells = datasets.placed_spells(60, 1, 1, seconds=20)
    for x, label, (start, end) in zip(
        data.train.x[:, 0].numpy(), data.train.y, spells["train"].tolist()
    ):
        if label == 1:  # its own beats are as high
            continue
        peak = (x[1:-1] > x[:-2]) & (x[1:-1] >= x[2:]) & (x[1:-1] > 0.5 * np.quantile(x, 0.999))
        beats = np.flatnonzero(peak) + 1
        between = [np.diff(part) for part in (beats[beats < start], beats[beats >= end])]
        seconds = np.concatenate(between) / 100
        assert 0.7 < seconds.mean() < 1.05
        assert seconds.std() < 0.07 * seconds.mean()


def test_placed_digits_lie_in_their_boxes() -> None:
    data, boxes = datasets.placed_digits(200, 20, 20)
    assert data.train.x.shape == (200, 1, 32, 32)
    assert (data.features, data.classes) == (1024, 10)
    assert float(data.train.x.min()) >= 0
    assert float(data.train.x.max()) <= 1
    box = boxes["train"]
    assert torch.equal(box[:, 2:] - box[:, :2], torch.full((200, 2), 14))
    assert int(box.min()) >= 0
    assert int(box.max()) <= 32
    # more ink inside of the box than a random place has
    corners = zip(data.train.x, box.tolist())
    inside = [float(x[0, top:low, left:far].mean()) for x, (top, left, low, far) in corners]
    assert np.mean(inside) > 2 * float(data.train.x.mean())


def test_pieces_of_digits_lie_outside_of_the_box_too() -> None:
    data, boxes = datasets.placed_digits(200, 20, 20)
    outside = data.train.x[:, 0].clone()
    for image, (top, left, low, far) in zip(outside, boxes["train"].tolist()):
        image[top:low, left:far] = 0
    # the background alone is darker than 0.2; two pieces have 25 pixels each
    ink = (outside > 0.21).sum((1, 2))
    assert int(ink.max()) <= 50
    assert float((ink > 0).float().mean()) > 0.9


def test_a_seed_places_the_same_digits_and_parts_share_none() -> None:
    first, second = (datasets.placed_digits(50, 10, 10, seed=1)[0] for _ in range(2))
    assert first.checksum == second.checksum == "23c1bc1bf2d2"
    assert first.checksum != datasets.placed_digits(50, 10, 10, seed=2)[0].checksum
