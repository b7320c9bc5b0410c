"""Severity of apnea by night, and confusion of classes: facts of the paper, and explicit counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparselib import metrics


@pytest.mark.parametrize(
    ("rate", "grade"),
    [
        (0.0, "none"),
        (4.99, "none"),
        (5.0, "mild"),
        (14.99, "mild"),
        (15.0, "moderate"),
        (30.0, "moderate"),
        (30.01, "severe"),
        (60.0, "severe"),
    ],
)
def test_grades_are_those_of_section_6_1_2(rate, grade):
    assert metrics.ahi_class(rate) == grade


@pytest.mark.parametrize("rate", [-1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="the events per hour must be at least 0, not"):
        metrics.ahi_class(rate)


def test_rates_are_minutes_an_hour_of_each_night():
    groups = torch.tensor([7, 2, 7, 2, 2, 7])
    labels = torch.tensor([1, 0, 0, 1, 0, 1])
    assert metrics.apnea_rates(labels, groups) == pytest.approx({2: 20.0, 7: 40.0})


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_confusion_counts_every_sample_once(pairs):
    was, said = (torch.tensor(column) for column in zip(*pairs))
    outputs = torch.nn.functional.one_hot(said, 3).float()
    counts = metrics.confusion(outputs, was)
    assert all(int(counts[a, b]) == pairs.count((a, b)) for a in range(3) for b in range(3))
    assert float(counts.trace()) / len(pairs) == pytest.approx(metrics.accuracy(outputs, was))
