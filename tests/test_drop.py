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


def kept(**options):
    """Shares of 1, -2, 3, 4 among the few weights that stay of 10,000 layers of these four."""
    blocks = 2 * torch.arange(10_000)
    layer = sl.CSRLinear(20_000, 20_000, sparsity=0.9999)
    rows = (blocks[:, None] + torch.tensor([0, 0, 1, 1])).flatten()
    columns = (blocks[:, None] + torch.tensor([0, 1, 0, 1])).flatten()
    layer.rewire(rows * 20_000 + columns, torch.tensor([1.0, -2.0, 3.0, 4.0]).repeat(10_000))
    generator = torch.Generator().manual_seed(0)
    context = Context(layer.positions, torch.arange(20_000), generator=generator, state={})
    dropped = drop.sampled_importance(layer, 0.98, context, steps=1, **options)
    assert len(dropped) == 39_200
    stays = torch.ones(40_000).index_fill_(0, dropped, 0.0)
    return stays.view(-1, 4).mean(0) / stays.mean() / 4


def test_soft_removal_keeps_in_proportion_to_a_power_of_the_mixed_importance():
    for options, speeds in (
        ({"start": 0.5}, [1, 2, 3, 4]),
        ({"start": 0.75}, [1, 8, 27, 64]),
        # rows {1, 2} and {3, 4}, columns {1, 3} and {2, 4}: 1/3 + 1/4, 2/3 + 2/6, ...
        ({"alpha": 0.0}, [7 / 12, 1, 33 / 28, 26 / 21]),
        ({"alpha": 0.0, "start": 0.75}, [(7 / 12) ** 3, 1, (33 / 28) ** 3, (26 / 21) ** 3]),
        ({"alpha": 0.5}, [19 / 12, 3, 117 / 28, 110 / 21]),
        ({"start": 0.0}, [1, 1, 1, 1]),
    ):
        expected = torch.tensor(speeds, dtype=torch.float32)
        torch.testing.assert_close(kept(**options), expected / expected.sum(), atol=0.05, rtol=0)


def test_soft_removal_hardens_from_step_to_step():
    layer, context = four([1.0, -2.0, 3.0, 4.0], None)
    context = context._replace(generator=torch.Generator().manual_seed(0), state={})
    soft = partial(drop.sampled_importance, steps=3, start=0.0, end=0.999)
    for _ in range(3):
        soft(layer, 0.75, context)
    # at delta 0.999 the largest of 1, 2, 3, 4 stays but for once in 10^124
    for _ in range(20):
        assert soft(layer, 0.75, context).tolist() == [0, 1, 2]
    assert context.state == {"steps": 23}
    # halfway, delta lies in the middle: 0.5 of 0 to 1
    middle = partial(drop.sampled_importance, steps=2, start=0.25, end=0.75)
    seeded = [
        rule(
            layer,
            0.5,
            context._replace(generator=torch.Generator().manual_seed(5), state=state),
        ).tolist()
        for rule, state in (
            (middle, {"steps": 1}),
            (partial(drop.sampled_importance, steps=1, start=0.5), {}),
        )
    ]
    assert seeded[0] == seeded[1]


@given(weights, fractions, st.integers(0, 9), st.sampled_from([0.0, 0.5, 0.9, 0.99]))
def test_soft_removal_drops_as_many_as_asked_and_the_same_by_the_same_seed(
    values, fraction, seed, delta
):
    if len(values) == 0:
        return
    layer = sl.CSRLinear(len(values), 1, sparsity=0.0)
    layer.values.data.copy_(values)
    context = Context(layer.positions, torch.arange(1))
    dropped = [
        drop.sampled_importance(
            layer,
            fraction,
            context._replace(generator=torch.Generator().manual_seed(seed), state={}),
            steps=4,
            start=delta,
        )
        for _ in range(2)
    ]
    assert torch.equal(*dropped)
    assert len(dropped[0].unique()) == round(fraction * len(values))


def test_soft_removal_refuses_a_softness_that_is_none():
    layer, context = four([1.0, 2.0, 3.0, 4.0], None)
    for options, sentence in (
        ({"steps": 0}, "at least 1 step, not 0"),
        ({"steps": 1, "alpha": 1.5}, r"from 0 to 1, not 1\.5"),
        ({"steps": 1, "start": -0.1}, r"\[0, 1\), not -0\.1"),
        ({"steps": 1, "end": 1.0}, r"\[0, 1\), not 1\.0; at 1 nothing is drawn"),
    ):
        rule = partial(drop.sampled_importance, **options)
        state = {}
        with pytest.raises(ValueError, match=sentence):
            rule(layer, 0.5, context._replace(state=state))
        assert state == {}
    with pytest.raises(ValueError, match="has no state to keep it in"):
        drop.sampled_importance(layer, 0.5, context, steps=1)


def test_weights_of_neurons_without_a_cost_leave_with_the_smallest():
    layer, context = four([1.0, -2.0, 3.0, -0.5], None)
    costs = torch.tensor([[0.0, 0.3], [0.0, -0.3]])
    context = context._replace(inputs=torch.ones(2, 2), costs=costs, state={})
    magnitude = partial(drop.costless, rule=drop.magnitude)
    assert magnitude(layer, 0.25, context).tolist() == [0, 1, 3]
    context = context._replace(costs=costs + 1e-9)
    assert magnitude(layer, 0.25, context).tolist() == [3]
    assert drop.costless(layer, 0.25, context).tolist() == []
    assert context.state["threshold"] > 0.01  # which adapts
    with pytest.raises(ValueError, match="no state"):
        drop.costless(layer, 0.25, context._replace(state=None))


