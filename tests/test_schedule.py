"""When an evolution happens: RigL's schedule."""

import math

import pytest
import torch

import sparselib as sl
from sparselib.evolution import CosineSchedule


def learning(seed=0):
    torch.manual_seed(seed)
    layer = sl.CSRLinear(40, 25, sparsity=0.8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    return layer, optimizer, sl.RigL(layer, optimizer, 0.4, seed=seed)


def train(layer, optimizer, steps, schedule, start=0):
    shares = {}
    for step in range(start + 1, start + steps + 1):
        x = torch.randn(16, 40, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
        replaced = schedule.step()
        if replaced:
            shares[step] = replaced[""] / layer.csr.nnz
    return shares


def test_shares_follow_the_equation_and_end():
    layer, optimizer, evolution = learning()
    schedule = CosineSchedule(evolution, stop=20, every=4)
    shares = train(layer, optimizer, 40, schedule)
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
        with pytest.raises(ValueError, match=r"a schedule of .*'stop': 30, 'every': 3"):
            other.load_state_dict(state)
    own = CosineSchedule(evolution, stop=30, every=3)
    with pytest.raises(ValueError, match="a number of steps, not -1"):
        own.load_state_dict(state | {"steps": -1})
    assert own.steps == 0


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (-5, 10)])
def test_impossible_numbers_are_refused(numbers):
    with pytest.raises(ValueError, match=f"not stop={numbers[0]} and every={numbers[1]}"):
        CosineSchedule(learning()[2], *numbers)
