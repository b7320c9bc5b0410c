"""Normalizations feature by feature are torch's, and so are all their gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from sparselib.ops.backends import After, Norm
from sparselib.ops.normalization import normalized

ACTIVATIONS = {
    "nothing": lambda x: x,
    "relu": functional.relu,
    "leaky relu": lambda x: functional.leaky_relu(x, 0.2),
    "gelu": functional.gelu,
    "gelu of tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "tanh": torch.tanh,
}


def of_samples(x, norm):
    return functional.layer_norm(x, x.shape[1:], *norm[:3])


def of_batch(x, norm):
    scale, shift, epsilon, _ = norm
    return functional.batch_norm(x, None, None, scale, shift, True, 0.0, epsilon)


def by_features(samples, features, seed=0):
    """Activations of which the samples of a feature lie side by side."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(features, samples, generator=source).t()


def drawn(samples, features):
    x = by_features(samples, features).requires_grad_()
    scale, shift = (by_features(1, features, seed)[0].clone().requires_grad_() for seed in (1, 2))
    return x, Norm(scale, shift, 1e-2)


WAYS = {
    "samples": (normalized, of_samples),
    "batch": (lambda x, norm, of: normalized(x, keeping(norm), of), of_batch),
}


def keeping(norm, kept=None):
    """A normalization by the batch, whose moments go into a list."""
    return norm._replace(keep=lambda *moments: kept is None or kept.extend(moments))


@given(
    samples=st.integers(16, 200),
    features=st.integers(2, 90),
    way=st.sampled_from(sorted(WAYS)),
    name=st.sampled_from(sorted(ACTIVATIONS)),
    rows_first=st.booleans(),
)
def test_outputs_and_gradients_are_those_of_torch(samples, features, way, name, rows_first):
    ours, theirs = WAYS[way]
    x, norm = drawn(samples, features)
    exact_x = x.detach().double().requires_grad_()
    exact = Norm(*(t.detach().double().requires_grad_() for t in norm[:2]), norm.epsilon)
    y = ours(x, norm, After(name, 0.2))
    assert y.stride() == (1, samples)
    expected = ACTIVATIONS[name](theirs(exact_x, exact))
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    dy = by_features(samples, features, 3)
    dy = dy.contiguous() if rows_first else dy
    gradients = torch.autograd.grad(y, (x, *norm[:2]), dy)
    known = torch.autograd.grad(expected, (exact_x, *exact[:2]), dy.double())
    for gradient, other in zip(gradients, known):
        close = {"rtol": 1e-3, "atol": 1e-4 * float(other.abs().max()) + 1e-5}
        torch.testing.assert_close(gradient.double(), other, **close)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_gradients_have_gradients(way):
    ours, theirs = WAYS[way]
    found = []
    for function in ours, lambda x, norm, of: torch.tanh(theirs(x, norm)):
        x, norm = drawn(40, 7)
        y = function(x, norm, After("tanh"))
        slopes = torch.autograd.grad(y.square().sum(), (x, *norm[:2]), create_graph=True)
        cost = sum(slope.square().sum() for slope in slopes)
        found.append(torch.autograd.grad(cost, (x, *norm[:2])))
    for one, other in zip(*found):
        close = {"rtol": 1e-3, "atol": 1e-4 * float(other.abs().max())}
        torch.testing.assert_close(one, other, **close)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_no_bit_depends_on_the_number_of_threads(way):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x, norm = drawn(1000, 150)
            y = WAYS[way][0](x, norm, After("gelu"))
            found.append([y, *torch.autograd.grad(y.sum(), (x, *norm[:2]))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


def test_a_number_that_is_none_stays_with_its_sample_or_its_feature():
    x, norm = drawn(70, 9)
    spoiled = x.detach().clone(memory_format=torch.preserve_format)
    spoiled[3, 5] = torch.nan
    of = After("relu")
    lost = normalized(spoiled, norm, of).isnan()
    assert lost[3].all()
    assert lost.sum() == 9
    lost = normalized(spoiled, keeping(norm), of).isnan()
    assert lost[:, 5].all()
    assert lost.sum() == 70


def test_moments_are_those_of_the_batch():
    x, norm = drawn(70, 9)
    kept = []
    normalized(x, keeping(norm, kept))
    mean, variance = kept
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance, x.var(0), rtol=1e-5, atol=1e-6)


def test_what_no_kernel_reads_is_left_to_torch():
    x, norm = drawn(70, 9)
    wide = Norm(*(torch.ones(8) for _ in range(2)), 1e-5)
    for mark in (lambda norm: norm), keeping:
        assert normalized(x, mark(norm)) is not None
        for refused in x.contiguous(), x.double(), x[:1], x[0], x[::2]:
            assert normalized(refused, mark(norm)) is None
        assert normalized(x, mark(wide)) is None
        with torch.autocast("cpu"):
            assert normalized(x, mark(norm)) is None
    assert normalized(x[:15].t().contiguous().t(), norm) is None
