"""What a sweep file holds, what is refused, and what makes two runs the same."""

import json
import shutil
import sys

import nbformat
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweeping import PARAMETERS, ROOT, Place

from sparselib.sweep import grid, notebook
from sparselib.sweep.__main__ import main

values = st.lists(st.integers(), min_size=1, max_size=4, unique=True)


def page(*sources):
    cells = [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, *sources)]
    cells[0].metadata["tags"] = ["parameters"]
    return json.loads(nbformat.writes(nbformat.v4.new_notebook(cells=cells)))


@given(
    st.dictionaries(st.sampled_from("abc"), values, max_size=3),
    st.lists(st.integers(), min_size=1, max_size=5),
)
def test_a_block_is_the_product_of_its_parts(product, column):
    block = {"product": product, "zip": {"z": column, "minus": [-x for x in column]}}
    points = grid.expand(block | {"fixed": {"f": 7}})
    size = len(column)
    for choices in product.values():
        size *= len(choices)
    assert len(points) == size
    assert all(point["f"] == 7 and point.get("z", 0) == -point.get("minus", 0) for point in points)
    assert {name: {p[name] for p in points} for name in product} == {
        name: set(choices) for name, choices in product.items()
    }


def test_points_stand_one_by_one_and_overrule_what_is_fixed():
    block = {"product": {"x": [1, 2]}, "points": [{"y": 3}, {"y": 4, "f": 0}], "fixed": {"f": 9}}
    assert grid.expand(block) == [
        {"f": 9, "x": 1, "y": 3},
        {"f": 0, "x": 1, "y": 4},
        {"f": 9, "x": 2, "y": 3},
        {"f": 0, "x": 2, "y": 4},
    ]


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"product": {"pauze": [1.0]}}, "no parameter 'pauze'; did you mean 'pause'"),
        ({"product": {"x": ["1e-3"]}}, "x = '1e-3' is of type str, not int; YAML takes 1e-3 for"),
        ({"product": {"x": [1.5]}}, "x = 1.5 is of type float, not int"),
        ({"product": {"x": [True]}}, "x = True is of type bool, not int"),
        ({"product": {"x": 3}}, "x needs a list of values, not 3"),
        ({"zip": {"x": 3}}, "x needs a list of values, not 3"),
        ({"product": [1]}, "product must hold keys and values, not [1]"),
        ({"points": {"x": 1}}, "points must hold a list, not {'x': 1}"),
        ({"points": [1]}, "a point must hold keys and values, not 1"),
        ([1], "must hold keys and values, not [1]"),
        ({"zip": {"x": [1, 2], "pause": [1.0]}}, "equally long, not {'pause': 1, 'x': 2}"),
        ({"poduct": {"x": [1]}}, "unknown key 'poduct'; did you mean 'product'"),
        ({"product": {"x": [1, 1]}}, "holds this point twice"),
        ({"product": {"results": ["a"]}}, "no parameter 'results'"),
        ({"product": {"x": []}}, "x needs a list of values, not []"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(tmp_path, capsys, block, sentence):
    place = Place(tmp_path, [block])
    assert main([str(place.file), "--runs", str(tmp_path / "runs")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("part", [{"data": ["a"]}, {"fixed": 3}, {"grid": "x"}, {"resources": [1]}])
def test_a_part_of_the_wrong_kind_is_refused_in_a_sentence(tmp_path, part):
    place = Place(tmp_path, [{}])
    place.write(**({"grid": [{}]} | part))
    with pytest.raises(ValueError, match=r"must hold (a list|keys and values), not"):
        grid.read(place.file)


def test_a_file_without_a_scale_is_refused(tmp_path):
    place = Place(tmp_path, [{}])
    place.file.write_text("notebook: page.ipynb\nresults: t.csv\ngrid: [{}]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"sweep.yml lacks the key 'scale'"):
        grid.read(place.file)


def test_a_whole_number_is_taken_for_a_float(tmp_path):
    place = Place(tmp_path, [{"product": {"pause": [0, 1]}}])
    assert [run.parameters["pause"] for run in grid.read(place.file).runs] == [0.0, 1.0]


def test_types_of_the_parameters_cell():
    cell = nbformat.v4.new_code_cell("a: float | list = 0.5  # one or several\nb = 'text'")
    cell.metadata["tags"] = ["parameters"]
    found = notebook.parameters({"cells": [cell]})
    assert {name: (p.wanted, p.default) for name, p in found.items()} == {
        "a": ("float or list", 0.5),
        "b": ("str", "text"),
    }


def test_a_notebook_without_one_parameters_cell_is_refused():
    with pytest.raises(ValueError, match="one cell tagged 'parameters', not 0"):
        notebook.parameters({"cells": []})


def test_the_key_covers_code_parameters_library_and_data(monkeypatch):
    keys = {
        notebook.run_key(page("x + 1"), {"x": 1}, {}),
        notebook.run_key(page("x + 2"), {"x": 1}, {}),
        notebook.run_key(page("x + 1"), {"x": 2}, {}),
        notebook.run_key(page("x + 1"), {"x": 1}, {"file": "ab"}),
    }
    monkeypatch.setattr(notebook, "SOURCE", "another")
    keys.add(notebook.run_key(page("x + 1"), {"x": 1}, {}))
    assert len(keys) == 5


def test_the_key_ignores_outputs_prose_and_the_place_of_the_row():
    plain, told = page("x + 1"), page("x + 1")
    told["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "2"}]
    told["cells"].append({"cell_type": "markdown", "metadata": {}, "source": "words"})
    there = notebook.run_key(told, {"x": 1, "results": "there.json"}, {})
    assert notebook.run_key(plain, {"x": 1}, {}) == there


@pytest.mark.parametrize(
    ("mark", "whole"),
    [
        ({"end_time": "2026", "exception": None}, True),
        ({"end_time": "2026", "exception": True}, False),
        ({"end_time": None, "exception": None}, False),
        ({}, False),
    ],
)
def test_only_papermill_s_end_mark_makes_a_run_complete(tmp_path, mark, whole):
    path = tmp_path / "run.ipynb"
    path.write_text(json.dumps({"metadata": {"papermill": mark}}), encoding="utf-8")
    assert notebook.complete(path) is whole
    path.write_text(path.read_text(encoding="utf-8")[:-3], encoding="utf-8")
    assert not notebook.complete(path)


@pytest.mark.slow
def test_a_failing_notebook_is_a_result(tmp_path):
    place = Place(tmp_path, [{"product": {"x": [1, 2]}}, {"points": [{"x": 3, "mode": "raise"}]}])
    code, out, _ = place.run("--workers", 0)
    assert code == 1
    assert "failed: x=3 mode=raise\n  ValueError: 3 is no good\n  see" in out
    assert place.rows() == [1, 2]
    assert len(list(tmp_path.glob("runs/*/*.failed.ipynb"))) == 1
    code, out, _ = place.run()
    assert code == 1
    assert "2 done, 1 failed before" in out
    assert len(place.starts()) == 3
    assert place.run("--retry-failed", "--workers", 0)[0] == 1
    assert len(place.starts()) == 4


@pytest.mark.slow
def test_only_limit_and_dry_run_choose(tmp_path):
    place = Place(tmp_path, [{"product": {"x": [1, 2, 3], "pause": [0.0, 0.5]}}])
    _, out, _ = place.run("--dry-run", "--only", "x=2")
    assert "2 of 6 runs chosen" in out
    assert out.count("x=2") == 2
    assert place.starts() == []
    chosen = ["--only", "x=2", "--only", "pause=0.5", "--limit", 1]
    assert place.run(*chosen, "--workers", 0)[0] == 0
    assert [start["x"] for start in place.starts()] == [2]
    _, _, err = place.run("--only", "x=9")
    assert "--only x=9: no run has this value; there are 1, 2, 3" in err


@pytest.mark.slow
def test_a_list_of_runs_may_be_read_in_part(tmp_path):
    place = Place(tmp_path, [{"product": {"x": list(range(100))}}])
    listed = place.start_from_a_shell("--dry-run")
    listed.stdout.close()
    assert listed.stderr.read() == ""
    assert listed.wait(60) == 0


@pytest.mark.slow
def test_without_dask_runs_follow_each_other_and_it_is_printed(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "distributed.py").write_text("raise ImportError('not installed')", encoding="utf-8")
    place = Place(tmp_path, [{"product": {"x": [1, 2]}}, {"points": [{"x": 3, "mode": "die"}]}])
    path = {"PYTHONPATH": f"{hidden}:{sys.path[0]}:{place_root()}"}
    code, out, _ = place.run_from_a_shell(environment=path)
    assert code == 1
    assert "dask is not installed: one run after the other" in out
    assert "DeadKernelError" in out
    assert place.rows() == [1, 2]
    assert [start["x"] for start in place.starts()] == [1, 2, 3, 3, 3, 3, 3, 3]


def place_root():
    return grid.__file__.split("/sparselib/")[0]


@pytest.mark.slow
def test_rows_of_another_version_stay_until_the_grid_is_whole(tmp_path):
    place = Place(tmp_path, [{"product": {"x": [1, 2]}}])
    place.table.parent.mkdir()
    place.table.write_text("x,square,run\n1,1,old\n", encoding="utf-8")
    code, out, _ = place.run("--limit", 1, "--workers", 0)
    assert code == 0
    assert "keeps its rows of another version until the whole grid is done" in out
    assert place.table.read_text(encoding="utf-8") == "x,square,run\n1,1,old\n"
    assert (tmp_path / "runs/table.csv").is_file()
    assert place.run("--workers", 0)[0] == 0
    assert "old" not in place.table.read_text(encoding="utf-8")
    assert place.rows() == [1, 2]


@pytest.mark.slow
def test_runs_that_two_sweeps_have_in_common_run_once(tmp_path):
    place = Place(tmp_path, [{"product": {"x": [1, 2]}}])
    assert place.run("--workers", 0)[0] == 0
    place.write(grid=[{"product": {"x": [2, 3]}}], results="out/other.csv")
    assert place.run("--workers", 0)[0] == 0
    assert [start["x"] for start in place.starts()] == [1, 2, 3]


@pytest.mark.slow
def test_a_clone_goes_on_from_the_table_it_came_with(tmp_path):
    place = Place(tmp_path, [{"product": {"x": [1, 2, 3]}}])
    assert place.run("--limit", 2, "--workers", 0)[0] == 0
    first = place.table.read_text(encoding="utf-8").splitlines()
    shutil.rmtree(tmp_path / "runs")
    _, out, _ = place.run("--workers", 0)
    assert "2 done, 1 to do" in out
    assert [start["x"] for start in place.starts()] == [1, 2, 3]
    assert place.table.read_text(encoding="utf-8").splitlines()[:3] == first
    assert place.rows() == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("grid:\n\t- {}", "s.yml is no YAML"),
        ("grid: [{product: {x: [1, 2}}]", "s.yml is no YAML"),
        ("grid: [{}]\ngrid: [{}]", "the key 'grid' stands twice in a block"),
        ("grid: [{product: {x: [1], x: [2]}}]", "the key 'x' stands twice in a block"),
        ("grid: []", "the grid is empty"),
        ("grid: [{}]\ntimeout: soon", "timeout must be the whole seconds that a cell may take"),
        ("grid: [{}]\ntimeout: .inf", "timeout must be the whole seconds that a cell may take"),
        ("grid: [{}]\nresources: {GPU: many}", "resources: GPU needs a number above 0"),
        ("grid: [{}]\ndata: {mnist: [mnist/a.gz]}", "data: no run has dataset = 'mnist'"),
        ("grid: [{product: {pause: [1e-2]}}]", "YAML takes 1e-2 for text, write 1.0e-2"),
        ("grid: !!python/object/apply:os.system ['false']", "s.yml is no YAML"),
        ("[" * 5000, "s.yml is no YAML"),
    ],
)
def test_a_malformed_file_is_refused_in_one_sentence(tmp_path, capsys, text, sentence):
    place = Place(tmp_path, [{}])
    head = "notebook: page.ipynb\nresults: t.csv\nscale: paper\n"
    (tmp_path / "s.yml").write_text(head + text, encoding="utf-8")
    assert main([str(tmp_path / "s.yml"), "--dry-run"]) == 2
    told = capsys.readouterr()
    assert sentence in told.err
    assert len(told.err.splitlines()) == 1
    assert place.starts() == []


@pytest.mark.parametrize("option", [("--workers", "-1"), ("--limit", "-1"), ("--threads", "0")])
def test_a_number_that_is_too_small_is_refused(tmp_path, option):
    place = Place(tmp_path, [{}])
    with pytest.raises(SystemExit) as caught:
        main([str(place.file), *option])
    assert caught.value.code == 2


def written(tmp_path, rows):
    """A sweep of two runs whose table holds some rows."""
    place = Place(tmp_path, [{"product": {"x": [1, 2]}}])
    place.table.parent.mkdir()
    keys = [run.key for run in grid.read(place.file).runs]
    place.table.write_text(rows.format(*keys), encoding="utf-8")
    return place


@pytest.mark.parametrize(
    ("rows", "status", "told"),
    [
        ("", 0, "2 to do"),
        ("x,square,run\n1,,{0}\n2,4,{1}\n", 0, "1 to do, 1 done"),
        (
            "x,square,run\n7,49,older\n",
            2,
            "holds 1 rows that are of no run of sweep.yml, such as x",
        ),
        ("x,square,run\n1.0,1,older\n", 0, "2 to do"),
        ('x,run\n1,{0}\n2,"{1}', 2, "is damaged (unexpected end of data)"),
        ("x,run\n1,{0},3\n", 2, "is damaged (row 2 has 3 cells, its header 2)"),
        ("run,run\n1,2\n", 2, "is damaged (a column stands twice)"),
    ],
)
def test_a_table_is_read_before_anything_runs(tmp_path, capsys, rows, status, told):
    place = written(tmp_path, rows)
    assert main([str(place.file), "--dry-run", "--runs", str(tmp_path / "runs")]) == status
    assert told in "".join(capsys.readouterr())


@pytest.mark.slow
def test_rows_of_another_grid_go_only_if_asked_for(tmp_path):
    place = written(tmp_path, "x,square,run\n7,49,older\n")
    assert place.run("--workers", 0)[0] == 2
    other = tmp_path / "other.csv"
    assert place.run("--workers", 0, "--results", other)[0] == 0
    assert sorted(pd.read_csv(other).x) == [1, 2]
    assert place.rows() == [7]
    assert place.run("--workers", 0, "--replace")[0] == 0
    assert place.rows() == [1, 2]


@pytest.mark.parametrize("file", sorted(ROOT.glob("book/*/sweeps/*.yml")), ids=lambda p: p.stem)
def test_every_sweep_of_the_book_has_values_that_its_page_allows(file, monkeypatch):
    monkeypatch.setattr(grid, "_checksums", lambda names, fetch: dict.fromkeys(names, "sum"))
    assert grid.read(file).runs
