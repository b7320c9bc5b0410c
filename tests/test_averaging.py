"""Averages follow connections: they are the averages of the matrices."""

import copy
import itertools

import pytest
import torch

import sparselib as sl


def evolved(count):
    """Models of one run, and their optimizer's steps in between."""
    model = sl.MLP(10, 8, 4, layer=sl.CSRLinear, sparsity=0.6, dtype=torch.float64)
    evolution = sl.SET(model, torch.optim.SGD(model.parameters(), 0.1), 0.4)
    for _ in range(count):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        yield copy.deepcopy(model)
        evolution.step()


@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 4.0]])
def test_the_average_of_models_is_the_average_of_their_matrices(weights):
    models = list(evolved(3))
    mean = sl.average(models, weights)
    shares = torch.tensor(weights or [1.0] * 3, dtype=torch.float64)
    shares /= shares.sum()
    for place, layer in enumerate(mean.layers):
        dense = [model.layers[place].to_dense() for model in models]
        for name in ("weight", "bias"):
            right = sum(s * getattr(one, name) for s, one in zip(shares, dense))
            torch.testing.assert_close(getattr(layer.to_dense(), name), right)
    x = torch.randn(3, 10, dtype=torch.float64)
    assert torch.isfinite(mean(x)).all()


def test_a_moving_average_follows_the_newest_topology():
    models = list(evolved(4))
    moving = sl.Averaged(models[0], 0.8)
    for before, model in itertools.pairwise(models):
        old = [layer.to_dense().weight for layer in moving.module.layers]
        had = [layer.csr.mask() for layer in before.layers]
        moving.update(model)
        for w, m, layer, own in zip(old, had, model.layers, moving.module.layers):
            new = layer.to_dense().weight
            right = torch.where(m, 0.8 * w + 0.2 * new, new) * layer.csr.mask()
            torch.testing.assert_close(own.to_dense().weight, right)
    assert not any(parameter.requires_grad for parameter in moving.parameters())


def test_what_has_no_average_is_refused():
    one, other = sl.CSRLinear(6, 4), sl.CSRLinear(6, 5)
    with pytest.raises(ValueError, match="different layers or shapes"):
        sl.average([one, other])
    with pytest.raises(ValueError, match="one weight each"):
        sl.average([one], [1.0, 2.0])
    with pytest.raises(ValueError, match="one weight each"):
        sl.average([])
    with pytest.raises(ValueError, match=r"lies in \[0, 1\)"):
        sl.Averaged(one, 1.0)
    with pytest.raises(ValueError, match="different layers or shapes"):
        sl.Averaged(one).update(other)
