"""Files that are there whole or not at all."""

import os
import platform
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file beside its place, then move it there; a crash leaves the old one.

    Several processes may write the same path at the same time: the last one to finish wins. Each
    call also removes the part files that processes which were killed have left; see `clean`.

    Parameters
    ----------
    path : Path
        Where the file will be. Folders that are missing are made.
    save : callable
        Writes the whole file to the path it is given.

    Raises
    ------
    OSError
        If the file cannot be written, moved or made durable. What was at `path` is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clean(path)
    with _part(path) as part:
        save(part)
        part.chmod(_mode(path))
        move(part, path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write(path, lambda part: part.write_text(text, encoding="utf-8"))


def move(part: Path, path: Path) -> None:
    """Give a finished file its name once its content is on the disk."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    _sync_folder(path.parent)


def clean(path: Path) -> None:
    """Remove what killed processes have left of `path` while they wrote it.

    A process that writes holds a lock on its part file, which the system releases when the process
    ends, however it ends. A part file whose lock is free is therefore nobody's. Only files of this
    computer are looked at, for locks need not reach others; where there are no such locks, as on
    Windows, nothing is removed.
    """
    if fcntl is None:
        return
    try:
        names = os.listdir(path.parent)
    except OSError:
        return
    for name in names:
        if name.startswith(_prefix(path)) and name.endswith(path.suffix):
            _remove_if_free(path.parent / name)


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    """Make a locked, empty file beside `path`, which is gone after the block."""
    while True:
        # the suffix stays, for some writers choose the format by it, or add their own
        number, name = tempfile.mkstemp(path.suffix, _prefix(path), path.parent)
        if fcntl is not None and not _locked(number, name):
            os.close(number)
            continue
        break
    part = Path(name)
    try:
        if fcntl is None:
            # Windows moves no file that is open
            os.close(number)
        yield part
    finally:
        part.unlink(missing_ok=True)
        if fcntl is not None:
            os.close(number)


def _locked(number: int, name: str) -> bool:
    """Lock an open file; False if another process took it for a leftover before that."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (
        OSError
    ):  # a file system without locks: nobody can clean there either
        return True
    try:
        return os.stat(name).st_ino == os.fstat(number).st_ino
    except FileNotFoundError:
        return False


def _remove_if_free(part: Path) -> None:
    try:
        number = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink(missing_ok=True)
    except OSError:  # somebody writes it, or may not be interfered with
        pass
    finally:
        os.close(number)


def _prefix(path: Path) -> str:
    computer = zlib.crc32(platform.node().encode())
    return f".{path.stem}.part-{computer:08x}-"


def _mode(path: Path) -> int:
    """Permissions of the file that is replaced, or those that a new file would have."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    """Make a change of names durable, where folders can be opened (not on Windows)."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(number)
    except OSError:  # some network file systems refuse
        pass
    finally:
        os.close(number)
