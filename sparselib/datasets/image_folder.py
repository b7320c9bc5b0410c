"""Folders of pictures in the manner of ImageNet, one folder per class."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from .split import Samples

MEAN = (0.485, 0.456, 0.406)  # of ImageNet
STD = (0.229, 0.224, 0.225)
ENDINGS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".pgm",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
)
# what lies beside pictures in published sets; any other file that is left out is reported
BESIDE = (
    ".txt",
    ".csv",
    ".tsv",
    ".json",
    ".xml",
    ".md",
    ".mat",
    ".html",
    ".yml",
    ".yaml",
    ".db",
    ".ini",
    ".py",
)
LONGEST = 100  # times the shorter side
PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}
ANNOTATIONS = "val_annotations.txt"  # of Tiny ImageNet


def photographs(
    folder: str | Path, classes: Sequence[str] | None = None, side: int = 224
) -> Samples:
    """Read an ImageNet-style folder of pictures with Pillow, one folder per class.

    The shorter side is scaled to 8/7 of `side`, the middle is cut out, and colors are standardized
    by ImageNet's mean and standard deviation, as torchvision's weights expect. Pictures are turned
    by their EXIF data, gray values of 16 bits are scaled to 8, and what is transparent is laid
    on white.

    Parameters
    ----------
    folder : path
        One of these, in which symbolic links are followed and hidden files and folders are not
        looked at:

        - ``<class>/.../<name>.jpeg``: the class is the first folder below `folder`;
        - ``<class>_<words>.jpeg``, pictures without folders;
        - ``images/<name>.jpeg`` with `val_annotations.txt`, the validation part of Tiny ImageNet.
    classes : sequence of str, optional
        Names in the order of their numbers; by default those found, sorted.
    side : int
        Pixels of the square that is cut out.

    Returns
    -------
    Samples
        Images of shape (samples, 3, side, side), in order of their paths, with `class_names`.

    Raises
    ------
    ValueError
        If there is no picture, one is damaged, or its class is not among `classes`; if a class has
        no picture; if the folder holds parts such as `train` and `val`, or pictures beside folders.

    Warns
    -----
    UserWarning
        If files are left out that may be pictures, such as ``.gif`` or ``.jpg.part``.
    """
    root = Path(folder)
    found = _labeled(root)
    if not found:
        raise ValueError(
            f"{root} holds no .jpg, .jpeg or .png: name a folder of pictures"
        )
    names = sorted(set(found.values()))
    known = names if classes is None else list(classes)
    if len(set(known)) < len(known):
        raise ValueError(f"classes must be distinct, not {known}")
    if strange := sorted(set(names) - set(known)):
        raise ValueError(
            f"{root} holds the class {strange[0]!r}, which is not among `classes`"
        )
    pixels = np.stack([_picture(path, side) for path in found])
    labels = torch.tensor([known.index(name) for name in found.values()])
    return Samples(
        standardized(pixels, MEAN, STD), labels, class_names=tuple(known)
    )


def standardized(
    pixels: UInt8[np.ndarray, "images colors height width"],
    mean: Sequence[float],
    std: Sequence[float],
) -> Float32[Tensor, "images colors height width"]:
    """Divide bytes by 255, and each color by its standard deviation once its mean is subtracted."""
    x = torch.from_numpy(pixels.astype(np.float32)).div_(255)
    shape = (1, -1, 1, 1)
    return x.sub_(torch.tensor(mean).view(shape)).div_(
        torch.tensor(std).view(shape)
    )


def _labeled(root: Path) -> dict[Path, str]:
    """Return the class of each picture, in order of the paths."""
    files = sorted(_files(root, frozenset()))
    paths = [path for path in files if path.suffix.lower() in ENDINGS]
    _report([path for path in files if path.suffix.lower() not in ENDINGS])
    flat = [path for path in paths if path.parent == root]
    folders = [path.name for path in _entries(root) if path.is_dir()]
    if flat and folders:
        raise ValueError(
            f"{root} is refused: {flat[0].name} lies beside the folders of classes, of which "
            f"{folders[0]} is one, so its class is unknown. Move it into one of them."
        )
    if flat:
        return {path: path.stem.split("_")[0] for path in flat}
    if folders == ["images"]:
        return _annotated(root, paths)
    if folders and {name.lower() for name in folders} <= PARTS:
        raise ValueError(
            f"{root} is refused: {', '.join(folders)} are parts of a data set, no classes. Name "
            f"one of them, such as {root / folders[0]}."
        )
    classes = {path: path.relative_to(root).parts[0] for path in paths}
    if empty := sorted(set(folders) - set(classes.values())):
        raise ValueError(
            f"{root} is refused: the folder {empty[0]!r} holds no picture ({', '.join(ENDINGS)}), "
            f"so the classes would be numbered without it."
        )
    return classes


def _entries(folder: Path) -> list[Path]:
    """List what a folder holds, without what is hidden, as on Linux or in archives of macOS."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ValueError(
            f"{folder} is refused: it cannot be listed ({error.strerror})"
        ) from error
    return [
        folder / name
        for name in names
        if not name.startswith(".") and name != "__MACOSX"
    ]


