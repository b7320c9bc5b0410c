"""What a data set is: samples with labels, in three parts, with a checksum for provenance."""

import hashlib
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples and their labels.

    Parameters
    ----------
    x
        float32 of shape (samples, features), or (samples, channels, points) for signals, or
        (samples, channels, height, width) for images; every value finite.
    y
        int64 of shape (samples,), the class of each sample, counted from 0.
    groups
        int64 of shape (samples,), the patient or recording that each sample is of; often unknown.
    class_names
        Names of the classes in the order of their numbers, if they have names.

    Raises
    ------
    ValueError
        If the shapes or types do not fit, a value is not finite or a label is negative.
    """

    x: Tensor
    y: Tensor
    groups: Tensor | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_shapes(self.x, self.y)
        _check_groups(self.y, self.groups)
        _check_values(self.x, self.y)

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"Samples({len(self):,} x {' x '.join(f'{n:,}' for n in self.x.shape[1:])})"


@dataclass(frozen=True, eq=False)
class Split:
    """A data set in its three parts: learn on `train`, choose on `valid`, report on `test`.

    Parameters
    ----------
    train, valid, test
        The parts; `valid` may be empty, of shape (0, features).
    classes
        The number of classes; labels are 0 .. classes - 1.
    name
        The name of the data set, as in `mnist`.
    note
        One sentence that describes the data.
    groups
        Names of the groups of samples, if there are any.

    Attributes
    ----------
    checksum : str
        First 12 hexadecimal digits of the SHA-256 over the shapes and bytes of the six tensors.

    Raises
    ------
    ValueError
        If the parts differ in their number of features or a label is no class.
    """

    train: Samples
    valid: Samples
    test: Samples
    classes: int
    name: str
    note: str
    groups: tuple[str, ...] = ()
    checksum: str = field(init=False)

    def __post_init__(self) -> None:
        for part in ("train", "valid", "test"):
            _check_part(
                self.name, part, getattr(self, part), self.train, self.classes
            )
        object.__setattr__(
            self, "checksum", _checksum(self.train, self.valid, self.test)
        )

    @property
    def features(self) -> int:
        """The number of features of a sample."""
        return math.prod(self.train.x.shape[1:])

    def drawn(self, count: int, seed: int = 0) -> "Split":
        """Return the same data with `count` random samples to train on; 0 keeps all.

        Raises
        ------
        ValueError
            If there are fewer.
        """
        if count == 0:
            return self
        if not 0 < count <= len(self.train):
            raise ValueError(
                f"{count} samples cannot be drawn from {len(self.train):,}"
            )
        order = torch.randperm(
            len(self.train), generator=torch.Generator().manual_seed(seed)
        )
        chosen = order[:count].sort().values
        note = (
            f"{self.note}; {count:,} of {len(self.train):,} drawn to train on"
        )
        return replace(self, train=_only(self.train, chosen), note=note)

    def __repr__(self) -> str:
        sizes = f"{len(self.train):,} train, {len(self.valid):,} valid, {len(self.test):,} test"
        kind = f"{self.features:,} features, {self.classes} classes"
        return f"Split({self.name}: {sizes}; {kind}; checksum {self.checksum})"


def hold_out(
    samples: Samples, size: int | float, seed: int
) -> tuple[Samples, Samples]:
    """Take a random part away from the samples.

    Both parts keep the order of the samples; the training loop shuffles.

    Parameters
    ----------
    samples
        What is split.
    size
        How many samples to take: a count, or a float in [0, 1) for a fraction.
    seed
        The same seed takes the same samples.

    Returns
    -------
    tuple of Samples
        The rest, and the part taken.

    Raises
    ------
    ValueError
        If less than nothing or everything would be taken.
    """
    total = len(samples)
    count = (
        round(size * total) if isinstance(size, float) and size < 1 else size
    )
    if not 0 <= count < total or count != int(count):
        raise ValueError(
            f"valid={size} cannot be taken from {total:,} training samples: "
            f"pass a count from 0 to {total - 1:,}, or a fraction below 1."
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    taken = order[: int(count)].sort().values
    rest = order[int(count) :].sort().values
    return _only(samples, rest), _only(samples, taken)


def _only(samples: Samples, which: Tensor) -> Samples:
    groups = None if samples.groups is None else samples.groups[which]
    return Samples(
        samples.x[which], samples.y[which], groups, samples.class_names
    )


def _check_shapes(x: Tensor, y: Tensor) -> None:
    if x.dtype != torch.float32 or y.dtype != torch.int64:
        raise ValueError(
            f"Samples are float32 with int64 labels, but came as {x.dtype}, {y.dtype}."
        )
    if x.ndim not in (2, 3, 4) or y.shape != x.shape[:1]:
        raise ValueError(
            f"x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)} do not fit: "
            f"they must be (samples, features) and (samples,), or for signals "
            f"(samples, channels, points), or for images (samples, channels, height, width)."
        )


def _check_groups(y: Tensor, groups: Tensor | None) -> None:
    if groups is not None and (
        groups.dtype != torch.int64 or groups.shape != y.shape
    ):
        raise ValueError(
            f"groups are int64, one for each of {len(y)} samples, but came as {groups.dtype} of "
            f"shape {tuple(groups.shape)}."
        )


def _check_values(x: Tensor, y: Tensor) -> None:
    # the extremes are NaN or infinite if any value is, and take no second array of this size
    if x.numel() and not torch.isfinite(torch.stack(x.aminmax())).all():
        flat = x.flatten(1)
        broken = (~torch.isfinite(flat)).nonzero()
        row, column = broken[0].tolist()
        raise ValueError(
            f"x holds {flat[row, column].item()} at row {row}, column {column}."
        )
    if len(y) and y.min() < 0:
        raise ValueError(f"Labels count from 0, but y holds {y.min().item()}.")


def _check_part(
    name: str, part: str, samples: Samples, train: Samples, classes: int
) -> None:
    if samples.x.shape[1:] != train.x.shape[1:]:
        found = " x ".join(map(str, samples.x.shape[1:]))
        wanted = " x ".join(map(str, train.x.shape[1:]))
        raise ValueError(
            f"The {part} part of {name} has {found} features where the train part has {wanted}."
        )
    if len(samples) and samples.y.max() >= classes:
        raise ValueError(
            f"The {part} part of {name} holds the label {samples.y.max().item()}, "
            f"but {classes} classes are numbered 0 to {classes - 1}."
        )


def _checksum(*parts: Samples) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for tensor in (part.x, part.y):
            digest.update(str(tuple(tensor.shape)).encode())
            array = tensor.detach().cpu().contiguous().numpy()
            digest.update(array.data)
    return digest.hexdigest()[:12]
