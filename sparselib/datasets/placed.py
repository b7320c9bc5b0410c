"""Digits somewhere in clutter: images whose salient part is known."""

import numpy as np
import torch
from jaxtyping import Float, Int64

from .images import digits
from .split import Samples, Split

SIDE = 32
DIGIT = 14
PATCH = 5


def placed_digits(
    train: int = 4800, valid: int = 500, test: int = 1000, seed: int = 0
) -> tuple[Split, dict[str, Int64[torch.Tensor, "samples 4"]]]:
    """Return scikit-learn's digits, each at a random place of a cluttered canvas, and their boxes.

    A digit is scaled to 14 x 14 pixels and laid on 32 x 32 pixels of weak uniform noise with two
    pieces of 5 x 5 pixels of other digits; pixels lie in [0, 1] in 256 steps, and 0 is black. The
    digits are divided among the parts before they are placed.

    Parameters
    ----------
    train, valid, test
        The number of images of each part.
    seed
        The same seed gives the same images.

    Returns
    -------
    Split, dict
        Images of shape (samples, 1, 32, 32) with the digit as class, and for each part the boxes
        (top, left, bottom, right) of the digits, int64, of which the last two lie just outside.
    """
    sources = digits(seed)
    rng = np.random.default_rng(seed)
    parts, boxes = [], {}
    for name, count in {"train": train, "valid": valid, "test": test}.items():
        source = getattr(sources, name)
        samples, boxes[name] = _placed(source, count, rng)
        parts.append(samples)
    note = f"scikit-learn's digits placed in clutter, 32 x 32 pixels, seed {seed}"
    return Split(parts[0], parts[1], parts[2], classes=10, name="placed_digits", note=note), boxes


def _placed(
    source: Samples, count: int, rng: np.random.Generator
) -> tuple[Samples, Int64[torch.Tensor, "samples 4"]]:
    drawn = _enlarged(source.x.view(-1, 8, 8).numpy())
    which = rng.integers(len(source), size=count)
    canvas = rng.uniform(0, 0.2, (count, SIDE, SIDE)).astype(np.float32)
    for _ in range(2):
        piece = rng.integers(len(source), size=count)
        _paste(canvas, drawn[piece], rng.integers(DIGIT - PATCH + 1, size=(count, 2)), PATCH, rng)
    corner = _paste(canvas, drawn[which], np.zeros((count, 2), int), DIGIT, rng)
    x = np.rint(canvas.clip(0, 1) * 255).astype(np.float32)[:, None] / 255
    box = torch.from_numpy(np.concatenate([corner, corner + DIGIT], 1))
    return Samples(torch.from_numpy(x), source.y[torch.from_numpy(which)]), box


def _enlarged(small: Float[np.ndarray, "samples 8 8"]) -> Float[np.ndarray, "samples 14 14"]:
    """Scale by linear interpolation between the pixels' centres."""
    place = ((np.arange(DIGIT) + 0.5) * 8 / DIGIT - 0.5).clip(0, 7)
    left = np.minimum(place.astype(int), 6)
    weight = np.zeros((DIGIT, 8), np.float32)
    weight[np.arange(DIGIT), left] = 1 - (place - left)
    weight[np.arange(DIGIT), left + 1] += place - left
    return np.einsum("ij,njk,lk->nil", weight, small, weight)


def _paste(
    canvas: np.ndarray, pictures: np.ndarray, start: np.ndarray, side: int, rng: np.random.Generator
) -> np.ndarray:
    """Lay a square of each picture at a random place, the brighter pixel on top; return where."""
    corner = rng.integers(SIDE - side + 1, size=(len(canvas), 2))
    for image, picture, (top, left), (row, column) in zip(canvas, pictures, start, corner):
        square = image[row : row + side, column : column + side]
        np.maximum(square, picture[top : top + side, left : left + side], out=square)
    return corner
