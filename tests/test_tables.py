"""Tables of a paper's numbers beside ours: nothing is cut, nothing differs without a reason."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparselib import tables

WHY = "10,000 of the training images are held out, and the paper does not name its network."


class Cells(HTMLParser):
    """Rows of a table as a browser reads them; an unclosed or unknown tag is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.styles: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"p", "div", "table", "thead", "tbody", "tr", "th", "td"}
        self.open.append(tag)
        self.styles.append(dict(attrs).get("style") or "")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data


def cells(table: tables.Table) -> list[list[str]]:
    return Cells(table._repr_html_()).rows


def accuracies(**changes: object) -> tables.Table:
    given = {
        "labels": {"data": ["mnist", "fashion_mnist"], "network": ["[784, 256, 10]", "dense"]},
        "paper": [97.30, 89.40],
        "ours": [[96.95, 97.06, 97.17], [89.20, 89.44, 89.50]],
        "why": [WHY, ""],
        "unit": "%",
    }
    return tables.compare(**given | changes)


def test_a_line_has_the_paper_ours_and_the_whole_reason() -> None:
    head, first, second = cells(accuracies())
    assert head == ["data", "network", "paper", "ours", "runs", "difference", "why"]
    plain = [text.replace("\N{NO-BREAK SPACE}", " ") for text in first]
    assert plain == ["MNIST", "784-256-10", "97.30 %", "97.06 ± 0.11 %", "3", "-0.24", WHY]
    assert second[0] == "Fashion-MNIST"
    assert second[-1] == "One more run may end there, within 88.59 to 90.17 (95 %)."


WORDS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=300)


@given(st.lists(WORDS, min_size=1, max_size=4))
def test_every_word_stands_in_html_and_in_text(words: list[str]) -> None:
    table = tables.listing({"row": words}, {"note": [f"<b>{word}&amp;" for word in words]})
    assert cells(table)[1:] == [[tables.human(word), f"<b>{word}&amp;"] for word in words]
    assert all(f"<b>{word}&amp;" in repr(table) for word in words)


def test_a_difference_needs_a_reason() -> None:
    with pytest.raises(
        ValueError, match=r"row 'MNIST, 784-256-10' has 97.9 in the paper and 97.06"
    ):
        accuracies(paper=[97.9, 89.40], why=["", ""])
    with pytest.raises(ValueError, match="but no reason"):
        accuracies(paper=[97.30, None])
    with pytest.raises(ValueError, match="but no reason"):
        accuracies(ours=[97.30, 89.39])


def test_the_numbers_give_the_reason_where_they_agree() -> None:
    table = accuracies(paper=[97.06, 89.5], why=["", " "])
    assert [row[-1] for row in cells(table)[1:]] == [
        tables.EQUAL,
        tables.WITHIN.format("88.59", "90.17"),
    ]
    table = accuracies(ours=[97.304, 89.396], why=["", ""])
    assert [row[-1] for row in cells(table)[1:]] == [tables.EQUAL] * 2
    assert "runs" not in cells(table)[0]


@pytest.mark.parametrize("column", ["paper", "ours", "why", "scale", "spec", "unit"])
def test_columns_of_unequal_length_are_refused(column: str) -> None:
    with pytest.raises(ValueError, match=f"one entry for each row, but .*'{column}' has 3"):
        accuracies(**{column: ["1", "2", "3"]})


def test_shade_and_sign_follow_the_difference() -> None:
    near, low, high, far = 99.9, 98.0, 101.0, 120.0
    table = tables.compare(
        {"row": list("abcd")}, [100.0] * 4, [near, low, high, far], ["Open."] * 4
    )
    rows = table.rows
    assert [row[3].text for row in rows] == ["-0.10", "-2.00", "+1.00", "+20.00"]
    shades = tables.SHADES
    assert [row[3].tint for row in rows] == ["", shades[-1], shades[1], shades[2]]
    inside = tables.compare({"row": ["a"]}, [100.0], [[90.0, 112.0]], [""])
    assert inside.rows[0][4].tint == ""


def test_groups_hold_one_number_a_cell_and_mark_it() -> None:
    groups = {
        "error": {"paper": [0.44, 0.5], "ours": [0.44, [0.3, 0.31, 0.32]]},
        "n": {"runs": [1, 2]},
    }
    table = tables.grouped({"m": [8, 9]}, groups, spec={"error": ".2f", "n": ".0f"})
    above, head, first, second = cells(table)
    assert above == ["", "error", "n"]
    assert head == ["m", "paper", "ours", "runs"]
    assert first == ["8", "0.44", "0.44", "1"]
    assert [t.replace("\N{NO-BREAK SPACE}", " ") for t in second] == [
        "9",
        "0.50",
        "0.31 ± 0.01 ↓",
        "2",
    ]
    assert "error, paper" in repr(table)


def test_verdicts_have_a_mark_beside_the_color() -> None:
    claims = "\n".join(f"claim {v} | {v} | 1 | 2 | Open." for v in tables.VERDICTS)
    rows = cells(tables.verdicts(claims))[1:]
    assert [row[1][0] for row in rows] == ["✓", "~", "✗", "?"]


def test_claims_are_read_as_they_stand_on_a_page() -> None:
    claims = """
        It is small | holds | 56
            | 56.1 | Five arrays
            are kept.
        It is fast | does not | 2 | 1 | Small layers.
        """
    rows = cells(tables.verdicts(claims))[1:]
    assert rows[0][0::2] == ["It is small", "56", "Five arrays are kept."]
    assert rows[1][0::2] == ["It is fast", "2", "Small layers."]


@pytest.mark.parametrize(
    ("claims", "sentence"),
    [
        ("it is fast | maybe | 1 | 2 | Open.", "the verdict on 'it is fast' is 'maybe'"),
        ("it is fast | holds | 1 | 2 | ", "'it is fast' has no why"),
        ("it is fast | holds |  | 2 | Open.", "'it is fast' has no paper"),
        ("it is fast | holds | 1 | 2", "'it is fast' has 4 entries; write claim"),
        ("it is fast | holds | 1 | 2 | a | b", "'it is fast' has 6 entries"),
        (" \n ", "there is no claim"),
    ],
)
def test_claims_that_say_too_little_are_refused(claims: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        tables.verdicts(claims)


def test_missing_runs_are_named_and_zero_has_no_minus() -> None:
    assert tables.measured([]) == tables.measured(np.nan) == tables.measured(None) == "no run yet"
    assert tables.measured(-0.001, "+.1f") == "+0.0"
    assert tables.measured(1234.5, ",.0f", "kB") == "1,234\N{NO-BREAK SPACE}kB"
    assert tables.human("[0.95, 0.9]") == "[0.95, 0.9]"


NUMERALS = ["13,002", "0.42", "+0.3", "-1.2", "87.1 ± 0.3", "12 %", "3.4 ms", "1.5 MiB", "4"]
WORDS = ["dense, 16", "+0.25 (+0.00 to +0.50)", "3 of 5", "256-256-10", "no run yet", "2026-11-30"]


@pytest.mark.parametrize("text", NUMERALS + WORDS)
def test_numbers_that_a_page_has_written_stand_on_the_right(text: str) -> None:
    """Like those that the table writes, so that their digits stand below each other."""
    table = tables.listing({"network": ["dense"]}, {"what": [text]})
    ((_, cell),) = table.rows
    assert cell == tables.Cell(text, number=text in NUMERALS)
