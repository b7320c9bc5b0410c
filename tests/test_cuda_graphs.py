"""Recorded calls give what plain calls give; on the CPU they are the plain calls."""

import copy

import pytest
import torch
from torch.nn import functional

import sparselib as sl
from sparselib import cuda_graphs as graphs


def network():
    return sl.MLP(12, 9, 4, layer=sl.CSRLinear, sparsity=0.5)


def test_inference_is_the_forward_pass_in_evaluation_mode():
    model, x = network(), torch.randn(5, 12)
    call = graphs.inference(model, x)
    other = torch.randn(5, 12)
    assert not model.training
    assert not call(other).requires_grad
    assert torch.equal(call(other), model(other).detach())


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_a_recorded_step_is_a_step(make):
    model = network()
    twin = copy.deepcopy(model)
    optimizer, other = make(model.parameters(), 0.1), make(twin.parameters(), 0.1)
    x, y = torch.randn(5, 12), torch.randint(4, (5,))
    call = graphs.training(model, optimizer, functional.cross_entropy, x, y)
    for _ in range(3):
        error = call(x, y)
        assert torch.equal(error, sl.training.step(twin, other, x, y, functional.cross_entropy))
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


@pytest.mark.parametrize("steps", [0, 2])
def test_recording_trains_nothing(steps):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x, y = torch.randn(5, 12), torch.randint(4, (5,))

    def step():
        return sl.training.step(model, optimizer, x, y, functional.cross_entropy)

    for _ in range(steps):
        step()
    twin = copy.deepcopy((model, optimizer))
    with graphs._untrained(model, optimizer):
        for _ in range(3):
            step()
    step()
    sl.training.step(*_rebuilt(*twin), x, y, functional.cross_entropy)
    assert all(map(torch.equal, model.parameters(), twin[0].parameters()))


def _rebuilt(model, optimizer):
    """Bind a copied optimizer to the copied model."""
    fresh = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    fresh.load_state_dict(optimizer.state_dict())
    return model, fresh
