"""Diagrams of the networks: what a phone shows is the wide one in pieces, and can be read."""

import re
from xml.etree import ElementTree

import diagrams
import pytest

STATIC = diagrams.STATIC
PHONE = 350  # pixels that a page of 390 leaves for a picture
NAMES = sorted(path.stem.removeprefix("network-") for path in STATIC.glob("network-*.svg"))


def read(name: str) -> str:
    return (STATIC / f"network-{name}.svg").read_text(encoding="utf-8")


def texts(svg: str) -> list[str]:
    """Words of a diagram, in alphabetical order."""
    found = [node.text or "" for node in ElementTree.fromstring(svg).iter() if "text" in node.tag]
    return sorted(" ".join(found).split())


def test_every_diagram_has_a_narrow_one() -> None:
    wide = {name for name in NAMES if not name.endswith("-narrow")}
    assert wide == set(diagrams.CUTS)
    assert {name for name in NAMES if name not in wide} == {f"{name}-narrow" for name in wide}


@pytest.mark.parametrize("name", diagrams.CUTS)
def test_the_narrow_diagram_holds_all_words_and_can_be_read_on_a_phone(name: str) -> None:
    """After a change of a diagram: ``python book/_tools/diagrams.py``."""
    narrow = read(f"{name}-narrow")
    assert narrow == diagrams.narrow(read(name), diagrams.CUTS[name])
    assert texts(narrow) == texts(read(name))
    assert diagrams.smallest_text(narrow, PHONE) >= 10
    assert diagrams.smallest_text(read(name), PHONE) < 10


@pytest.mark.parametrize("name", diagrams.CUTS)
def test_every_text_lies_in_one_piece(name: str) -> None:
    """A text that a cut divides would be seen half, or twice."""
    cut = diagrams.CUTS[name]
    for node in ElementTree.fromstring(read(name)).iter():
        whole = " ".join(cut.sentence)
        if "text" not in node.tag or node.text == whole:
            continue
        x, y = float(node.attrib["x"]), float(node.attrib["y"])
        holding = [
            left
            for left, top, wide, high in cut.pieces
            if left <= x <= left + wide and top <= y <= top + high
        ]
        assert len(holding) == 1, node.text


@pytest.mark.parametrize("name", diagrams.CUTS)
def test_the_style_sheet_shows_it(name: str) -> None:
    css = (STATIC / "style.css").read_text(encoding="utf-8")
    phone = css.split("book/_tools/diagrams.py")[1]
    rule = rf'img\[src\$="network-{name}.svg"\] \{{ content: url\("network-{name}-narrow.svg"\)'
    assert re.search(rule, phone)


def test_a_sentence_that_is_not_there_is_missed() -> None:
    cut = diagrams.Cut(((0, 0, 400, 400),), ("Not", "there."))
    with pytest.raises(ValueError, match=r"the diagram has no text 'Not there\.'"):
        diagrams.narrow(read("csr"), cut)
