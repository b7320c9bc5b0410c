"""Minutes of sleep with and without apnea: the Apnea-ECG database, and made-up nights."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from .files import Folder, find
from .split import Samples, Split

RECORDS = (
    *(f"a{number:02}" for number in range(1, 21)),
    *(f"b{number:02}" for number in range(1, 6)),
    *(f"c{number:02}" for number in range(1, 11)),
)
RATE = 4  # points a second at which RR intervals are read
MINUTE = 60 * RATE
SAMPLES = 100  # samples a second of the recordings


class Night(NamedTuple):
    """A recording: its name, RR intervals in seconds at 4 Hz, and a label for every minute.

    The intervals begin `neighbours` minutes before the first label and end as many after the last.
    """

    record: str
    intervals: Float64[np.ndarray, "points"]
    labels: Int64[np.ndarray, "minutes"]


def apnea_ecg(
    source: str = "synthetic",
    folder: Folder = None,
    *,
    by: str = "record",
    test: float = 0.2,
    valid: float = 0.2,
    remove: int = 0,
    neighbours: int = 1,
    records: Sequence[str] = RECORDS,
    seed: int = 0,
) -> Split:
    """Return minutes of sleep as RR intervals at 4 Hz; class 1 is apnea.

    The intervals between heartbeats rise and fall with disturbed breathing. They are all that the
    Apnea-ECG database (Penzel and others, 2000) tells of its 35 labelled nights without the ECG
    itself: the beats lie in `.qrs`, the labels of 17,045 minutes in `.apn`. Vanwinsen and others
    (2023) read the ECG, 6000 points a minute.

    Parameters
    ----------
    source
        ``"rr"`` reads the database; ``"synthetic"`` makes nights up, by name those in `records`.
    folder
        Where `apnea-ecg/` lies or is fetched to; see `files.folders` for the default.
    by
        ``"record"`` keeps each night in one part, so that no patient is in two, and takes as
        large a share of apnea patients (a), borderline ones (b) and controls (c). ``"minute"``
        divides the minutes at random, as the paper does: then minutes of one night are in all
        parts, and accuracies are too good.
    test, valid
        Shares of the nights or minutes, each in [0, 1). The paper has 0.2 and 0.
    remove
        How many minutes without apnea are left out, at random; the paper removes 4000.
    neighbours
        Minutes before and after the labelled one that belong to a sample.
    records
        The nights to read. One that is missing or damaged is an error, never passed over.
    seed
        Of the parts, of what is removed, and of the made-up nights.

    Returns
    -------
    Split
        Each part has in `groups` the night of each sample, as a number into ``split.groups``.

    Raises
    ------
    ValueError
        If a file is damaged or an argument impossible.
    DataUnavailable
        If a file lies nowhere and cannot be fetched.
    """
    _check(source, by, test, valid, neighbours, records)
    if source == "rr":
        sums = _checksums(folder)
        nights = [_read(record, neighbours, folder, sums) for record in records]
    else:
        nights = [_made_up(record, neighbours, seed) for record in records]
    x = np.concatenate([_windows(night, neighbours) for night in nights])
    labels = np.concatenate([night.labels for night in nights])
    group = np.repeat(np.arange(len(nights)), [len(night.labels) for night in nights])
    rng = np.random.default_rng(seed)
    kept = np.ones(len(labels), dtype=bool)
    kept[rng.choice(_removable(labels, remove), remove, replace=False)] = False
    shares = _by_record(records, test, valid, rng)[group] if by == "record" else None
    if shares is None:
        shares = _by_minute(int(kept.sum()), test, valid, rng, kept)
    train, chosen, tested = (
        Samples(*(torch.from_numpy(a[kept & (shares == part)]) for a in (x, labels, group)))
        for part in range(3)
    )
    note = (
        f"{len(nights)} {'nights' if source == 'rr' else 'made-up nights'}, RR intervals at 4 Hz "
        f"of a minute and {neighbours} on either side, divided by {by} with seed {seed}; "
        f"{remove:,} minutes without apnea left out"
    )
    names = tuple(records)
    return Split(train, chosen, tested, 2, f"apnea_ecg.{source}", note, names)


def resampled(
    beats: Int64[np.ndarray, "beats"], times: Float64[np.ndarray, "points"]
) -> Float64[np.ndarray, "points"]:
    """Interpolate RR intervals linearly at some times, in seconds, without those of false beats.

    An interval counts if it lies in 0.3 to 2 seconds and within 30 % of the median of the nine
    around it; a beat that was missed or seen twice spoils such intervals. Gaps are bridged.

    Parameters
    ----------
    beats
        Sample numbers, at 100 a second.
    times
        Where to read; before the first and after the last interval the nearest holds.

    Raises
    ------
    ValueError
        If the beats do not ascend, or no interval counts.
    """
    intervals = np.diff(beats) / SAMPLES
    if (intervals <= 0).any():
        raise ValueError(
            f"beat {int((intervals <= 0).argmax()) + 1} does not follow the one before"
        )
    sound = _is_sound(intervals)
    if not sound.any():
        raise ValueError(f"none of {len(intervals)} intervals between beats is that of a heart")
    return np.interp(times, beats[1:][sound] / SAMPLES, intervals[sound])


def _is_sound(intervals: np.ndarray) -> Bool[np.ndarray, "intervals"]:
    around = np.pad(intervals, 4, mode="edge") if len(intervals) else np.zeros(8)
    median = np.median(np.lib.stride_tricks.sliding_window_view(around, 9), axis=1)
    median = median[: len(intervals)]
    in_range = (intervals >= 0.3) & (intervals <= 2.0)
    return in_range & (np.abs(intervals - median) <= 0.3 * median)


def _check(
    source: str, by: str, test: float, valid: float, neighbours: int, records: Sequence[str]
) -> None:
    if source not in ("rr", "synthetic"):
        raise ValueError(f"source must be 'rr' or 'synthetic', not {source!r}")
    if by not in ("record", "minute"):
        raise ValueError(f"by must be 'record' or 'minute', not {by!r}")
    if min(test, valid) < 0 or test + valid >= 1 or neighbours < 0:
        raise ValueError(
            f"test and valid are shares that leave something to train on, and neighbours a count, "
            f"not test={test}, valid={valid}, neighbours={neighbours}"
        )
    unknown = [record for record in records if record not in RECORDS]
    if unknown or not records or len(set(records)) < len(records):
        raise ValueError(
            f"records must be distinct names from {RECORDS[0]} to {RECORDS[-1]}, not "
            f"{unknown or list(records)}"
        )


def _checksums(folder: Folder) -> dict[str, str]:
    lines = find("apnea-ecg", "SHA256SUMS.txt", folder).read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def _read(record: str, neighbours: int, folder: Folder, sums: dict[str, str]) -> Night:
    import wfdb

    marks, beats = (
        find("apnea-ecg", f"{record}.{kind}", folder, sha256=sums[f"{record}.{kind}"])
        for kind in ("apn", "qrs")
    )
    labels = _labels(marks, wfdb.rdann(str(marks.with_suffix("")), "apn"))
    found = wfdb.rdann(str(beats.with_suffix("")), "qrs")
    is_beat = np.array(found.symbol) == "N"
    points = np.arange(-neighbours * MINUTE, (len(labels) + neighbours) * MINUTE)
    try:
        intervals = resampled(found.sample[is_beat].astype(np.int64), points / RATE)
    except ValueError as error:
        raise ValueError(f"{beats} is refused: {error}.") from error
    return Night(record, intervals, labels)


def _labels(path: Path, marks: object) -> Int64[np.ndarray, "minutes"]:
    samples, symbols = np.asarray(marks.sample), np.array(marks.symbol)  # type: ignore[attr-defined]
    if not np.array_equal(samples, np.arange(len(samples)) * 60 * SAMPLES):
        raise ValueError(f"{path} is refused: its marks are not one a minute from the start.")
    if not np.isin(symbols, ["A", "N"]).all():
        raise ValueError(
            f"{path} is refused: it holds the labels {sorted(set(symbols))}, not A, N."
        )
    return (symbols == "A").astype(np.int64)


def _windows(night: Night, neighbours: int) -> np.ndarray:
    length = (2 * neighbours + 1) * MINUTE
    windows = np.lib.stride_tricks.sliding_window_view(night.intervals, length)[::MINUTE]
    return np.round(windows[: len(night.labels)], 4).astype(np.float32)


def _removable(labels: np.ndarray, remove: int) -> np.ndarray:
    quiet = np.flatnonzero(labels == 0)
    if not 0 <= remove <= len(quiet):
        raise ValueError(f"{remove} of {len(quiet):,} minutes without apnea cannot be left out")
    return quiet


def _by_record(
    records: Sequence[str], test: float, valid: float, rng: np.random.Generator
) -> Int64[np.ndarray, "records"]:
    """Return the part of each record: 0 to train, 1 to choose, 2 to test."""
    part = np.zeros(len(records), dtype=np.int64)
    for kind in "abc":
        own = rng.permutation([i for i, record in enumerate(records) if record[0] == kind])
        tested, chosen = round(test * len(own)), round(valid * len(own))
        part[own[:tested].astype(int)] = 2
        part[own[tested : tested + chosen].astype(int)] = 1
    return part


def _by_minute(
    count: int, test: float, valid: float, rng: np.random.Generator, kept: np.ndarray
) -> Int64[np.ndarray, "minutes"]:
    order, part = rng.permutation(count), np.zeros(count, dtype=np.int64)
    tested, chosen = round(test * count), round(valid * count)
    part[order[:tested]] = 2
    part[order[tested : tested + chosen]] = 1
    every = np.zeros(len(kept), dtype=np.int64)
    every[kept] = part
    return every


def _made_up(record: str, neighbours: int, seed: int) -> Night:
    """Draw a night of 40 minutes: a heart that waves with breath, and more slowly with apnea.

    Patients differ in the pace of the heart and in how deep both waves are, and spells of apnea
    last some minutes.
    """
    number = RECORDS.index(record)
    rng = np.random.default_rng([seed, number])
    minutes = 40 + 2 * neighbours
    likely = {"a": 0.6, "b": 0.3, "c": 0.05}[record[0]]
    labels = np.empty(minutes, dtype=np.int64)
    for minute in range(minutes):
        goes_on = minute and rng.random() < 0.75
        labels[minute] = labels[minute - 1] if goes_on else rng.random() < likely
    time = np.arange(minutes * MINUTE) / RATE
    ill = np.convolve(np.repeat(labels, MINUTE), np.ones(40) / 40, mode="same")
    breath = 2 * np.pi * (rng.uniform(0.2, 0.3) * time + rng.normal(0, 0.02, time.size).cumsum())
    cycle = 2 * np.pi * (time / rng.uniform(30, 60) + rng.normal(0, 0.01, time.size).cumsum())
    drift = np.convolve(rng.normal(0, 1, time.size), np.ones(400) / 400, mode="same")
    waves = rng.uniform(0.01, 0.05) * np.sin(breath) * (1 - 0.6 * ill)
    waves += rng.uniform(0.05, 0.12) * np.sin(cycle) * ill
    series = rng.uniform(0.7, 1.1) + waves + 0.6 * drift + rng.normal(0, 0.02, time.size)
    return Night(record, series.clip(0.3, 2.0), labels[neighbours : minutes - neighbours])
