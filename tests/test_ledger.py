"""What the ledger of discrepancies says: numbers are those of stored rows, switches exist."""

import ast
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest

from sparselib import sweep
from sparselib.sweep import parameters

ROOT = Path(__file__).resolve().parent.parent
LEDGER = (ROOT / "book/discrepancies.md").read_text(encoding="utf-8")
PAPER = {0.9: 97.30, 0.97: 96.16, 0.99: 92.88}  # Ertl, Table 4, MNIST
OF_FUNCTIONS = re.findall(r"`(\w+)(=[^`]*)?` of `(sparselib[\w.]+)`", LEDGER)
OF_PAGES = re.findall(r"`(\w+)(=[^`]*)?`,? (?:of|on) \[[^\]]*\]\(([^)]+\.ipynb)\)", LEDGER)


def step_table() -> str:
    """Test accuracies of both readings of Ertl's step size, a line per sparsity."""
    rows = pd.read_csv(ROOT / "data/results/csr-step.csv")
    rows = rows[(rows.dataset == "mnist") & (rows.rule == "gradient") & (rows.images == 0)]
    lines = ["| sparsity | paper | step 0.5 | step 1.0 |", "|---|---:|---:|---:|"]
    for sparsity, paper in PAPER.items():
        cells = []
        for lr in (0.5, 1.0):
            found = rows[(rows.sparsity == sparsity) & (rows.lr == lr)].sort_values("seed")
            cells.append(", ".join(f"{100 * accuracy:.2f}" for accuracy in found.test_accuracy))
        lines.append(f"| {sparsity:.0%} | {paper:.2f} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def test_the_two_step_sizes_have_the_accuracies_of_their_rows() -> None:
    """To mend it, copy what this file prints, run as a program."""
    assert step_table() in LEDGER


def test_errors_of_mitdb_s_longest_kernels_are_those_of_the_rows() -> None:
    rows = sweep.stored("san-table1").query("dataset == 'mitdb/100' and activation == 'extrema'")
    found = []
    for _, row in rows.sort_values("seed").iterrows():
        place = json.loads(row.sizes).index(229)
        found.append(f"{sweep.curve(row.test_error)[place]:.2f}")
    assert f"{found[0]}, {found[1]} and {found[2]} with three seeds" in LEDGER


CHOICES = {
    "ours": "ours {} to {} %",
    "lr_0003": "a learning rate of .003 gives {} to {} %",
    "batches_of_256": "batches of 256 give {} to {} %",
    "range_0_to_1": "the text's range of the signals gives {} to {} %",
    "standardized": "standardized signals give {} to {} %",
}


@pytest.mark.parametrize(("choice", "sentence"), CHOICES.items())
def test_accuracies_of_the_baseline_are_those_of_the_rows(choice, sentence) -> None:
    rows = sweep.stored("san-classifier")
    found = 50 * (rows[f"{choice}_valid"] + rows[f"{choice}_test"])
    assert sentence.format(f"{found.min():.0f}", f"{found.max():.0f}") in " ".join(LEDGER.split())


def test_reconstructions_gain_less_than_a_point_over_the_baseline() -> None:
    rows = sweep.stored("san-table2")
    rows = rows[rows.activation != "relu"]  # its seeds differ by tens of points
    raw = rows[rows.activation == "raw"].test_accuracy.astype(float).mean()
    for name, same in rows[rows.activation != "raw"].groupby("activation"):
        gain = 100 * (np.mean([sweep.curve(cell) for cell in same.test_accuracy], 0).max() - raw)
        assert gain < (1 if name == "identity" else 0)


def thing(name: str) -> Any:
    """What a dotted name is of."""
    module, _, rest = name.rpartition(".")
    return getattr(importlib.import_module(module), rest)


@pytest.mark.parametrize(("name", "value", "function"), OF_FUNCTIONS)
def test_a_function_has_the_argument_that_the_ledger_names(name, value, function) -> None:
    assert name in inspect.signature(thing(function)).parameters


@pytest.mark.parametrize(("name", "value", "page"), OF_PAGES)
def test_a_page_has_the_parameter_that_the_ledger_names_and_takes_its_value(
    name, value, page
) -> None:
    cells = nbformat.read(ROOT / "book" / page, as_version=4).cells
    [cell] = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    known = parameters.declared(cell.source)
    assert name in known
    if value:
        parameters.fitting(name, ast.literal_eval(value[1:]), known[name])


def test_the_ledger_names_arguments_of_functions_and_of_pages() -> None:
    assert len(OF_FUNCTIONS) > 15
    assert len(OF_PAGES) >= 3


if __name__ == "__main__":
    print(step_table())
