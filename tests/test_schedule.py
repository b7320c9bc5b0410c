"""When an evolution happens: RigL's schedule."""

import copy
import math

import pytest
import torch

import sparselib as sl
from sparselib.evolution import CosineSchedule, GradualPruning


def learning(seed=0):
    torch.manual_seed(seed)
    layer = sl.CSRLinear(40, 25, sparsity=0.8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    return layer, optimizer, sl.RigL(layer, optimizer, 0.4, seed=seed)


def train(layer, optimizer, steps, schedule, start=0):
    """After each step that was due: how many connections were replaced, and how many there are."""
    found = {}
    for step in range(start + 1, start + steps + 1):
        x = torch.randn(16, 40, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
        replaced = schedule.step()
        if replaced:
            found[step] = (replaced[""], layer.csr.nnz)
    return found


def test_shares_follow_the_equation_and_end():
    layer, optimizer, evolution = learning()
    schedule = CosineSchedule(evolution, stop=20, every=4)
    found = train(layer, optimizer, 40, schedule)
    shares = {step: replaced / count for step, (replaced, count) in found.items()}
    expected = {t: 0.2 * (1 + math.cos(math.pi * t / 20)) for t in (4, 8, 12, 16)}
    assert shares == {t: round(f * layer.csr.nnz) / layer.csr.nnz for t, f in expected.items()}
    assert schedule.fraction(0) == 0.4
    assert schedule.fraction(20) == schedule.fraction(99) == 0
    assert schedule.steps == 40


def test_a_restored_schedule_goes_on_as_the_saved_one():
    layer, optimizer, evolution = learning()
    schedule = CosineSchedule(evolution, stop=30, every=3)
    train(layer, optimizer, 10, schedule)
    saved = [part.state_dict() for part in (layer, optimizer, schedule)]
    saved = [
        torch.utils._pytree.tree_map(lambda x: getattr(x, "clone", lambda: x)(), s) for s in saved
    ]
    train(layer, optimizer, 15, schedule, start=10)

    other, descent, growth = learning(1)
    again = CosineSchedule(sl.RigL(other, descent, 0.4, seed=0), stop=30, every=3)
    del growth
    for part, state in zip((other, descent, again), saved):
        part.load_state_dict(state)
    train(other, descent, 15, again, start=10)
    assert torch.equal(other.positions, layer.positions)
    assert torch.equal(other.values, layer.values)
    assert again.steps == schedule.steps == 25


def test_states_of_other_schedules_change_nothing():
    _, _, evolution = learning()
    state = CosineSchedule(evolution, stop=30, every=3).state_dict()
    for stop, every in ((31, 3), (30, 4)):
        other = CosineSchedule(evolution, stop=stop, every=every)
        with pytest.raises(ValueError, match=r"a CosineSchedule with .*'stop': 30, 'every': 3"):
            other.load_state_dict(state)
    own = CosineSchedule(evolution, stop=30, every=3)
    with pytest.raises(ValueError, match="a number of steps, not -1"):
        own.load_state_dict(state | {"steps": -1})
    assert own.steps == 0


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (-5, 10)])
def test_impossible_numbers_are_refused(numbers):
    with pytest.raises(ValueError, match=f"not stop={numbers[0]} and every={numbers[1]}"):
        CosineSchedule(learning()[2], *numbers)


# --- pruning while training


def pruned(options, sparsity=0.0, stop=20, every=4):
    torch.manual_seed(0)
    layer = sl.CSRLinear(40, 25, sparsity=sparsity)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    return layer, optimizer, GradualPruning(layer, optimizer, 0.9, stop, every, **options)


GRANET = {"grow": sl.grow.full_gradient_at_zero, "fraction": 0.2}


@pytest.mark.parametrize("options", [{}, GRANET], ids=["pruning", "granet"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_counts_follow_the_cubic_equation(options, sparsity):
    layer, optimizer, schedule = pruned(options, sparsity, stop=18)
    found = train(layer, optimizer, 30, schedule)
    counts = {step: count for step, (_, count) in found.items()}
    wanted = {t: 0.9 + (sparsity - 0.9) * (1 - t / 18) ** 3 for t in (4, 8, 12, 16, 18)}
    assert counts == {t: round((1 - s) * 1000) for t, s in wanted.items()}
    assert layer.values.shape == layer.values.grad.shape == (100,)
    assert optimizer.state[layer.values]["exp_avg"].shape == (100,)


def test_what_is_pruned_are_the_smallest_weights_and_memory_follows_the_others():
    layer, optimizer, schedule = pruned({}, stop=1)
    x = torch.randn(16, 40)
    layer(x).square().sum().backward()
    optimizer.step()
    before = layer.values.detach().clone()
    memory = optimizer.state[layer.values]["exp_avg"].clone()
    assert schedule.step()[""] == 0
    kept = before.abs().topk(100).indices.sort().values
    assert torch.equal(layer.positions, kept)
    assert torch.equal(layer.values, before[kept])
    assert torch.equal(optimizer.state[layer.values]["exp_avg"], memory[kept])


def test_granet_replaces_a_share_by_the_largest_gradients_at_zero():
    layer, _, schedule = pruned(GRANET, sparsity=0.5, stop=1)
    before = set(layer.positions.tolist())
    layer(torch.randn(16, 40)).square().sum().backward()
    assert schedule.step()[""] == 20
    zeros = layer.positions[layer.values == 0]
    assert len(zeros) == 20
    assert len(before & set(layer.positions.tolist())) >= 80


def test_a_restored_pruning_goes_on_as_the_saved_one():
    layer, optimizer, schedule = pruned(GRANET)
    train(layer, optimizer, 9, schedule)
    saved = copy.deepcopy([schedule.state_dict(), layer, optimizer.state_dict()])
    train(layer, optimizer, 15, schedule, start=9)
    state, other, memory = saved
    descent = torch.optim.Adam(other.parameters(), lr=0.01)
    descent.load_state_dict(memory)
    again = GradualPruning(other, descent, 0.9, 20, 4, **GRANET)
    again.load_state_dict(state)
    train(other, descent, 15, again, start=9)
    assert torch.equal(other.positions, layer.positions)
    assert torch.equal(other.values, layer.values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0, "stop": 9}, r"lies in \[0, 1\), not at 1.0"),
        ({"sparsity": 0.5, "stop": 0}, "not stop=0 and every=100"),
        ({"sparsity": 0.5, "stop": 9, "fraction": 0.2}, "grow=None and fraction=0.2"),
        ({"sparsity": 0.5, "stop": 9, "grow": sl.grow.random}, "a rule and a fraction"),
    ],
)
def test_impossible_prunings_are_refused(options, message):
    layer, optimizer, _ = learning()
    with pytest.raises(ValueError, match=message):
        GradualPruning(layer, optimizer, **options)
