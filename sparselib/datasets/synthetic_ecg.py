"""Synthetic ECG: beats of nights with apnea, and a waveform drawn over any beats."""

from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int16, Int64

from .apnea_records import (
    POINTS,
    RATE,
    SAMPLES,
    UNITS,
    Night,
    cached,
    whole_minutes,
)

# seconds from the beat, seconds of width, height: P, Q, R, S, T
HEARTBEAT = [(-0.16, 0.02, 0.15), (-0.04, 0.01, -0.12), (0, 0.011, 1)]
HEARTBEAT += [(0.04, 0.012, -0.25), (0.25, 0.05, 0.3)]


def pulses(
    count: int,
    places: Float64[np.ndarray, "pulses"],
    width: float,
    height: float | Float64[np.ndarray, "pulses"],
) -> Float64[np.ndarray, "count"]:
    """Add up Gaussian bumps; those beyond the ends are cut off."""
    reach = np.arange(-int(4 * width) - 1, int(4 * width) + 2)
    cells = np.rint(places).astype(int)[:, None] + reach
    bumps = np.exp(-0.5 * ((cells - places[:, None]) / width) ** 2)
    bumps *= np.broadcast_to(height, places.shape)[:, None]
    inside = (cells >= 0) & (cells < count)
    summed = np.bincount(cells[inside], weights=bumps[inside], minlength=count)
    return summed.astype(np.float64, copy=False)  # integers, where none is


def waveform(
    beats: Int64[np.ndarray, "beats"], samples: int, seed: int = 0
) -> Float64[np.ndarray, "samples"]:
    r"""Draw an ECG in millivolts over some beats: rhythm from them, everything else synthetic.

    Five bumps per beat, P to T. The T wave lies :math:`0.25 \sqrt{RR}` seconds behind (Bazett,
    1920). All heights rise and fall by a tenth with a breath of 0.2 to 0.3 per second, and by one
    in twenty from beat to beat; the floor wanders by 0.1 mV with it; noise is 0.02 mV. Height and
    noise differ from night to night. Nothing but the beats knows of apnea.

    Parameters
    ----------
    beats
        Sample numbers, at 100 per second, ascending.
    samples
        Length of the night.
    seed
        Of all that is synthetic.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / SAMPLES
    breath = 2 * np.pi * rng.uniform(0.2, 0.3) * time + np.cumsum(
        rng.normal(0, 0.01, samples)
    )
    breath = np.sin(breath)
    inside = beats[(beats >= 0) & (beats < samples)]
    height = rng.uniform(0.8, 1.8) * (1 + 0.1 * breath[inside])
    height = height * (1 + 0.05 * rng.normal(0, 1, len(inside)))
    pace = np.sqrt(
        np.diff(inside, prepend=inside[:1] - SAMPLES).clip(30, 200) / SAMPLES
    )
    signal = 0.1 * breath + rng.uniform(0.01, 0.03) * rng.normal(0, 1, samples)
    for shift, width, share in HEARTBEAT:
        late = shift * (pace if shift > 0.1 else 1)
        places = (inside + late * SAMPLES).astype(np.float64)
        signal += pulses(samples, places, width * SAMPLES, share * height)
    return signal


def draw_night(
    record: str, number: int, minutes: int = 40, seed: int = 0
) -> Night:
    """Draw the beats of a night: a heart that waves with breath, and more slowly with apnea.

    Patients differ in the pace of the heart and in how deep both waves are; the slow wave has a
    period of 20 to 60 seconds, and spells of apnea last some minutes. One beat in 300 is missed,
    and one in 300 is seen twice.

    Parameters
    ----------
    record
        Its first letter sets how much apnea there is: ``a`` most, ``b`` some, ``c`` hardly any.
    number
        Which patient of a seed.
    minutes
        How long the night is.
    seed
        Of all of it.
    """
    rng = np.random.default_rng([seed, number])
    likely = {"a": 0.6, "b": 0.3, "c": 0.05}[record[0]]
    labels = np.empty(minutes, dtype=np.int64)
    for minute in range(minutes):
        goes_on = minute and rng.random() < 0.75
        labels[minute] = (
            labels[minute - 1] if goes_on else rng.random() < likely
        )
    time = np.arange(minutes * 60 * RATE) / RATE
    ill = np.convolve(
        np.repeat(labels, 60 * RATE), np.ones(40) / 40, mode="same"
    )
    breath = (
        2
        * np.pi
        * (
            rng.uniform(0.2, 0.3) * time
            + rng.normal(0, 0.02, time.size).cumsum()
        )
    )
    cycle = (
        2
        * np.pi
        * (time / rng.uniform(20, 60) + rng.normal(0, 0.01, time.size).cumsum())
    )
    drift = np.convolve(
        rng.normal(0, 1, time.size), np.ones(400) / 400, mode="same"
    )
    waves = rng.uniform(0.01, 0.05) * np.sin(breath) * (1 - 0.6 * ill)
    waves += rng.uniform(0.05, 0.12) * np.sin(cycle) * ill
    series = (
        rng.uniform(0.7, 1.1)
        + waves
        + 0.6 * drift
        + rng.normal(0, 0.02, time.size)
    )
    beats = _beats(series.clip(0.4, 1.8), minutes * 60)
    missed = rng.random(len(beats)) < 1 / 300
    twice = beats[rng.random(len(beats)) < 1 / 300] + 15
    beats = np.unique(
        np.concatenate([beats[~missed], twice[twice < minutes * 60 * SAMPLES]])
    )
    return Night(record, beats, labels)


def rhythm(
    night: Night, sums: dict[str, str], seed: int
) -> Int16[np.ndarray, "minutes points"]:
    """Return minutes of an ECG drawn over recorded beats, as `apnea_records.ecg` returns them."""
    minutes = len(night.labels)

    def draw() -> np.ndarray:
        return whole_minutes(
            np.rint(waveform(night.beats, minutes * POINTS, seed) * UNITS),
            minutes,
        )

    digest = sums[f"{night.record}.qrs"][:16]
    return cached(f"{digest}-{minutes}-rhythm-{seed}.npy", draw)


def write(folder: Path, night: Night, seed: int = 0) -> None:
    """Write a night as WFDB does: header and 16-bit ECG, `.qrs` beats and `.apn` labels."""
    import wfdb

    folder.mkdir(parents=True, exist_ok=True)
    ecg = np.rint(
        waveform(night.beats, len(night.labels) * 60 * SAMPLES, seed) * UNITS
    )
    options = {
        "fmt": ["16"],
        "adc_gain": [float(UNITS)],
        "baseline": [0],
        "units": ["mV"],
    }
    signal = ecg.clip(-32767, 32767).astype(np.int16)[:, None]
    where = {"write_dir": str(folder)}
    wfdb.wrsamp(
        night.record,
        SAMPLES,
        sig_name=["ECG"],
        d_signal=signal,
        **options,
        **where,
    )
    beats = ["N"] * len(night.beats)
    wfdb.wrann(night.record, "qrs", night.beats, beats, fs=SAMPLES, **where)
    marks = np.arange(len(night.labels)) * 60 * SAMPLES
    symbols = list(np.array(["N", "A"])[night.labels])
    wfdb.wrann(night.record, "apn", marks, symbols, fs=SAMPLES, **where)


def _beats(series: np.ndarray, seconds: int) -> Int64[np.ndarray, "beats"]:
    """Go from beat to beat by intervals that are read where the heart is."""
    found = []
    now = 0.0
    while now < seconds - 0.01:
        found.append(round(now * SAMPLES))
        now += series[min(int(now * RATE), len(series) - 1)]
    return np.array(found, dtype=np.int64)
