"""SET and LiSET: what they drop, where they grow, and what their authors' programs do besides."""

import gc
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparselib as sl
from sparselib.evolution.liset import feature_weights
from sparselib.ranking import weighted_draw


def network(sparsity=0.8, sizes=(12, 9, 8, 4), **options):
    torch.manual_seed(0)
    sparsities = [sparsity] * (len(sizes) - 2) + [None]
    return sl.MLP(*sizes, layer=sl.CSRLinear, sparsity=sparsities, **options)


def batch(model, optimizer):
    x = torch.randn(16, model.layers[0].in_features)
    y = torch.randint(4, (16,))
    return sl.training.step(model, optimizer, x, y, nn.functional.cross_entropy)


# --- Eq. 1


@pytest.mark.parametrize(
    ("sizes", "epsilon", "percent"),
    [
        ((784, 300, 100), 4.5, 97.5),
        ((784, 300, 100), 9.0, 95),
        ((617, 512, 256, 128), 21.0, 90),
        ((617, 512, 256, 128), 42.0, 80),
    ],
)
def test_table_1(sizes, epsilon, percent):
    """The sparsities of Radu's Table 1 are those of the sparse layers together."""
    pairs = list(zip(sizes[1:], sizes))
    cells = sum(a * b for a, b in pairs)
    count = sum(
        sl.topology.erdos_renyi(a, b, sl.topology.epsilon_to_sparsity(a, b, epsilon)).numel()
        for a, b in pairs
    )
    assert count == sum(round(epsilon * (a + b)) for a, b in pairs)
    assert 100 * (1 - count / cells) == pytest.approx(percent, abs=0.05)


@given(st.integers(1, 500), st.integers(1, 500), st.floats(1e-3, 1e3))
def test_epsilon_and_sparsity_are_two_names_of_one_count(a, b, epsilon):
    sparsity = sl.topology.epsilon_to_sparsity(a, b, epsilon)
    if epsilon * (a + b) >= a * b:
        assert sparsity == 0
    else:
        count = sl.topology.connections(a, b, sparsity)
        assert count == pytest.approx(epsilon * (a + b), abs=0.5 + 1e-6)
        assert sl.topology.sparsity_to_epsilon(a, b, sparsity) == pytest.approx(epsilon, rel=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan])
def test_an_epsilon_without_connections_is_refused(epsilon):
    with pytest.raises(ValueError, match=f"epsilon={epsilon} for 3 x 4"):
        sl.topology.epsilon_to_sparsity(3, 4, epsilon)
    with pytest.raises(ValueError, match=r"sparsity=1\.0 for 3 x 4"):
        sl.topology.sparsity_to_epsilon(3, 4, 1.0)


# --- Eq. 2


def profiles():
    generator = torch.Generator().manual_seed(0)
    for columns in (2, 5, 30, 200):
        for power in (0.0, 0.5, 1.0, 3.0, 10.0):
            yield torch.rand(columns, dtype=torch.float64, generator=generator) ** power


