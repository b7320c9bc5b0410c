"""Parameters: declared once, and checked alike for a sweep, papermill by hand, and nbval."""

import json
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sweeping import ROOT

from sparselib.sweep import notebook, parameters

CELL = """
dataset: Literal["digits", "mnist"] = "digits"
hidden: list[PositiveInt] = [8]
shapes: list[PositiveInt | list[PositiveInt]] = []
sparsity: Share | list[Share] = 0.9
rule: (  # one by name, or one of its parts
    Literal["gradient"] | Annotated[str, "(set|magnitude)/(random|zero)"]
) = "gradient"
lr: PositiveFloat = 0.1
count: NonNegativeInt = 0
device: Device = "cpu"
repair: bool = False
scale: str = "paper"
results: str = ""
"""
KNOWN = parameters.declared(CELL)


def page(*sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[1].metadata["tags"] = ["parameters"]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("sparcity", 0.9, "no parameter 'sparcity'; did you mean 'sparsity'"),
        ("dataset", "imagenet", "dataset = 'imagenet' is not allowed; it takes digits, mnist"),
        ("rule", "set/zer0", "not allowed; it takes gradient or a text like"),
        ("rule", "set/random ", "not allowed"),
        ("hidden", [], r"hidden = \[\] is empty"),
        ("hidden", [8, 0], "each of it an int above 0"),
        ("hidden", [8, True], "each of it an int above 0"),
        ("hidden", 8, "is of type int, not a list"),
        ("shapes", [[]], "not allowed"),
        ("sparsity", 1.5, "a float from 0 to 1"),
        ("sparsity", float("nan"), "a float from 0 to 1"),
        ("lr", "1e-2", "of type str, not a float above 0; YAML takes 1e-2 for text, write 1.0e-2"),
        ("lr", float("inf"), "lr = inf is not allowed"),
        ("lr", True, "of type bool"),
        ("count", -1, "count = -1 is not allowed; it takes an int from 0 on"),
        ("count", 1.0, "of type float, not an int"),
        ("repair", 1, "of type int, not bool"),
        ("device", "gpu", "device = 'gpu' is not allowed"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(name, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        parameters.checked({name: value}, KNOWN)


def test_allowed_values_pass_and_whole_numbers_become_floats():
    given = {
        "dataset": "mnist",
        "hidden": [3],
        "shapes": [1, [2, 3]],
        "sparsity": [0, 0.5],
        "rule": "magnitude/zero",
        "lr": 1,
        "device": "cuda:1",
    }
    found = parameters.checked(given, KNOWN)
    assert {name: found[name] for name in given} == given
    assert type(found["lr"]) is float
    assert [type(x) for x in found["sparsity"]] == [float, float]
    assert found["repair"] is False


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_spelling_that_is_advised_is_the_number(number):
    text = f"{number:e}".replace("e+", "e").replace(".", "", number == int(number))
    if isinstance(yaml.safe_load(text), str):
        with pytest.raises(ValueError, match="write ") as caught:
            parameters.checked({"lr": text}, KNOWN)
        assert yaml.safe_load(str(caught.value).split()[-1]) == float(text)


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ('x: int = "', "no Python: unterminated string literal"),
        ("x: int = 1\nx: int = 2", "declares 'x' twice"),
        ("x: int = f()", "the default of x is no literal"),
        ("x: Positive = 1", "annotation Positive, which nothing here reads"),
        ('x: Literal["a", "b"] = "c"', "x = 'c' is not allowed; it takes a, b"),
        ("print(1)", "holds more than assignments"),
        ("x, y = 1, 2", "holds more than assignments"),
    ],
)
def test_a_cell_that_declares_nothing_readable_is_refused(cell, sentence):
    with pytest.raises(ValueError, match=sentence):
        parameters.declared(cell)


def test_outside_a_notebook_there_is_nothing_to_check():
    with pytest.raises(RuntimeError, match="cells of a notebook"):
        parameters.check()


BY_HAND = """
import json
from typing import Annotated, Literal
from sparselib import sweep
from sparselib.sweep import *
"""
WORK = """
parameters = sweep.check(unused={"count": rule == "gradient"})
lr, parameters_before = "the page may use the name again", parameters
sweep.record(parameters, {"measure": 2.0, "curve": [1.0, 2.0]})
"""


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """Run a page by papermill with some parameters; return its row."""
    folder = tmp_path_factory.mktemp("hand")
    nbformat.write(page(BY_HAND, CELL, WORK), folder / "page.ipynb")

    def run(**given):
        row = folder / "row.json"
        row.unlink(missing_ok=True)
        papermill.execute_notebook(
            folder / "page.ipynb",
            folder / "out.ipynb",
            given | {"results": str(row)},
            progress_bar=False,
            kernel_name="python3",
            language="python",
        )
        return json.loads(row.read_text(encoding="utf-8"))

    return run


@pytest.mark.slow
def test_a_row_by_hand_has_every_parameter(by_hand):
    row = by_hand(lr=1, hidden=[4, 5])
    assert row["lr"] == 1.0
    assert row["hidden"] == "[4, 5]"
    assert row["curve"] == [1.0, 2.0]
    assert {*KNOWN} - {"results"} <= {*row}
    assert row["device"] != "cpu"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"sparcity": 0.97}, "no parameter 'sparcity'; did you mean 'sparsity'"),
        ({"rule": "evolve"}, "rule = 'evolve' is not allowed"),
        ({"count": 3}, "count = 3 would change nothing"),
        ({"scale": "small"}, "scale must be 'paper' or"),
    ],
)
def test_papermill_by_hand_is_refused_what_a_sweep_is(by_hand, given, sentence):
    with pytest.raises(papermill.PapermillExecutionError, match=sentence):
        by_hand(**given)


@pytest.mark.slow
def test_a_recall_beyond_its_layer_is_refused_before_anything_trains(tmp_path):
    training = ROOT / "book/csr/training.ipynb"
    out = tmp_path / "out.ipynb"
    given = {"recall": [64, 129], "epochs": 10**9}  # which would never end
    with pytest.raises(papermill.PapermillExecutionError, match="second layer's 128"):
        papermill.execute_notebook(training, out, given, progress_bar=False)


SWEEPS = sorted(ROOT.glob("book/*/sweeps/*.yml"))


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_a_stored_table_has_the_columns_of_its_page(file):
    """A row written now can stand beside the stored ones: no parameter's column is missing."""
    spec = yaml.safe_load(file.read_text(encoding="utf-8"))
    path = (file.parent / spec["notebook"]).resolve()
    known = notebook.parameters(json.loads(path.read_text(encoding="utf-8")))
    table = ROOT / "data/results" / Path(spec["results"]).name
    if not table.is_file():
        pytest.skip("no row is stored")
    columns = set(pd.read_csv(table, nrows=0).columns)
    later = {
        "hidden",
        "init",
        "images",
        "samples",
        "threads",
        "bounded",
        "pretrained",
        "augment",
        "kept",
        "share",
        "error",
        "bound",
        "steer",
        "bfloat16",
        "follows",
        "dropped",
        "normalized",
        "fed",
    }
    recorded = set(known) - {"results", "folder", "device"} - later
    assert recorded - columns == set()
