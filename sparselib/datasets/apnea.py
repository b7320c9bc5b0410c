"""Minutes of sleep with and without apnea: the Apnea-ECG database, and synthetic nights."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int64

from . import apnea_records, synthetic_ecg
from .apnea_records import LEARNING, TESTING, Night
from .files import DataUnavailable, Folder
from .split import Samples, Split

SOURCES = ("ecg", "rhythm", "rr", "synthetic")
CONTENT = {
    "ecg": "nights, ECG",
    "rhythm": "nights, ECG drawn over real beats",
    "rr": "nights, RR intervals",
    "synthetic": "synthetic nights, RR intervals",
}
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
    spoiled: float = 1.0,
    neighbors: int = 1,
    normalize: str = "none",
    records: Sequence[str] | None = None,
    database: str = "apnea-ecg",
    seed: int = 0,
) -> Split:
    """Return minutes of sleep; class 1 is apnea.

    The Apnea-ECG database (Penzel and others, 2000) holds 35 labeled nights of 17,045 minutes.
    Vanwinsen and others (2023) read its ECG, 6000 points per minute, split the minutes at random
    (``by="minute", remove=4000, valid=0.0``) and do not mention normalization.

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
        ``"record"`` keeps each night in one part, so that no patient is in two, and distributes
        the apnea patients (a), borderline ones (b) and controls (c) evenly. ``"minute"`` splits
        the minutes at random: then minutes of one night are in all parts. ``"official"`` is the
        database's own split: the learning set a, b, c trains and the test set x01 to x35 tests.
    fold, folds
        The nights or minutes are split, by seed, into so many folds, and number `fold` is the test.
        As many folds as nights leave one record out; 0 folds keep no test part. With
        ``by="official"`` the test part is fixed, and `fold` must be 0.
    valid
        Share of all nights or minutes, with ``by="official"`` of the learning nights, that is held
        out for validation, in [0, 1).
    remove
        How many minutes without apnea are left out, at random, to balance the classes. Where nights
        are whole, those of validation and test are, and only training nights lose minutes.
    spoiled
        Training minutes are left out if a larger share of the intervals between their beats is not
        that of a heart (`apnea_records.spoiled`); 1 keeps all. Those that choose and test stay.
        Vanwinsen and others (2023, Section 6.2) propose it: some of the ECG is noisy.
    neighbors
        Minutes before and after the labeled one that belong to a sample of intervals.
    normalize
        ``"none"``, or mean 0 and standard deviation 1 of each ``"minute"`` (with its neighbors)
        or each ``"night"``, which needs no labels.
    records
        The nights to read: by default the 35 of the learning set, with ``by="official"`` all 70.
        x01 to x35 need the file `event-2-answers` in the folder of the database. With
        ``by="official"`` and none but these, nothing trains and all are tested.
    database
        Name of the folder. Another one than the default, such as one that `synthetic_ecg.write`
        filled, is checked by its own list alone.
    seed
        Of the parts, of what is removed, and of what is synthetic.

    Returns
    -------
    Split
        Each part has in `groups` the night of each sample, as a number into ``split.groups``.

    Raises
    ------
    ValueError
        If an argument is impossible, or every night damaged.
    DataUnavailable
        If every night is missing; with ``by="official"``, every night of one of its two sets.

    Warns
    -----
    UserWarning
        Names the nights that are missing or damaged, which are left out; so does ``split.note``.
    """
    if records is None:
        records = (*LEARNING, *TESTING) if by == "official" else LEARNING
    _check(
        source, by, fold, folds, valid, spoiled, neighbors, normalize, records
    )
    sets = (LEARNING, TESTING) if by == "official" else ((*LEARNING, *TESTING),)
    found, left = _nights(
        source, folder, neighbors, records, database, seed, sets
    )
    scaled = [_normalized(minutes, normalize) for _, minutes in found]
    labels = np.concatenate(
        [night.labels[: len(x)] for (night, _), x in zip(found, scaled)]
    )
    group = np.repeat(np.arange(len(found)), [len(x) for x in scaled])
    # two sources, so that what is removed does not change the parts
    rng = np.random.default_rng([seed, 0])
    removing = np.random.default_rng([seed, 1])
    kept = np.ones(len(labels), dtype=bool)
    kept[removing.choice(_removable(labels, remove), remove, replace=False)] = (
        False
    )
    names = tuple(night.record for night, _ in found)
    if by == "minute":
        part = _by_minute(kept, fold, folds, valid, rng)
    else:
        choose = _by_set if by == "official" else _by_record
        part = choose(names, fold, folds, valid, rng)[group]
        kept |= part > 0
    lost = np.concatenate(
        [
            apnea_records.spoiled(night)[: len(x)] > spoiled
            for (night, _), x in zip(found, scaled)
        ]
    )
    noisy = kept & lost & (part == 0)
    train, chosen, tested = (
        _part(scaled, labels, group, kept & ~noisy & (part == number))
        for number in range(3)
    )
    split = f"split by {by}, fold {fold} of {folds} with seed {seed}"
    if by == "official":
        tests = len(set(names) & set(TESTING))
        split = f"the database's own split, {len(names) - tests} to train and {tests} to test"
    note = (
        f"{len(names)} {CONTENT[source]}, {split}; "
        f"{remove:,} minutes without apnea left out; normalized by: {normalize}"
    )
    if spoiled < 1:
        note += f"; {noisy.sum():,} noisy minutes left out"
    return Split(
        train, chosen, tested, 2, f"apnea_ecg.{source}", note + left, names
    )


def write_synthetic(
    folder: Path, records: Sequence[str] = LEARNING, seed: int = 0
) -> None:
    """Write synthetic nights as a WFDB database with its list of checksums, to be read as one."""
    import hashlib

    for record in records:
        number = LEARNING.index(record)
        synthetic_ecg.write(
            folder,
            synthetic_ecg.draw_night(record, number, seed=seed),
            seed=1000 * seed + number,
        )
    (folder / "RECORDS").write_text("\n".join(records) + "\n", encoding="utf-8")
    paths = sorted(
        path for path in folder.iterdir() if path.name != "SHA256SUMS.txt"
    )
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.name}\n"
        for path in paths
    ]
    (folder / "SHA256SUMS.txt").write_text("".join(sums), encoding="utf-8")


def _check(
    source: str,
    by: str,
    fold: int,
    folds: int,
    valid: float,
    spoiled: float,
    neighbors: int,
    normalize: str,
    records: Sequence[str],
) -> None:
    if source not in SOURCES:
        raise ValueError(
            f"source must be one of {', '.join(SOURCES)}, not {source!r}"
        )
    if by not in ("record", "minute", "official"):
        raise ValueError(
            f"by must be 'record' or 'minute' or 'official', not {by!r}"
        )
    if by == "official" and source == "synthetic":
        raise ValueError(
            "synthetic nights have no official split: pass source='ecg' or 'rr'"
        )
    if by == "official" and fold:
        raise ValueError(
            f"the official split has one test part, so fold must be 0, not {fold}"
        )
    if normalize not in ("none", "minute", "night"):
        raise ValueError(
            f"normalize must be 'none', 'minute' or 'night', not {normalize!r}"
        )
    tested = 1 / folds if folds and by != "official" else 0.0
    if folds < 0 or not 0 <= fold < max(folds, 1) or neighbors < 0:
        raise ValueError(
            f"fold counts from 0 below folds, and neighbors from 0, not fold={fold}, "
            f"folds={folds}, neighbors={neighbors}"
        )
    if not 0 <= valid < 1 - tested:
        raise ValueError(
            f"valid={valid} and a test part of {tested:.3g} leave nothing to train on"
            if valid >= 0
            else f"valid is a share, not {valid}"
        )
    if not 0 <= spoiled <= 1:
        raise ValueError(f"spoiled is a share from 0 to 1, not {spoiled}")
    known = LEARNING if source == "synthetic" else (*LEARNING, *TESTING)
    unknown = [record for record in records if record not in known]
    if unknown or not records or len(set(records)) < len(records):
        raise ValueError(
            f"records must be distinct names from {known[0]} to {known[-1]}, not "
            f"{unknown or list(records)}"
        )


def _nights(
    source: str,
    folder: Folder,
    neighbors: int,
    records: Sequence[str],
    database: str,
    seed: int,
    sets: Sequence[Sequence[str]],
) -> tuple[list[tuple[Night, np.ndarray]], str]:
    """Return every night that can be read with its minutes, and a sentence about the others.

    Of each of the sets, at least one of the nights asked for must be found.
    """
    if source == "synthetic":
        drawn = [
            synthetic_ecg.draw_night(record, LEARNING.index(record), seed=seed)
            for record in records
        ]
        return [
            (night, apnea_records.intervals(night, neighbors))
            for night in drawn
        ], ""
    sums = apnea_records.checksums(database, folder)
    makers: dict[str, Minutes] = {
        "rr": lambda night: apnea_records.intervals(night, neighbors),
        "rhythm": lambda night: synthetic_ecg.rhythm(night, sums, seed),
        "ecg": lambda night: apnea_records.ecg(night, database, folder, sums),
    }
    found = []
    failures: dict[str, Exception] = {}
    for record in records:
        try:
            night = apnea_records.read(record, database, folder, sums)
            found.append((night, makers[source](night)))
        except (DataUnavailable, ValueError) as error:
            failures[record] = error
    for names in sets:
        wanted = [record for record in records if record in names]
        if wanted and set(wanted) <= set(failures):
            raise failures[wanted[0]]
    if not failures:
        return found, ""
    left = f"{len(failures)} nights left out: {', '.join(failures)}"
    reason = next(iter(failures.values()))
    warnings.warn(
        f"{database}: {left}. The first because: {reason}", stacklevel=3
    )
    return found, f"; {left}"


def _normalized(minutes: np.ndarray, normalize: str) -> np.ndarray:
    """Leave 16-bit minutes as they are, for they are scaled when they are taken."""
    if normalize == "none":
        return minutes
    axis = 1 if normalize == "minute" else None
    x = minutes.astype(np.float64)
    spread = x.std(axis=axis, keepdims=True)
    return (x - x.mean(axis=axis, keepdims=True)) / np.where(
        spread > 0, spread, 1
    )


def _part(
    nights: list[np.ndarray],
    labels: Int64[np.ndarray, "minutes"],
    group: Int64[np.ndarray, "minutes"],
    which: Bool[np.ndarray, "minutes"],
) -> Samples:
    rows = []
    start = 0
    for minutes in nights:
        taken = minutes[which[start : start + len(minutes)]]
        scale = apnea_records.UNITS if minutes.dtype == np.int16 else 1
        rows.append((taken / scale).round(4).astype(np.float32))
        start += len(minutes)
    x = torch.from_numpy(np.concatenate(rows))
    return Samples(
        x, torch.from_numpy(labels[which]), torch.from_numpy(group[which])
    )


def _removable(labels: np.ndarray, remove: int) -> np.ndarray:
    quiet = np.flatnonzero(labels == 0)
    if not 0 <= remove <= len(quiet):
        raise ValueError(
            f"{remove} of {len(quiet):,} minutes without apnea cannot be left out"
        )
    return quiet


def _by_record(
    records: Sequence[str],
    fold: int,
    folds: int,
    valid: float,
    rng: np.random.Generator,
) -> Int64[np.ndarray, "records"]:
    """Return the part of each record: 0 to train, 1 to choose, 2 to test."""
    if folds > len(records):
        raise ValueError(
            f"{len(records)} nights cannot be split into {folds} folds"
        )
    kinds = sorted({record[0] for record in records})
    order = np.concatenate(
        [
            rng.permutation([i for i, r in enumerate(records) if r[0] == kind])
            for kind in kinds
        ]
    ).astype(np.int64)
    part = np.zeros(len(records), dtype=np.int64)
    if folds:
        part[order[fold::folds]] = 2
    rest = order[part[order] == 0]
    chosen = round(valid * len(records))
    # spread over the kinds, as the folds are
    part[rest[np.arange(chosen) * len(rest) // max(chosen, 1)]] = 1
    return part


def _by_set(
    records: Sequence[str],
    fold: int,
    folds: int,
    valid: float,
    rng: np.random.Generator,
) -> Int64[np.ndarray, "records"]:
    """Return the part of each record by the set that it belongs to; folds have no meaning here."""
    learning = [
        index for index, record in enumerate(records) if record in LEARNING
    ]
    part = np.full(len(records), 2, dtype=np.int64)
    if learning:
        part[learning] = _by_record(
            [records[index] for index in learning], 0, 0, valid, rng
        )
    return part


def _by_minute(
    kept: np.ndarray,
    fold: int,
    folds: int,
    valid: float,
    rng: np.random.Generator,
) -> Int64[np.ndarray, "minutes"]:
    order = rng.permutation(len(kept))
    order = order[kept[order]]
    part = np.zeros(len(kept), dtype=np.int64)
    if folds:
        part[np.array_split(order, folds)[fold]] = 2
    rest = order[part[order] == 0]
    part[rest[: round(valid * len(order))]] = 1
    return part