@pytest.mark.parametrize("weights", list(profiles()), ids=lambda w: f"{len(w)}-{w.min():.0e}")
def test_eq_2_holds_over_a_million_draws(weights):
    """Chi-square of the columns drawn; with 10^9 cells a column none is ever exhausted."""
    generator = torch.Generator().manual_seed(1)
    height, draws = 10**9, 10**6
    none = torch.empty(0, dtype=torch.int64)
    cells = weighted_draw(weights, height, none, draws, generator)
    found = torch.bincount(cells // height, minlength=len(weights)).double()
    expected = draws * weights / weights.sum()
    seen = expected >= 5
    statistic = ((found - expected).square() / expected)[seen].sum()
    rest = float(found[~seen].sum() - expected[~seen].sum())
    degrees = max(int(seen.sum()) - 1, 1)
    # Wilson and Hilferty: the cube root of chi-square over its degrees is normal
    z = ((statistic / degrees) ** (1 / 3) - 1 + 2 / (9 * degrees)) / math.sqrt(2 / (9 * degrees))
    assert z < 3.1
    assert abs(rest) <= 5 * math.sqrt(float(expected[~seen].sum()) + 1)


@given(
    st.lists(st.sampled_from([0.0, 1e-12, 0.3, 1.0, 40.0]), min_size=1, max_size=8),
    st.integers(1, 12),
    st.integers(0, 10**6),
)
def test_weighted_draws_are_distinct_free_and_exhaustive(weights, height, seed):
    weights = torch.tensor(weights, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    cells = height * len(weights)
    taken = (torch.rand(cells, generator=generator) < 0.4).nonzero().flatten()
    open_cells = [
        c for c in range(cells) if c not in set(taken.tolist()) and weights[c // height] > 0
    ]
    drawn = weighted_draw(weights, height, taken, len(open_cells), generator)
    assert sorted(drawn.tolist()) == open_cells
    with pytest.raises(ValueError, match=f"distinct cells of {len(open_cells)}"):
        weighted_draw(weights, height, taken, len(open_cells) + 1, generator)


def test_without_replacement_the_second_draw_knows_the_first():
    """Two columns of one cell: P(first, then second) = w1 / (w1 + w2), by successive draws.

    20,000 times three columns at once: the order among three does not depend on the others (Luce,
    1959).
    """
    times = 20_000
    weights = torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64)
    generator, none = torch.Generator().manual_seed(0), torch.empty(0, dtype=torch.int64)
    drawn = weighted_draw(weights.repeat(times), 1, none, 3 * times, generator)
    when = torch.empty_like(drawn).index_copy_(0, drawn, torch.arange(3 * times))
    pairs = when.view(times, 3).argsort(1)[:, :2]
    for first, second in ((0, 1), (1, 0), (1, 2)):
        expected = weights[first] / 5 * weights[second] / (5 - weights[first])
        share = (pairs == torch.tensor([first, second])).all(1).double().mean()
        assert float(share) == pytest.approx(float(expected), abs=0.012)


def test_growth_reads_the_columns_it_should():
    layer = sl.CSRLinear(6, 50, sparsity=0.9)
    importance = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    context = sl.grow.Context(
        layer.positions, torch.arange(50), generator=torch.Generator().manual_seed(0)
    )
    for rule in (sl.grow.linear_features, sl.grow.likeliest_features):
        positions, values = rule(layer, 20, context, importance)
        assert (positions % 6 == 2).all()
        assert positions.unique().numel() == 20
        assert not torch.isin(positions, layer.positions).any()
        assert values.abs().max() <= 50**-0.5
    with pytest.raises(ValueError, match="6 features need as many importances"):
        sl.grow.linear_features(layer, 1, context, importance[:5])
    with pytest.raises(ValueError, match="at least 0, not -1 to"):
        sl.grow.linear_features(layer, 1, context, -importance)


def test_the_programs_rule_leaves_out_what_the_papers_rule_takes():
    """Evenly spread importances: the paper's growth follows them, the program's takes the top."""
    layer = sl.CSRLinear(100, 400, sparsity=0.99)
    importance = torch.sigmoid(torch.linspace(0, 1, 100, dtype=torch.float64))
    context = sl.grow.Context(
        layer.positions, torch.arange(400), generator=torch.Generator().manual_seed(0)
    )
    share = {}
    for rule in (sl.grow.linear_features, sl.grow.likeliest_features):
        positions, _ = rule(layer, 400, context, importance)
        share[rule.__name__] = float((positions % 100 >= 75).double().mean())
    expected = float(importance[75:].sum() / importance.sum())
    assert share["linear_features"] == pytest.approx(expected, abs=0.08)
    assert share["likeliest_features"] > 0.9


# --- Algorithm 1


def test_gamma_moves_between_set_and_a_ratio_of_e():
    importance = torch.tensor([0.0, 1.0, 2.0])
    weights = feature_weights(importance, 0.0)
    assert weights.tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-0.5)), 1 / (1 + 1 / math.e)])
    assert feature_weights(importance, 100.0).tolist() == [1, 1, 1]
    low = feature_weights(importance, -24.0)
    assert float(low[2] / low[0]) == pytest.approx(math.e)
    inside = feature_weights(importance, 0.0, "inside")
    assert inside.tolist() == [0.5, 0.5, 0.5]
    assert feature_weights(importance, -3.0, "inside").diff().max() < 0
    assert feature_weights(torch.zeros(3), 0.0).tolist() == [0.5, 0.5, 0.5]


def test_skips_add_linear_maps_in_training_only():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    main = [p.detach().clone() for p in model.parameters()]
    liset = sl.LiSET(model, optimizer, skip_dropout=0.0)
    x = torch.randn(5, 12)
    hidden = torch.relu(model.layers[0](x))
    first, second = liset.skips.layers
    model.eval()
    plain = model(x)
    model.train()
    torch.testing.assert_close(model(x), plain + first(x) + second(hidden))
    assert [p.shape for p in main] == [p.shape for p in model.parameters()]
    assert not any("skip" in name for name in model.state_dict())
    # Section 5: as many as neurons of the previous layer times classes
    assert [w.numel() for w in (first.weight, second.weight)] == [12 * 4, 9 * 4]
    liset.skips.remove()
    assert torch.equal(model(x), plain)


