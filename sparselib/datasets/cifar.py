"""CIFAR-10 in both of its official formats."""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from . import plain_pickle
from .files import DataUnavailable, Folder, folders
from .image_folder import MEAN, STD, standardized
from .split import Samples, Split, hold_out

# mean and standard deviation of each color, of CIFAR-10 itself and of ImageNet
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet": (MEAN, STD),
}
RECORD = 1 + 3 * 32 * 32
IMAGES = 10_000  # of a whole batch
TRAINING = tuple(f"data_batch_{number}" for number in range(1, 6))
TESTING = ("test_batch",)
# the first 1,000 test images, where no more are available
PART_OF_TESTING = "test_batch_first1000"
# SHA-1 of label and pixels, image by image, which is how the binary version stores a batch
OFFICIAL = {
    "data_batch_1": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "data_batch_2": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "data_batch_3": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "data_batch_4": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "data_batch_5": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "test_batch": "67eb016db431130d61cd03c7ad570b013799c88c",
}


class Batch(NamedTuple):
    """Images of one file, bytes in channels of red, green and blue, and their classes."""

    pixels: UInt8[np.ndarray, "images 3 32 32"]
    labels: Int64[np.ndarray, "images"]


class _Version(NamedTuple):
    """One of the two official formats: its folder, the ending of its files, and its reader."""

    folder: str
    ending: str
    read: Callable[[Path], Batch]


def cifar10(
    folder: Folder = None,
    valid: int | float = 0.1,
    seed: int = 0,
    *,
    statistics: str = "cifar10",
) -> Split:
    """Return CIFAR-10 (Krizhevsky, 2009), each color standardized by its usual mean and spread.

    Exactly the five training batches and the test batch are read. Where the test batch is missing,
    `test_batch_first1000.bin` is read, its first 1,000 images.

    Parameters
    ----------
    folder
        Where `cifar-10/cifar-10-batches-bin` or `cifar-10/cifar-10-batches-py` lies, as the
        official archives unpack; see `files.folders` for the default.
    valid
        What is held out for validation, a count or a fraction: the paper's 0.1 by default.
    seed
        Chooses the images that are held out.
    statistics : {"cifar10", "imagenet"}
        Whose mean and standard deviation of each color; networks are used with those that they
        were trained with.

    Returns
    -------
    Split
        Images of shape (samples, 3, 32, 32). Where batches are missing, `note` states the number of
        images.

    Raises
    ------
    ValueError
        If a file is damaged, two batches hold the same images, or the statistics are unknown.
    DataUnavailable
        If no training batch or no test batch is there.

    Warns
    -----
    UserWarning
        If images are missing, if a whole batch differs from the official one, or if a file is left
        out because its name is that of no batch, such as ``data_batch_1 (1).bin``.
    """
    colors = _statistics(statistics)
    train = _samples(_batches(TRAINING, folder), *colors)
    tested = _samples(_batches(TESTING, folder), *colors)
    rest, held = hold_out(train, valid, seed)
    note = f"{len(train):,} training images, {len(held):,} of them held out with seed {seed}"
    if len(train) < 50_000 or len(tested) < 10_000:
        note = f"reduced: {note}; {len(tested):,} test images"
        warnings.warn(
            f"CIFAR-10 has 50,000 training and 10,000 test images, but the folder holds "
            f"{len(train):,} and {len(tested):,}",
            stacklevel=2,
        )
    return Split(rest, held, tested, classes=10, name="cifar10", note=note)


def black(statistics: str = "cifar10") -> Float32[Tensor, "colors"]:
    """Return a black pixel as `cifar10` standardizes it, one value of each color.

    Networks that were trained by cropping padded images before standardizing them have seen margins
    of this value (`sparselib.datasets.augmentation.shifted_and_flipped`).

    Parameters
    ----------
    statistics : {"cifar10", "imagenet"}
        As in `cifar10`.

    Raises
    ------
    ValueError
        If the statistics are unknown.
    """
    pixel = np.zeros((1, 3, 1, 1), np.uint8)
    return standardized(pixel, *_statistics(statistics)).flatten()


