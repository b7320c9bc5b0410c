"""Tables that put a paper's numbers beside ours, on pages, in JupyterLab and in a terminal.

A table here is plain HTML with its text escaped: it needs no script, stays readable without a style
sheet, and prints the same words as text. Sentences wrap and are never cut.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from textwrap import dedent

import numpy as np

from .comparison import may_end_at, prediction_interval

NAMES = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "higgs": "HIGGS",
    "isolet": "ISOLET",
    "digits": "Digits",
    "epilepsy": "Epilepsy",
    "cifar10": "CIFAR-10",
    "placed_digits": "Digits in clutter",
    "mitdb/100": "mitdb, record 100",
    "bidmc/bidmc01": "bidmc, record 01",
    "emgdb/emg_healthy": "emgdb, healthy",
    "ctu-uhb-ctgdb/1001": "ctu-uhb-ctgdb, 1001",
    "a01_from360000": "apnea-ecg a01, excerpt",
    "a06_from363000": "apnea-ecg a06, excerpt",
}
PARTS = ("claim", "verdict", "paper", "ours", "why")
VERDICTS = {"holds": "✓", "partly": "~", "does not": "✗", "not tested": "?"}
TINTS = {
    "holds": "rgba(0, 158, 115, 0.20)",
    "partly": "rgba(230, 159, 0, 0.22)",
    "does not": "rgba(213, 94, 0, 0.30)",
    "not tested": "rgba(128, 128, 128, 0.20)",
}
# blue: ours is higher; orange: ours is lower; fainter below 5 % of the paper's number
SHADES = {
    2: "rgba(0, 114, 178, 0.34)",
    1: "rgba(0, 114, 178, 0.16)",
    -1: "rgba(230, 159, 0, 0.20)",
    -2: "rgba(230, 159, 0, 0.42)",
}
SHADED = "Blue: ours is higher; orange: lower; darker from 5 % of the paper's number on."
SLIGHT = 0.005
LARGE = 0.05
EQUAL = "As printed."
WITHIN = "One more run may end there, within {} to {} (95 %)."
NO_RUN = "no run yet"
NOT_PRINTED = "not printed"
SPACE = "\N{NO-BREAK SPACE}"
# a number that a page has written itself: 13,002 or 87.1 ± 0.3 or 4.2 ms
NUMERAL = re.compile(
    r"[-+]?[\d,]*\.?\d+(\s?±\s?[\d,]*\.?\d+)?(\s?(%|[a-zA-Zµ]{1,3}))?"
)


@dataclass(frozen=True)
class Cell:
    """One cell: its text, whether it is a number, and the color behind it."""

    text: str
    number: bool = False
    tint: str = ""


@dataclass(frozen=True)
class Table:
    """A finished table, which a notebook shows as HTML and a terminal as text.

    Parameters
    ----------
    columns : tuple of str
        The heads.
    rows : tuple of tuples of Cell
        As many cells in each as there are columns.
    labels : int
        How many of the first columns name the row.
    caption : str
        What the table shows.
    groups : tuple of str
        A second head above the columns; neighbors of one name share it. Empty for a flat head.
    layout : str
        On a narrow screen "stacked" shows each row as a block, "wide" scrolls sideways;
        "verdicts" is stacked and compact.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    labels: int = 1
    caption: str = ""
    groups: tuple[str, ...] = ()
    layout: str = "stacked"

    def __repr__(self) -> str:
        """Return lines of text: the caption, the heads, the rows."""
        heads = self.columns
        if self.groups:
            heads = tuple(
                f"{g}, {c}" if g else c
                for g, c in zip(self.groups, self.columns)
            )
        lines = [heads, *([cell.text for cell in row] for row in self.rows)]
        widths = [
            max(len(line[place]) for line in lines)
            for place in range(len(heads))
        ]
        padded = [
            "  ".join(map(str.ljust, line, widths)).rstrip() for line in lines
        ]
        return "\n".join([self.caption, *padded] if self.caption else padded)

    def _repr_html_(self) -> str:
        kind = f"sl-{self.layout}" + (
            " sl-stacked" if self.layout == "verdicts" else ""
        )
        caption = (
            f'<p class="sl-caption">{escape(self.caption)}</p>\n'
            if self.caption
            else ""
        )
        body = "\n".join(self._row(row) for row in self.rows)
        table = (
            f'<table class="sl-table {kind}">\n<thead>\n{self._head()}\n</thead>\n'
            f"<tbody>\n{body}\n</tbody>\n</table>"
        )
        label = escape(self.caption or "Table", quote=True)
        region = (
            f'class="sl-scroll" role="region" aria-label="{label}" tabindex="0"'
        )
        return f"{caption}<div {region}>\n{table}\n</div>"

    def _head(self) -> str:
        left = ' style="text-align: left"'
        flat = "".join(
            f'<th scope="col"{left if place < self.labels else ""}>{escape(name)}</th>'
            for place, name in enumerate(self.columns)
        )
        lines = [f"<tr>{flat}</tr>"]
        if self.groups:
            above = "".join(
                _span(name, len(list(same)))
                for name, same in groupby(self.groups)
            )
            lines.insert(0, f"<tr>{above}</tr>")
        return "\n".join(lines)

    def _row(self, row: Sequence[Cell]) -> str:
        found = []
        for place, cell in enumerate(row):
            tag = 'th scope="row"' if place < self.labels else "td"
            style = "" if cell.number else "text-align: left"
            if cell.tint:
                style = f"{style}; background: {cell.tint}".lstrip("; ")
            kind = ' class="sl-number"' if cell.number else ""
            style = f' style="{style}"' if style else ""
            label = escape(self.columns[place], quote=True)
            opened = f'<{tag}{kind} data-label="{label}"{style}>'
            found.append(f"{opened}{escape(cell.text)}</{tag[:2]}>")
        return f"<tr>{''.join(found)}</tr>"


