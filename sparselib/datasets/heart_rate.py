"""Measures of heart rate variability, which describe minutes of intervals between beats."""

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from sparselib.datasets.apnea_records import RATE

# Hz; the slow band holds the cycle of apneas, 25 to 100 seconds long
BANDS = {"slow": (0.01, 0.04), "low": (0.04, 0.15), "high": (0.15, 0.4)}
OF_MINUTES = ("mean", "sdnn", "rmssd", "least", "tenth", "ninetieth", "largest")
OF_WINDOWS = (*BANDS, "low_to_high", "slow_share")


def names(minutes: int) -> list[str]:
    """Return the names of what `variability` measures on windows of so many minutes."""
    each = [f"{name}_{n}" for n in range(minutes) for name in OF_MINUTES]
    return [*each, *OF_WINDOWS]


def variability(
    x: Float[Tensor, "samples points"],
) -> Float64[np.ndarray, "samples measures"]:
    """Measure the variability of intervals between beats, sampled at 4 Hz.

    Of each minute: the mean, the standard deviation (SDNN), the root of the mean squared difference
    of points half a second apart, which stands for that of successive beats (RMSSD), the least, the
    largest, and the 10 and 90 % quantiles. Of the whole window: the logarithms of the power in a
    slow, a low and a high band, of low to high, and the slow band's share (Task Force of the
    European Society of Cardiology, 1996, Tables 1 and 2; the slow band is that of the cyclical
    variation of the heart rate in apnea of Guilleminault and others, 1984).

    Parameters
    ----------
    x : Tensor, shape (samples, points)
        Windows of whole minutes, as ``apnea_ecg("rr", ...)`` returns them.

    Returns
    -------
    array, shape (samples, measures)
        In the order of `names`.

    Raises
    ------
    ValueError
        If the windows are not of whole minutes.
    """
    series = x.double().cpu().numpy()
    each = 60 * RATE
    samples, points = series.shape
    if points == 0 or points % each:
        raise ValueError(
            f"windows need whole minutes, {each} points each, not {points} points"
        )
    minutes = series.reshape(samples, -1, each)
    half = RATE // 2
    difference = minutes[..., half:] - minutes[..., :-half]
    found = [
        minutes.mean(2),
        minutes.std(2),
        np.sqrt(np.square(difference).mean(2)),
        minutes.min(2),
        np.quantile(minutes, 0.1, axis=2),
        np.quantile(minutes, 0.9, axis=2),
        minutes.max(2),
    ]
    of_minutes = np.stack(found, 2).reshape(samples, -1)
    return np.hstack([of_minutes, _spectral(series)])


def powers(
    series: Float64[np.ndarray, "samples points"],
) -> Float64[np.ndarray, "samples frequencies"]:
    """Return the variance of each window at each frequency, ``n RATE / points`` Hz for n from 1.

    Their sum is the variance of the window.
    """
    points = series.shape[1]
    spectrum = np.abs(np.fft.rfft(series, axis=1)[:, 1:]) ** 2 / points**2
    spectrum[:, : (points - 1) // 2] *= 2  # a frequency and its negative one
    return spectrum


def _spectral(
    series: Float64[np.ndarray, "samples points"],
) -> Float64[np.ndarray, "samples 5"]:
    spectrum = powers(series)
    frequency = np.arange(1, spectrum.shape[1] + 1) * RATE / series.shape[1]
    least = 1e-8  # square seconds: a tenth of a millisecond, squared
    band = {
        name: spectrum[:, (frequency >= low) & (frequency < high)].sum(1)
        + least
        for name, (low, high) in BANDS.items()
    }
    logarithms = {name: np.log10(power) for name, power in band.items()}
    columns = [
        *logarithms.values(),
        logarithms["low"] - logarithms["high"],
        band["slow"] / sum(band.values()),
    ]
    return np.stack(columns, 1)
