"""Signals of PhysioNet, read with `wfdb` and cut into windows."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .files import DataUnavailable, Folder, find
from .split import Samples, Split

Found = TypeVar("Found")

# databases of Bizopoulos' Table I whose record can be identified by matching the table's numbers
RECORDS = {
    "bidmc": "bidmc/bidmc01",
    "ctu-uhb-ctgdb": "ctu-uhb-ctgdb/1001",
    "emgdb": "emgdb/emg_healthy",
    "mitdb": "mitdb/100",
}

# bytes per sample of WFDB's formats; those compressed by FLAC have no smallest number
SMALLEST = {
    **{"8": 1, "80": 1, "16": 2, "61": 2, "160": 2, "24": 3, "32": 4},
    **{"212": 1.5, "310": 4 / 3, "311": 4 / 3},
}
COMPRESSED = ("508", "516", "524")


def physionet(
    record: str = "mitdb/100",
    folder: Folder = None,
    channel: int = 0,
    windows: tuple[int, int, int] = (6, 2, 4),
    length: int = 1000,
) -> Split:
    """Return the beginning of one signal of PhysioNet (Goldberger and others, 2000) in windows.

    Bizopoulos and Koutsouris (Section IV-A) cut 12,000 samples into 12 windows of 1,000: 6 to
    train, 2 to choose on and 4 to test, in order of time. Each window has its mean subtracted and
    is divided by its standard deviation. There are no labels: every `y` is 0. A signal with several
    samples per frame, as in drivedb, is read at its own rate. The segments of a record, each of
    which has its own header and checksums, follow each other; where one lacks the signal is a gap.

    Parameters
    ----------
    record
        ``"database/record"``; `RECORDS` lists those of the paper that are known.
    folder
        Where `physionet/<database>/<record>.hea` and its signal file lie; see `files.folders` for
        the default. They are not fetched.
    channel
        Which signal of the record, counted from 0.
    windows
        How many windows train, choose and test.
    length
        Samples per window.

    Raises
    ------
    ValueError
        If a file is damaged or cut short, the channel is none of the record's, the record is too
        short, or a window holds gaps or never changes; if segments of a record differ in rate or
        are other than announced, or a header holds a name that WFDB does not allow.
    DataUnavailable
        If a file lies nowhere.
    """
    path = find("physionet", f"{record}.hea", folder)
    signal, name, rate = _signal(path, channel)
    needed = sum(windows) * length
    if len(signal) < needed:
        raise ValueError(
            f"{path} is refused: its signal {name} has {len(signal):,} samples, but "
            f"{sum(windows)} windows of {length:,} need {needed:,}. Ask for fewer windows."
        )
    if np.isnan(signal[:needed]).any():
        gap = int(np.isnan(signal).argmax())
        raise ValueError(
            f"{path} is refused: its signal {name} has a gap at sample {gap:,}. "
            f"Choose another channel or record."
        )
    note = f"signal {name} of PhysioNet's {record}, windows of {length:,} samples from the start"
    if rate:
        note = f"{note}, {rate:g} samples per second"
    return _split(
        signal[:needed],
        path,
        name,
        f"physionet/{record}",
        note,
        windows,
        length,
    )


def apnea_excerpt(
    part: str = "a01_from360000",
    folder: Folder = None,
    windows: tuple[int, int, int] = (6, 2, 4),
    length: int = 1000,
) -> Split:
    """Return windows of an excerpt of apnea-ecg (Penzel and others, 2000), as `physionet` does.

    The record itself was not available; the paper's samples are others, from a record's start.

    Parameters
    ----------
    part
        Name of an array in the file: the record and its first sample.
    folder
        Where `apnea-ecg-minutes/ecg_excerpts.npz` lies; see `files.folders` for the default. Not
        fetched.
    windows
        How many windows train, choose and test.
    length
        Samples per window.

    Raises
    ------
    ValueError
        If there is no such array, it is too short, or a window never changes.
    DataUnavailable
        If the file lies nowhere.
    """
    path = find("apnea-ecg-minutes", "ecg_excerpts.npz", folder)
    arrays = _arrays(path)
    needed = sum(windows) * length
    if part not in arrays or arrays[part].size < needed:
        long = [key for key, array in arrays.items() if array.size >= needed]
        raise ValueError(
            f"{path} has no {part!r} of {needed:,} samples; long enough are "
            f"{', '.join(long) or 'none'}."
        )
    signal = arrays[part][:needed]
    note = f"ECG of apnea-ecg, {part}, windows of {length:,} samples"
    return _split(
        signal, path, "ECG", f"apnea-ecg/{part}", note, windows, length
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Read every array of an npz file, whose parts have checksums of their own."""

    def read_all() -> dict[str, np.ndarray]:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays}

    arrays = _read(path, read_all)
    for key, array in arrays.items():
        if array.ndim != 1 or array.dtype != np.int16:
            raise ValueError(
                f"{path} is refused: its array {key} is {array.dtype} of shape {array.shape}, not "
                f"one int16 per sample."
            )
    return arrays