def _statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each color."""
    if name not in STATISTICS:
        raise ValueError(
            f"statistics are one of {', '.join(STATISTICS)}, not {name!r}"
        )
    return STATISTICS[name]


def read_binary(path: Path) -> Batch:
    """Read a batch of the binary version: a byte for the class, then 3 x 32 x 32 for the image.

    Raises
    ------
    ValueError
        If the file holds no whole number of images, more than 10,000, or an unknown class.
    """
    data = np.fromfile(path, np.uint8)
    if not len(data) or len(data) % RECORD:
        raise ValueError(
            f"{path} is refused: its {len(data):,} bytes are no whole number of images of "
            f"{RECORD:,}"
        )
    rows = data.reshape(-1, RECORD)
    return _batch(path, rows[:, 1:], rows[:, 0])


def read_python(path: Path) -> Batch:
    """Read a batch of the Python version, a pickle, of which nothing is carried out.

    Raises
    ------
    ValueError
        If the file is damaged, asks for more than arrays of numbers, or is no batch.
    """
    data = path.read_bytes()
    try:
        batch = plain_pickle.read(data)
    except plain_pickle.Refused as error:
        raise ValueError(
            f"{path} is refused: a batch of CIFAR-10 is a pickle that holds arrays only, "
            f"but this one is not: {error}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{path} is refused: it is no pickle, or is cut short or damaged ({error})"
        ) from error
    pixels, labels = (_entry(path, batch, key) for key in ("data", "labels"))
    if pixels.dtype != np.uint8 or pixels.shape != (labels.size, RECORD - 1):
        raise ValueError(
            f"{path} is refused: its data are {pixels.dtype} of shape {pixels.shape} for "
            f"{labels.size} labels, not bytes of shape (images, {RECORD - 1})"
        )
    return _batch(path, pixels, labels)


def _entry(path: Path, batch: object, key: str) -> np.ndarray:
    """Return an entry of a batch; the keys are texts of Python 2, which are bytes, or of 3."""
    found = None
    if isinstance(batch, dict):
        found = batch.get(key.encode(), batch.get(key))
    if not isinstance(found, list | tuple | np.ndarray):
        raise ValueError(f"{path} is refused: it holds no 'data' and 'labels'")
    try:
        return np.asarray(found)
    except ValueError as error:
        raise ValueError(
            f"{path} is refused: its {key!r} is no array ({error})"
        ) from error


def _batch(path: Path, pixels: np.ndarray, labels: np.ndarray) -> Batch:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path} is refused: its labels are {labels.dtype} of shape {labels.shape}, "
            f"not one whole number per image"
        )
    if not 0 < len(labels) <= IMAGES:
        raise ValueError(
            f"{path} is refused: it holds {len(labels):,} images, but a batch has 1 to {IMAGES:,}"
        )
    unknown = labels[(labels < 0) | (labels > 9)]
    if len(unknown):
        raise ValueError(
            f"{path} is refused: it holds class {unknown[0]}, but there are 0 to 9"
        )
    return Batch(pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64))


VERSIONS = (
    _Version("cifar-10-batches-bin", ".bin", read_binary),
    _Version("cifar-10-batches-py", "", read_python),
)


def _batches(names: tuple[str, ...], folder: Folder) -> dict[Path, Batch]:
    """Read the named batches from the first folder that has one of them."""
    for place in folders(folder):
        for version in VERSIONS:
            inner = place / "cifar-10" / version.folder
            paths = [inner / f"{name}{version.ending}" for name in names]
            if names == TESTING and not paths[0].is_file():
                paths = [inner / f"{PART_OF_TESTING}{version.ending}"]
            present = [path for path in paths if path.is_file()]
            if present:
                _warn_of_strangers(inner, names, version.ending)
                return _read(present, version.read)
    searched = ", ".join(str(place) for place in folders(folder))
    inner_folders = " or ".join(
        f"cifar-10/{version.folder}" for version in VERSIONS
    )
    raise DataUnavailable(
        f"no {' and no '.join(names)} of CIFAR-10 lies in {inner_folders} below {searched}. "
        f"Unpack the official archive there, or use the embedded datasets.placed_digits() instead."
    )


def _read(
    paths: list[Path], read: Callable[[Path], Batch]
) -> dict[Path, Batch]:
    found: dict[Path, Batch] = {}
    digests: dict[str, Path] = {}
    for path in paths:
        batch = read(path)
        digest = _digest(batch)
        if digest in digests:
            raise ValueError(
                f"{path} is refused: it holds the same images as {digests[digest].name}, so images "
                f"of the training part would be in the validation part too"
            )
        name = path.name.removesuffix(".bin")
        if len(batch.labels) == IMAGES and digest != OFFICIAL.get(name):
            warnings.warn(
                f"{path} holds {IMAGES:,} images, but not those of the official {name}: it is "
                f"damaged or of another origin",
                stacklevel=4,
            )
        digests[digest] = path
        found[path] = batch
    return found


def _digest(batch: Batch) -> str:
    labels = batch.labels.astype(np.uint8)[:, None]
    rows = np.concatenate(
        [labels, batch.pixels.reshape(len(labels), -1)], axis=1
    )
    return hashlib.sha1(rows.data, usedforsecurity=False).hexdigest()


def _warn_of_strangers(
    folder: Path, names: tuple[str, ...], ending: str
) -> None:
    """Name the files that look like a batch but are none of the official ones."""
    known = {f"{name}{ending}" for name in (*names, PART_OF_TESTING)}
    start = names[0].removesuffix("_1")
    alike = (
        path.name
        for path in folder.iterdir()
        if path.name.lower().startswith(start)
    )
    strangers = sorted(set(alike) - known)
    if strangers:
        warnings.warn(
            f"{folder}: {', '.join(strangers)} left out, for CIFAR-10 has "
            f"{', '.join(sorted(known - {PART_OF_TESTING + ending}))} only",
            stacklevel=4,
        )


def _samples(
    batches: dict[Path, Batch], mean: tuple[float, ...], std: tuple[float, ...]
) -> Samples:
    pixels = np.concatenate([batch.pixels for batch in batches.values()])
    labels = np.concatenate([batch.labels for batch in batches.values()])
    x = standardized(pixels, mean, std)
    return Samples(x, torch.from_numpy(labels))
