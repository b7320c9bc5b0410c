"""Texts as characters, in windows, for networks that predict the next one."""

import hashlib
from dataclasses import dataclass, field, replace
from importlib import resources

import torch
from jaxtyping import Int
from torch import Tensor

from .files import Folder, find


@dataclass(frozen=True, eq=False)
class Windows:
    """Pieces of a text, and for each of their characters the one that follows.

    Parameters
    ----------
    x, y
        int64 of shape (windows, context); ``y[i, t]`` follows ``x[i, t]`` in the text.

    Raises
    ------
    ValueError
        If shapes or types do not fit.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        is_whole = self.x.dtype == self.y.dtype == torch.int64
        if not is_whole or self.x.ndim != 2 or self.x.shape != self.y.shape:
            raise ValueError(
                f"windows are int64 of shape (windows, context), inputs and targets alike, not "
                f"{self.x.dtype} of {tuple(self.x.shape)} and {self.y.dtype} of "
                f"{tuple(self.y.shape)}"
            )

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, eq=False)
class Text:
    """A text in three parts, in its order: learn on `train`, choose on `valid`, report on `test`.

    The parts are cut into windows that do not overlap; what is left at the end of a part is not
    used. `drawn` takes windows that start anywhere.

    Parameters
    ----------
    codes
        int64, one number per character of the text.
    characters
        The distinct characters; a character's number is its place here.
    context
        Characters per window.
    name, note
        The name of the text, and one sentence that describes it.
    shares
        The shares of the text that are `valid` and `test`, at its end.

    Attributes
    ----------
    train, valid, test : Windows
        The parts.
    checksum : str
        First 12 hexadecimal digits of the SHA-256 of the numbers and the shape of the windows.

    Raises
    ------
    ValueError
        If a number is no character, or a part is shorter than a window.
    """

    codes: Tensor
    characters: str
    context: int
    name: str
    note: str
    shares: tuple[float, float] = (0.05, 0.05)
    train: Windows = field(init=False)
    valid: Windows = field(init=False)
    test: Windows = field(init=False)
    checksum: str = field(init=False)

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ValueError(
                f"a window has at least one character, not {self.context}"
            )
        _check_codes(self.codes, self.characters)
        for name, part in zip(("train", "valid", "test"), self._parts()):
            windows = _in_turn(part, self.context, name)
            object.__setattr__(self, name, windows)
        object.__setattr__(self, "checksum", self._checksum())

    @classmethod
    def from_string(
        cls, text: str, context: int, name: str, note: str
    ) -> "Text":
        """Number the distinct characters of a text in their order in Unicode."""
        characters = "".join(sorted(set(text)))
        return cls(encoded(text, characters), characters, context, name, note)

    def drawn(self, count: int, seed: int = 0) -> "Text":
        """Return the same text with `count` windows to train on, which start anywhere; 0 keeps all.

        Raises
        ------
        ValueError
            If the count is negative.
        """
        if count == 0:
            return self
        if count < 0:
            raise ValueError(f"{count} windows cannot be drawn")
        part = self._parts()[0]
        starts = torch.randint(
            len(part) - self.context,
            (count,),
            generator=torch.Generator().manual_seed(seed),
        )
        whole = part.unfold(0, self.context + 1, 1)[starts]
        note = f"{self.note}; {count:,} windows drawn to train on"
        text = replace(self, note=note)
        object.__setattr__(text, "train", Windows(whole[:, :-1], whole[:, 1:]))
        return text

    def encode(self, text: str) -> Int[Tensor, "characters"]:
        """Return the numbers of a string's characters.

        Raises
        ------
        ValueError
            If a character does not occur in the text.
        """
        return encoded(text, self.characters)

    def decode(self, codes: Int[Tensor, "characters"]) -> str:
        """Return the characters of numbers."""
        return "".join(self.characters[code] for code in codes.tolist())

    def _parts(self) -> tuple[Tensor, ...]:
        total = len(self.codes)
        end = total - round(self.shares[1] * total)
        middle = end - round(self.shares[0] * total)
        return self.codes.tensor_split([middle, end])

    def _checksum(self) -> str:
        digest = hashlib.sha256(self.codes.contiguous().numpy().data)
        digest.update(f"{self.context} {self.shares}".encode())
        return digest.hexdigest()[:12]

    def __repr__(self) -> str:
        sizes = f"{len(self.train):,} train, {len(self.valid):,} valid, {len(self.test):,} test"
        kind = f"{len(self.characters)} characters"
        return (
            f"Text({self.name}: windows of {self.context}, {sizes}; {kind}; "
            f"checksum {self.checksum})"
        )


def shakespeare(context: int = 256, folder: Folder = None) -> Text:
    """Return Tiny Shakespeare (Karpathy, 2015): 1,115,394 characters of Shakespeare's plays.

    The first 90 % train, as usual; of the rest the first half is to choose on, the second to report
    on.

    Parameters
    ----------
    context
        Characters per window.
    folder
        Where `tinyshakespeare/input.txt` lies or is fetched to; see `files.folders` for the
        default.

    Raises
    ------
    ValueError
        If the file is damaged or the context impossible.
    DataUnavailable
        If the file lies nowhere and cannot be fetched.
    """
    path = find("tinyshakespeare", "input.txt", folder)
    # the characters as they are: universal newlines would change their number
    text = path.read_bytes().decode("ascii")
    note = "Tiny Shakespeare; the first 90 % train, 5 % each to choose and to report on"
    return Text.from_string(text, context, "tinyshakespeare", note)


def coriolanus(context: int = 64) -> Text:
    """Return the first scenes of Shakespeare's Coriolanus, 40,000 characters, for trials.

    They are the beginning of `shakespeare`, and come with the package.

    Parameters
    ----------
    context
        Characters per window.

    Raises
    ------
    ValueError
        If the context is impossible.
    """
    place = resources.files("sparselib.datasets") / "coriolanus.txt"
    text = place.read_bytes().decode("ascii").replace("\r\n", "\n")
    note = "first scenes of Shakespeare's Coriolanus; the last 10 % to choose and to report on"
    return Text.from_string(text, context, "coriolanus", note)


def encoded(text: str, characters: str) -> Int[Tensor, "length"]:
    """Return each character's place among the known ones.

    Raises
    ------
    ValueError
        If one is unknown.
    """
    places = {character: place for place, character in enumerate(characters)}
    if unknown := sorted(set(text) - places.keys()):
        raise ValueError(
            f"the characters {unknown} do not occur in the text that the network learns; known "
            f"are {characters!r}"
        )
    return torch.tensor([places[c] for c in text], dtype=torch.int64)


def _in_turn(part: Tensor, context: int, name: str) -> Windows:
    """Cut a part of a text into windows that follow one another."""
    if len(part) <= context:
        raise ValueError(
            f"the {name} part has {len(part):,} characters, too few for a window of {context:,} "
            f"and the character that follows; take a smaller context"
        )
    whole = part.unfold(0, context + 1, context)
    return Windows(whole[:, :-1], whole[:, 1:])


def _check_codes(codes: Tensor, characters: str) -> None:
    if codes.dtype != torch.int64 or codes.ndim != 1:
        raise ValueError(
            f"a text is int64 of one dimension, not {codes.dtype} of {tuple(codes.shape)}"
        )
    if len(codes) and not 0 <= codes.min() <= codes.max() < len(characters):
        raise ValueError(
            f"the numbers of {len(characters)} characters go from 0 to {len(characters) - 1}, but "
            f"the text has {codes.min().item()} to {codes.max().item()}"
        )