@pytest.mark.slow
def test_a_skip_rests_as_often_as_it_should_and_is_not_rescaled():
    model = network()
    liset = sl.LiSET(model, torch.optim.SGD(model.parameters(), 0.1), skip_dropout=0.3)
    x = torch.randn(1, 12)
    plain, (first, second) = model.eval()(x), liset.skips.layers
    model.train()
    last = second(torch.relu(model.layers[0](x)))
    sums = {
        both: (plain + both[0] * first(x) + both[1] * last).detach()
        for both in ((0, 0), (0, 1), (1, 0), (1, 1))
    }
    counts = dict.fromkeys(sums, 0)
    for _ in range(2000):
        y = model(x).detach()
        counts[min(sums, key=lambda k: float((sums[k] - y).abs().sum()))] += 1
    for (a, b), count in counts.items():
        chance = (0.7 if a else 0.3) * (0.7 if b else 0.3)
        assert count / 2000 == pytest.approx(chance, abs=0.05)


def test_the_skips_learn_and_are_drawn_anew_after_each_evolution():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    liset = sl.LiSET(model, optimizer, skip_dropout=0.0)
    before = [p.detach().clone() for p in liset.skips.parameters()]
    batch(model, optimizer)
    learned = [p.detach().clone() for p in liset.skips.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, learned))
    counts = liset.step()
    assert counts == {"layers.0": round(0.3 * 22), "layers.1": round(0.3 * 14)}
    after = list(liset.skips.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(learned, after))
    for layer, rows in zip(liset.skips.layers, (9, 8)):
        assert max(float(p.detach().abs().max()) for p in layer.parameters()) <= 0.01 * rows**-0.5


def test_a_discarded_liset_takes_its_skips_away():
    model = network()
    liset = sl.LiSET(model, torch.optim.SGD(model.parameters(), 0.1), skip_dropout=0.0)
    x = torch.randn(5, 12)
    with_skips, plain = model.train()(x), model.eval()(x)
    model.train()
    assert not torch.equal(with_skips, plain)
    del liset
    gc.collect()
    assert torch.equal(model(x), plain)


def test_the_program_shrinks_skip_weights_and_keeps_their_biases():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    liset = sl.LiSET(model, optimizer, definition="code", skip_dropout=0.0)
    batch(model, optimizer)
    biases = [layer.bias.detach().clone() for layer in liset.skips.layers]
    liset.step()
    for layer, bias, rows in zip(liset.skips.layers, biases, (9, 8)):
        assert torch.equal(layer.bias, bias)
        assert 0 < float(layer.weight.abs().max()) <= rows**-0.5 / 100


def test_the_reading_of_the_tables_cuts_off_features_that_eq_2_only_makes_rarer():
    grown = {}
    for definition in ("text", "tables"):
        torch.manual_seed(0)
        model = sl.MLP(40, 200, 4, layer=sl.CSRLinear, sparsity=[0.9, None])
        liset = sl.LiSET(model, torch.optim.SGD(model.parameters(), 0.1), definition=definition)
        liset.skips.layers[0].weight.data.copy_(torch.arange(40) < 20)  # important or not at all
        weights, before = liset.feature_weights("layers.0"), model.layers[0].positions.clone()
        assert weights[0] / weights[-1] == pytest.approx(torch.sigmoid(torch.tensor(1.0)) * 2)
        assert liset.step() == {"layers.0": 240}
        after = model.layers[0].positions
        grown[definition] = after[~torch.isin(after, before)] % 40
    # 0.731 to 0.5 are the odds of Eq. 2, and only the cut gives nothing to the unimportant half
    assert (grown["text"] < 20).double().mean() == pytest.approx(0.731 / 1.231, abs=0.1)
    assert (grown["tables"] < 20).all()


