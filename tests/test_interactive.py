"""The rows of the interactive figures are those of the stored results and of their pages."""

import json
import re
from pathlib import Path

import interactive
import nbformat

ROOT = Path(__file__).resolve().parent.parent
STATIC = ROOT / "book/_static"


def rows(name: str) -> dict:
    text = (STATIC / f"rows-{name}.js").read_text(encoding="utf-8")
    return json.loads(text[text.index(f"{name}:") + len(name) + 1 : text.rindex("}")])


def test_speedups_are_the_stored_rows() -> None:
    """To mend it: `python book/_tools/interactive.py`."""
    written = (STATIC / "rows-speed.js").read_text(encoding="utf-8")
    assert written == interactive.script("speed", interactive.speed())
    assert {row["machine"] for row in rows("speed")} == {
        f"AMD {name}" for name in interactive.ertl.MACHINES
    }


def test_topologies_are_those_of_their_page() -> None:
    page = nbformat.read(ROOT / "book/csr/evolution.ipynb", as_version=4)
    printed = next(cell for cell in page.cells[::-1] if cell.cell_type == "code").outputs[0].text
    shown = rows("evolution")
    first, last = re.search(r"dark pixels +=\s+(\d+) at first, (\d+) at the end", printed).groups()
    assert (shown["dark"][0], shown["dark"][-1]) == (int(first), int(last))
    assert f"at initialization                     = {shown['connections']}\n" in printed
    for frame in shown["frames"]:
        assert sum(int(digit, 36) for digit in frame) == shown["connections"]
        assert len(frame) == 784
