"""Grow rules choose free cells only, by the numbers of the dense gradient."""

import math
from pathlib import Path

import pytest
import torch
from apart import run_plain
from hypothesis import assume, given
from hypothesis import strategies as st

import sparselib as sl
from sparselib.evolution import grow
from sparselib.evolution.grow import Context


def make(rows, columns, sparsity, seed, batch=6, lr=0.1):
    torch.manual_seed(seed)
    layer = sl.CSRLinear(
        columns, rows, sparsity=sparsity, topology=sl.topology.erdos_renyi, dtype=torch.float64
    )
    context = Context(
        occupied=layer.positions,
        rows=torch.arange(rows),
        inputs=torch.randn(batch, columns, dtype=torch.float64),
        costs=torch.randn(batch, rows, dtype=torch.float64),
        lr=lr,
        generator=torch.Generator().manual_seed(seed),
    )
    return layer, context


cases = st.tuples(
    st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.3, 0.7, 0.95]), st.integers(0, 999)
)


def brute_force(layer, count, context, rows):
    """Dense gradient, absolute, taken cells and closed rows out, a stable sort: the definition."""
    gradient = context.costs.t() @ context.inputs
    score = gradient.abs().flatten()
    score[context.occupied] = -1
    closed = torch.ones(layer.shape[0], dtype=torch.bool)
    closed[rows] = False
    score.view(layer.shape)[closed] = -1
    order = torch.sort(score, descending=True, stable=True).indices[:count].sort().values
    return order, -context.lr * gradient.flatten()[order]


@given(cases, st.data())
def test_full_gradient_equals_brute_force(case, data):
    layer, context = make(*case)
    count = data.draw(st.integers(0, layer.csr.cells - layer.csr.nnz))
    positions, values = grow.full_gradient(layer, count, context)
    expected, weights = brute_force(layer, count, context, context.rows)
    assert torch.equal(positions, expected)
    torch.testing.assert_close(values, weights)


@given(cases, st.data())
def test_costliest_equals_brute_force_on_the_k_costliest_rows(case, data):
    layer, context = make(*case)
    count = data.draw(st.integers(1, max(1, layer.csr.cells - layer.csr.nnz)))
    assume(count <= layer.csr.cells - layer.csr.nnz)
    order = torch.sort(context.costs.abs().sum(0), descending=True, stable=True).indices
    free = layer.shape[1] - layer.csr.fan_in()
    k = max(1, round(count**0.5))
    while free[order[:k]].sum() < count:
        k += 1
    positions, values = grow.gradient_of_costliest(layer, count, context)
    expected, weights = brute_force(layer, count, context, order[:k])
    assert torch.equal(positions, expected)
    torch.testing.assert_close(values, weights)


def test_blocks_do_not_change_the_full_gradient(monkeypatch):
    layer, context = make(12, 9, 0.7, 0)
    whole = grow.full_gradient(layer, 20, context)
    monkeypatch.setattr(grow, "BLOCK_CELLS", 10)
    assert all(map(torch.equal, whole, grow.full_gradient(layer, 20, context)))


def test_among_equal_gradients_the_first_cells_grow_whatever_the_blocks(monkeypatch):
    layer, context = make(12, 9, 0.7, 0)
    equal = context._replace(
        inputs=torch.ones_like(context.inputs), costs=torch.ones_like(context.costs)
    )
    free = (~layer.csr.mask()).flatten().nonzero().flatten()
    monkeypatch.setattr(grow, "BLOCK_CELLS", 10)
    assert torch.equal(grow.full_gradient(layer, 20, equal)[0], free[:20])


