"""Grad-CAM: closed forms on small networks, where the answer is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparselib as sl
from sparselib.saliency.activation_maps import grad_cam


class Mean(nn.Module):
    """Average each map over its points."""

    def forward(self, x):
        return x.flatten(2).mean(2)


def network(dimensions, channels=3, classes=2):
    torch.manual_seed(0)
    conv = {1: nn.Conv1d, 2: nn.Conv2d}[dimensions](1, channels, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), Mean(), nn.Linear(channels, classes)).double()


@pytest.mark.parametrize("size", [(20,), (6, 9)])
def test_behind_global_pooling_it_is_the_class_activation_map(size):
    # there the gradient of a score by a map is its weight in the last layer, the same everywhere
    model = network(len(size))
    x = torch.randn(4, 1, *size, dtype=torch.float64)
    maps = model[:2](x)
    for target in (0, 1):
        weights = model[3].weight[target].detach()
        cam = torch.relu(torch.einsum("k,bk...->b...", weights, maps.detach()))
        top = cam.flatten(1).amax(1).view(-1, *[1] * len(size)).clamp(min=1e-300)
        torch.testing.assert_close(grad_cam(model, model[1], x, target), cam / top)


@given(st.integers(5, 40), st.integers(0, 9))
def test_maps_have_the_input_s_size_and_lie_between_0_and_1(length, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv1d(1, 2, 3, stride=2), nn.ReLU(), Mean(), nn.Linear(2, 3))
    x = torch.randn(3, 1, length)
    cam = grad_cam(model, model[1], x)
    assert cam.shape == (3, length)
    assert float(cam.min()) >= 0
    assert set(cam.amax(1).tolist()) <= {0.0, 1.0}
    chosen = model.eval()(x).argmax(1)
    apart = torch.cat([grad_cam(model, model[1], x[i : i + 1], int(chosen[i])) for i in range(3)])
    torch.testing.assert_close(cam, apart)


@pytest.mark.slow
def test_it_points_at_the_pulse_that_the_network_was_trained_to_find():
    torch.manual_seed(0)
    place = torch.randint(10, 90, (256,))
    y = torch.arange(256) % 2
    x = 0.1 * torch.randn(256, 100)
    x += y[:, None] * 2.0 * torch.exp(-0.5 * ((torch.arange(100) - place[:, None]) / 2) ** 2)
    samples = sl.datasets.Samples(x, y)
    data = sl.datasets.Split(samples, samples, samples, 2, "pulses", "a pulse or none")
    model = sl.DSN(4, 2, 9, sparsity=0.5, padding=sl.nn.centered_zeros)
    options = {"batch_size": 16, "progress": False}
    sl.fit(model, data, torch.optim.Adam(model.parameters(), 0.01), 12, **options)
    cam = grad_cam(model, model.blocks, x[y == 1], target=1)
    near = (cam.argmax(1) - place[y == 1]).abs() <= 10
    assert float(near.double().mean()) > 0.8


def test_the_model_is_left_as_it_was():
    model = network(1).train()
    x = torch.randn(2, 1, 9, dtype=torch.float64)
    before = [p.clone() for p in model.parameters()]
    with torch.no_grad():
        grad_cam(model, model[0], x)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters()))
    assert not model[0]._forward_hooks


def test_layers_without_maps_and_classes_that_are_none_are_refused():
    model = network(1)
    x = torch.randn(2, 1, 9, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"Linear wrote \(2, 2\)"):
        grad_cam(model, model[3], x)
    with pytest.raises(ValueError, match="Conv1d wrote nothing"):
        grad_cam(model, nn.Conv1d(1, 1, 1), x)
    with pytest.raises(ValueError, match="class 2 is none of 2"):
        grad_cam(model, model[1], x, target=2)
