"""Compiled kernels on disk: one file for each, with a digest of what it holds.

numba keeps what it compiled, but believes what it finds: a truncated file raises, a flipped bit is
executed, and a full disk ends the program. Here a file that cannot be read, was cut, changed or
written for something else counts as absent, and one that cannot be written is not written; the
kernel is then compiled for this process. A file is put in place whole, so that any number of
processes may compile at once.
"""

import contextlib
import hashlib
import os
import pickle
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache, NullCache
from numba.core.serialize import dumps

from sparselib._types import Function

DIGEST = hashlib.sha256().digest_size
Stamp = tuple[str, float, int]  # name, time and size of a file


class Files:
    """Data by key, as numba's cache wants to save and load them.

    Parameters
    ----------
    folder : path
        Where the files are.
    name : str
        What the names of files begin with.
    stamp : object
        What changes with the source, such as its time and size.
    """

    def __init__(self, folder: Path, name: str, stamp: object) -> None:
        self.folder = folder
        self.name = name
        self.stamp = stamp

    def save(self, key: object, data: object) -> None:
        """Write data, unless the disk refuses."""
        content = dumps(data)
        path = self._path(key)
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        try:
            part.write_bytes(self._digest(key, content) + content)
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()

    def load(self, key: object) -> object:
        """Return what was saved under the key, or None if it is not there as it was saved."""
        try:
            whole = self._path(key).read_bytes()
        except OSError:
            return None
        content = whole[DIGEST:]
        if whole[:DIGEST] != self._digest(key, content):
            return None
        return pickle.loads(content)

    def flush(self) -> None:
        """Remove nothing: a file of other sources is written over."""

    def _path(self, key: object) -> Path:
        number = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        return self.folder / f"{self.name}.{number}.kernel"

    def _digest(self, key: object, content: bytes) -> bytes:
        return hashlib.sha256(
            repr((self.stamp, key)).encode() + content
        ).digest()


class KernelCache(FunctionCache):
    """numba's cache of one function, on `Files`.

    Parameters
    ----------
    function : callable
        What is compiled. numba sees changes of its file by itself.
    made_of : sequence
        The `stamps` of the files that it is made of, as they were when they were read.
    """

    def __init__(
        self, function: Function, made_of: Sequence[Stamp] = ()
    ) -> None:
        super().__init__(function)
        file = self._cache_file
        stamp = (file._version, file._source_stamp, *made_of)
        self._cache_file = Files(
            Path(self._cache_path), self._impl.filename_base, stamp
        )

    def save_overload(self, sig: object, data: object) -> None:
        """Keep what was compiled, unless the disk refuses."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


def stamps(sources: Iterable[Path]) -> tuple[Stamp, ...]:
    """Return names, times and sizes of files, to be taken when a program reads them.

    When it compiles them it is too late: a file that was edited in between would stand for what it
    was before.
    """
    states = ((source.name, source.stat()) for source in sources)
    return tuple(
        (name, state.st_mtime, state.st_size) for name, state in states
    )


def keep(
    compiled: Any, function: Function, made_of: Sequence[Stamp] = ()
) -> None:
    """Give numba's compiled function a cache, unless there is no folder for it."""
    try:
        compiled._cache = KernelCache(function, made_of)
    except (OSError, RuntimeError):  # nowhere to keep it
        compiled._cache = NullCache()