def human(key: object) -> str:
    """Return the name that a reader knows of a data set or network.

    Parameters
    ----------
    key : object
        A key of a table of results, such as ``"higgs"`` or ``"[784, 256, 10]"``; anything without
        a name stays as it is.

    Returns
    -------
    str
        ``"HIGGS"``, ``"784-256-10"``.
    """
    text = str(key)
    if re.fullmatch(r"\[\d+(, \d+)+\]", text):
        return text.strip("[]").replace(", ", "-")
    return NAMES.get(text, text)


def measured(value: object, spec: str = ".2f", unit: str = "") -> str:
    """Write a number, or the mean and standard deviation of several runs.

    Parameters
    ----------
    value : float, str or sequence of float
        One number; the numbers of several runs; or words, which stay as they are.
    spec : str
        The format of a number.
    unit : str
        What follows it.

    Returns
    -------
    str
        For example ``"95.59 ± 0.32 %"``; "no run yet" for an empty sequence or not a number.
    """
    if isinstance(value, str):
        return value
    numbers = _numbers(value)
    if not len(numbers):
        return NO_RUN
    text = _rounded(numbers.mean(), spec)
    if len(numbers) > 1:
        text += (
            f"{SPACE}±{SPACE}{format(numbers.std(ddof=1), spec.lstrip('+'))}"
        )
    return f"{text}{SPACE}{unit}" if unit else text


def compare(
    labels: Mapping[str, Sequence[object]],
    paper: Sequence[object],
    ours: Sequence[object],
    why: Sequence[str],
    *,
    spec: str | Sequence[str] = ".2f",
    unit: str | Sequence[str] = "",
    scale: Sequence[str] | None = None,
    caption: str = "",
) -> Table:
    """Put a paper's numbers beside ours: one line each, with the difference and its reason.

    Parameters
    ----------
    labels : mapping
        Name of a column to its entry in each row; keys get the names of `human`.
    paper : sequence
        The paper's number or words in each row; None where it prints nothing.
    ours : sequence
        Our number in each row, the numbers of several runs, or words.
    why : sequence of str
        Why the two differ, a sentence. It may be empty where they do not: where both read the same,
        or print lies in the 95 % prediction interval of at least two runs.
    spec, unit : str or sequence of str
        Format and unit of the numbers, of all rows or of each.
    scale : sequence of str, optional
        At which scale our number was measured.
    caption : str
        What the table shows.

    Returns
    -------
    Table
        With the columns paper, ours, runs (if there are several), difference (if there are
        numbers), scale (if given) and why.

    Raises
    ------
    ValueError
        If the columns differ in length, or a difference has no reason.
    """
    count = len(paper)
    columns = dict(labels) | {"ours": ours, "why": why}
    columns |= {"scale": scale} if scale is not None else {}
    specs = [spec] * count if isinstance(spec, str) else spec
    units = [unit] * count if isinstance(unit, str) else unit
    _check_lengths(columns | {"paper": paper, "spec": specs, "unit": units})
    runs = [
        len(_numbers(value)) if np.asarray(value).ndim else 0 for value in ours
    ]
    gaps = [_difference(*row) for row in zip(paper, ours, specs)]
    shown = [NOT_PRINTED if value is None else value for value in paper]
    names = {
        name: [Cell(human(value)) for value in column]
        for name, column in labels.items()
    }
    reasons = list(zip(why, paper, ours, specs, zip(*names.values())))
    body = names | {
        "paper": [
            Cell(measured(*row), number=True)
            for row in zip(shown, specs, units)
        ],
        "ours": [
            Cell(measured(*row), number=True) for row in zip(ours, specs, units)
        ],
    }
    if max(runs, default=0) > 1:
        body["runs"] = [Cell(str(number or ""), number=True) for number in runs]
        caption += " Ours: mean ± standard deviation of the runs."
    if any(text for text, _ in gaps):
        body["difference"] = [
            Cell(text, number=True, tint=tint) for text, tint in gaps
        ]
        caption += f" {SHADED}"
    if scale is not None:
        body["scale"] = [Cell(text) for text in scale]
    body["why"] = [
        Cell(given.strip() or _reason(printed, own, form, row))
        for given, printed, own, form, row in reasons
    ]
    return Table(
        tuple(body), tuple(zip(*body.values())), len(labels), caption.strip()
    )


