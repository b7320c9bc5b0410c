"""The nights of the Apnea-ECG database (Penzel and others, 2000): beats, labels, waveforms."""

import hashlib
import re
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int16, Int64

from sparselib import atomic

from .files import Folder, derived, find, locate, read_checksums

LEARNING = (
    *(f"a{number:02}" for number in range(1, 21)),
    *(f"b{number:02}" for number in range(1, 6)),
    *(f"c{number:02}" for number in range(1, 11)),
)
TESTING = tuple(f"x{number:02}" for number in range(1, 36))
ANSWERS = "event-2-answers"
SYMBOLS = {1: "N", 8: "A"}  # codes of the MIT format
SKIP = 59
FIELDS = (60, 61, 62)
TEXT = 63
LIST = "SHA256SUMS.txt"
# SHA-256 of the sorted lines of the list of apnea-ecg
OFFICIAL_LIST = (
    "4d27cefb320b0891c3d348ae3cd7eb94319166c5f57ba81fcbaa188b5a768cbd"
)
SAMPLES = 100  # per second of a recording
RATE = 4  # points per second at which RR intervals are read
UNITS = 200  # steps of the converter per millivolt
POINTS = 60 * SAMPLES  # of an ECG minute
# minutes at the end of a recording that no label is of: up to 13 in the learning set
UNLABELED = 30


class Night(NamedTuple):
    """A recording: its name, the sample numbers of its beats, and a label for every minute."""

    record: str
    beats: Int64[np.ndarray, "beats"]
    labels: Int64[np.ndarray, "minutes"]


def checksums(database: str, folder: Folder) -> dict[str, str]:
    """Read the database's own list, by file, in any spelling that `sha256sum` reads.

    Raises
    ------
    ValueError
        If a line is no checksum, or the list of apnea-ecg is not the official one.
    DataUnavailable
        If the list lies nowhere and cannot be fetched.
    """
    path = locate(database, LIST, folder) or find(database, LIST, folder)
    sums = read_checksums(path)
    if database == "apnea-ecg":
        content = "".join(
            f"{digest} {name}\n" for name, digest in sorted(sums.items())
        )
        found = hashlib.sha256(content.encode()).hexdigest()
        if found != OFFICIAL_LIST:
            raise ValueError(
                f"{path} is refused: it is not the list of checksums of apnea-ecg 1.0.0, so it is "
                f"damaged, cut short or another version. Move it away to have it fetched again, or "
                f"pass database= the name of a folder with a list of its own."
            )
    return sums


def read(
    record: str, database: str, folder: Folder, sums: dict[str, str]
) -> Night:
    """Read beats and labels of one night.

    Labels are those of `.apn`; those of x01 to x35 are in the official file `event-2-answers`,
    which has to be placed in the folder yourself.

    Raises
    ------
    ValueError
        If a file is damaged.
    DataUnavailable
        If a file lies nowhere and cannot be fetched.
    """
    labels = _answer(record, database, folder) if record in TESTING else None
    if labels is None:
        labels = _labels(_file(record, "apn", database, folder, sums))
    beats = _file(record, "qrs", database, folder, sums)

    def decode() -> np.ndarray:
        found = _marks(beats)
        return np.array(found.sample, dtype=np.int64)[
            np.array(found.symbol) == "N"
        ]

    samples = np.array(cached(f"{sums[beats.name][:16]}-beats.npy", decode))
    if (np.diff(samples) <= 0).any():
        late = int((np.diff(samples) <= 0).argmax()) + 1
        raise ValueError(
            f"{beats} is refused: beat {late} does not follow the one before."
        )
    minutes = int(samples[-1]) // POINTS + 1 if len(samples) else 0
    # the last label may be of a minute that has no beat any more
    if len(labels) > minutes + 2:
        raise ValueError(
            f"{record} is refused: it has labels of {len(labels)} minutes, but {beats.name} has "
            f"beats in {minutes}, so one of them is of another night."
        )
    if len(labels) < minutes - UNLABELED:
        raise ValueError(
            f"{record} is refused: it has labels of {len(labels)} minutes, but {beats.name} has "
            f"beats in {minutes}, so the labels are cut short or of another night."
        )
    return Night(record, samples, labels)


def _answer(
    record: str, database: str, folder: Folder
) -> Int64[np.ndarray, "minutes"]:
    present = (
        locate(database, name, folder) for name in (ANSWERS, f"{ANSWERS}.txt")
    )
    path = next(filter(None, present), None) or find(database, ANSWERS, folder)
    known = answers(path)
    if record not in known:
        raise ValueError(
            f"{path} holds no labels of {record}, but of {', '.join(known)}."
        )
    return known[record]


