"""Sparse autoencoders of the page on phi: what they keep, and how a threshold learns."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book" / "san"))

import autoencoders  # noqa: E402


def made(kind, **options):
    random = torch.Generator().manual_seed(0)
    return getattr(autoencoders, kind)(6, 20, generator=random, **options).double()


KINDS = {"TopK": {"active": 3}, "ReLU": {"weight": 0.5}, "JumpReLU": {"weight": 0.5}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_is_a_sum_of_rows_of_the_dictionary(kind):
    model = made(kind, **KINDS[kind])
    with torch.no_grad():
        model.center.normal_()
    x = torch.randn(5, 6, dtype=torch.float64)
    codes = model.encode(x)
    sums = [sum(z * row for z, row in zip(code, model.dictionary)) for code in codes]
    torch.testing.assert_close(model(x), torch.stack(sums) + model.center)
    assert (codes >= 0).all()
    torch.testing.assert_close(model.dictionary.norm(dim=1), torch.ones(20, dtype=torch.float64))
    scores = model.scores(x)
    kept = codes != 0
    assert torch.equal(codes[kept], scores[kept])


def test_the_largest_scores_stay_if_they_are_positive():
    model = made("TopK", active=2)
    scores = torch.tensor([[3.0, 1, 2, -1], [-1, -3, 0.5, -2]]).double()
    assert model.codes(scores).tolist() == [[3, 0, 2, 0], [0, 0, 0.5, 0]]
    assert float(model.penalty(scores)) == 0


def test_large_rows_do_not_make_codes_cheap():
    model = made("ReLU", weight=0.5)
    scores = torch.randn(4, 20, dtype=torch.float64)
    before = model.penalty(scores)
    torch.testing.assert_close(before, 0.5 * scores.relu().sum(1).mean() / 6)
    with torch.no_grad():
        model.dictionary *= 4
    torch.testing.assert_close(model.penalty(scores / 4), before)


def test_a_threshold_rises_where_its_code_costs_more_than_it_explains():
    """Equations 11 and 12: within half a bandwidth a threshold feels -1 / e, and -theta / e."""
    model = made("JumpReLU", weight=6.0)
    scores = torch.zeros(2, 20, dtype=torch.float64)
    scores[0, 0], scores[1, 0], scores[0, 1], scores[1, 2] = 0.11, 0.5, 0.09, 0.2
    codes = model.codes(scores)
    assert codes.nonzero().tolist() == [[0, 0], [1, 0], [1, 2]]
    torch.testing.assert_close(model.penalty(scores), torch.tensor(1.5).double())
    (of_count,) = torch.autograd.grad(model.penalty(scores), model.log_threshold)
    # by the logarithm: times the threshold, 0.1; one score of two is near; weight / n is 1
    expected = torch.zeros(20).double()
    expected[:2] = -0.1 / autoencoders.BANDWIDTH / 2
    torch.testing.assert_close(of_count, expected)
    slope = torch.arange(40.0).view(2, 20).double() + 1
    (of_codes,) = torch.autograd.grad(model.codes(scores), model.log_threshold, slope)
    torch.testing.assert_close(of_codes[:3], torch.tensor([-0.1, -0.2, 0.0]).double())


@pytest.mark.parametrize("kind", ["ReLU", "JumpReLU"])
def test_the_loss_is_the_squared_error_and_what_codes_cost(kind):
    model = made(kind, **KINDS[kind])
    batch = type("Batch", (), {"x": torch.randn(5, 6, dtype=torch.float64)})
    error = (model(batch.x) - batch.x).square().mean()
    expected = error + model.penalty(model.scores(batch.x))
    torch.testing.assert_close(autoencoders.loss(model, batch), expected)