def test_what_nothing_reads_has_no_cost_and_is_repaired_by_either_way():
    torch.manual_seed(0)
    model = sl.MLP(20, 20, 20, 3, layer=sl.CSRLinear, sparsity=0.9)
    x, y = torch.randn(256, 20), torch.randint(3, (256,))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    evolution = sl.Evolution(model, optimizer, drop.costless, sl.grow.full_gradient, 0.0)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    first, second = model.layers[:2]
    is_unread = second.csr.fan_out() == 0
    assert first.csr.fan_in()[is_unread].sum() > 0
    evolution.step()
    assert first.csr.fan_in()[is_unread].sum() == 0


def test_negative_weights_that_do_not_change_leave_first():
    layer, context = four([-1.0, 2.0, -3.0, -0.5], None)
    context = context._replace(state={})
    with pytest.raises(ValueError, match="has no state to keep it in"):
        drop.unchanged_negatives(layer, 0.5, context._replace(state=None))
    assert drop.unchanged_negatives(layer, 0.5, context).tolist() == []  # nothing is known yet
    # changes 0.125, 3, 0.5, 0; the second is positive
    layer.values.data.copy_(torch.tensor([-1.125, 5.0, -3.5, -0.5]))
    for fraction, expected in ((0.25, [3]), (0.5, [0, 3]), (0.75, [0, 2, 3]), (1.0, [0, 2, 3])):
        state = dict(context.state)
        found = drop.unchanged_negatives(layer, fraction, context._replace(state=state))
        assert found.tolist() == expected


def test_what_a_connection_that_came_has_changed_by_is_counted_from_zero():
    layer = sl.CSRLinear(3, 2, sparsity=1 / 3)
    layer.rewire(torch.tensor([0, 1, 3, 5]), torch.tensor([-1.0, -2.0, -3.0, -4.0]))
    context = Context(layer.positions, torch.arange(2), state={})
    drop.unchanged_negatives(layer, 0.5, context)
    # the first leaves and comes back in the same step
    layer.values.data.copy_(torch.tensor([-1.0, -2.25, -3.25, -4.25]))
    assert drop.unchanged_negatives(layer, 0.25, context).tolist() == [0]
    layer.rewire(torch.tensor([0, 1, 3, 4]), torch.tensor([-1.0, -2.5, -4.25, -0.125]))
    context = context._replace(occupied=layer.positions)
    # changes 1, 0.25, 1, 0.125; of position 0 and 4 from zero
    state = dict(context.state)
    found = drop.unchanged_negatives(layer, 0.5, context._replace(state=state))
    assert found.tolist() == [1, 3]
    assert drop.unchanged_negatives(layer, 0.75, context).tolist() == [0, 1, 3]


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


SOFT = partial(drop.sampled_importance, steps=10)
LAYERS = {
    "linear": (lambda: sl.CSRLinear(12, 8, sparsity=0.6), (4, 12)),
    "conv1d": (lambda: sl.SparseConv1d(3, 8, 5, sparsity=0.6), (2, 3, 20)),
    "reach": (
        lambda: sl.SparseConv1d(3, 9, 6, sparsity=0.6, reach=sl.topology.kernel_regions(9, 6)),
        (2, 3, 20),
    ),
    "conv2d": (lambda: sl.SparseConv2d(3, 8, 3, sparsity=0.6), (2, 3, 8, 8)),
}


@pytest.mark.parametrize("grow_rule", [sl.grow.random, sl.grow.length_three_paths])
@pytest.mark.parametrize("drop_rule", [SOFT, drop.unchanged_negatives])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_evolves_by_each_pair_of_rules_and_again_alike(name, drop_rule, grow_rule):
    build, shape = LAYERS[name]
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        layer = build()
        optimizer = torch.optim.Adam(layer.parameters(), 0.01)
        evolution = sl.Evolution(layer, optimizer, drop_rule, grow_rule, 0.1)
        before = layer.positions
        counts = []
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.randn(shape)).square().mean().backward()
            optimizer.step()
            counts.append(evolution.step()[""])
        asked = round(0.1 * layer.csr.nnz)
        is_soft = drop_rule is SOFT
        assert counts == [asked if is_soft else 0, asked, asked]
        assert layer.csr.nnz == len(before)
        assert not torch.equal(layer.positions, before)
        layer.region.check(layer.positions)
        assert evolution._watches == {}
        ends.append((layer.positions, layer.values.detach()))
    assert all(map(torch.equal, *ends))


def test_a_rule_that_remembers_goes_on_where_it_was_saved(tmp_path):
    for rule in SOFT, drop.unchanged_negatives:
        ends = []
        for is_interrupted in (False, True):
            model, evolution = trained(rule)
            if is_interrupted:
                sl.checkpoint.save(
                    tmp_path / "at", model=model, evolution=evolution, optimizer=evolution.optimizer
                )
                model, evolution = trained(rule, steps=0)
                sl.checkpoint.load(
                    tmp_path / "at", model=model, evolution=evolution, optimizer=evolution.optimizer
                )
            torch.manual_seed(1)
            model(torch.randn(8, 12)).square().sum().backward()
            evolution.optimizer.step()
            evolution.step()
            ends.append([layer.positions for layer in model.layers])
        assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("rule", [SOFT, drop.unchanged_negatives])
def test_rules_that_remember_have_no_form_for_the_device(rule):
    with pytest.raises(ValueError, match=r"the drop rule .* has no device-resident form"):
        trained(rule, device_resident=True)