def answers(path: Path) -> dict[str, Int64[np.ndarray, "minutes"]]:
    """Read the labels of the test nights: a name, then a line of 60 letters for each hour.

    The last hour of a night has as many letters as it has minutes.

    Raises
    ------
    ValueError
        If a line is neither, comes twice or out of order, or the last one has no end.
    """
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if not text.endswith("\n"):
        raise ValueError(
            f"{path} is refused: its last line has no end, so it is cut short."
        )
    found: dict[str, list[int]] = {}
    record = ""
    for number, line in enumerate(text.splitlines(), 1):
        hour = re.fullmatch(r"(\d+)\s+([AN]{1,60})", line.strip().upper())
        if (
            line.strip().lower() in TESTING
            and line.strip().lower() not in found
        ):
            record = line.strip().lower()
            found[record] = []
        elif hour and record and int(hour[1]) * 60 == len(found[record]):
            found[record] += [letter == "A" for letter in hour[2]]
        elif line.strip():
            raise ValueError(
                f"{path} is refused: line {number} is neither a record from x01 to x35 nor its "
                f"next hour with 60 letters A and N, fewer in the last, but "
                f"{line.strip()[:40]!r}."
            )
    return {
        name: np.array(labels, dtype=np.int64) for name, labels in found.items()
    }


def ecg(
    night: Night, database: str, folder: Folder, sums: dict[str, str]
) -> Int16[np.ndarray, "minutes points"]:
    """Return the whole minutes of the recorded ECG, 200 steps per millivolt, mapped into memory."""
    header = _file(night.record, "hea", database, folder, sums)
    signal = _file(night.record, "dat", database, folder, sums)

    def decode() -> np.ndarray:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import wfdb

                found = wfdb.rdrecord(
                    str(header.with_suffix("")), channels=[0], physical=False
                )
        except Exception as error:
            raise ValueError(
                f"{signal} is refused: it cannot be read ({error})."
            ) from error
        if found.fs != SAMPLES or found.adc_gain[0] != UNITS:
            raise ValueError(
                f"{header} is refused: it states {found.fs} samples per second and "
                f"{found.adc_gain[0]} steps per millivolt, not {SAMPLES} and {UNITS}."
            )
        return whole_minutes(
            found.d_signal[:, 0] - found.baseline[0], len(night.labels)
        )

    return cached(f"{sums[signal.name][:16]}-ecg.npy", decode)


def intervals(
    night: Night, neighbors: int
) -> Float64[np.ndarray, "minutes points"]:
    """Return RR intervals in seconds at 4 Hz, of every minute and its neighbors.

    Raises
    ------
    ValueError
        If no interval is that of a heart.
    """
    minutes = len(night.labels)
    each = 60 * RATE
    points = np.arange(-neighbors * each, (minutes + neighbors) * each)
    try:
        series = resampled(night.beats, points / RATE)
    except ValueError as error:
        raise ValueError(f"{night.record} is refused: {error}.") from error
    wide = np.lib.stride_tricks.sliding_window_view(
        series, (2 * neighbors + 1) * each
    )
    return np.round(wide[::each][:minutes], 4)


def resampled(
    beats: Int64[np.ndarray, "beats"], times: Float64[np.ndarray, "points"]
) -> Float64[np.ndarray, "points"]:
    """Interpolate RR intervals linearly at some times, in seconds, without those of false beats.

    An interval counts if it lies in 0.3 to 2 seconds and within 30 % of the median of the nine
    around it; a beat that was missed or seen twice spoils such intervals. Gaps are bridged.

    Parameters
    ----------
    beats
        Sample numbers, at 100 per second.
    times
        Where to read; before the first and after the last interval the nearest holds.

    Raises
    ------
    ValueError
        If the beats do not ascend, or no interval counts.
    """
    between = np.diff(beats) / SAMPLES
    if (between <= 0).any():
        raise ValueError(
            f"beat {int((between <= 0).argmax()) + 1} does not follow the one before"
        )
    sound = _is_of_a_heart(between)
    if not sound.any():
        raise ValueError(
            f"none of {len(between)} intervals between beats is that of a heart"
        )
    return np.interp(times, beats[1:][sound] / SAMPLES, between[sound])