def test_a_gradient_that_overflows_is_refused_in_any_block(monkeypatch):
    layer, context = make(12, 9, 0.7, 0)
    large = torch.finfo(layer.values.dtype).max ** 0.6
    inputs = torch.ones_like(context.inputs)
    inputs[0, 7] = large
    inputs[1, 7] = -large
    costs = torch.zeros_like(context.costs)
    costs[:2, 10] = large  # in the last rows: infinity minus infinity
    assert layer.csr.mask()[10, 7] == False  # noqa: E712
    monkeypatch.setattr(grow, "BLOCK_CELLS", 10)
    with pytest.raises(ValueError, match="are NaN"):
        grow.full_gradient(layer, 3, context._replace(inputs=inputs, costs=costs))


LARGE = """
import torch, sparselib as sl
def memory(name):
    lines = open("/proc/self/status", encoding="utf-8").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
torch.manual_seed(0)
layer = sl.CSRLinear(100_000, 100_000, sparsity=0.9999)
optimizer = torch.optim.SGD(layer.parameters(), 0.1)
evolution = sl.Evolution(
    layer, optimizer, sl.drop.magnitude, sl.grow.gradient_of_costliest, 0.1
)
layer(torch.randn(16, 100_000)).square().sum().backward()
open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
before = memory("VmRSS")
replaced = evolution.step()
print(sum(map(int, replaced.values())), memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak of memory here")
def test_a_large_layer_grows_in_a_part_of_its_own_memory():
    """10 billion cells and a million weights: 316 rows of the gradient are 126 MB at once."""
    replaced, megabytes = run_plain(LARGE)[-1].split()
    assert int(replaced) == 100_000
    assert float(megabytes) < 200


@given(cases, st.data())
def test_random_growth_takes_free_cells_of_open_rows_only(case, data):
    layer, context = make(*case)
    rows = data.draw(st.sets(st.integers(0, layer.shape[0] - 1)))
    context = context._replace(rows=torch.tensor(sorted(rows), dtype=torch.int64))
    free = int((~layer.csr.mask())[context.rows].sum())
    count = data.draw(st.integers(0, free))
    positions, values = grow.random(layer, count, context)
    assert len(positions.unique()) == count
    assert not torch.isin(positions, context.occupied).any()
    assert torch.isin(positions // layer.shape[1], context.rows).all()
    assert values.count_nonzero() == 0


@given(cases, st.data())
def test_growth_from_fed_neurons_is_random_growth_of_the_matrix_of_their_columns(case, data):
    layer, context = make(*case)
    rows, columns = layer.shape
    fed = sorted(data.draw(st.sets(st.integers(0, columns - 1), min_size=1)))
    open_rows = sorted(data.draw(st.sets(st.integers(0, rows - 1))))
    part = sl.CSRLinear(len(fed), rows, sparsity=0.5)
    part.csr = sl.CSR.from_dense(layer.csr.mask()[:, fed])
    of_part = context._replace(
        occupied=part.csr.positions,
        rows=torch.tensor(open_rows, dtype=torch.int64),
        generator=torch.Generator().manual_seed(1),
    )
    count = data.draw(st.integers(0, int((~part.csr.mask())[open_rows].sum())))
    expected, _ = grow.random(part, count, of_part)
    expected = expected // len(fed) * columns + torch.tensor(fed)[expected % len(fed)]
    generator = torch.Generator().manual_seed(1)
    whole = of_part._replace(occupied=context.occupied, fed=torch.tensor(fed), generator=generator)
    positions, values = grow.random_from_fed(layer, count, whole)
    assert torch.equal(positions, expected)
    assert values.count_nonzero() == 0


def test_growth_from_fed_neurons_needs_as_many_free_cells():
    layer, context = make(4, 5, 0.7, 0)
    nothing = context._replace(fed=torch.empty(0, dtype=torch.int64))
    assert grow.random_from_fed(layer, 0, nothing)[0].numel() == 0
    with pytest.raises(ValueError, match="1 connections cannot grow into 0 free cells"):
        grow.random_from_fed(layer, 1, nothing)


@pytest.mark.slow
def test_random_growth_is_uniform_over_the_free_cells():
    layer, context = make(4, 5, 0.7, 0)
    hits = torch.zeros(layer.csr.cells)
    for _ in range(4000):
        hits[grow.random(layer, 3, context)[0]] += 1
    free = ~layer.csr.mask().flatten()
    expected = 4000 * 3 / free.sum()
    assert hits[~free].sum() == 0
    # 0.999 quantile of chi-square with 13 degrees of freedom
    assert ((hits[free] - expected) ** 2 / expected).sum() < 34.5


def test_the_paper_s_example_196_replaced_weights_need_14_neurons():
    assert round(256 * 256 * 0.03 * 0.1) in (196, 197)
    layer, context = make(256, 256, 0.97, 0)
    positions, _ = grow.gradient_of_costliest(layer, 196, context)
    assert len((positions // 256).unique()) <= 14
    wide, _ = grow.gradient_of_costliest(layer, 196, context, neurons=256)
    assert torch.equal(wide, grow.full_gradient(layer, 196, context)[0])


def test_recall_grows_with_the_neurons_and_ends_at_one():
    layer, context = make(64, 64, 0.9, 0)
    shares = [grow.recall(layer, 40, context, k) for k in (0, 1, 4, 16, 64)]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1


@pytest.mark.parametrize("rule", [grow.random, grow.full_gradient, grow.gradient_of_costliest])
def test_too_little_room_is_refused(rule):
    layer, context = make(3, 4, 0.5, 0)
    with pytest.raises(ValueError, match="7 connections cannot grow into 6 free cells"):
        rule(layer, 7, context)


@pytest.mark.parametrize("rule", [grow.full_gradient, grow.gradient_of_costliest])
def test_gradient_growth_needs_a_finite_batch(rule):
    layer, context = make(3, 4, 0.5, 0)
    with pytest.raises(ValueError, match="needs one forward and one backward pass"):
        rule(layer, 1, context._replace(inputs=None))
    context.costs[0, 0] = float("nan")
    with pytest.raises(ValueError, match="the costs of the last batch are not finite"):
        rule(layer, 1, context)


def test_finite_numbers_whose_sum_overflows_are_finite():
    huge = torch.full((4,), 3e38)
    assert grow.is_finite(huge)
    assert not grow.is_finite(torch.tensor([torch.inf, -torch.inf]))
    assert not grow.is_finite(torch.tensor([0.0, torch.nan]))
    assert grow.is_finite(torch.empty(0))


def paths_of_three(mask):
    """Scores of all free cells, path by path, as CH2-L3n is defined."""
    score = torch.zeros(mask.shape, dtype=torch.float64)
    reads = [set(row.nonzero().flatten().tolist()) for row in mask]
    feeds = [set(column.nonzero().flatten().tolist()) for column in mask.t()]
    for u, v in (~mask).nonzero().tolist():
        paths = [(b, j) for b in reads[u] for j in feeds[b] if v in reads[j]]
        inputs = {b for b, _ in paths}
        outputs = {j for _, j in paths}
        for links, near, far in ((feeds, inputs, outputs), (reads, outputs, inputs)):
            for z in near:
                inside = len(links[z] & far)
                outside = len(links[z]) - inside - 1  # but for the one to u or v
                score[u, v] += (inside + 1) / (outside + 1)
    return score


def scores_of(csr):
    """The scores of all cells, from either side."""
    rows, columns = csr.shape
    of_rows = grow.community_scores(csr, torch.arange(rows))
    return of_rows + grow.community_scores(csr, torch.arange(columns), of_columns=True).t()


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 999))
def test_scores_equal_the_sum_over_all_paths_of_three(rows, columns, density, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    csr = sl.CSR.from_dense(mask.float())
    torch.testing.assert_close(scores_of(csr).double(), paths_of_three(mask))


def on_paths(positions, shape=(3, 3), seed=0):
    layer = sl.CSRLinear(shape[1], shape[0], sparsity=1 - len(positions) / (shape[0] * shape[1]))
    layer.rewire(torch.tensor(positions), torch.ones(len(positions)))
    generator = torch.Generator().manual_seed(seed)
    return layer, Context(layer.positions, torch.arange(shape[0]), generator=generator)


def test_four_connections_have_two_cells_with_paths_of_three():
    # 1 1 0    cell 4: by column 0 (2 links, 1 inside, 0 outside) and row 0 (1, 0): 2 + 2
    # 1 0 1    cell 2: by column 0 and row 1: 2 + 2; the third row has no links and no paths
    # 0 0 0
    layer, context = on_paths([0, 1, 3, 5])
    assert scores_of(layer.csr).tolist() == [[0, 0, 4], [0, 4, 0], [0, 0, 0]]
    positions, values = grow.length_three_paths(layer, 2, context)
    assert positions.tolist() == [2, 4]
    assert values.tolist() == [0, 0]
    # cells with paths first, then any
    for seed in range(9):
        context = context._replace(generator=torch.Generator().manual_seed(seed))
        positions, _ = grow.length_three_paths(layer, 3, context)
        assert positions[:2].tolist() == [2, 4]
    with pytest.raises(ValueError, match="6 connections cannot grow into 5 free cells"):
        grow.length_three_paths(layer, 6, context)


def test_paths_of_three_are_drawn_in_proportion_to_their_scores():
    # 400 times     1 1 1 0
    #               1 0 0 1
    #               0 1 1 1
    one = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 1, 1]])
    mask = torch.block_diag(*[one] * 400).bool()
    layer, context = on_paths(mask.flatten().nonzero().flatten().tolist(), shape=(1200, 1600))
    hits = torch.zeros(3, 4, dtype=torch.float64)
    for _ in range(12):
        positions, _ = grow.length_three_paths(layer, 100, context)
        rows = positions // 1600
        columns = positions % 1600
        assert torch.equal(rows // 3, columns // 4)
        hits.index_put_((rows % 3, columns % 4), hits.new_ones(()), accumulate=True)
    scores = paths_of_three(one.bool())
    assert len(scores[scores > 0].unique()) > 1
    torch.testing.assert_close(hits / 1200, scores / scores.sum(), atol=0.04, rtol=0)


def test_clocks_strike_after_exponentially_distributed_times():
    _, context = on_paths([0, 1, 3, 5])
    times = grow.exponential(100_000, context)
    assert times.dtype == torch.float64
    assert times.mean() == pytest.approx(1, abs=0.02)
    for time in (0.1, 1.0, 3.0):
        assert (times > time).double().mean() == pytest.approx(math.exp(-time), abs=0.01)


@given(cases, st.data())
def test_paths_of_three_grow_in_free_cells_of_open_rows_whatever_the_blocks(case, data):
    layer, context = make(*case)
    rows = data.draw(st.sets(st.integers(0, layer.shape[0] - 1)))
    context = context._replace(rows=torch.tensor(sorted(rows), dtype=torch.int64))
    free = int((~layer.csr.mask())[context.rows].sum())
    count = data.draw(st.integers(0, free))
    grown = []
    for cells in (grow.WALK_CELLS, 10):
        context.generator.manual_seed(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grow, "WALK_CELLS", cells)
            grown.append(grow.length_three_paths(layer, count, context)[0])
    assert torch.equal(*grown)
    assert len(grown[0].unique()) == count
    assert not torch.isin(grown[0], context.occupied).any()
    assert torch.isin(grown[0] // layer.shape[1], context.rows).all()


def test_where_no_connection_is_left_growth_on_paths_is_uniform():
    layer, context = on_paths([0, 1, 3, 5])
    context = context._replace(occupied=context.occupied[:0])
    positions, _ = grow.length_three_paths(layer, 9, context)
    assert positions.tolist() == list(range(9))
