"""Sweep files and pages that are not what they look like: a sentence, and nothing is guessed."""

import json

import nbformat
import pytest

from sparselib.sweep import grid, notebook

PARAMETERS = 'x: int = 1\nlr: float = 0.1\nscale: str = "paper"\nresults: str = ""'


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Read a sweep with these values, over a page with these parameters."""

    def read(values="[1]", parameters=PARAMETERS, name="x"):
        cell = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "page.ipynb")
        common = "notebook: page.ipynb\nresults: t.csv\nscale: paper\n"
        text = f"{common}grid: [product: {{{name}: {values}}}]\n"
        (tmp_path / "sweep.yml").write_text(text, encoding="utf-8")
        return grid.read(tmp_path / "sweep.yml", tmp_path / "runs")

    return read


@pytest.mark.parametrize(
    ("name", "values"),
    [("x", "[010]"), ("x", "[12:30]"), ("x", "[-1:30:45]"), ("lr", "[1:30.5]"), ("x", "[0_7]")],
)
def test_numbers_that_yaml_reads_as_octal_or_as_times_are_refused(read, name, values):
    with pytest.raises(ValueError, match=r"as octal, or as hours and minutes; write the decimal"):
        read(values, name=name)


def test_numbers_that_are_what_they_look_like_are_read(read):
    found = read("[0, 10, 1_000, 0x10, -7, +3]")
    assert [run.parameters["x"] for run in found.runs] == [0, 10, 1000, 16, -7, 3]
    found = read("[0.5, 1.0e-2, 10, 0.0]", name="lr")
    assert [run.parameters["lr"] for run in found.runs] == [0.5, 0.01, 10.0, 0.0]


def test_a_pattern_that_is_no_regular_expression_is_refused(read):
    with pytest.raises(ValueError, match=r"the pattern '\(', which is no regular expression"):
        read(parameters=PARAMETERS + "\nrule: Annotated[str, '('] = 'a'")


@pytest.mark.parametrize(
    "page",
    [
        {"cells": [{"cell_type": "code", "source": ["x"], "metadata": {"tags": 1}}]},
        {"cells": [{"cell_type": "code", "source": [1], "metadata": {"tags": ["parameters"]}}]},
        {"cells": [{"cell_type": "code", "source": None, "metadata": {}}]},
        {"cells": [{"cell_type": "code", "source": "", "metadata": None}]},
        {"cells": 1},
        [],
    ],
)
def test_what_is_no_notebook_is_refused_by_name(tmp_path, page):
    (tmp_path / "page.ipynb").write_text(json.dumps(page), encoding="utf-8")
    with pytest.raises(ValueError, match=r"page\.ipynb is no notebook"):
        grid._page(tmp_path / "page.ipynb")
    (tmp_path / "page.ipynb").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"page\.ipynb is no notebook"):
        grid._page(tmp_path / "page.ipynb")


def test_what_a_killed_attempt_left_goes_with_the_next_one(tmp_path):
    run = notebook.Run("key", tmp_path / "page.ipynb", {}, tmp_path)
    left = tmp_path / "key.part" / "elsewhere.1"
    left.mkdir(parents=True)
    (left / "row.json").write_text("{", encoding="utf-8")
    with notebook._attempt(run) as folder:
        assert folder.is_dir()
        assert folder != left
    assert list(tmp_path.iterdir()) == []
