"""Rows of results: complete, atomic, sorted, and with their provenance."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from sparselib import sweep
from sparselib.sweep import rows

DATA = SimpleNamespace(name="digits", checksum="0123456789ab")


def row(seed, **measures):
    parameters = {"rule": "set", "hidden": [8, 4], "seed": seed, "device": "cpu"}
    return sweep.row(parameters | {"scale": "paper", "results": ""}, measures, DATA)


def test_a_row_says_what_where_and_by_which_sources():
    columns = row(0, accuracy=0.5)
    assert columns["data"] == "digits 0123456789ab"
    assert columns["sparselib"].split()[1] == sweep.SOURCE
    assert {"device", "threads", "torch", "date", "scale", "seed", "accuracy"} <= columns.keys()
    assert columns["hidden"] == "[8, 4]"
    assert columns["device"] != "cpu"
    assert "results" not in columns


def test_the_checksum_of_the_source_sees_a_changed_and_a_moved_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "one.py").write_text("x = 1\n", encoding="utf-8")
    seen = {rows._checksum(tmp_path)}
    (tmp_path / "one.py").write_text("x = 2\n", encoding="utf-8")
    seen.add(rows._checksum(tmp_path))
    (tmp_path / "one.py").rename(tmp_path / "sub/one.py")
    seen.add(rows._checksum(tmp_path))
    assert len(seen) == 3


@pytest.mark.parametrize("scale", ["", "small", "reduced:"])
def test_a_scale_that_says_nothing_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be 'paper' or 'reduced: <what>'"):
        sweep.row({"scale": scale}, {}, DATA)


def test_a_name_cannot_be_parameter_and_measure():
    with pytest.raises(ValueError, match=r"\['seed'\] are both"):
        sweep.row({"seed": 0, "scale": "paper"}, {"seed": 1}, DATA)


def test_gather_sorts_numbers_as_numbers_and_keeps_curves(tmp_path):
    for seed in (10, 2):
        sweep.write(row(seed, accuracy=0.1 + seed, curve=[0.5, 0.25]), tmp_path / f"{seed}.json")
    assert sweep.gather(tmp_path.glob("*.json"), tmp_path / "out/table.csv") == 2
    table = pd.read_csv(tmp_path / "out/table.csv")
    assert table.seed.tolist() == [2, 10]
    assert table.accuracy.tolist() == [2.1, 10.1]
    assert sweep.curve(table.curve[0]).tolist() == [0.5, 0.25]


def test_a_failed_write_leaves_the_old_row_and_no_part(tmp_path):
    path = tmp_path / "row.json"
    sweep.write({"a": 1}, path)
    with pytest.raises(TypeError):
        sweep.write({"a": DATA}, path)
    path.with_name("taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        sweep.write({"a": 2}, path.with_name("taken"))
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["row.json", "taken"]


def test_no_rows_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no row of results"):
        sweep.gather([], tmp_path / "table.csv")


def test_a_stored_table_is_found_from_any_folder_of_its_checkout(tmp_path):
    page = tmp_path / "book" / "chapter"
    page.mkdir(parents=True)
    (tmp_path / "data" / "results").mkdir(parents=True)
    rows.write_table([{"seed": "1", "accuracy": "0.5"}], tmp_path / "data/results/one.csv")
    assert sweep.stored("one", page).accuracy.tolist() == [0.5]
    assert sweep.stored("one", tmp_path).seed.tolist() == [1]
    with pytest.raises(FileNotFoundError, match="no table 'two'; it has one"):
        sweep.stored("two", page)


def test_without_a_checkout_no_table_is_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds data/results; run this in a checkout"):
        sweep.stored("one", tmp_path)
