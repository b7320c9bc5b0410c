"""Files are there whole or not at all, whenever the process that writes them is killed."""

import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from sparselib import atomic, checkpoint

KILLS = 80
SIZE = 20_000


def state(number: int) -> dict:
    return {"number": number, "values": torch.full((SIZE,), float(number)), "generators": False}


def overwriting(file: Path) -> tuple[int, int]:
    """Start a process that does nothing but overwrite a file, and says so before each time."""
    reads, says = os.pipe()
    process = os.fork()
    if process == 0:
        for number in itertools.count(1):
            os.write(says, b".")
            checkpoint.save(file, **state(number))
    os.close(says)
    return process, reads


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_kill_while_overwriting_leaves_the_old_or_the_new_file_whole(tmp_path: Path) -> None:
    """80 real SIGKILLs, each somewhere in a write; the next load removes the part file."""
    file = tmp_path / "run.pt"
    checkpoint.save(file, **state(0))
    generator = random.Random(0)
    leftovers = 0
    for _ in range(KILLS):
        process, reads = overwriting(file)
        os.read(reads, 1)
        start = time.perf_counter()
        os.read(reads, 1)
        time.sleep(generator.random() * (time.perf_counter() - start))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(reads)
        leftovers += len(list(tmp_path.iterdir())) - 1
        kept = checkpoint.load(file)
        assert torch.equal(kept["values"], torch.full((SIZE,), float(kept["number"])))
        assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]
    assert leftovers, "no kill came while a file was written"


def test_leftovers_go_with_the_next_write_and_files_of_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    left = Path(f"{tmp_path}/{atomic._prefix(file)}dead.csv")
    others = [".b.part-1.csv", ".a.part-otherhost-1.csv", "a.part-1.csv"]
    for path in (left, *(tmp_path / name for name in others)):
        path.write_text("half", encoding="utf-8")
    atomic.write_text(file, "whole")
    assert file.read_text(encoding="utf-8") == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.csv", *others])


def test_a_part_that_somebody_writes_is_left_alone(tmp_path: Path) -> None:
    """Two writers of one path: the second neither disturbs the first nor is disturbed."""
    file = tmp_path / "a.txt"

    def save(part: Path) -> None:
        part.write_text("first", encoding="utf-8")
        atomic.clean(file)
        atomic.write_text(file, "second")
        assert part.read_text(encoding="utf-8") == "first"
        assert file.read_text(encoding="utf-8") == "second"

    atomic.write(file, save)
    assert file.read_text(encoding="utf-8") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def append(file: Path, number: int) -> None:
    for time_ in range(25):
        atomic.write_text(file, f"{number} {time_}\n" * 1000)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_writers_at_the_same_time_do_not_remove_each_others_parts(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append, args=(file, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1000
    assert len(set(lines)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_a_part_that_another_process_took_for_a_leftover_is_given_up(tmp_path: Path) -> None:
    import fcntl

    path = tmp_path / "part"
    path.touch()
    with path.open("rb") as theirs, path.open("rb") as ours:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        assert not atomic._locked(ours.fileno(), str(path))
        fcntl.flock(theirs, fcntl.LOCK_UN)
        assert atomic._locked(ours.fileno(), str(path))
        path.unlink()
        assert not atomic._locked(ours.fileno(), str(path))


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    atomic.write_text(file, "old")

    def fails(part: Path) -> None:
        part.write_text("ha", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic.write(file, fails)
    assert file.read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_permissions_are_those_of_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    atomic.write_text(file, "old")
    file.chmod(0o640)
    atomic.write_text(file, "new")
    assert file.stat().st_mode & 0o777 == 0o640
