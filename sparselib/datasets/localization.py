"""Digits in clutter and spells in an ECG: samples whose salient part is known."""

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64

from .apnea_records import SAMPLES
from .images import digits
from .split import Samples, Split
from .synthetic_ecg import pulses, waveform

SECONDS = 4  # of a spell

SIDE = 32
DIGIT = 14
PATCH = 5


def placed_digits(
    train: int = 4800, valid: int = 500, test: int = 1000, seed: int = 0
) -> tuple[Split, dict[str, Int64[torch.Tensor, "samples 4"]]]:
    """Return scikit-learn's digits, each at a random place of a cluttered canvas, and their boxes.

    A digit is scaled to 14 x 14 pixels and laid on 32 x 32 pixels of weak uniform noise with two
    pieces of 5 x 5 pixels of other digits; pixels lie in [0, 1] in 256 steps, and 0 is black. The
    digits are split among the parts before they are placed.

    Parameters
    ----------
    train, valid, test
        The number of images of each part.
    seed
        The same seed gives the same images.

    Returns
    -------
    Split, dict
        Images of shape (samples, 1, 32, 32) with the digit as class, and for each part the boxes
        (top, left, bottom, right) of the digits, int64, of which the last two lie just outside.
    """
    sources = digits(seed)
    rng = np.random.default_rng(seed)
    parts = []
    boxes = {}
    for name, count in {"train": train, "valid": valid, "test": test}.items():
        source = getattr(sources, name)
        samples, boxes[name] = _placed(source, count, rng)
        parts.append(samples)
    note = (
        f"scikit-learn's digits placed in clutter, 32 x 32 pixels, seed {seed}"
    )
    return Split(
        parts[0],
        parts[1],
        parts[2],
        classes=10,
        name="placed_digits",
        note=note,
    ), boxes


def placed_spells(
    train: int = 800,
    valid: int = 100,
    test: int = 200,
    seconds: int = 60,
    seed: int = 0,
) -> tuple[Split, dict[str, Int64[torch.Tensor, "samples 2"]]]:
    """Return synthetic ECG, each signal with one spell at a random place, and the places.

    A heart of 60 to 80 beats per minute, and for 4 seconds another rhythm: no beat (class 0),
    broad, fast and high beats without P (1), or a saw of 5 Hz under the beats (2), drawn after
    pauses, runs of ventricular beats and flutter. `synthetic_ecg.waveform` draws the rest at 100
    samples per second; millivolts with four decimals.

    Parameters
    ----------
    train, valid, test
        The number of signals of each part.
    seconds
        Length of a signal, at least 6.
    seed
        The same seed gives the same hearts.

    Returns
    -------
    Split, dict
        Signals of shape (samples, 1, 100 * seconds), and for each part the spells (start, end),
        int64, in samples, of which the last lies just outside.

    Raises
    ------
    ValueError
        If there is no room for a spell.
    """
    if seconds < SECONDS + 2:
        raise ValueError(
            f"{seconds} seconds have no room for a spell of {SECONDS}: at least 6"
        )
    rng = np.random.default_rng(seed)
    parts = []
    spells = {}
    for name, count in {"train": train, "valid": valid, "test": test}.items():
        labels = rng.integers(3, size=count)
        start = rng.integers(
            SAMPLES, (seconds - SECONDS - 1) * SAMPLES + 1, size=count
        )
        drawn = [
            _heart(rng, *which, seconds * SAMPLES)
            for which in zip(labels.tolist(), start.tolist())
        ]
        x = (
            np.reshape(drawn, (count, 1, seconds * SAMPLES))
            .round(4)
            .astype(np.float32)
        )
        parts.append(Samples(torch.from_numpy(x), torch.from_numpy(labels)))
        ends = np.stack([start, start + SECONDS * SAMPLES], 1)
        spells[name] = torch.from_numpy(ends)
    note = f"synthetic ECG of {seconds} seconds with a spell of {SECONDS}, seed {seed}: no person's"
    return Split(parts[0], parts[1], parts[2], 3, "placed_spells", note), spells


def _heart(
    rng: np.random.Generator, label: int, start: int, samples: int
) -> Float64[np.ndarray, "samples"]:
    """Draw beats, leave those out that a pause or a run of other beats takes, and add the spell."""
    end = start + SECONDS * SAMPLES
    pace = rng.uniform(0.75, 1.0)
    between = (
        SAMPLES * pace * (1 + 0.03 * rng.normal(size=2 * samples // SAMPLES))
    )
    beats = np.rint(between.cumsum()).astype(np.int64)
    if label < 2:
        beats = beats[(beats < start) | (beats >= end)]
    signal = waveform(beats, samples, int(rng.integers(2**31)))
    if label == 1:
        runs = np.arange(start + 20, end - 20, 0.4 * SAMPLES)
        signal += pulses(samples, runs, 6.0, 1.5) - pulses(
            samples, runs + 16, 8.0, 0.6
        )
    elif label == 2:
        phase = np.arange(SECONDS * SAMPLES) * 5 / SAMPLES + rng.uniform()
        signal[start:end] += 0.6 * (phase % 1) - 0.3
    return signal


def _placed(
    source: Samples, count: int, rng: np.random.Generator
) -> tuple[Samples, Int64[torch.Tensor, "samples 4"]]:
    drawn = _enlarged(source.x.view(-1, 8, 8).numpy())
    which = rng.integers(len(source), size=count)
    canvas = rng.uniform(0, 0.2, (count, SIDE, SIDE)).astype(np.float32)
    for _ in range(2):
        piece = rng.integers(len(source), size=count)
        _paste(
            canvas,
            drawn[piece],
            rng.integers(DIGIT - PATCH + 1, size=(count, 2)),
            PATCH,
            rng,
        )
    corner = _paste(canvas, drawn[which], np.zeros((count, 2), int), DIGIT, rng)
    x = np.rint(canvas.clip(0, 1) * 255).astype(np.float32)[:, None] / 255
    box = torch.from_numpy(np.concatenate([corner, corner + DIGIT], 1))
    return Samples(torch.from_numpy(x), source.y[torch.from_numpy(which)]), box


def _enlarged(
    small: Float[np.ndarray, "samples 8 8"],
) -> Float[np.ndarray, "samples 14 14"]:
    """Scale by linear interpolation between the pixels' centers."""
    place = ((np.arange(DIGIT) + 0.5) * 8 / DIGIT - 0.5).clip(0, 7)
    left = np.minimum(place.astype(int), 6)
    weight = np.zeros((DIGIT, 8), np.float32)
    weight[np.arange(DIGIT), left] = 1 - (place - left)
    weight[np.arange(DIGIT), left + 1] += place - left
    return np.einsum("ij,njk,lk->nil", weight, small, weight)


def _paste(
    canvas: np.ndarray,
    pictures: np.ndarray,
    start: np.ndarray,
    side: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Lay a square of each picture at a random place, the brighter pixel on top; return where."""
    corner = rng.integers(SIDE - side + 1, size=(len(canvas), 2))
    for image, picture, (top, left), (row, column) in zip(
        canvas, pictures, start, corner
    ):
        square = image[row : row + side, column : column + side]
        np.maximum(
            square, picture[top : top + side, left : left + side], out=square
        )
    return corner
