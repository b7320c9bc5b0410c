"""Seeded damage to a file's bytes, as disks, transfers, editors and browsers do it."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from sparselib.datasets import DataUnavailable

T = TypeVar("T")

PAGE = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>\n"


def corruptions(data: bytes, count: int = 200, seed: int = 0) -> Iterator[bytes]:
    """Yield `count` damaged versions, none of which equals the original."""
    yield b""
    yield PAGE
    yield PAGE + data
    rng = random.Random(seed)
    made = 3
    while made < count:
        damaged = rng.choice(WAYS)(data, rng)
        if damaged != data:
            made += 1
            yield damaged


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _cut_near_the_end(data: bytes, rng: random.Random) -> bytes:
    return data[: -rng.randint(1, min(len(data), 20))]


def _flipped(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def _flipped_near_the_start(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(min(len(data), 200))
    return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]


def _zeroed(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    length = min(rng.randint(1, 512), len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def _deleted(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randint(1, 64) :]


def _repeated(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    piece = data[start : start + rng.randint(1, 64)]
    return data[:start] + piece + data[start:]


def _inserted(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.randint(1, 16)) + data[start:]


def _digit_inserted(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + str(rng.randrange(1000)).encode() + data[start:]


def _appended(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.randint(1, 64))


def _swapped(data: bytes, rng: random.Random) -> bytes:
    """Exchange two neighboring blocks, as a transfer out of order does."""
    first, second, third = sorted(rng.randrange(len(data)) for _ in range(3))
    return data[:first] + data[second:third] + data[first:second] + data[third:]


WAYS: list[Callable[[bytes, random.Random], bytes]] = [
    _cut,
    _cut_near_the_end,
    _flipped,
    _flipped,
    _flipped_near_the_start,
    _zeroed,
    _deleted,
    _repeated,
    _inserted,
    _digit_inserted,
    _appended,
    _swapped,
]


def read_or_refused(read: Callable[[], T], path: Path) -> T | None:
    """Return what is read, or None if it is refused in a sentence that names the file.

    Whatever else is raised goes on, and fails the test.
    """
    try:
        return read()
    except (ValueError, DataUnavailable) as error:
        sentence = str(error)
    assert path.name in sentence
    return None
