"""Drop rules remove what they promise, for any distribution of weights."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparselib as sl
from sparselib.evolution import drop
from sparselib.evolution.grow import Context

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


@pytest.mark.slow
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


def four(values, gradient):
    """A layer of four connections, and what a rule may know of it."""
    layer = sl.CSRLinear(2, 2, sparsity=0.0)
    layer.values.data.copy_(torch.tensor(values))
    gradient = None if gradient is None else torch.tensor(gradient)
    return layer, Context(layer.positions, torch.arange(2), gradient=gradient)


def test_taylor_and_mest_weigh_the_gradient_as_published():
    layer, context = four([1.0, -2.0, 0.1, 3.0], [4.0, 0.5, 9.0, -0.1])
    # (g w)^2: 16, 1, .81, .09
    assert drop.taylor(layer, 0.5, context).tolist() == [2, 3]
    # |w| + |g|: 5, 2.5, 9.1, 3.1
    rule = partial(drop.magnitude_and_gradient, weight=1.0)
    assert rule(layer, 0.5, context).tolist() == [1, 3]
    small = partial(drop.magnitude_and_gradient, weight=0.0)
    assert torch.equal(small(layer, 0.5, context), drop.magnitude(layer.values, 0.5))
    with pytest.raises(ValueError, match="at least 0, not -1"):
        drop.magnitude_and_gradient(layer, 0.5, context, weight=-1.0)
    with pytest.raises(ValueError, match="before zero_grad"):
        drop.taylor(*four([1.0, 2.0, 3.0, 4.0], None)[:1], 0.5, context._replace(gradient=None))


def test_relative_importance_compares_a_weight_with_those_of_its_neurons():
    # rows {1, 2} and {3, 6}; columns {1, 3} and {2, 6}
    layer = sl.CSRLinear(2, 3, sparsity=1 / 3)
    layer.rewire(torch.tensor([0, 1, 2, 3]), torch.tensor([1.0, -2.0, 3.0, 6.0]))
    context = Context(occupied=layer.positions, rows=torch.arange(3))
    # 1/3 + 1/4, 2/3 + 1/4, 1/3 + 3/4, 2/3 + 3/4
    assert drop.relative_importance(layer, 0.25, context).tolist() == [0]
    assert drop.relative_importance(layer, 0.5, context).tolist() == [0, 1]
    # a large weight among larger ones matters less than a small one alone
    layer = sl.CSRLinear(3, 3, sparsity=5 / 9)
    layer.rewire(torch.tensor([0, 1, 4, 8]), torch.tensor([5.0, 50.0, 40.0, 0.1]))
    context = Context(occupied=layer.positions, rows=torch.arange(3))
    assert drop.relative_importance(layer, 0.25, context).tolist() == [0]
    assert drop.magnitude(layer.values, 0.25).tolist() == [3]
    layer.values.data.zero_()
    assert drop.relative_importance(layer, 0.5, context).tolist() == [0, 1]


def trained(drop_rule, grow_rule=sl.grow.random, steps=3, **options):
    torch.manual_seed(0)
    model = sl.MLP(12, 16, 5, layer=sl.CSRLinear, sparsity=0.5)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    evolution = sl.Evolution(model, optimizer, drop_rule, grow_rule, 0.25, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 12)).square().sum().backward()
        optimizer.step()
        evolution.step()
    return model, evolution


def test_a_rule_with_context_knows_layer_gradient_memory_and_its_own_state():
    seen = []

    @drop.with_context
    def rule(layer, fraction, context):
        assert torch.equal(context.gradient, layer.values.grad)
        assert {"exp_avg", "exp_avg_sq"} <= set(context.memory)
        assert context.memory["exp_avg"].shape == layer.values.shape
        assert context.inputs is None
        context.state["steps"] = context.state.get("steps", 0) + 1
        seen.append((layer.shape, context.state["steps"], fraction))
        return drop.magnitude(layer.values, fraction)

    model, evolution = trained(rule)
    last, first = model.layers[1].shape, model.layers[0].shape
    assert seen == [(shape, n, 0.25) for n in (1, 2, 3) for shape in (last, first)]
    assert {name: state["steps"] for name, state in evolution.state.items()} == {
        "layers.0": 3,
        "layers.1": 3,
    }
    assert evolution._watches == {}


def test_a_rule_with_batches_is_given_them_though_growth_needs_none():
    sizes = []

    @drop.with_batches
    def dormant(layer, fraction, context):
        """Neurons whose inputs are silent go first, as where neurons are revived."""
        columns = layer.positions % layer.shape[1]
        sizes.append(context.inputs.shape)
        activity = context.inputs.abs().sum(0)[columns]
        return sl.drop.magnitude(activity * layer.values.detach().abs(), fraction)

    trained(dormant)
    assert sizes == [(8, 16), (8, 12)] * 3


def test_gradients_reach_a_drop_rule_beside_each_grow_rule():
    for grow_rule in sl.grow.random, sl.grow.full_gradient:
        model, evolution = trained(drop.taylor, grow_rule)
        assert evolution.state_dict()["rules"]["drop"] == "taylor"
        assert all(layer.values.numel() == layer.csr.nnz for layer in model.layers)
    rule = partial(drop.magnitude_and_gradient, weight=0.01)
    _, evolution = trained(rule)
    assert evolution.state_dict()["rules"]["drop"] == "magnitude_and_gradient(weight=0.01)"


def test_a_step_after_zero_grad_is_refused_and_changes_nothing():
    model, evolution = trained(drop.taylor)
    before = [layer.positions.clone() for layer in model.layers]
    evolution.optimizer.zero_grad()
    with pytest.raises(ValueError, match=r"layer 'layers\.1': this drop rule reads the gradient"):
        evolution.step()
    assert all(map(torch.equal, before, (layer.positions for layer in model.layers)))


def test_groups_of_filters_take_rules_of_values_only():
    model = sl.models.DSN(sparsity=0.8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="taylor reads the context of a whole layer"):
        sl.DST(model, optimizer, 100, drop=drop.taylor)
    with pytest.raises(ValueError, match="no device-resident form"):
        trained(drop.taylor, device_resident=True)