def grouped(
    labels: Mapping[str, Sequence[object]],
    groups: Mapping[str, Mapping[str, Sequence[object]]],
    *,
    spec: str | Mapping[str, str] = ".2f",
    caption: str = "",
) -> Table:
    """Put several measures side by side, one number per cell; ours are shaded by the paper's.

    Parameters
    ----------
    labels : mapping
        Name of a column to its entry in each row.
    groups : mapping
        Measure to its columns: name to one number, runs or words for each row. In a group with a
        column ``"paper"`` the other columns are shaded by their difference from it, and an arrow
        states which way they differ.
    spec : str or mapping
        Format of the numbers, of all groups or of each.
    caption : str
        What the table shows.

    Returns
    -------
    Table
        With a head for the groups above that of the columns.

    Raises
    ------
    ValueError
        If columns differ in length.
    """
    flat = {
        f"{g}, {c}": column
        for g, inner in groups.items()
        for c, column in inner.items()
    }
    count = _check_lengths(dict(labels) | flat)
    lines = []
    for place in range(count):
        line = [Cell(human(column[place])) for column in labels.values()]
        for group, inner in groups.items():
            form = spec if isinstance(spec, str) else spec[group]
            theirs = inner["paper"][place] if "paper" in inner else None
            for name, column in inner.items():
                beside = None if name == "paper" else theirs
                line.append(_shaded(column[place], beside, form))
        lines.append(tuple(line))
    heads = tuple(labels) + tuple(
        name for inner in groups.values() for name in inner
    )
    above = ("",) * len(labels) + tuple(
        g for g, inner in groups.items() for _ in inner
    )
    if any("paper" in inner for inner in groups.values()):
        caption = f"{caption} {SHADED}".strip()
    return Table(heads, tuple(lines), len(labels), caption, above, "wide")


def listing(
    labels: Mapping[str, Sequence[object]],
    columns: Mapping[str, Sequence[object]],
    *,
    spec: str = ".1f",
    caption: str = "",
) -> Table:
    """List our results without a paper's beside them.

    Parameters
    ----------
    labels : mapping
        Name of a column to its entry in each row; keys get the names of `human`.
    columns : mapping
        Name to one number, runs or words for each row; a pandas frame will do.
    spec : str
        Format of the numbers.
    caption : str
        What the table shows.

    Returns
    -------
    Table
        With a flat head.

    Raises
    ------
    ValueError
        If columns differ in length.
    """
    inner = {str(name): list(column) for name, column in columns.items()}
    count = _check_lengths(dict(labels) | inner)
    lines = []
    for place in range(count):
        line = [Cell(human(list(column)[place])) for column in labels.values()]
        line += [
            _shaded(column[place], None, spec) for column in inner.values()
        ]
        lines.append(tuple(line))
    layout = "stacked" if len(inner) < 6 else "wide"
    return Table(
        (*labels, *inner), tuple(lines), len(labels), caption, layout=layout
    )


def verdicts(claims: str, *, caption: str = "") -> Table:
    """List for each claim of a paper whether it holds here.

    Parameters
    ----------
    claims : str
        One claim after the other, each ``claim | verdict | paper | ours | why``, such as
        ``"Sparse is faster | partly | 2.0 | 1.5 | Not for few samples."`` A claim goes on in lines
        that are indented further than its first. A verdict is "holds", "partly", "does not" or
        "not tested".
    caption : str
        What the table shows.

    Returns
    -------
    Table
        One line per claim; the verdict has a mark and a color.

    Raises
    ------
    ValueError
        If there is no claim, a claim has more or fewer than five entries or an empty one, or a
        verdict is none of the four.
    """
    lines = []
    for entries in _statements(claims):
        claim, verdict, paper, ours, why = entries
        mark = Cell(
            f"{VERDICTS[verdict]}{SPACE}{verdict.replace(' ', SPACE)}",
            tint=TINTS[verdict],
        )
        lines.append((Cell(claim), mark, Cell(paper), Cell(ours), Cell(why)))
    return Table(PARTS, tuple(lines), 1, caption, layout="verdicts")


