"""Times: what is counted, what is thrown away, and what a ratio is."""

import time

import numpy as np

from sparselib import timing


def test_quantiles_of_rounds():
    assert timing.quantiles(np.arange(1.0, 12.0)) == (6.0, 3.0, 9.0, 11)


def test_a_round_in_which_another_program_ran_is_thrown_away():
    busy = np.full((10, 2), 1.98)
    busy[3, 1], busy[7, 0] = 1.1, 1.5
    assert np.flatnonzero(~timing.undisturbed(busy)).tolist() == [3, 7]


def test_a_call_that_waits_by_nature_is_not_disturbed():
    assert timing.undisturbed(np.full((10, 1), 0.3)).all()


def test_rounds_are_kept_if_hardly_any_is_quiet():
    assert timing.undisturbed(np.diag([2.0] * 6) + 0.1).all()


def test_each_call_follows_itself_in_each_round_and_the_order_alternates():
    order = []
    calls = {name: lambda name=name: (order.append(name), time.sleep(0.003)) for name in "ab"}
    times = timing.measure(calls, rounds=4)
    assert all(row.min() >= 3 for row in times.values())
    assert "".join(order[-16:]) == "bbaaaabbbbaaaabb"


def test_short_calls_are_repeated_and_counted_once():
    counts = {"n": 0}

    def short():
        counts["n"] += 1

    short_timing = timing.milliseconds(short, rounds=5)
    assert counts["n"] > 100
    assert 0 < short_timing.low <= short_timing.median <= short_timing.high < 1


def test_a_ratio_is_the_speedup():
    calls = {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.005)}
    ratios = timing.ratios(calls, "slow", rounds=5)
    assert ratios["slow"].median == 1
    assert ratios["fast"].median > 1
