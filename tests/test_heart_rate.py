"""Measures of heart rate variability on series of which they are known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparselib.datasets import heart_rate

TIME = np.arange(3 * 240) / 4


def measured(series: np.ndarray) -> dict[str, float]:
    x = torch.from_numpy(np.atleast_2d(series))
    minutes = len(np.atleast_2d(series)[0]) // 240
    return dict(zip(heart_rate.names(minutes), heart_rate.variability(x)[0], strict=True))


def test_a_steady_heart_has_no_variability() -> None:
    found = measured(np.full(240, 0.8))
    levels = [found[f"{name}_0"] for name in ("mean", "least", "tenth", "ninetieth", "largest")]
    assert levels == pytest.approx([0.8] * 5)
    assert found["sdnn_0"] == pytest.approx(0)
    assert found["rmssd_0"] == pytest.approx(0)
    assert [found[band] for band in heart_rate.BANDS] == pytest.approx([-8] * 3, abs=1e-6)


@pytest.mark.parametrize(("band", "frequency"), [("slow", 4 / 180), ("low", 0.1), ("high", 0.25)])
def test_a_wave_has_its_power_in_its_band(band: str, frequency: float) -> None:
    """A wave of amplitude a has the variance a^2 / 2."""
    found = measured(0.9 + 0.05 * np.sin(2 * np.pi * frequency * TIME))
    assert found[band] == pytest.approx(np.log10(0.05**2 / 2), abs=1e-3)
    others = set(heart_rate.BANDS) - {band}
    assert all(found[other] < -7 for other in others)
    assert found["slow_share"] == pytest.approx(float(band == "slow"), abs=1e-3)


def test_differences_are_of_points_half_a_second_apart() -> None:
    series = np.zeros(240)
    series[100] = 1.0
    assert measured(series)["rmssd_0"] == pytest.approx((2 / 238) ** 0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.floats(-0.5, 0.5))
def test_power_is_variance_and_a_longer_pulse_moves_the_level_alone(
    seed: int, minutes: int, shift: float
) -> None:
    series = np.random.default_rng(seed).normal(0.8, 0.05, (2, 240 * minutes))
    np.testing.assert_allclose(heart_rate.powers(series).sum(1), series.var(1))
    first = measured(series[:1])
    moved = measured(series[:1] + shift)
    for name, value in first.items():
        is_level = name.split("_")[0] in ("mean", "least", "tenth", "ninetieth", "largest")
        assert moved[name] == pytest.approx(value + shift * is_level, abs=1e-6)


def test_windows_of_broken_minutes_are_refused() -> None:
    with pytest.raises(ValueError, match="240 points each, not 250 points"):
        heart_rate.variability(torch.ones(2, 250))
