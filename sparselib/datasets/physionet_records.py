"""Signals of PhysioNet, read with `wfdb` and cut into windows."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .files import DataUnavailable, Folder, find
from .split import Samples, Split

# databases of Bizopoulos' Table I whose record can be told by matching the table's numbers
RECORDS = {
    "bidmc": "bidmc/bidmc01",
    "ctu-uhb-ctgdb": "ctu-uhb-ctgdb/1001",
    "emgdb": "emgdb/emg_healthy",
    "mitdb": "mitdb/100",
}


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
    is divided by its standard deviation. There are no labels: every `y` is 0.

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
        Samples of a window.

    Raises
    ------
    ValueError
        If a file is damaged or cut short, the channel is none of the record's, the record is too
        short, or a window holds gaps or never changes.
    DataUnavailable
        If a file lies nowhere.
    """
    path = find("physionet", f"{record}.hea", folder)
    signal, name = _signal(path, channel)
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
    return _split(signal[:needed], path, name, f"physionet/{record}", note, windows, length)


def apnea_excerpt(
    part: str = "a01_from360000",
    folder: Folder = None,
    windows: tuple[int, int, int] = (6, 2, 4),
    length: int = 1000,
) -> Split:
    """Return windows of an excerpt of apnea-ecg (Penzel and others, 2000), as `physionet` does.

    The record itself was not at hand; the paper's samples, from the start of a record, are others.

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
        Samples of a window.

    Raises
    ------
    ValueError
        If there is no such array, it is too short, or a window never changes.
    DataUnavailable
        If the file lies nowhere.
    """
    path = find("apnea-ecg-minutes", "ecg_excerpts.npz", folder)
    with np.load(path) as arrays:
        if part not in arrays or arrays[part].size < sum(windows) * length:
            long = [key for key in arrays if arrays[key].size >= sum(windows) * length]
            raise ValueError(
                f"{path} has no {part!r} of {sum(windows) * length:,} samples; long enough are "
                f"{', '.join(long) or 'none'}."
            )
        signal = arrays[part][: sum(windows) * length]
    note = f"ECG of apnea-ecg, {part}, windows of {length:,} samples"
    return _split(signal, path, "ECG", f"apnea-ecg/{part}", note, windows, length)


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
    still = (cut.view(-1, length).amin(1) == cut.view(-1, length).amax(1)).nonzero()
    if len(still):
        first = int(still[0]) * length
        raise ValueError(
            f"{path} is refused: its signal {name} never changes in samples {first:,} to "
            f"{first + length - 1:,}, a whole window. Choose another channel or record."
        )
    x = standardised_windows(cut, length)
    unlabelled = [torch.zeros(count, dtype=torch.long) for count in windows]
    train, valid, test = map(Samples, x.split([*windows]), unlabelled)
    return Split(train, valid, test, classes=1, name=title, note=note)


def standardised_windows(
    signal: Float[Tensor, "samples"], length: int
) -> Float[Tensor, "windows length"]:
    """Cut a signal into windows of mean 0 and standard deviation 1, with n - 1 in its divisor."""
    x = signal.view(-1, length)
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def _signal(path: Path, channel: int) -> tuple[np.ndarray, str]:
    """Read a whole signal in physical units, NaN in gaps, and check it against its header."""
    import wfdb

    stem = str(path.with_suffix(""))
    header = _read(path, wfdb.rdheader, stem)
    if not 0 <= channel < len(header.file_name or ()):
        known = ", ".join(map(str, header.sig_name or ()))
        raise ValueError(
            f"{path} has no channel {channel}: its signals, counted from 0, are {known or 'none'}."
        )
    data = path.with_name(header.file_name[channel])
    if not data.is_file():
        raise DataUnavailable(f"{data} is missing, which {path.name} names. Place it beside that.")
    read = _read(data, wfdb.rdrecord, stem, channels=[channel], physical=False)
    name, announced = read.sig_name[0] or str(channel), (read.checksum or [None])[0]
    found = int(read.d_signal.sum()) % 2**16
    if announced is not None and found != announced % 2**16:
        raise ValueError(
            f"{data} is refused: its signal {name} has the checksum {found}, but "
            f"{path.name} announces {announced % 2**16}, so one of them is damaged or another "
            f"version. Fetch the record again."
        )
    return read.dac()[:, 0], name


def _read(path: Path, reader: Any, *names: str, **options: Any) -> Any:
    """Read with `wfdb`, whose readers fail in many ways on a damaged file."""
    try:
        return reader(*names, **options)
    except Exception as error:
        raise ValueError(
            f"{path} is refused: it is damaged or cut short ({error or type(error).__name__}). "
            f"Fetch the record again."
        ) from error