def _statements(text: str) -> list[list[str]]:
    """Split claims into the texts of their entries, and check them."""
    whole = dedent(text).strip()
    if not whole:
        raise ValueError("there is no claim; write one per line")
    found = []
    for statement in re.split(r"\n(?=\S)", whole):
        entries = [" ".join(entry.split()) for entry in statement.split("|")]
        claim = entries[0]
        if len(entries) != len(PARTS):
            raise ValueError(
                f"the claim {claim!r} has {len(entries)} entries; write "
                f"{' | '.join(PARTS)}"
            )
        if "" in entries:
            raise ValueError(
                f"the claim {claim!r} has no {PARTS[entries.index('')]}; "
                f"write a few words"
            )
        if entries[1] not in VERDICTS:
            raise ValueError(
                f"the verdict on {claim!r} is {entries[1]!r}; it has to be one of {list(VERDICTS)}"
            )
        found.append(entries)
    return found


def _span(group: str, width: int) -> str:
    if not group:
        return f'<td colspan="{width}"></td>'
    return f'<th scope="colgroup" colspan="{width}">{escape(group)}</th>'


def _numbers(value: object) -> np.ndarray:
    """Numbers that a cell holds: none, one, or one of each run, without NaN."""
    numbers = np.asarray([] if value is None else value, dtype=float).ravel()
    return numbers[~np.isnan(numbers)]


def _number(value: object) -> float:
    """One number, as the paper prints it."""
    return float(np.asarray(value, dtype=float))


def _rounded(number: float, spec: str) -> str:
    """A number in a format; nothing is -0."""
    return format(round(float(number), _digits(spec)) + 0.0, spec)


def _digits(spec: str) -> int:
    """How many decimals a format has."""
    return int(re.sub(r".*\.(\d+)f", r"\1", spec))


def _check_lengths(columns: Mapping[str, Sequence[object]]) -> int:
    """Number of rows, the same in every column."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        counts = ", ".join(
            f"{name!r} has {length}" for name, length in lengths.items()
        )
        raise ValueError(
            f"every column needs one entry for each row, but {counts}"
        )
    return next(iter(lengths.values()))


def _gap(paper: object, ours: object, spec: str) -> float | None:
    """Ours minus the paper's as it reads after rounding; None where either is no number."""
    if paper is None or isinstance(paper, str) or isinstance(ours, str):
        return None
    mine = _numbers(ours)
    if not len(mine):
        return None
    digits = _digits(spec)
    return round(
        round(float(mine.mean()), digits) - round(_number(paper), digits),
        digits,
    )


def _as_print(paper: object, ours: object) -> bool:
    """Whether the paper's number is where one more run might end."""
    return may_end_at(_number(paper), _numbers(ours))


def _level(gap: float, paper: float) -> int:
    """How far ours is from print: 0, 1 or 2, with the sign of the difference."""
    share = abs(gap) / max(abs(paper), 1e-12)
    size = 2 if share >= LARGE else int(share >= SLIGHT)
    return size if gap > 0 else -size


def _difference(paper: object, ours: object, spec: str) -> tuple[str, str]:
    """Text of the difference, and its shade."""
    gap = _gap(paper, ours, spec)
    if gap is None:
        return "", ""
    level = 0 if _as_print(paper, ours) else _level(gap, _number(paper))
    text = _rounded(gap, f"+{spec.lstrip('+')}") if gap else "0"
    return text, SHADES.get(level, "")


def _shaded(value: object, paper: object, spec: str) -> Cell:
    """Cell of a number, shaded and with an arrow if it differs from the paper's."""
    text = "" if value is None else measured(value, spec)
    gap = _gap(paper, value, spec)
    level = (
        0
        if gap is None or _as_print(paper, value)
        else _level(gap, _number(paper))
    )
    arrow = f"{SPACE}{'↑' if level > 0 else '↓'}" if level else ""
    return Cell(
        text + arrow,
        number=not isinstance(value, str) or bool(NUMERAL.fullmatch(value)),
        tint=SHADES.get(level, ""),
    )


def _reason(
    paper: object, ours: object, spec: str, labels: Sequence[Cell]
) -> str:
    """Return the reason that the numbers themselves give; refuse a difference without one."""
    gap = _gap(paper, ours, spec)
    if gap == 0:
        return EQUAL
    if gap is not None and _as_print(paper, ours):
        ends = prediction_interval(_numbers(ours))
        return WITHIN.format(*(_rounded(end, spec) for end in ends))
    row = ", ".join(label.text for label in labels)
    raise ValueError(
        f"row {row!r} has {paper!r} in the paper and {measured(ours, spec)} here, but no reason; "
        "write one sentence, or 'Open.' where no run has isolated it"
    )
