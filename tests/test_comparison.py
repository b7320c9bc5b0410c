"""Paired differences and fronts."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparselib.comparison import (
    Difference,
    front,
    may_end_at,
    paired_difference,
    prediction_interval,
    runs_by_seed,
)

NUMBERS = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 2))
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=9), st.floats(0.5, 0.99))
def test_the_interval_is_that_of_the_paired_t_test(pairs, level):
    ours, theirs = np.array(pairs).T
    found = paired_difference(ours, theirs, level)
    if np.ptp(ours - theirs) < 1e-9:
        assert found.high - found.low == pytest.approx(0, abs=1e-6)
        return
    expected = stats.ttest_rel(ours, theirs).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-6, abs=1e-9)
    assert found.pairs == len(pairs)


def test_an_interval_holds_the_truth_as_often_as_it_promises():
    draw = np.random.default_rng(0)
    runs = draw.normal(0.3, 1, (4000, 5))
    held = [d.low <= 0.3 <= d.high for d in (paired_difference(r, 0 * r) for r in runs)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_one_more_run_lies_in_the_interval_as_often_as_it_promises(count):
    draw = np.random.default_rng(0)
    runs = draw.normal(97.2, 0.3, (4000, count + 1))
    intervals = [prediction_interval(line[:-1]) for line in runs]
    held = [low <= line[-1] <= high for (low, high), line in zip(intervals, runs)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


def test_a_number_is_where_one_more_run_may_end():
    runs = [96.95, 97.06, 97.17]
    low, high = prediction_interval(runs)
    assert [may_end_at(number, runs) for number in (low, high, low - 0.01, high + 0.01)] == [
        True,
        True,
        False,
        False,
    ]
    assert not may_end_at(97.0, [97.0])
    assert not may_end_at(97.0, [])


def test_one_standard_deviation_is_no_such_interval():
    draw = np.random.default_rng(0)
    runs = draw.normal(97.2, 0.3, (4000, 4))
    ours, more = runs[:, :3], runs[:, 3]
    outside = np.abs(ours.mean(1) - more) > ours.std(1, ddof=1)
    assert outside.mean() > 0.4


def test_pairs_cancel_what_seeds_have_in_common():
    seeds = np.array([5.0, -3.0, 1.0, 4.0, -2.0])
    ours = seeds + np.array([0.11, 0.09, 0.1, 0.12, 0.08])
    assert paired_difference(ours, seeds).is_decided
    assert not paired_difference(ours, seeds[::-1]).is_decided
    assert f"{Difference(0.1, 0.08, 0.12, 5):.2f}" == "+0.10 (+0.08 to +0.12)"
    assert not Difference(0.1, -0.01, 0.2, 5).is_decided
    assert Difference(-0.1, -0.2, -0.01, 5).is_decided


GRID = [
    (size, rule, seed) for size in (1, 2) for rule in ("set", "fixed", "more") for seed in (5, 3, 8)
]
RUNS = pd.DataFrame(GRID, columns=["size", "rule", "seed"]).assign(score=np.arange(18.0) ** 2)


@given(st.sets(st.integers(0, 17)), st.randoms(use_true_random=False))
def test_runs_stand_beside_those_of_their_seed_whatever_their_order(lost, shuffle):
    order = [place for place in range(18) if place not in lost]
    shuffle.shuffle(order)
    rows = RUNS.iloc[order]
    score = {key: float(place**2) for place, key in enumerate(GRID) if place not in lost}
    expected = {
        (size, seed): [score[size, rule, seed] for rule in ("more", "set")]
        for size, seed in ((size, seed) for size in (1, 2) for seed in (3, 5, 8))
        if {(size, "more", seed), (size, "set", seed)} <= score.keys()
    }
    if not {"more", "set"} <= set(rows.rule):
        return
    found = runs_by_seed(rows, "rule", ("more", "set"), "score", ["size"])
    assert list(found.columns) == ["more", "set"]
    assert {key: list(line) for key, line in zip(found.index, found.to_numpy())} == expected


def test_pairs_may_share_nothing_but_their_seed_and_differ_in_a_switch():
    rows = RUNS[(RUNS["size"] == 1) & (RUNS.rule != "more")]
    pairs = runs_by_seed(rows.assign(rule=rows.rule == "set"), "rule", (True, False), "score")
    assert list(pairs.index) == [3, 5, 8]
    assert list(pairs[True]) == [1, 0, 4]
    assert list(pairs[False]) == [16, 9, 25]


@given(POINTS)
def test_a_front_is_what_nothing_undercuts(points):
    costs = [cost for cost, _ in points]
    losses = [loss for _, loss in points]
    found = front(costs, losses)
    on = {points[index] for index in found}
    assert len(on) == len(found)
    for point in points:
        better = [
            other
            for other in points
            if other[0] <= point[0] and other[1] <= point[1] and other != point
        ]
        assert (point in on) == (not better)
    assert [costs[i] for i in found] == sorted(costs[i] for i in found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prediction_interval([1.0]), r"at least two runs, not \(1,\)"),
        (lambda: prediction_interval([1.0, np.nan]), "finite numbers, but the runs are"),
        (lambda: prediction_interval([1.0, 2.0], 0.0), r"in \(0, 1\), not 0.0"),
        (lambda: paired_difference([1.0], [2.0]), r"not \(1,\) and \(1,\)"),
        (lambda: paired_difference([1.0, 2.0], [2.0]), r"not \(2,\) and \(1,\)"),
        (lambda: paired_difference([1.0, 2.0], [2.0, np.nan]), "finite numbers"),
        (lambda: paired_difference([1.0, 2.0], [2.0, 1.0], 1.0), r"in \(0, 1\), not 1.0"),
        (
            lambda: runs_by_seed(RUNS, "rule", ("set", "liset"), "score", ["size"]),
            r"no run has \['liset'\] as rule; there are \['fixed', 'more', 'set'\]",
        ),
        (
            lambda: runs_by_seed(RUNS, "rule", ("set", "more"), "score"),
            r"told apart by \['seed', 'rule'\], and some are alike",
        ),
        (lambda: front([1.0, 2.0], [1.0]), r"not \(2,\) and \(1,\)"),
        (lambda: front([1.0, np.inf], [1.0, 1.0]), "finite costs and losses"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
