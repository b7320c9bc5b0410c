"""Drop rules remove what they promise, for any distribution of weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparselib.evolution import drop

weights = st.lists(st.integers(-4, 4).map(float), max_size=50).map(torch.tensor)
fractions = st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0])


@given(weights, fractions)
def test_magnitude_drops_exactly_the_smallest(values, fraction):
    dropped = drop.magnitude(values, fraction)
    kept = torch.ones(len(values), dtype=torch.bool)
    kept[dropped] = False
    assert len(dropped) == round(fraction * len(values))
    if 0 < len(dropped) < len(values):
        assert values[dropped].abs().max() <= values[kept].abs().min()


@given(weights, fractions)
def test_set_drops_the_same_share_of_either_sign(values, fraction):
    dropped = values[drop.set_fractions(values, fraction)]
    assert len(dropped) == round(fraction * len(values))
    assert (dropped < 0).sum() == round(fraction * int((values < 0).sum()))
    for side in (values[values < 0], values[values >= 0]):
        out = dropped[(dropped < 0) == (side < 0).any()]
        if len(side) and len(out):
            assert torch.equal(out.abs().sort().values, side.abs().sort().values[: len(out)])


DISTRIBUTIONS = {
    "normal": lambda n: torch.randn(n),
    "tiny normal": lambda n: 1e-3 * torch.randn(n),
    "heavy tail": lambda n: torch.distributions.StudentT(2.0).sample((n,)),
    "uniform": lambda n: torch.rand(n) - 0.5,
    "one-sided": lambda n: torch.rand(n) + 1e-3,
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
def test_the_threshold_finds_its_target_within_a_fifth(distribution, fraction):
    for seed in range(66):
        torch.manual_seed(seed)
        values, state = DISTRIBUTIONS[distribution](5000), {}
        counts = [len(drop.adaptive_threshold(values, fraction, state)) for _ in range(100)]
        assert max(counts) <= 2 * fraction * len(values)
        late = torch.tensor(counts[-20:]) / len(values)
        assert late.mean() == pytest.approx(fraction, rel=0.2)


@given(weights, st.floats(1e-6, 10), st.sampled_from([0.1, 0.3, 0.5]))
def test_the_threshold_never_drops_more_than_twice_its_target(values, start, fraction):
    state = {}
    for _ in range(5):
        dropped = drop.adaptive_threshold(values, fraction, state, start=start)
        assert len(dropped) <= max(2 * fraction * len(values), round(fraction * len(values)))
        assert dropped.tolist() == sorted(set(dropped.tolist()))
        assert state["threshold"] > 0


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_equal_weights_lose_exactly_the_target_once_the_threshold_reaches_them(value):
    values = torch.full((100,), value)
    assert len(drop.adaptive_threshold(values, 0.1, {"threshold": 1.0})) == 10


def test_the_threshold_follows_the_paper_s_arithmetic():
    values, state = torch.tensor([0.005, -0.02, 0.5, -0.8]), {}
    assert drop.adaptive_threshold(values, 0.5, state).tolist() == [0]
    assert state["threshold"] == pytest.approx(0.011)  # one of two fell: the threshold rises
    assert drop.adaptive_threshold(values, 0.25, state).tolist() == [0]
    assert state["threshold"] == pytest.approx(0.01)  # the target was met: it falls


def test_a_factor_that_would_never_adjust_is_refused():
    with pytest.raises(ValueError, match="must be above 1, not 1"):
        drop.adaptive_threshold(torch.ones(3), 0.1, {}, factor=1.0)


def test_a_weight_at_the_threshold_leaves_as_only_larger_ones_are_copied():
    values = torch.tensor([0.5, -0.5, 1.0, 2.0])
    assert drop.adaptive_threshold(values, 0.5, {"threshold": 0.5}).tolist() == [0, 1]
