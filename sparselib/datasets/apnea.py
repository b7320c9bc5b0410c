"""Minutes of sleep with and without apnea: the Apnea-ECG database, and made-up nights."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int64

from . import apnea_records, synthetic_ecg
from .apnea_records import LEARNING, Night
from .files import DataUnavailable, Folder
from .split import Samples, Split

SOURCES = ("ecg", "rhythm", "rr", "synthetic")
Minutes = Callable[[Night], np.ndarray]


def apnea_ecg(
    source: str = "synthetic",
    folder: Folder = None,
    *,
    by: str = "record",
    fold: int = 0,
    folds: int = 5,
    valid: float = 0.2,
    remove: int = 0,
    neighbours: int = 1,
    normalise: str = "none",
    records: Sequence[str] = LEARNING,
    database: str = "apnea-ecg",
    seed: int = 0,
) -> Split:
    """Return minutes of sleep; class 1 is apnea.

    The Apnea-ECG database (Penzel and others, 2000) holds 35 labelled nights of 17,045 minutes.
    Vanwinsen and others (2023) read its ECG, 6000 points a minute, divide the minutes at random
    (``by="minute", remove=4000, valid=0.0``) and say nothing of normalisation.

    Parameters
    ----------
    source
        ``"ecg"`` is the recorded ECG in millivolts; ``"rr"`` the intervals between its beats in
        seconds at 4 Hz, which rise and fall with disturbed breathing; ``"rhythm"`` an ECG drawn
        over its beats (`synthetic_ecg.waveform`); ``"synthetic"`` the intervals of synthetic
        nights of 40 minutes (`synthetic_ecg.draw_night`), by name those in `records`.
    folder
        Where `<database>/` lies or is fetched to; see `files.folders` for the default.
    by
        ``"record"`` keeps each night in one part, so that no patient is in two, and deals the
        apnea patients (a), borderline ones (b) and controls (c) evenly. ``"minute"`` divides the
        minutes at random: then minutes of one night are in all parts.
    fold, folds
        The nights or minutes are dealt, by seed, into so many hands, and hand `fold` is the test.
        As many folds as nights leave one record out; 0 folds keep no test part.
    valid
        Share of all nights or minutes that is held out of what is left, in [0, 1).
    remove
        How many minutes without apnea are left out, at random, to balance the classes. Divided by
        record, whole nights are chosen and tested on, and only training nights lose minutes.
    neighbours
        Minutes before and after the labelled one that belong to a sample of intervals.
    normalise
        ``"none"``, or mean 0 and standard deviation 1 of each ``"minute"`` (with its neighbours)
        or each ``"night"``, which needs no labels.
    records
        The nights to read. x01 to x35 need the file `event-2-answers`.
    database
        Name of the folder. Another one than the default, such as one that `synthetic_ecg.write`
        filled, is checked by its own list alone.
    seed
        Of the parts, of what is removed, and of what is made up.

    Returns
    -------
    Split
        Each part has in `groups` the night of each sample, as a number into ``split.groups``.

    Raises
    ------
    ValueError
        If an argument is impossible, or every night damaged.
    DataUnavailable
        If every night is missing.

    Warns
    -----
    UserWarning
        Names the nights that are missing or damaged, which are left out; so does ``split.note``.
    """
    _check(source, by, fold, folds, valid, neighbours, normalise, records)
    found, left = _nights(source, folder, neighbours, records, database, seed)
    scaled = [_normalised(minutes, normalise) for _, minutes in found]
    labels = np.concatenate([night.labels[: len(x)] for (night, _), x in zip(found, scaled)])
    group = np.repeat(np.arange(len(found)), [len(x) for x in scaled])
    # two sources, so that what is removed does not change the parts
    rng, removing = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    kept = np.ones(len(labels), dtype=bool)
    kept[removing.choice(_removable(labels, remove), remove, replace=False)] = False
    names = tuple(night.record for night, _ in found)
    if by == "record":
        part = _by_record(names, fold, folds, valid, rng)[group]
        kept |= part > 0
    else:
        part = _by_minute(kept, fold, folds, valid, rng)
    train, chosen, tested = (
        _part(scaled, labels, group, kept & (part == number)) for number in range(3)
    )
    what = {"rr": "nights, RR intervals", "synthetic": "made-up nights, RR intervals"}
    what |= {"ecg": "nights, ECG", "rhythm": "nights, ECG drawn over real beats"}
    note = (
        f"{len(names)} {what[source]}, divided by {by}, fold {fold} of {folds} with seed {seed}; "
        f"{remove:,} minutes without apnea left out; normalised by: {normalise}"
    )
    return Split(train, chosen, tested, 2, f"apnea_ecg.{source}", note + left, names)


def write_made_up(folder: Path, records: Sequence[str] = LEARNING, seed: int = 0) -> None:
    """Write made-up nights as a WFDB database with its list of checksums, to be read as one."""
    import hashlib

    for record in records:
        number = LEARNING.index(record)
        synthetic_ecg.write(
            folder, synthetic_ecg.draw_night(record, number, seed=seed), seed=1000 * seed + number
        )
    (folder / "RECORDS").write_text("\n".join(records) + "\n", encoding="utf-8")
    paths = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS.txt")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.name}\n" for path in paths]
    (folder / "SHA256SUMS.txt").write_text("".join(sums), encoding="utf-8")


def _check(
    source: str,
    by: str,
    fold: int,
    folds: int,
    valid: float,
    neighbours: int,
    normalise: str,
    records: Sequence[str],
) -> None:
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, not {source!r}")
    if by not in ("record", "minute"):
        raise ValueError(f"by must be 'record' or 'minute', not {by!r}")
    if normalise not in ("none", "minute", "night"):
        raise ValueError(f"normalise must be 'none', 'minute' or 'night', not {normalise!r}")
    tested = 1 / folds if folds else 0.0
    if folds < 0 or not 0 <= fold < max(folds, 1) or neighbours < 0:
        raise ValueError(
            f"fold counts from 0 below folds, and neighbours from 0, not fold={fold}, "
            f"folds={folds}, neighbours={neighbours}"
        )
    if not 0 <= valid < 1 - tested:
        raise ValueError(
            f"valid={valid} and a test part of 1/{folds} leave nothing to train on"
            if valid >= 0
            else f"valid is a share, not {valid}"
        )
    known = LEARNING if source == "synthetic" else (*LEARNING, *apnea_records.TESTING)
    unknown = [record for record in records if record not in known]
    if unknown or not records or len(set(records)) < len(records):
        raise ValueError(
            f"records must be distinct names from {known[0]} to {known[-1]}, not "
            f"{unknown or list(records)}"
        )


def _nights(
    source: str,
    folder: Folder,
    neighbours: int,
    records: Sequence[str],
    database: str,
    seed: int,
) -> tuple[list[tuple[Night, np.ndarray]], str]:
    """Return every night that can be read with its minutes, and a sentence about the others."""
    if source == "synthetic":
        drawn = [
            synthetic_ecg.draw_night(record, LEARNING.index(record), seed=seed)
            for record in records
        ]
        return [(night, apnea_records.intervals(night, neighbours)) for night in drawn], ""
    sums = apnea_records.checksums(database, folder)
    makers: dict[str, Minutes] = {
        "rr": lambda night: apnea_records.intervals(night, neighbours),
        "rhythm": lambda night: synthetic_ecg.rhythm(night, sums, seed),
        "ecg": lambda night: apnea_records.ecg(night, database, folder, sums),
    }
    found, failures = [], {}
    for record in records:
        try:
            night = apnea_records.read(record, database, folder, sums)
            found.append((night, makers[source](night)))
        except (DataUnavailable, ValueError, KeyError) as error:
            failures[record] = error
    if not found:
        raise next(iter(failures.values()))
    if not failures:
        return found, ""
    left = f"{len(failures)} nights left out: {', '.join(failures)}"
    reason = next(iter(failures.values()))
    warnings.warn(f"{database}: {left}. The first because: {reason}", stacklevel=3)
    return found, f"; {left}"


def _normalised(minutes: np.ndarray, normalise: str) -> np.ndarray:
    """Leave 16-bit minutes as they are, for they are scaled when they are taken."""
    if normalise == "none":
        return minutes
    axis = 1 if normalise == "minute" else None
    x = minutes.astype(np.float64)
    spread = x.std(axis=axis, keepdims=True)
    return (x - x.mean(axis=axis, keepdims=True)) / np.where(spread > 0, spread, 1)


def _part(
    nights: list[np.ndarray],
    labels: Int64[np.ndarray, "minutes"],
    group: Int64[np.ndarray, "minutes"],
    which: Bool[np.ndarray, "minutes"],
) -> Samples:
    rows, start = [], 0
    for minutes in nights:
        taken = minutes[which[start : start + len(minutes)]]
        scale = apnea_records.UNITS if minutes.dtype == np.int16 else 1
        rows.append((taken / scale).round(4).astype(np.float32))
        start += len(minutes)
    x = torch.from_numpy(np.concatenate(rows))
    return Samples(x, torch.from_numpy(labels[which]), torch.from_numpy(group[which]))


def _removable(labels: np.ndarray, remove: int) -> np.ndarray:
    quiet = np.flatnonzero(labels == 0)
    if not 0 <= remove <= len(quiet):
        raise ValueError(f"{remove} of {len(quiet):,} minutes without apnea cannot be left out")
    return quiet


def _by_record(
    records: Sequence[str], fold: int, folds: int, valid: float, rng: np.random.Generator
) -> Int64[np.ndarray, "records"]:
    """Return the part of each record: 0 to train, 1 to choose, 2 to test."""
    if folds > len(records):
        raise ValueError(f"{len(records)} nights cannot be dealt into {folds} folds")
    kinds = sorted({record[0] for record in records})
    order = np.concatenate(
        [rng.permutation([i for i, r in enumerate(records) if r[0] == kind]) for kind in kinds]
    ).astype(np.int64)
    part = np.zeros(len(records), dtype=np.int64)
    if folds:
        part[order[fold::folds]] = 2
    rest = order[part[order] == 0]
    chosen = round(valid * len(records))
    # spread over the kinds, as the folds are
    part[rest[np.arange(chosen) * len(rest) // max(chosen, 1)]] = 1
    return part


def _by_minute(
    kept: np.ndarray, fold: int, folds: int, valid: float, rng: np.random.Generator
) -> Int64[np.ndarray, "minutes"]:
    order = rng.permutation(len(kept))
    order = order[kept[order]]
    part = np.zeros(len(kept), dtype=np.int64)
    if folds:
        hand = np.array_split(order, folds)[fold]
        part[hand] = 2
    rest = order[part[order] == 0]
    part[rest[: round(valid * len(order))]] = 1
    return part