def _split(
    signal: np.ndarray,
    path: Path,
    name: str,
    title: str,
    note: str,
    windows: tuple[int, int, int],
    length: int,
) -> Split:
    cut = torch.from_numpy(signal.astype(np.float32))
    still = (
        cut.view(-1, length).amin(1) == cut.view(-1, length).amax(1)
    ).nonzero()
    if len(still):
        first = int(still[0]) * length
        raise ValueError(
            f"{path} is refused: its signal {name} never changes in samples {first:,} to "
            f"{first + length - 1:,}, a whole window. Choose another channel or record."
        )
    x = standardized_windows(cut, length)
    unlabeled = [torch.zeros(count, dtype=torch.long) for count in windows]
    train, valid, test = map(Samples, x.split([*windows]), unlabeled)
    return Split(train, valid, test, classes=1, name=title, note=note)


def standardized_windows(
    signal: Float[Tensor, "samples"], length: int
) -> Float[Tensor, "windows length"]:
    """Cut a signal into windows of mean 0 and standard deviation 1, with n - 1 in its divisor."""
    x = signal.view(-1, length)
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def _signal(path: Path, channel: int) -> tuple[np.ndarray, str, float | None]:
    """Read a whole signal in physical units, NaN in gaps, and check it against its header.

    The rate is returned where it is not that of the record.
    """
    import wfdb

    stem = str(path.with_suffix(""))
    lines = _lines(path)
    if "/" in lines[0].split()[0]:
        return _joined(path, lines, channel)
    header = _header(path, lines)
    if not 0 <= channel < len(header.file_name or ()):
        known = ", ".join(map(str, header.sig_name or ()))
        raise ValueError(
            f"{path} has no channel {channel}: its signals, counted from 0, are {known or 'none'}."
        )
    data = path.with_name(header.file_name[channel])
    if not data.is_file():
        raise DataUnavailable(
            f"{data} is missing, which {path.name} names. Place it beside that."
        )
    _check_format(path, header, channel)
    _check_size(data, header, channel)
    single = (header.samps_per_frame[channel] or 1) == 1
    options = {
        "channels": [channel],
        "physical": False,
        "smooth_frames": single,
    }
    read = _read(data, wfdb.rdrecord, stem, **options)
    digital = read.d_signal[:, 0] if single else read.e_d_signal[0]
    name = read.sig_name[0] or str(channel)
    announced = (read.checksum or [None])[0]
    # every sample of every frame counts
    found = int(digital.sum(dtype=np.int64)) % 2**16
    if announced is not None and found != announced % 2**16:
        raise ValueError(
            f"{data} is refused: its signal {name} has the checksum {found}, but "
            f"{path.name} announces {announced % 2**16}, so one of them is damaged or another "
            f"version. Fetch the record again."
        )
    physical = _read(data, read.dac, expanded=not single)
    if single:
        return physical[:, 0], name, None
    return physical[0], name, read.samps_per_frame[0] * read.fs


def _joined(
    path: Path, lines: list[str], channel: int
) -> tuple[np.ndarray, str, float | None]:
    """Read a signal of a record of segments, each a record of its own, one after the other.

    Where the first segment is a layout, which has no samples, signals are known by its names, and
    one that a segment lacks is a gap there, as is a segment called ``~``.
    """
    segments = _read(path, lambda: _segment_lines(lines))
    layout: list[str] | None = None
    if segments[0][1] == 0:
        layout = _names(path.with_name(f"{segments[0][0]}.hea"))
        segments = segments[1:]
    if layout is not None and not 0 <= channel < len(layout):
        raise ValueError(
            f"{path} has no channel {channel}: its signals, counted from 0, are "
            f"{', '.join(layout)}."
        )
    parts: list[np.ndarray | None] = []
    kinds: set[tuple[str, float | None]] = set()
    for name, _ in segments:
        number = _channel_in(path.with_name(f"{name}.hea"), channel, layout)
        if number is None:
            parts.append(None)
            continue
        signal, title, rate = _signal_of_segment(path, name, number)
        parts.append(signal)
        kinds.add((title, rate))
    if len(kinds) != 1:
        told = ", ".join(sorted(title for title, _ in kinds)) or "none"
        raise ValueError(
            f"{path} is refused: channel {channel} is not one signal at one rate in its segments, "
            f"but {told}. Read the segments by themselves."
        )
    ((title, rate),) = kinds
    frame = 1 if rate is None else round(rate / _rate(lines))
    whole = [
        _filled(path, name, length * frame, part)
        for (name, length), part in zip(segments, parts)
    ]
    return np.concatenate(whole), title, rate


def _channel_in(
    segment: Path, channel: int, layout: list[str] | None
) -> int | None:
    """Return which signal of a segment is meant; None if it has no samples of it."""
    if segment.stem == "~":
        return None
    if layout is None:
        return channel
    names = _names(segment)
    wanted = layout[channel]
    return names.index(wanted) if wanted in names else None


def _filled(
    path: Path, name: str, length: int, signal: np.ndarray | None
) -> np.ndarray:
    """Return a segment's samples, or a gap, as long as its record announces."""
    if signal is None:
        return np.full(length, np.nan)
    if len(signal) != length:
        raise ValueError(
            f"{path} is refused: it announces {length:,} samples of the segment {name}, which has "
            f"{len(signal):,}, so one of them is damaged or another version."
        )
    return signal


