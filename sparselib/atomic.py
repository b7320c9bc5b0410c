"""Files that are there whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file beside its place, then move it there; a crash leaves the old one.

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
    # the suffix stays, for some writers choose the format by it, or add their own
    number, name = tempfile.mkstemp(path.suffix, f".{path.stem}.part-", path.parent)
    os.close(number)
    part = Path(name)
    try:
        save(part)
        part.chmod(_mode(path))
        move(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write(path, lambda part: part.write_text(text, encoding="utf-8"))


def move(part: Path, path: Path) -> None:
    """Give a finished file its name once its content is on the disk."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    _sync_folder(path.parent)


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