def _report(others: list[Path]) -> None:
    """Warn of files that are read as no pictures, though they may be some."""
    left = [path for path in others if path.suffix.lower() not in BESIDE]
    if left:
        warnings.warn(
            f"{left[0]} is left out{f', and {len(left) - 1:,} others' if left[1:] else ''}: "
            f"pictures end in {', '.join(ENDINGS)}",
            stacklevel=4,
        )


def _files(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Yield the files in a folder and below it; links back to a folder above are left out."""
    here = folder.resolve()
    if here in above:
        return
    for path in _entries(folder):
        if path.is_dir():
            yield from _files(path, above | {here})
        elif path.is_file() or path.is_symlink():
            yield path


def _annotated(root: Path, paths: list[Path]) -> dict[Path, str]:
    """Read Tiny ImageNet's list of names and classes, which must be that of the pictures."""
    file = root / ANNOTATIONS
    if not file.is_file():
        raise ValueError(
            f"{root} is refused: its only folder is 'images', which is no class, and there is no "
            f"{ANNOTATIONS} to name the classes."
        )
    text = file.read_text(encoding="utf-8", errors="replace")
    listed = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or not fields[1] or fields[0] in listed:
            raise ValueError(
                f"{file} is refused: line {number} is no new file name with its class, but "
                f"{line[:40]!r}"
            )
        listed[fields[0]] = fields[1]
    if text and not text.endswith("\n"):
        raise ValueError(
            f"{file} is refused: its last line has no end, so the file is cut short"
        )
    if different := sorted(listed.keys() ^ {path.name for path in paths}):
        raise ValueError(
            f"{file} is refused: it lists {len(listed):,} pictures where {root / 'images'} holds "
            f"{len(paths):,}; {different[0]} is in one of them only"
        )
    return {path: listed[path.name] for path in paths}


def _picture(path: Path, side: int) -> UInt8[np.ndarray, "3 side side"]:
    image = _decoded(path)
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(
            f"{path} is refused: of {image.size[0]:,} x {image.size[1]:,} pixels, one side is more "
            f"than {LONGEST} times the other"
        )
    scale = side * 8 / 7 / min(image.size)
    width, height = (max(side, round(size * scale)) for size in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left = (width - side) // 2
    top = (height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square).transpose(2, 0, 1).copy()


def _decoded(path: Path) -> Image.Image:
    """Return a picture in RGB; Pillow fails in many ways on a damaged file."""
    try:
        with Image.open(path) as file:
            # of the formats read here, PNG alone has checksums, which are not looked at in reading
            if file.format == "PNG":
                file.verify()
        with Image.open(path) as file:
            file.load()
            return _rgb(ImageOps.exif_transpose(file))
    except Exception as error:
        raise ValueError(
            f"{path} is refused: Pillow cannot read it ({error or type(error).__name__})"
        ) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise ValueError(
            "its gray values are floating-point numbers of unknown range"
        )
    if image.mode in ("LA", "PA", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Scale gray values from 0 to 65,535; Pillow would cut them off at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"its gray values reach {values.max():,}, more than 16 bits hold"
        )
    return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert(
        "RGB"
    )