def _signal_of_segment(
    path: Path, name: str, channel: int
) -> tuple[np.ndarray, str, float | None]:
    part = path.with_name(f"{name}.hea")
    if not part.is_file():
        raise DataUnavailable(
            f"{part} is missing, a segment that {path.name} names. Place it beside that."
        )
    if "/" in _lines(part)[0].split()[0]:
        raise ValueError(
            f"{path} is refused: its segment {part.stem} consists of segments, which WFDB does "
            f"not allow."
        )
    return _signal(part, channel)


def _segment_lines(lines: list[str]) -> list[tuple[str, int]]:
    """Return names and lengths of the segments that a header names."""
    segments = [(line.split()[0], int(line.split()[1])) for line in lines[1:]]
    announced = int(lines[0].split()[0].partition("/")[2])
    total = int(lines[0].split()[3])
    if len(segments) != announced or not segments:
        raise ValueError(
            f"it announces {announced} segments and names {len(segments)}"
        )
    lengths = [length for _, length in segments]
    if min(lengths) < 0 or 0 in lengths[1:] or sum(lengths) != total:
        raise ValueError(
            f"it announces {total} frames, and segments of {lengths}"
        )
    wrong = [n for n, _ in segments if not re.fullmatch(r"~|[-\w]+", n)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no name of a segment")
    return segments


def _rate(lines: list[str]) -> float:
    """Return the frames per second of the first line of a header; WFDB's default is 250."""
    words = lines[0].split()
    return float(re.split(r"[/(]", words[2])[0]) if len(words) > 2 else 250.0


def _names(path: Path) -> list[str]:
    """Return the names of the signals of a segment or a layout."""
    if not path.is_file():
        raise DataUnavailable(f"{path} is missing, a segment of a record.")
    return list(_header(path, _lines(path)).sig_name or ())


def _lines(path: Path) -> list[str]:
    """Return the lines of a header that are no comments."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [
        line
        for line in text.splitlines()
        if line.strip() and not line.startswith("#")
    ]
    if not lines:
        raise ValueError(
            f"{path} is refused: it holds no line. Fetch the record again."
        )
    return lines


def _header(path: Path, lines: list[str]) -> Any:
    """Read a header; one that WFDB cannot parse is refused with the reason."""
    import wfdb

    wrong = _unparsable(lines[0].split()[0], lines[1:])
    if wrong:
        raise ValueError(
            f"{path} is refused: it holds the name {wrong!r}, and WFDB allows letters, digits, "
            f"hyphens and underscores only, in names of files also one dot. Rename it there and "
            f"on the disk."
        )
    return _read(path, wfdb.rdheader, str(path.with_suffix("")))


def _unparsable(record: str, lines: list[str]) -> str:
    """Return the first name in a header that WFDB does not allow, or nothing."""
    if not re.fullmatch(r"[-\w]+", record):
        return record
    for line in lines:
        name = re.match(r"(.*?)\s+\d+(x\d+)?(:\d+)?(\+\d+)?(\s|$)", line)
        if name and not re.fullmatch(r"~|[-\w]+\.?\w*", name[1]):
            return name[1]
    return ""


def _check_format(path: Path, header: Any, channel: int) -> None:
    fmt = str(header.fmt[channel])
    if fmt not in (*SMALLEST, *COMPRESSED):
        raise ValueError(
            f"{path} is refused: its format {fmt} is none of WFDB's, which are "
            f"{', '.join((*SMALLEST, *COMPRESSED))}."
        )
    if fmt == "61" and (header.samps_per_frame[channel] or 1) > 1:
        raise ValueError(
            f"{path} cannot be read: wfdb does not read format 61 with several samples per frame. "
            f"Convert the record to format 16."
        )


def _check_size(data: Path, header: Any, channel: int) -> None:
    """Refuse a file that is too small for its header before room is made for what it announces."""
    beside = [i for i, name in enumerate(header.file_name) if name == data.name]
    per_frame = sum(header.samps_per_frame[i] or 1 for i in beside)
    bytes_each = SMALLEST.get(str(header.fmt[channel]), 0)
    needed = (header.sig_len or 0) * per_frame * bytes_each
    size = data.stat().st_size
    # the last samples of a packed format may share bytes
    if size + 4 < needed:
        raise ValueError(
            f"{data} is refused: it holds {size:,} bytes, but its header announces "
            f"{header.sig_len:,} frames, which take {int(needed):,}, so it is cut short. Fetch the "
            f"record again."
        )


def _read(
    path: Path, reader: Callable[..., Found], *names: str, **options: object
) -> Found:
    """Read with `wfdb` or numpy, whose readers fail in many ways on a damaged file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reader(*names, **options)
    except ImportError as error:
        raise ValueError(
            f"{path} cannot be read without another package: {error}."
        ) from error
    except Exception as error:
        raise ValueError(
            f"{path} is refused: it is damaged or cut short ({error or type(error).__name__}). "
            f"Fetch the record again."
        ) from error
