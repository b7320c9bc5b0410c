"""Texts: numbers of characters, windows, parts, and what is refused."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparselib import datasets
from sparselib.datasets import DataUnavailable
from sparselib.datasets.text import Text, Windows

REAL = os.environ.get("SPARSELIB_DATA", "")


def text_of(string, context=4):
    return Text.from_string(string, context, "own", "a text of this test")


@given(st.text(min_size=100, max_size=300), st.integers(1, 4))
def test_windows_hold_each_part_in_its_order_and_what_follows(string, context):
    text = text_of(string, context)
    parts = {"train": string[: len(text._parts()[0])]}
    parts["valid"] = string[len(parts["train"]) :][: len(text._parts()[1])]
    parts["test"] = string[len(parts["train"]) + len(parts["valid"]) :]
    for name, part in parts.items():
        windows = getattr(text, name)
        assert len(windows) == (len(part) - 1) // context
        end = len(windows) * context
        assert text.decode(windows.x.flatten()) == part[:end]
        assert text.decode(windows.y.flatten()) == part[1 : end + 1]
    assert len(parts["test"]) == round(0.05 * len(string))
    assert text.decode(text.encode(string)) == string
    assert list(text.characters) == sorted(set(string))


def test_drawn_windows_start_anywhere_in_the_part_that_trains():
    text = datasets.coriolanus(64)
    drawn = text.drawn(500, seed=3)
    part = text.decode(text._parts()[0])
    pieces = [text.decode(row) for row in drawn.train.x]
    follow = [text.decode(row) for row in drawn.train.y]
    assert all(a + b[-1] in part and a[1:] == b[:-1] for a, b in zip(pieces, follow))
    assert len({part.index(piece) % 64 for piece in pieces}) > 32
    assert torch.equal(drawn.train.x, text.drawn(500, seed=3).train.x)
    assert not torch.equal(drawn.train.x, text.drawn(500, seed=4).train.x)
    assert torch.equal(drawn.valid.x, text.valid.x)
    assert text.drawn(0) is text
    assert "500 windows drawn" in drawn.note
    with pytest.raises(ValueError, match="-1 windows cannot be drawn"):
        text.drawn(-1)


def test_every_window_that_fits_can_be_drawn():
    text = text_of("abcdefghij" * 12, 4)
    part = text._parts()[0]
    starts = {tuple(row.tolist()) for row in text.drawn(2000).train.x}
    assert starts == {tuple(row.tolist()) for row in part[:-1].unfold(0, 4, 1)}


def test_a_checksum_names_the_text_its_parts_and_its_windows():
    one = text_of("ab" * 50)
    assert one.checksum == text_of("ab" * 50).checksum
    others = [text_of("ab" * 49 + "bb"), text_of("ab" * 50, 3)]
    others.append(Text(one.codes, "ab", 4, "own", "", shares=(0.06, 0.05)))
    assert len({one.checksum, *(text.checksum for text in others)}) == 4
    assert repr(one) == "Text(own: windows of 4, 22 train, 1 valid, 1 test; 2 characters; " + (
        f"checksum {one.checksum})"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: text_of("ab" * 50, 0), "at least one character, not 0"),
        (lambda: text_of("ab" * 50, 5), "valid part has 5 characters, too few for a window of 5"),
        (lambda: Text(torch.tensor([0, 2]), "ab", 1, "", ""), r"0 to 1, but the text has 0 to 2"),
        (lambda: Text(torch.tensor([0, -1]), "ab", 1, "", ""), r"but the text has -1 to 0"),
        (lambda: Text(torch.zeros(9), "ab", 1, "", ""), r"not torch.float32 of \(9,\)"),
        (lambda: text_of("ab" * 50).encode("abc!"), r"\['!', 'c'\] do not occur"),
        (
            lambda: Windows(torch.zeros(3, 2).long(), torch.zeros(3, 1).long()),
            r"not torch.int64 of \(3, 2\) and torch.int64 of \(3, 1\)",
        ),
        (
            lambda: Windows(torch.zeros(3, 2), torch.zeros(3, 2).long()),
            r"not torch.float32 of \(3, 2\)",
        ),
    ],
)
def test_what_is_no_text_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_damaged_or_missing_text_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELIB_DATA", "")
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare/input.txt").write_text("First Citizen:", encoding="utf-8")
    with pytest.raises(ValueError, match=r"input.txt is refused: its SHA-256 is"):
        datasets.shakespeare(folder=tmp_path)
    monkeypatch.setitem(datasets.files.SOURCES, "tinyshakespeare", ())
    monkeypatch.setattr(datasets.files, "_home", lambda: tmp_path / "nowhere")
    with pytest.raises(DataUnavailable, match=r"datasets.coriolanus\(\)"):
        datasets.shakespeare()


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="needs SPARSELIB_DATA")
def test_the_text_of_the_package_is_the_beginning_of_tiny_shakespeare():
    whole = datasets.shakespeare(256)
    assert len(whole.codes) == 1_115_394
    assert len(whole.characters) == 65
    beginning = datasets.coriolanus(64)
    own = beginning.decode(beginning.codes)
    assert whole.decode(whole.codes[: len(own) - 1]) == own[:-1]
    assert len(own) == 40_036
