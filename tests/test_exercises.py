"""The exercises of the book: three per chapter, and each solution prints what stands below it."""

import contextlib
import io
import re
from pathlib import Path

import nbformat
import pytest
import torch

BOOK = Path(__file__).resolve().parent.parent / "book"
CHAPTERS = ("csr", "liset", "dsn", "san", "pruning")
SOLUTION = re.compile(r"```python\n(.*?)```\s+```text\n(.*?)\n```", re.S)


def exercises(chapter: str) -> list[str]:
    """What stands below the heading of the exercises, on whichever page of a chapter."""
    cells = [
        cell
        for page in sorted((BOOK / chapter).glob("*.ipynb"))
        for cell in nbformat.read(page, as_version=4).cells
    ]
    return [cell.source for cell in cells if cell.source.startswith("## Exercises")]


SOLUTIONS = [
    pytest.param(code, shown, id=f"{chapter}-{place}")
    for chapter in CHAPTERS
    for text in exercises(chapter)
    for place, (code, shown) in enumerate(SOLUTION.findall(text))
]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_three_exercises_with_hidden_solutions(chapter: str) -> None:
    (text,) = exercises(chapter)
    assert re.findall(r"^\*\*(\d)\.\*\*", text, re.M) == ["1", "2", "3"]
    assert text.count("<details><summary>Solution</summary>\n\n") == 3
    assert text.count("```python") == len(SOLUTION.findall(text)) >= 1


@pytest.mark.parametrize(("code", "shown"), SOLUTIONS)
def test_a_solution_prints_what_stands_below_it(code: str, shown: str) -> None:
    torch.manual_seed(0)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "solution", "exec"), {})
    assert printed.getvalue().strip("\n") == shown