def test_the_program_as_run_never_leaves_its_first_mask():
    model = network(0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    liset = sl.LiSET(model, optimizer, definition="code-as-run")
    layer = model.layers[0]
    mask = layer.positions.clone()
    for _ in range(3):
        batch(model, optimizer)
        old = layer.values.detach().clone()
        leaving = sl.drop.set_fractions(old, 0.3)
        liset.step()
        assert torch.equal(layer.positions, mask)
        stays = torch.ones_like(old, dtype=torch.bool)
        stays[leaving] = False
        assert torch.equal(layer.values[stays], old[stays])
        assert (layer.values[leaving] == 0).any()


def test_only_the_named_layers_have_skips():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    liset = sl.LiSET(model, optimizer, skips=["layers.1"])
    assert liset.skips.names == ["layers.1"]
    batch(model, optimizer)
    assert set(liset.step()) == {"layers.0", "layers.1"}
    with pytest.raises(ValueError, match=r"called \['layers.7'\]; there are \['layers.0'"):
        sl.LiSET(model, optimizer, skips=["layers.7"])
    with pytest.raises(ValueError, match="not 'kod'"):
        sl.LiSET(model, optimizer, definition="kod")


def test_skips_go_round_linear_layers_only():
    convolution = sl.SparseConv1d(1, 2, 3, padding="same", sparsity=0.5)
    model = torch.nn.Sequential(convolution, torch.nn.Flatten(), sl.CSRLinear(16, 4, sparsity=0.5))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"linear layers, and \['0'\] are none; name those"):
        sl.LiSET(model, optimizer)
    liset = sl.LiSET(model, optimizer, skips=["2"], outputs=4)
    torch.nn.functional.cross_entropy(model(torch.rand(5, 1, 8)), torch.arange(5) % 4).backward()
    assert set(liset.step()) == {"0", "2"}


def test_liset_follows_the_masked_twin():
    """On true CSR layers the numbers are those of masked dense layers, evolutions included."""
    models = [network(product=product) for product in (sl.ops.spmm, sl.masked_product)]
    lisets = []
    for model in models:
        model.double()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        lisets.append((model, optimizer, sl.LiSET(model, optimizer, gamma=-3.0, seed=3)))
    losses = []
    for model, optimizer, liset in lisets:
        torch.manual_seed(1)
        row = []
        for step in range(40):
            x, y = torch.randn(16, 12, dtype=torch.float64), torch.randint(4, (16,))
            row.append(sl.training.step(model, optimizer, x, y, nn.functional.cross_entropy))
            if step % 5 == 4:
                liset.step()
        losses.append(torch.stack(row))
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-10)
    assert all(
        torch.equal(a.positions, b.positions)
        for a, b in zip(models[0].layers[:2], models[1].layers[:2])
    )


def test_liset_resumes_from_its_state():
    def made():
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return model, optimizer, sl.LiSET(model, optimizer, skip_dropout=0.0)

    model, optimizer, liset = made()
    batch(model, optimizer)
    liset.step()
    twin, other, resumed = made()
    twin.load_state_dict(model.state_dict())
    resumed.load_state_dict(liset.state_dict())
    for m, o, s in ((model, optimizer, liset), (twin, other, resumed)):
        torch.manual_seed(5)
        batch(m, o)
        s.step()
    assert torch.equal(model.layers[0].positions, twin.layers[0].positions)
    assert all(
        torch.equal(a, b) for a, b in zip(liset.skips.parameters(), resumed.skips.parameters())
    )


SCHEDULERS = {
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
    "cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
    "steps": lambda o: torch.optim.lr_scheduler.StepLR(o, 1),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "chain": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, total_iters=2),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [2],
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_built_before_liset_goes_on(name):
    rates = []
    for is_first in (True, False):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        if is_first:
            scheduler = SCHEDULERS[name](optimizer)
            liset = sl.LiSET(model, optimizer)
        else:
            liset = sl.LiSET(model, optimizer)
            scheduler = SCHEDULERS[name](optimizer)
        for _ in range(3):
            batch(model, optimizer)
            liset.step()
            scheduler.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
        assert len(optimizer.param_groups) == 1
        held = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
        assert {id(parameter) for parameter in liset.skips.parameters()} <= held
    assert rates[0] == rates[1]


def test_clipping_what_the_optimizer_holds_clips_the_skips_too():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    liset = sl.LiSET(model, optimizer, skip_dropout=0.0)
    x, y = torch.randn(16, 12), torch.randint(4, (16,))
    nn.functional.cross_entropy(model(x), y).backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, 1e-3)
    skips = torch.cat([p.grad.flatten() for p in liset.skips.parameters()])
    assert 0 < float(skips.norm()) <= 1e-3


