"""CIFAR-10 in its official files, and folders of pictures in the manner of ImageNet."""

import pickle
import pickletools
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from .files import DataUnavailable, Folder, folders
from .split import Samples, Split, hold_out

OWNERS = ("numpy", "numpy ndarray", "numpy dtype", "_codecs encode")
ARRAYS = ("_reconstruct", "ndarray", "dtype", "_frombuffer", "encode")
RECORD = 1 + 3 * 32 * 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cifar10(folder: Folder = None, valid: int | float = 0.1, seed: int = 0) -> Split:
    """Return CIFAR-10 (Krizhevsky, 2009), colours standardised by the usual mean and deviation.

    Parameters
    ----------
    folder
        Where `cifar-10/cifar-10-batches-bin` or `cifar-10/cifar-10-batches-py` lies, as the
        official archives unpack; see `files.folders` for the default.
    valid
        What is held out for validation, a count or a fraction: the paper's 0.1 by default.
    seed
        Chooses the images that are held out.

    Returns
    -------
    Split
        Images of shape (samples, 3, 32, 32). Where batches are missing it warns, and `note` says
        how many images there are.

    Raises
    ------
    ValueError
        If a file is damaged.
    DataUnavailable
        If no training batch or no test batch is there.
    """
    train, test = _batches("data_batch", folder), _batches("test_batch", folder)
    whole = Samples(standardised(train[0], MEAN, STD), train[1])
    rest, held = hold_out(whole, valid, seed)
    tested = Samples(standardised(test[0], MEAN, STD), test[1])
    note = f"{len(whole):,} training images, {len(held):,} of them held out with seed {seed}"
    if len(whole) < 50_000 or len(tested) < 10_000:
        note = f"reduced: {note}; {len(tested):,} test images"
        warnings.warn(
            f"CIFAR-10 has 50,000 training and 10,000 test images, but the folder holds "
            f"{len(whole):,} and {len(tested):,}",
            stacklevel=2,
        )
    return Split(rest, held, tested, classes=10, name="cifar10", note=note)


def read_binary(path: Path) -> tuple[UInt8[np.ndarray, "images 3 32 32"], np.ndarray]:
    """Read a batch of the binary version: a byte for the class, then 3 x 32 x 32 for the image."""
    data = np.fromfile(path, np.uint8)
    if not len(data) or len(data) % RECORD:
        raise ValueError(
            f"{path} is refused: its {len(data):,} bytes are no whole number of images of "
            f"{RECORD:,}"
        )
    rows = data.reshape(-1, RECORD)
    return rows[:, 1:].reshape(-1, 3, 32, 32), _classes(path, rows[:, 0])


def read_python(path: Path) -> tuple[UInt8[np.ndarray, "images 3 32 32"], np.ndarray]:
    """Read a batch of the Python version, a pickle; which may hold arrays only."""
    data = path.read_bytes()
    _check_pickle(path, data)
    batch = pickle.loads(data, encoding="bytes")
    try:
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is refused: it holds no 'data' and 'labels'") from error
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), RECORD - 1):
        raise ValueError(
            f"{path} is refused: its data are {pixels.dtype} of shape {pixels.shape} for "
            f"{len(labels)} labels, not bytes of shape (images, {RECORD - 1})"
        )
    return pixels.reshape(-1, 3, 32, 32), _classes(path, labels)


def photographs(
    folder: str | Path, classes: Sequence[str] | None = None, side: int = 224
) -> Samples:
    """Read an ImageNet-style folder of pictures with Pillow, one folder a class.

    The shorter side is scaled to 8/7 of `side`, the middle is cut out, and colours are
    standardised by ImageNet's mean and deviation, as torchvision's weights expect.

    Parameters
    ----------
    folder : path
        Holds ``<class>/<name>.jpeg``; or pictures ``<class>_<words>.jpeg`` without folders.
    classes : sequence of str, optional
        Names in the order of their numbers; by default those found, sorted.
    side : int
        Pixels of the square that is cut out.

    Returns
    -------
    Samples
        Images of shape (samples, 3, side, side), in order of their paths.

    Raises
    ------
    ValueError
        If there is no picture, one is damaged, or its class is not among `classes`.
    """
    paths = sorted(
        p for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    if not paths:
        raise ValueError(f"{folder} holds no .jpg, .jpeg or .png: name a folder of pictures")
    flat = Path(folder)
    names = [p.stem.split("_")[0] if p.parent == flat else p.parent.name for p in paths]
    known = sorted(set(names)) if classes is None else list(classes)
    if strange := sorted(set(names) - set(known)):
        raise ValueError(f"{folder} holds the class {strange[0]!r}, which is not among `classes`")
    pixels = np.stack([_picture(path, side) for path in paths])
    x = standardised(pixels, IMAGENET_MEAN, IMAGENET_STD)
    return Samples(x, torch.tensor([known.index(name) for name in names]))


def standardised(
    pixels: UInt8[np.ndarray, "images colours height width"],
    mean: Sequence[float],
    std: Sequence[float],
) -> Float32[Tensor, "images colours height width"]:
    """Divide bytes by 255 and give each colour the mean and deviation that the data have."""
    x = torch.from_numpy(pixels.astype(np.float32)).div_(255)
    shape = (1, -1, 1, 1)
    return x.sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


def _picture(path: Path, side: int) -> UInt8[np.ndarray, "3 side side"]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is refused: Pillow cannot read it ({error})") from error
    scale = side * 8 / 7 / min(image.size)
    width, height = (max(side, round(size * scale)) for size in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square).transpose(2, 0, 1).copy()


def _batches(name: str, folder: Folder) -> tuple[np.ndarray, Tensor]:
    kinds = {
        "cifar-10-batches-bin": ("*.bin", read_binary),
        "cifar-10-batches-py": ("*", read_python),
    }
    for place in folders(folder):
        for inner, (ending, read) in kinds.items():
            paths = sorted((place / "cifar-10" / inner).glob(name + ending))
            if paths:
                images, labels = zip(*(read(path) for path in paths))
                return np.concatenate(images), torch.from_numpy(np.concatenate(labels))
    searched = ", ".join(str(place) for place in folders(folder))
    raise DataUnavailable(
        f"no {name} of CIFAR-10 lies in cifar-10/{' or cifar-10/'.join(kinds)} below {searched}. "
        f"Unpack the official archive there, or use the embedded datasets.placed_digits() instead."
    )


def _classes(path: Path, labels: np.ndarray) -> np.ndarray:
    if labels.max(initial=0) > 9:
        raise ValueError(f"{path} is refused: it holds class {labels.max()}, but there are 0 to 9")
    return labels.astype(np.int64)


def _check_pickle(path: Path, data: bytes) -> None:
    """Refuse a pickle that would call anything but what numpy's arrays are made with."""
    for operation, name, _ in pickletools.genops(data):
        strange = operation.name == "STACK_GLOBAL"
        if operation.name == "GLOBAL":
            strange = str(name).split()[-1] not in ARRAYS or str(name).split(".")[0] not in OWNERS
        if strange:
            raise ValueError(
                f"{path} is refused: a batch of CIFAR-10 is a pickle of protocol 2 that holds "
                f"arrays only, but this one asks for {name or 'something else'}"
            )
