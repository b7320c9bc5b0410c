"""Gates and relaxed coins: the distributions of Eq. 14 to 16."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparselib.nn import ChannelGate, gumbel_sigmoid


def kept(probability: float, noise: str, temperature: float) -> float:
    """Share of many coins that come up, for a mask of this probability."""
    scores = (
        math.log(probability) if noise == "gumbel" else math.log(probability / (1 - probability))
    )
    coins = gumbel_sigmoid(torch.full((200_000,), scores, dtype=torch.float64), temperature, noise)
    return float((coins > 0.5).double().mean())


@pytest.mark.parametrize("temperature", [0.4, 1.0])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_logistic_noise_keeps_a_pixel_with_its_probability(
    probability: float, temperature: float
) -> None:
    assert kept(probability, "logistic", temperature) == pytest.approx(probability, abs=0.005)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.999999])
def test_equation_14_as_printed_keeps_fewer(probability: float) -> None:
    expected = 1 - math.exp(-probability)
    assert kept(probability, "gumbel", 1.0) == pytest.approx(expected, abs=0.005)


@given(st.floats(-5, 5), st.floats(0.1, 3))
def test_without_noise_it_is_a_sigmoid(score: float, temperature: float) -> None:
    found = gumbel_sigmoid(torch.tensor([score], dtype=torch.float64), temperature, "none")
    assert float(found) == pytest.approx(1 / (1 + math.exp(-score / temperature)))


def test_gates_begin_open_as_the_paper_wants() -> None:
    gate = ChannelGate(100_000, dtype=torch.float64)
    opened = gate.draw(torch.Generator().manual_seed(0))
    assert float((opened > 0.5).double().mean()) == pytest.approx(1 - math.exp(-math.exp(3)))


def test_a_closed_gate_is_exactly_zero_and_an_open_one_changes_nothing() -> None:
    gate, x = ChannelGate(3), torch.randn(2, 3, 4, 4)
    assert gate(x) is x
    gate.open = torch.tensor([1.0, 0.0, 1.0])
    assert torch.equal(gate(x)[:, [0, 2]], x[:, [0, 2]])
    assert not gate(x)[:, 1].any()
    assert torch.equal(gate(x[..., 0]), gate(x)[..., 0])


def test_gates_have_gradients() -> None:
    scores = torch.randn(5, dtype=torch.float64, requires_grad=True)

    def coins(s: torch.Tensor) -> torch.Tensor:
        return gumbel_sigmoid(s, 0.7, generator=torch.Generator().manual_seed(1))

    assert torch.autograd.gradcheck(coins, scores)


@pytest.mark.parametrize(("temperature", "noise"), [(0.0, "gumbel"), (1.0, "uniform")])
def test_impossible_coins_are_refused(temperature: float, noise: str) -> None:
    with pytest.raises(ValueError, match="temperature above 0"):
        gumbel_sigmoid(torch.zeros(2), temperature, noise)