@pytest.mark.parametrize("make", [torch.optim.Adagrad, torch.optim.AdamW, torch.optim.Rprop])
@pytest.mark.parametrize("is_named", [False, True])
def test_liset_joins_every_kind_of_optimizer(make, is_named):
    model = network()
    optimizer = make(model.named_parameters() if is_named else model.parameters(), lr=0.01)
    liset = sl.LiSET(model, optimizer, skip_dropout=0.0)
    before = [p.detach().clone() for p in liset.skips.parameters()]
    batch(model, optimizer)
    assert not any(map(torch.equal, before, liset.skips.parameters()))
    liset.step()
    copied = make(list(model.parameters()) + list(liset.skips.parameters()), lr=0.01)
    copied.load_state_dict(optimizer.state_dict())


def test_the_state_of_another_liset_is_refused_whole():
    def made(**options):
        model = network()
        return sl.LiSET(model, torch.optim.SGD(model.parameters(), 0.1), **options)

    ours = made()
    for key, options in (
        ("definition", {"definition": "tables"}),
        ("gamma", {"gamma": 2.0}),
        ("skip parameters", {"skips": ["layers.1"]}),
        ("fraction", {"fraction": 0.2}),
    ):
        with pytest.raises(ValueError, match=key):
            ours.load_state_dict(made(**options).state_dict())
    assert ours.evolution.steps == 0


# --- SET's published programs


def trained(definition):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    evolution = sl.SET(model, optimizer, definition=definition)
    batch(model, optimizer)
    layer = model.layers[0]
    momentum = optimizer.state[layer.values]["momentum_buffer"].tolist()
    old = dict(zip(layer.positions.tolist(), momentum))
    evolution.step()
    return model, optimizer, old


def test_set_grows_from_zero_or_from_the_normal_distribution_of_scipy():
    for definition in ("text", "keras"):
        model, _, _ = trained(definition)
        assert (model.layers[0].values == 0).sum() == round(0.3 * 22)
    layer = sl.CSRLinear(300, 300, sparsity=0.5)
    context = sl.grow.Context(
        layer.positions, torch.arange(300), generator=torch.Generator().manual_seed(0)
    )
    _, values = sl.grow.random_normal(layer, 40_000, context)
    assert float(values.mean()) == pytest.approx(0, abs=0.003)
    assert float(values.std()) == pytest.approx(0.1, abs=0.002)


def test_set_in_keras_forgets_all_momentum_and_the_others_none():
    _, optimizer, _ = trained("keras")
    assert not optimizer.state
    for definition in ("text", "scipy"):
        model, optimizer, old = trained(definition)
        layer = model.layers[0]
        momentum = optimizer.state[layer.values]["momentum_buffer"]
        stayed = layer.values != 0 if definition == "text" else layer.values.abs() > 0.35
        pairs = zip(layer.positions.tolist(), momentum.tolist(), stayed)
        kept = [(position, value) for position, value, stays in pairs if stays]
        assert kept
        assert all(old[position] == value for position, value in kept)
        assert "momentum_buffer" in optimizer.state[model.layers[2].weight]
    calls = []
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sl.SET(model, optimizer, definition="keras", after=lambda: calls.append(1)).step()
    assert calls == [1]
    with pytest.raises(ValueError, match="one of text, keras, scipy, not 'torch'"):
        sl.SET(network(), optimizer, definition="torch")


# --- Eq. 3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_ara_with_b_1_is_the_mean(accuracies):
    assert sl.metrics.ara(accuracies, b=1.0) == pytest.approx(sum(accuracies) / len(accuracies))


@given(st.integers(2, 300), st.floats(0, 2), st.floats(0, 100))
def test_ara_weighs_the_first_epoch_b_times_the_last(n, b, a):
    only = [sl.metrics.ara([float(i == k) for i in range(n)], b) for k in range(n)]
    assert only[0] == pytest.approx(b * only[-1], abs=1e-12)
    steps = torch.tensor(only).double().diff()
    assert float(steps.max() - steps.min()) < 1e-6
    assert sl.metrics.ara([a] * n, b) == pytest.approx(a)


def test_ara_in_closed_form():
    # n = 3, b = 0.5: weights 1.5, 2.25, 3 over 6.75
    assert sl.metrics.ara([1.0, 0.0, 0.0]) == pytest.approx(1.5 / 6.75)
    assert sl.metrics.ara([0.0, 1.0, 0.0]) == pytest.approx(2.25 / 6.75)
    assert sl.metrics.ara([0.6, 0.7, 0.9]) == pytest.approx((0.9 + 1.575 + 2.7) / 6.75)
    for accuracies, b in (([], 0.5), ([1.0], -1.0)):
        with pytest.raises(ValueError, match=f"not {len(accuracies)} epochs and b={b}"):
            sl.metrics.ara(accuracies, b)
