"""Samples and splits: what fits, checksums, and what is held out."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparselib import datasets
from sparselib.datasets import Samples, Split
from sparselib.datasets.split import hold_out


def samples(count, features=3, classes=2):
    x = torch.arange(count * features, dtype=torch.float32).reshape(count, features)
    return Samples(x, torch.arange(count) % classes)


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (torch.zeros(4), torch.zeros(4, dtype=torch.long), r"\(4,\)"),
        (torch.zeros(4, 2), torch.zeros(3, dtype=torch.long), r"\(4, 2\) and y of shape \(3,\)"),
        (torch.zeros(4, 2).double(), torch.zeros(4, dtype=torch.long), "float64"),
        (torch.zeros(4, 2), torch.zeros(4), "float32, torch.float32"),
        (torch.tensor([[0.0], [torch.nan]]), torch.tensor([0, 1]), "nan at row 1, column 0"),
        (torch.tensor([[0.0, -torch.inf]]), torch.tensor([0]), "-inf at row 0, column 1"),
        (torch.zeros(2, 1), torch.tensor([0, -3]), "y holds -3"),
    ],
)
def test_samples_refuse_what_does_not_fit(x, y, sentence):
    with pytest.raises(ValueError, match=sentence):
        Samples(x, y)


def test_split_refuses_unknown_labels_and_other_features():
    three = samples(6, classes=3)
    with pytest.raises(ValueError, match="test part of toy holds the label 2, but 2 classes"):
        Split(samples(6), samples(2), three, classes=2, name="toy", note="")
    with pytest.raises(ValueError, match="valid part of toy has 4 features"):
        Split(samples(6), samples(2, features=4), three, classes=3, name="toy", note="")


def test_split_shows_itself_and_its_checksum():
    split = Split(samples(6), samples(0), samples(2), classes=2, name="toy", note="synthetic")
    assert split.features == 3
    assert len(split.train) == 6
    assert repr(split) == (
        "Split(toy: 6 train, 0 valid, 2 test; 3 features, 2 classes; checksum 47a8982f6c31)"
    )


def test_checksum_sees_values_labels_and_order():
    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    value, shape = x.clone(), x.reshape(2, 4)
    value[3, 1] = 1e-6
    variants = [Samples(x, y), Samples(value, y), Samples(x, y.flip(0)), Samples(shape, y[:2])]
    splits = [Split(v, v, v, classes=2, name="toy", note="") for v in variants]
    moved = Split(samples(5), samples(1), samples(2), classes=2, name="toy", note="")
    kept = Split(samples(4), samples(2), samples(2), classes=2, name="toy", note="")
    assert len({split.checksum for split in [*splits, moved, kept]}) == 6


@given(total=st.integers(1, 60), share=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 9))
def test_hold_out_is_disjoint_complete_and_seeded(total, share, seed):
    whole, size = samples(total), int(share * total)
    rest, taken = hold_out(whole, size, seed)
    assert (len(rest), len(taken)) == (total - size, size)
    assert torch.equal(torch.cat([rest.x, taken.x]).sort(0).values, whole.x)
    assert all(torch.equal(part.y, (part.x[:, 0] / 3 % 2).long()) for part in (rest, taken))
    assert all((part.x[:, 0].diff() > 0).all() for part in (rest, taken))
    again = hold_out(whole, size, seed)
    assert torch.equal(again[0].x, rest.x)
    assert torch.equal(again[1].x, taken.x)


def test_hold_out_takes_fractions_and_depends_on_the_seed():
    whole = samples(1000)
    assert len(hold_out(whole, 0.25, 0)[1]) == 250
    assert not torch.equal(hold_out(whole, 500, 0)[1].x, hold_out(whole, 500, 1)[1].x)


@pytest.mark.parametrize("size", [-1, 10, 11, -0.5, 1.5, 0.99])
def test_hold_out_refuses_impossible_sizes(size):
    with pytest.raises(ValueError, match=f"valid={size} cannot be taken from 10"):
        hold_out(samples(10), size, 0)


def test_samples_may_be_signals_or_images_of_one_shape() -> None:
    x, y = torch.zeros(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64)
    samples = datasets.Samples(x, y)
    assert repr(samples) == "Samples(3 x 1 x 4 x 4)"
    assert repr(datasets.Samples(x[:, 0], y)) == "Samples(3 x 4 x 4)"
    with pytest.raises(
        ValueError, match="has 1 x 2 x 2 features where the train part has 1 x 4 x 4"
    ):
        datasets.Split(samples, datasets.Samples(x[..., :2, :2], y), samples, 1, "x", "")
    with pytest.raises(ValueError, match=r"\(samples, channels, height, width\)"):
        datasets.Samples(x[:, 0, 0, 0], y)


def test_samples_and_splits_stay_what_their_checksum_was_made_of():
    part = samples(4)
    split = Split(part, part, part, 2, "a", "")
    for thing, name in ((part, "x"), (split, "train"), (split, "checksum")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, None)
    assert part != samples(4)  # compared by identity: tensors have no truth
