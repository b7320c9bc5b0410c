"""Images as vectors: the embedded digits, MNIST and Fashion-MNIST in their official idx files."""

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from .files import Folder, find, read_content
from .split import Samples, Split, hold_out


def digits(seed: int = 0) -> Split:
    """Return the 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn.

    Pixels are x / 16. The split into 1,197 / 300 / 300 is stratified by class and seeded, because
    scikit-learn names no test part.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    x, x_test, y, y_test = train_test_split(
        x, y, test_size=300, stratify=y, random_state=seed
    )
    x, x_valid, y, y_valid = train_test_split(
        x, y, test_size=300, stratify=y, random_state=seed
    )
    parts = (
        _samples(x, y),
        _samples(x_valid, y_valid),
        _samples(x_test, y_test),
    )
    note = f"scikit-learn's 1,797 digits of 8 x 8 pixels, stratified split with seed {seed}"
    return Split(*parts, classes=10, name="digits", note=note)


def mnist(
    folder: Folder = None, valid: int | float = 10_000, seed: int = 0
) -> Split:
    """Return MNIST (LeCun, Bottou, Bengio and Haffner, 1998), pixels x / 255.

    Ertl's Table 1 counts 60k training samples: that is `valid=0`, which leaves nothing to choose
    models on.

    Parameters
    ----------
    folder
        Where `mnist/*.gz` lies or is fetched to; see `files.folders` for the default. Unpacked
        files, and torchvision's `MNIST/raw`, are read as well.
    valid
        How many of the 60,000 training images are held out, as a count or a fraction below 1.
        With 0 all of them train, and `valid` is empty, of shape (0, 784).
    seed
        Chooses the images that are held out.

    Raises
    ------
    ValueError
        If a file is damaged.
    DataUnavailable
        If a file lies nowhere and cannot be fetched.
    """
    return _load("mnist", "mnist", folder, valid, seed)


def fashion_mnist(
    folder: Folder = None, valid: int | float = 10_000, seed: int = 0
) -> Split:
    """Return Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), pixels x / 255.

    Ertl's Table 1 counts 50k training samples where the files hold 60,000: that is the default,
    `valid=10_000`. Parameters and errors are those of `mnist`, the files lie in `fashion-mnist/`.
    """
    return _load("fashion-mnist", "fashion_mnist", folder, valid, seed)


def read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """Read an idx file of unsigned bytes, gzipped or not.

    An idx file is two zero bytes, the type of the values (8 for unsigned bytes), the number of
    dimensions, each size as a big-endian 32-bit integer, and then the values.

    Parameters
    ----------
    path
        The file.
    dimensions
        How many dimensions it must have: 3 for images, 1 for labels.

    Raises
    ------
    ValueError
        If anything in the file, or its length, is not as it should be.
    """
    data = read_content(path)
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise ValueError(
            f"{path} is refused: it holds {len(data)} bytes, but the header alone has {start}."
        )
    if data[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(
            f"{path} is refused: it starts with the bytes {data[:4].hex(' ')}, but an idx file of "
            f"unsigned bytes in {dimensions} dimensions starts with 00 00 08 {dimensions:02x}."
        )
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">u4"))
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path} is refused: its header announces the shape {shape}, {math.prod(shape):,} "
            f"bytes, but {len(data) - start:,} follow."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _load(
    dataset: str, name: str, folder: Folder, valid: int | float, seed: int
) -> Split:
    whole = _part(dataset, "train", folder)
    train, held = hold_out(whole, valid, seed)
    test = _part(dataset, "t10k", folder)
    note = (
        f"the official files; {len(held):,} of the {len(whole):,} training images held out "
        f"for validation with seed {seed}"
    )
    return Split(train, held, test, classes=10, name=name, note=note)


def _part(dataset: str, part: str, folder: Folder) -> Samples:
    images = read_idx(find(dataset, f"{part}-images-idx3-ubyte.gz", folder), 3)
    labels = read_idx(find(dataset, f"{part}-labels-idx1-ubyte.gz", folder), 1)
    pixels = np.divide(images.reshape(len(images), -1), 255, dtype=np.float32)
    return _samples(pixels, labels)


def _samples(x: np.ndarray, y: np.ndarray) -> Samples:
    return Samples(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)))
