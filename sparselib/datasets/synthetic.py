"""Seeded stand-ins with the shapes of the real data, so that everything runs without any file.

They are synthetic: an accuracy reached on them shows that a program works, and nothing about MNIST
or HIGGS. Values are rounded, so that a seed gives the same bytes on every processor.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor
from torch.nn import functional

from .physionet_records import standardized_windows
from .split import Samples, Split
from .synthetic_ecg import HEARTBEAT, pulses
from .tabular import standardized

RATE = 250

BORDER = 2
STYLES = 2
STROKES = 3

TOPICS = 3  # of a class
OWN_WORDS = 200  # of a topic

# the lepton is 0, the missing energy 1, the jets 2 to 5
W_PAIR = [2, 3]
B_PAIR = [4, 5]
GROUPS = [
    W_PAIR,
    [2, 3, 4],
    [0, 1],
    [0, 1, 2],
    B_PAIR,
    [0, 1, 4, 5],
    [0, 1, 2, 3, 4, 5],
]


def images(
    train: int = 6000,
    valid: int = 1000,
    test: int = 1000,
    side: int = 28,
    classes: int = 10,
    seed: int = 0,
) -> Split:
    """Return gray images of random pen strokes, in the shape of MNIST.

    Each class has two prototypes of three curved strokes. An image is one of them, shifted,
    turned, scaled and bent by a smooth random field, with uneven ink and noise; pixels lie in
    [0, 1] in 256 steps, and the outermost two rows and columns are always 0.

    Parameters
    ----------
    train, valid, test
        The number of images of each part.
    side
        Images have `side` x `side` pixels.
    classes
        The number of classes, drawn with equal probability.
    seed
        The same seed gives the same images.
    """
    rng = np.random.default_rng(seed)
    total = train + valid + test
    labels = rng.integers(classes, size=total)
    prototypes = _strokes(rng, classes * STYLES, side)
    chosen = prototypes[labels * STYLES + rng.integers(STYLES, size=total)]
    grid = _bent_grid(rng, total, side)
    drawn = functional.grid_sample(chosen[:, None], grid, align_corners=True)[
        :, 0
    ].numpy()
    ink = rng.uniform(0.6, 1.2, (total, 1, 1))
    noise = 0.12 * rng.standard_normal(drawn.shape, np.float32) * (drawn > 0.02)
    gray = np.rint((drawn * ink + noise).clip(0, 1) * 255).astype(np.float32)
    gray[:, _border(side)] = 0
    x = torch.from_numpy(gray.reshape(total, -1) / 255)
    parts = _parts(x, torch.from_numpy(labels), train, valid, test)
    note = f"synthetic pen strokes of {side} x {side} pixels, seed {seed}: no real images"
    return Split(*parts, classes=classes, name="synthetic.images", note=note)


def collisions(
    train: int = 5000, valid: int = 500, test: int = 1000, seed: int = 0
) -> Split:
    r"""Return synthetic particle collisions, in the shape of HIGGS: 28 features, 2 classes.

    The 21 low-level features are the momentum, direction and b-tag of a lepton, the missing energy
    and four jets; the 7 others are invariant masses computed from them,
    :math:`m^2 = (\sum E)^2 - |\sum p|^2`. The label is drawn with a probability that rises near
    certain masses, so that about 53 % are signal and no classifier can be right about all of them.
    Features are standardized on the training part, as `higgs` does it.
    """
    rng = np.random.default_rng(seed)
    total = train + valid + test
    momentum, eta, phi, tags = _objects(rng, total)
    masses = _masses(momentum, eta, phi)
    chance = 1 / (1 + np.exp(-_evidence(masses, tags)))
    labels = torch.from_numpy((rng.random(total) < chance).astype(np.int64))
    columns = np.concatenate([momentum, eta, phi, tags, masses], axis=1)
    x = torch.from_numpy(np.round(columns, 4).astype(np.float32))
    parts = standardized(*_parts(x, labels, train, valid, test))
    note = (
        f"synthetic collisions, seed {seed}: no real and no simulated physics"
    )
    return Split(*parts, classes=2, name="synthetic.collisions", note=note)


def letters(
    train: int = 6238,
    valid: int = 0,
    test: int = 1559,
    features: int = 617,
    seed: int = 0,
) -> Split:
    """Return synthetic spoken letters, in the shape of ISOLET: 617 features, 26 classes.

    Each letter is a smooth curve over the features; each of 150 speakers bends all letters in the
    same way, and every utterance differs a little. Speakers of the test part are not heard in the
    others. A fifth of the features is noise alone. Values lie in [-1, 1] with four decimals.
    """
    rng = np.random.default_rng(seed)
    total = train + valid + test
    speakers = 150
    labels = rng.integers(26, size=total)
    heard = speakers * (train + valid) // max(total, 1)
    first = (
        rng.integers(heard, size=train + valid)
        if heard
        else np.zeros(0, dtype=int)
    )
    speaker = np.concatenate([first, rng.integers(heard, speakers, size=test)])
    place = np.linspace(0, 1, features)
    waves = np.sin(np.pi * np.arange(1, 25)[:, None] * place)
    fade = 1 / np.sqrt(np.arange(1, 25))
    letter, voice = (
        rng.normal(0, size, (count, 24)) * fade @ waves
        for size, count in ((0.35, 26), (0.3, 150))
    )
    spoken = rng.normal(0, 0.2, (total, 24)) * fade @ waves
    x = (
        letter[labels]
        + voice[speaker]
        + spoken
        + rng.normal(0, 0.25, (total, features))
    )
    silent = rng.permutation(features)[: features // 5]
    x[:, silent] = rng.normal(0, 0.4, (total, silent.size))
    rounded = torch.from_numpy(np.round(x.clip(-1, 1), 4).astype(np.float32))
    parts = _parts(rounded, torch.from_numpy(labels), train, valid, test)
    note = f"synthetic spoken letters, seed {seed}: no real voices"
    return Split(*parts, classes=26, name="synthetic.letters", note=note)


def documents(
    train: int = 1200,
    valid: int = 400,
    test: int = 400,
    words: int = 10_000,
    classes: int = 20,
    seed: int = 0,
) -> Split:
    r"""Return synthetic documents as bags of words, in the shape of 20 newsgroups.

    The frequency of the word of rank r is proportional to :math:`1 / (r + 2.7)` (Mandelbrot, 1953;
    Zipf's law with a shift). Each class has three topics; in each of them 200 words, drawn at
    random, are twenty times as frequent. A document has one topic and a lognormal length, 80 words
    in the median. A feature is :math:`\log(1 + n)` of a word that occurs n times, each document is
    scaled to a mean square of 1; more than 99 % of the features are 0. The note tells which share
    of the test documents a classifier gets right that knows all this.

    Parameters
    ----------
    train, valid, test
        The number of documents of each part.
    words
        The number of different words, which are the features; at least 200.
    classes
        The number of classes, drawn with equal probability.
    seed
        The same seed gives the same documents.

    Raises
    ------
    ValueError
        If there are fewer words than a topic has of its own.
    """
    if words < OWN_WORDS:
        raise ValueError(
            f"words={words} are fewer than the {OWN_WORDS} that a topic has of its own"
        )
    rng = np.random.default_rng(seed)
    total = train + valid + test
    frequencies = _topics(rng, TOPICS * classes, words)
    topic = rng.integers(TOPICS * classes, size=total)
    lengths = np.maximum(rng.lognormal(np.log(80), 0.6, total).astype(int), 1)
    counts = _bags(rng, frequencies, topic, lengths)
    labels = topic // TOPICS
    x = torch.from_numpy(_scaled_logarithms(counts))
    parts = _parts(x, torch.from_numpy(labels), train, valid, test)
    note = f"synthetic documents of {words:,} words, seed {seed}: no real text"
    if test:
        known = _best_guess(frequencies, counts[train + valid :])
        right = np.mean(known == labels[train + valid :])
        note += f"; who knows their law is right about {right:.1%} of the test"
    return Split(*parts, classes=classes, name="synthetic.documents", note=note)


def _topics(
    rng: np.random.Generator, topics: int, words: int
) -> Float64[np.ndarray, "topics words"]:
    """Draw the frequency of each word in each topic."""
    frequencies = np.tile(1 / (np.arange(1, words + 1) + 2.7), (topics, 1))
    for row in frequencies:
        row[rng.choice(words, OWN_WORDS, replace=False)] *= 20
    return frequencies / frequencies.sum(1, keepdims=True)


def _bags(
    rng: np.random.Generator,
    frequencies: Float64[np.ndarray, "topics words"],
    topic: Int64[np.ndarray, "documents"],
    lengths: Int64[np.ndarray, "documents"],
) -> Float32[np.ndarray, "documents words"]:
    """Count how often each word occurs in documents of these topics and lengths."""
    counts = np.zeros((len(topic), frequencies.shape[1]), np.float32)
    for number, row in enumerate(frequencies):
        chosen = np.flatnonzero(topic == number)
        document = np.repeat(chosen, lengths[chosen])
        word = np.searchsorted(row[:-1].cumsum(), rng.random(len(document)))
        np.add.at(counts, (document, word), 1)
    return counts


def _scaled_logarithms(
    counts: Float32[np.ndarray, "documents words"],
) -> Float32[np.ndarray, "documents words"]:
    """Take log(1 + n), and give each document a mean square of 1; four decimals."""
    document, word = counts.nonzero()
    logarithms = np.log1p(counts[document, word].astype(np.float64))
    squares = np.bincount(document, logarithms**2, len(counts))
    logarithms *= np.sqrt(counts.shape[1] / squares)[document]
    scaled = np.zeros_like(counts)
    scaled[document, word] = np.round(logarithms, 4)
    return scaled


def _best_guess(
    frequencies: Float64[np.ndarray, "topics words"],
    counts: Float32[np.ndarray, "documents words"],
) -> Int64[np.ndarray, "documents"]:
    """Return the class whose topics together make each document most probable."""
    likelihood = torch.from_numpy(
        counts @ np.log(frequencies).T.astype(np.float32)
    )
    of_class = likelihood.view(len(counts), -1, TOPICS).logsumexp(2)
    return of_class.argmax(1).numpy()


def signals(
    kinds: Sequence[str] = ("ecg",),
    train: int = 6,
    valid: int = 2,
    test: int = 4,
    length: int = 1000,
    seed: int = 0,
) -> Split:
    """Return windows of synthetic signals, in the shape of `physionet`; labels number the kinds.

    At 250 samples per second: an ECG whose beats differ in distance and height, an EEG of colored
    noise with waxing and waning waves of 10 Hz, a respiration of uneven breaths, one per second,
    and an EMG of three motor units that fire at uneven intervals. Windows of a kind follow each
    other in one long signal, each has mean 0 and standard deviation 1, with four decimals.

    Parameters
    ----------
    kinds
        Of ``"ecg"``, ``"eeg"``, ``"respiration"`` and ``"emg"``; drawn with equal probability.
    train, valid, test
        The number of windows of each part.
    length
        Samples of a window.
    seed
        The same seed gives the same signals.

    Raises
    ------
    ValueError
        If a kind is unknown, or there is none.
    """
    makers = {
        "ecg": _ecg,
        "eeg": _eeg,
        "respiration": _respiration,
        "emg": _emg,
    }
    if not kinds or not set(kinds) <= set(makers):
        raise ValueError(
            f"kinds are some of {', '.join(makers)}, not {kinds!r}"
        )
    rng = np.random.default_rng(seed)
    total = train + valid + test
    labels = rng.integers(len(kinds), size=total)
    long = [
        torch.from_numpy(makers[kind](rng, total * length)) for kind in kinds
    ]
    windows = torch.stack(
        [standardized_windows(signal, length) for signal in long]
    )
    x = (
        windows[torch.from_numpy(labels), torch.arange(total)]
        .mul(1e4)
        .round()
        .div(1e4)
        .float()
    )
    parts = _parts(x, torch.from_numpy(labels), train, valid, test)
    note = f"synthetic signals ({', '.join(kinds)}) of {length:,} samples, seed {seed}: no person's"
    return Split(
        *parts, classes=len(kinds), name="synthetic.signals", note=note
    )


def _ecg(rng: np.random.Generator, count: int) -> Float64[np.ndarray, "count"]:
    breath = _slow(rng, count, 4 * RATE)
    beats = (0.8 + rng.normal(0, 0.03, count // 100 + 2)).clip(
        0.6, 1
    ).cumsum() * RATE
    height = 1 + 0.1 * breath[beats.astype(int).clip(max=count - 1)]
    waves = (
        pulses(count, beats + at * RATE, w * RATE, h * height)
        for at, w, h in HEARTBEAT
    )
    return sum(waves) + 0.1 * breath + rng.normal(0, 0.02, count)


def _eeg(rng: np.random.Generator, count: int) -> Float64[np.ndarray, "count"]:
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    noise = np.fft.irfft(
        np.fft.rfft(rng.normal(0, 1, count)) / (1 + hertz / 2), count
    )
    waves = np.sin(
        2 * np.pi * 10 * np.arange(count) / RATE + 2 * _slow(rng, count, RATE)
    )
    return (
        noise / noise.std() + np.maximum(_slow(rng, count, 2 * RATE), 0) * waves
    )


def _respiration(
    rng: np.random.Generator, count: int
) -> Float64[np.ndarray, "count"]:
    phase = 2 * np.pi * np.cumsum(1 + 0.15 * _slow(rng, count, 5 * RATE)) / RATE
    depth = 1 + 0.2 * _slow(rng, count, 3 * RATE)
    return depth * (
        np.sin(phase) + 0.25 * np.sin(2 * phase + 0.5)
    ) + rng.normal(0, 0.02, count)


def _emg(rng: np.random.Generator, count: int) -> Float64[np.ndarray, "count"]:
    signal = rng.normal(0, 0.05, count)
    for height, every, width in (
        (1.0, 90, 2.5),
        (0.6, 65, 4.0),
        (0.35, 47, 3.0),
    ):
        fires = (
            rng.normal(every, every / 6, 2 * count // every + 2)
            .clip(every / 2)
            .cumsum()
        )
        for shift, share in ((-2, -0.4), (0, 1.0), (2, -0.6)):
            signal += pulses(
                count, fires + shift * width, width, share * height
            )
    return signal


def _slow(
    rng: np.random.Generator, count: int, period: int
) -> Float64[np.ndarray, "count"]:
    """Wander about 0 within [-1, 1]: four sines with periods of that order."""
    periods = period * rng.uniform(0.6, 1.8, (4, 1))
    phases = rng.uniform(0, 2 * np.pi, (4, 1))
    return np.sin(2 * np.pi * np.arange(count) / periods + phases).mean(0)


def _parts(
    x: Tensor, y: Int64[Tensor, "samples"], train: int, valid: int, test: int
) -> tuple[Samples, Samples, Samples]:
    sizes = [train, valid, test]
    first, second, third = (
        Samples(*part) for part in zip(x.split(sizes), y.split(sizes))
    )
    return first, second, third


def _strokes(
    rng: np.random.Generator, count: int, side: int
) -> Float64[Tensor, "count side side"]:
    """Draw prototypes: quadratic Bezier curves, with a pen of Gaussian width."""
    points = rng.uniform(-0.62, 0.62, (count, STROKES, 3, 1, 2))
    t = np.linspace(0, 1, 24)[:, None]
    weights = np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])
    curves = (weights * points).sum(2)
    axis = np.linspace(-1, 1, side)
    pixels = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 1, 2)
    squared = ((pixels - curves.reshape(count, 1, -1, 2)) ** 2).sum(-1).min(-1)
    return torch.from_numpy(
        np.exp(-squared / (2 * 0.07**2)).reshape(count, side, side)
    )


def _bent_grid(
    rng: np.random.Generator, count: int, side: int
) -> Float64[Tensor, "count side side 2"]:
    """Sample where each pixel is read: turned and scaled, then moved by a few smooth cosines."""
    angle = rng.normal(0, 0.15, count)
    scale = rng.uniform(0.9, 1.15, (count, 2, 1))
    turn = np.stack(
        [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=-1
    )
    bend = rng.normal(0, 0.042, (count, 9, 2))
    axis = np.linspace(-1, 1, side)
    x, y = (plane.ravel() for plane in np.meshgrid(axis, axis))
    along, across = (
        [np.cos(np.pi / 2 * k * (a + 1)) for k in range(3)] for a in (x, y)
    )
    waves = [first * second for first in along for second in across]
    basis = np.stack([x, y, *waves], axis=1)
    grid = basis @ np.concatenate(
        [turn.reshape(count, 2, 2) * scale, bend], axis=1
    )
    return torch.from_numpy(grid.reshape(count, side, side, 2))


def _border(side: int) -> np.ndarray:
    border = np.ones((side, side), dtype=bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    return border


def _objects(
    rng: np.random.Generator, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw a lepton, the missing energy and four jets: momentum, eta, phi, b-tags."""
    momentum = rng.gamma(3, 1 / 3, (count, 6))
    eta = rng.normal(0, 1, (count, 5))
    phi = rng.uniform(-np.pi, np.pi, (count, 6))
    tags = rng.choice([0, 1.1, 2.2], (count, 4), p=[0.5, 0.2, 0.3])
    return momentum, eta, phi, tags


def _masses(
    momentum: Float64[np.ndarray, "samples 6"],
    eta: Float64[np.ndarray, "samples 5"],
    phi: Float64[np.ndarray, "samples 6"],
) -> Float64[np.ndarray, "samples 7"]:
    """Compute the invariant masses of `GROUPS`; the missing energy has eta = 0."""
    eta = np.insert(eta, 1, 0, axis=1)
    space = [
        momentum * np.cos(phi),
        momentum * np.sin(phi),
        momentum * np.sinh(eta),
    ]
    vectors = np.stack([momentum * np.cosh(eta), *space])
    energy, *rest = np.stack(
        [vectors[..., group].sum(-1) for group in GROUPS], axis=-1
    )
    return np.sqrt(np.maximum(energy**2 - sum(part**2 for part in rest), 0))


def _evidence(
    masses: Float64[np.ndarray, "samples 7"],
    tags: Float64[np.ndarray, "samples 4"],
) -> Float64[np.ndarray, "samples"]:
    """Return the log-odds of signal: high where two pairs of jets have a mass near 1.4."""
    pairs = np.log(
        masses[:, [GROUPS.index(B_PAIR), GROUPS.index(W_PAIR)]] + 1e-3
    ) - np.log(1.4)
    peaks = np.exp(-0.5 * (pairs / 0.4) ** 2)
    return (
        5 * peaks[:, 0]
        + 3 * peaks[:, 1]
        + 0.3 * (tags[:, 2] + tags[:, 3])
        - 4.25
    )