def spoiled(night: Night) -> Float64[np.ndarray, "minutes"]:
    """Return the share of each minute's intervals between beats that do not count (`resampled`).

    An interval is of the minute in which it ends; a minute without any is spoiled as a whole.
    """
    minutes = len(night.labels)
    counts = _is_of_a_heart(np.diff(night.beats) / SAMPLES)
    ends = night.beats[1:] // POINTS
    inside = ends < minutes
    every = np.bincount(ends[inside], minlength=minutes)
    sound = np.bincount(ends[inside & counts], minlength=minutes)
    return 1 - sound / np.maximum(every, 1)


def _is_of_a_heart(between: np.ndarray) -> Bool[np.ndarray, "intervals"]:
    around = np.pad(between, 4, mode="edge") if len(between) else np.zeros(8)
    median = np.median(
        np.lib.stride_tricks.sliding_window_view(around, 9), axis=1
    )
    median = median[: len(between)]
    in_range = (between >= 0.3) & (between <= 2.0)
    return in_range & (np.abs(between - median) <= 0.3 * median)


def _file(
    record: str, kind: str, database: str, folder: Folder, sums: dict[str, str]
) -> Path:
    name = f"{record}.{kind}"
    if name not in sums:
        raise ValueError(f"{database}/SHA256SUMS.txt does not list {name}.")
    return find(database, name, folder, sha256=sums[name])


def _labels(path: Path) -> Int64[np.ndarray, "minutes"]:
    """Read one mark per minute: A if apnea is in progress at its beginning, N if not."""
    marks = _marks(path)
    samples = np.asarray(marks.sample)
    symbols = np.array(marks.symbol)
    if not np.array_equal(samples, np.arange(len(samples)) * POINTS):
        raise ValueError(
            f"{path} is refused: its marks are not one per minute from the start."
        )
    if not np.isin(symbols, ["A", "N"]).all():
        raise ValueError(
            f"{path} is refused: it holds the labels {sorted(set(symbols))}, not A, N."
        )
    return (symbols == "A").astype(np.int64)


class Marks(NamedTuple):
    """Annotations: sample numbers, and a symbol for each."""

    sample: list[int]
    symbol: list[str]


def _marks(path: Path) -> Marks:
    """Read annotations in the MIT format: 16-bit words, six bits of code over ten of an interval.

    wfdb is not asked, for it never returns from some damaged files.
    """
    data = path.read_bytes()
    words = (
        np.frombuffer(data[: len(data) // 2 * 2], "<u2").astype(int).tolist()
    )
    marks = Marks([], [])
    place = 0
    sample = 0
    while place + 1 <= len(words):
        code, interval = divmod(words[place], 1024)
        place += 1
        if code == 0 and interval == 0:
            return marks
        if code == SKIP:
            long = sum(
                word << shift
                for word, shift in zip(words[place : place + 2], (16, 0))
            )
            sample += long - 2**32 if long >= 2**31 else long
            place += 2
        elif code == TEXT:
            # a comment at the start states the rate and is no mark
            if data[2 * place : 2 * place + 3] == b"## " and marks.sample:
                marks.sample.pop()
                marks.symbol.pop()
            place += (interval + 1) // 2
        elif code not in FIELDS:
            sample += interval
            if code == 0:  # moves on, and marks nothing
                continue
            marks.sample.append(sample)
            marks.symbol.append(SYMBOLS.get(code, f"code {code}"))
    raise ValueError(
        f"{path} is refused: it has no end mark, so it is cut short or damaged."
    )


def whole_minutes(
    signal: np.ndarray, minutes: int
) -> Int16[np.ndarray, "minutes points"]:
    """Cut into whole minutes; what lies past the last label or fills no minute is left."""
    kept = min(minutes, len(signal) // POINTS)
    whole = signal[: kept * POINTS].clip(-32768, 32767)
    return whole.astype(np.int16).reshape(kept, POINTS)


def cached(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Map an array into memory that was computed once from files of known checksums.

    A file that is damaged or empty is made anew.
    """
    path = derived() / "apnea-ecg" / name
    if not _is_sound(path):
        array = make()
        atomic.write(path, lambda part: _save(part, array))
    return np.load(path, mmap_mode="r")


def _save(path: Path, array: np.ndarray) -> None:
    """Write an array and, behind it, where no reader looks, the checksum of the file."""
    np.save(path, array)
    checksum = zlib.crc32(path.read_bytes())
    with path.open("ab") as file:
        file.write(checksum.to_bytes(4, "big"))


def _is_sound(path: Path) -> bool:
    if not path.is_file():
        return False
    content = path.read_bytes()
    return len(content) > 4 and zlib.crc32(content[:-4]) == int.from_bytes(
        content[-4:], "big"
    )
