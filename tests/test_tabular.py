"""Tables: HIGGS, ISOLET and epilepsy, by line and column."""

import gzip
import hashlib
import os
import warnings

import numpy as np
import pytest
import torch
from corrupting import corruptions, read_or_refused

from sparselib import datasets
from sparselib.datasets import DataUnavailable, files, tabular
from sparselib.datasets.tabular import LETTERS, read_csv

REAL = os.environ.get("SPARSELIB_DATA", "")
SHORT = "ignore:HIGGS is reduced"
HIGGS = {"columns": 29, "label": 0, "labels": range(2)}


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Search nothing but the test's own folder and the checkout."""
    monkeypatch.setenv("SPARSELIB_DATA", "")
    return tmp_path


# --- HIGGS


def higgs_lines(count):
    rng = np.random.default_rng(0)
    table = np.concatenate([np.arange(count)[:, None] % 2, rng.normal(2, 3, (count, 28))], axis=1)
    return [",".join(f"{value:.18e}" for value in row) for row in table]


def write_higgs(folder, lines, name="HIGGS.csv"):
    (folder / "higgs").mkdir(parents=True, exist_ok=True)
    path = folder / "higgs" / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_higgs_divides_five_to_one_in_file_order(alone):
    table = read_csv(write_higgs(alone, higgs_lines(120)), 120, **HIGGS)
    split = datasets.higgs(alone, rows=60, standardize=False)
    assert (len(split.train), len(split.valid), len(split.test)) == (50, 0, 10)
    assert np.array_equal(torch.cat([split.train.x, split.test.x]).numpy(), table[:60, 1:])
    assert np.array_equal(torch.cat([split.train.y, split.test.y]).numpy(), table[:60, 0])
    assert split.note == "50 / 0 / 10 rows: reduced to 60 of the paper's 600,000 rows, split 5 : 1"


def test_higgs_warns_if_the_file_is_shorter_than_asked(alone):
    write_higgs(alone, higgs_lines(120))
    with pytest.warns(UserWarning, match="the file holds 120 of the 600,000 rows asked for"):
        split = datasets.higgs(alone)
    assert (len(split.train), len(split.test)) == (100, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets.higgs(alone, rows=120)


def test_higgs_is_standardized_by_the_training_part_only(alone):
    write_higgs(alone, higgs_lines(120))
    raw = datasets.higgs(alone, rows=120, valid=0.2, standardize=False)
    split = datasets.higgs(alone, rows=120, valid=20)
    mean, std = raw.train.x.double().mean(0), raw.train.x.double().std(0, correction=0)
    for part in ("train", "valid", "test"):
        expected = (getattr(raw, part).x - mean) / std
        torch.testing.assert_close(getattr(split, part).x.double(), expected, rtol=0, atol=1e-6)
    assert (len(split.train), len(split.valid), len(split.test)) == (80, 20, 20)
    assert split.valid.x.mean(0).abs().max() > 0.05


def test_constant_feature_is_centered(alone):
    lines = [line.rsplit(",", 1)[0] + ",7" for line in higgs_lines(12)]
    write_higgs(alone, lines)
    split = datasets.higgs(alone, rows=12)
    assert torch.all(split.train.x[:, 27] == 0)
    assert torch.all(split.test.x[:, 27] == 0)


def edit(line, column, text):
    fields = line.split(",")
    fields[column - 1] = text
    return ",".join(fields)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("number", "change", "sentence"),
    [
        (3, lambda line: line.rsplit(",", 1)[0], "line 3 has 28 columns where 29"),
        (3, lambda line: line + ",1.0", "line 3 has 30 columns where 29"),
        (1, lambda line: line + ",1.0", "line 1 has 30 columns where 29"),
        (5, lambda line: "", "line 5 has 1 columns where 29"),
        (4, lambda line: edit(line, 7, "abc"), "line 4, column 7 holds 'abc'"),
        (4, lambda line: edit(line, 29, ""), "line 4, column 29 holds ''"),
        (4, lambda line: edit(line, 3, '"1.5"'), "line 4, column 3 holds '\"1.5\"'"),
        (6, lambda line: edit(line, 2, "nan"), "line 6, column 2 holds 'nan'"),
        (6, lambda line: edit(line, 2, "1e99"), "line 6, column 2 holds '1e99'"),
        (2, lambda line: edit(line, 1, "2"), "line 2 holds the label '2'"),
        (1, lambda line: edit(line, 1, "label"), "line 1, column 1 holds 'label'"),
    ],
)
def test_malformed_higgs_is_refused_by_line_and_column(alone, number, change, sentence):
    lines = higgs_lines(12)
    lines[number - 1] = change(lines[number - 1])
    path = write_higgs(alone, lines)
    with pytest.raises(ValueError, match=f"{path} is refused: {sentence}"):
        datasets.higgs(alone, rows=12)


def test_empty_higgs_is_refused(alone):
    path = write_higgs(alone, [])
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"HIGGS\.csv is refused: No columns"):
        datasets.higgs(alone)


@pytest.mark.parametrize("rows", [-1, 0, 5])
def test_higgs_needs_six_rows(alone, rows):
    with pytest.raises(ValueError, match=f"rows={rows} cannot be split"):
        datasets.higgs(alone, rows=rows)


@pytest.mark.parametrize("packed", [False, True])
def test_higgs_cut_short_anywhere_is_refused_or_ends_with_a_line(tmp_path, packed):
    text = ("\n".join(higgs_lines(12)) + "\n").encode()
    path = tmp_path / ("cut.csv.gz" if packed else "cut.csv")
    whole = gzip.compress(text) if packed else text
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is refused"):
            read_csv(path, 20, **HIGGS)
    path.write_bytes(whole)
    assert read_csv(path, 20, **HIGGS).shape == (12, 29)


def test_higgs_that_is_damaged_or_not_gzip_is_refused(tmp_path):
    text = ("\n".join(higgs_lines(12)) + "\n").encode()
    path = tmp_path / "damaged.csv.gz"
    packed = bytearray(gzip.compress(text))
    packed[len(packed) // 2] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(ValueError, match=r"damaged\.csv\.gz is refused: it is no complete gzip"):
        read_csv(path, 20, **HIGGS)
    # text under the name of a packed file is text
    path.write_bytes(text)
    assert read_csv(path, 20, **HIGGS).shape == (12, 29)


@pytest.mark.parametrize("packed", [False, True])
def test_a_last_line_without_its_end_is_cut_short_however_many_rows_are_asked_for(tmp_path, packed):
    """12 rows of 12: the last number lacks digits, and all columns are there."""
    text = "\n".join(higgs_lines(12)).encode()
    path = tmp_path / "cut.csv"
    for cut in (0, 1, 5, 20):
        shorter = text[: len(text) - cut]
        path.write_bytes(gzip.compress(shorter) if packed else shorter)
        for rows in (12, 20):
            with pytest.raises(ValueError, match=r"cut\.csv is refused: its last line has no end"):
                read_csv(path, rows, **HIGGS)
        assert read_csv(path, 11, **HIGGS).shape == (11, 29)


def test_windows_ends_of_lines_change_nothing(tmp_path):
    text = ("\n".join(higgs_lines(12)) + "\n").encode()
    path = tmp_path / "text.csv"
    path.write_bytes(text)
    expected = read_csv(path, 12, **HIGGS)
    path.write_bytes(text.replace(b"\n", b"\r\n"))
    assert np.array_equal(read_csv(path, 12, **HIGGS), expected)


@pytest.mark.filterwarnings(SHORT)
@pytest.mark.parametrize("packed", [False, True])
def test_200_damaged_higgs_files_are_refused_by_name_or_read_as_python_reads_them(alone, packed):
    text = ("\n".join(higgs_lines(30)) + "\n").encode()
    name = "HIGGS_subset35298.csv.gz" if packed else "HIGGS.csv"
    path = write_higgs(alone, [], name)
    whole = gzip.compress(text, mtime=0) if packed else text
    good = numbers(text)
    refused = 0
    for damaged in corruptions(whole):
        path.write_bytes(damaged)
        table = read_or_refused(lambda: read_csv(path, 40, **HIGGS), path)
        refused += table is None
        if table is not None:
            assert np.array_equal(table, good if packed else numbers(damaged))
    assert refused > 60


def numbers(text):
    rows = [[float(cell) for cell in line.split(b",")] for line in text.splitlines()]
    return np.array(rows).astype(np.float32)


@pytest.mark.filterwarnings(SHORT)
def test_official_higgs_is_preferred_and_checked(alone):
    write_higgs(alone, higgs_lines(18), "HIGGS_subset35298.csv.gz")
    with pytest.raises(ValueError, match=r"HIGGS_subset35298\.csv\.gz is refused: its SHA-256"):
        datasets.higgs(alone)
    write_higgs(alone, higgs_lines(12))
    assert len(datasets.higgs(alone).train) == 10
    write_higgs(alone, higgs_lines(18), "HIGGS.csv.gz")
    with pytest.raises(ValueError, match=r"HIGGS\.csv\.gz is refused: its SHA-256"):
        datasets.higgs(alone)


@pytest.mark.realdata
def test_higgs_subset_is_read_whole():
    split = datasets.higgs(rows=35298)
    assert (len(split.train), len(split.valid), len(split.test)) == (29415, 0, 5883)
    signal = int(split.train.y.sum() + split.test.y.sum())
    assert signal == 18657
    assert split.features == 28
    assert split.note.startswith(
        "29,415 / 0 / 5,883 rows: reduced to 35,298 of the paper's 600,000"
    )


# --- ISOLET


ROWS = {"isolet1+2+3+4.data": 104, "isolet5.data": 53}


@pytest.fixture
def short(alone, monkeypatch):
    """Take ISOLET's files to be of some rows only; columns, labels and values stay as they are."""
    monkeypatch.setattr(tabular, "LETTERS", ROWS)
    return alone


def write_isolet(folder, change=lambda name, lines: lines, ending=""):
    rng = np.random.default_rng(0)
    (folder / "isolet").mkdir(parents=True, exist_ok=True)
    for name, rows in ROWS.items():
        cells = np.char.mod("%.4f", rng.uniform(-1, 1, (rows, 617)))
        lines = [
            ", ".join([*row, f"{label}."]) for row, label in zip(cells, np.arange(rows) % 26 + 1)
        ]
        text = ("\n".join(change(name, lines)) + "\n").encode()
        path = folder / "isolet" / f"{name}{ending}"
        path.write_bytes(gzip.compress(text, 1) if ending else text)


def test_isolet_is_read_as_it_is(short):
    write_isolet(short)
    split = datasets.isolet(short)
    assert (len(split.train), len(split.valid), len(split.test)) == (104, 0, 53)
    assert (split.features, split.classes) == (617, 26)
    assert split.train.y[:27].tolist() == [*range(26), 0]
    text = (short / "isolet/isolet5.data").read_text(encoding="ascii")
    first = text.split("\n")[0].split(", ")
    assert split.test.x[0].tolist() == pytest.approx([float(value) for value in first[:-1]])
    assert len(datasets.isolet(short, valid=0.1).valid) == 10


@pytest.mark.realdata
def test_the_real_isolet_has_the_rows_of_its_speakers():
    split = datasets.isolet()
    assert LETTERS == {"isolet1+2+3+4.data": 6238, "isolet5.data": 1559}
    assert (len(split.train), len(split.valid), len(split.test)) == (6238, 0, 1559)
    # 240 of each letter but F, and 60 but M
    assert sorted(torch.bincount(split.train.y).tolist()) == [238] + [240] * 25
    assert sorted(torch.bincount(split.test.y).tolist()) == [59] + [60] * 25


def test_a_header_that_is_not_there_costs_a_row(short):
    write_isolet(short, ending=".gz")
    text, code = datasets.isolet(short), datasets.isolet(short, definition="code")
    assert (len(code.train), len(code.test)) == (103, 52)
    assert torch.equal(code.train.x, text.train.x[1:])
    with pytest.raises(ValueError, match="not 'kod'"):
        datasets.isolet(short, definition="kod")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: lines[:-1], "53 rows are expected, but it holds only 52"),
        (lambda lines: [*lines, lines[0]], "53 rows are expected, but it holds more"),
        (lambda lines: [edit(lines[0], 618, "27."), *lines[1:]], "label '27.', none of 1 to 26"),
        (lambda lines: [edit(lines[0], 618, "1.5"), *lines[1:]], "label '1.5', none of 1 to 26"),
        (lambda lines: [edit(lines[0], 5, "?"), *lines[1:]], "line 1, column 5 holds '\\?'"),
        (
            lambda lines: [edit(lines[0], 5, "1.5"), *lines[1:]],
            "line 1, column 5 holds 1.5, but feat",
        ),
        (lambda lines: [lines[0].split(",", 1)[1], *lines[1:]], "line 1 has 617 columns"),
    ],
)
def test_isolet_with_a_fault_is_refused(short, change, sentence):
    write_isolet(short, lambda name, lines: change(lines)[:54] if "5" in name else lines)
    with pytest.raises(ValueError, match=rf"isolet5\.data is refused.*{sentence}"):
        datasets.isolet(short)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_200_damaged_isolet_files_are_refused_by_name_or_read_as_python_reads_them(
    alone, monkeypatch, ending
):
    rows = {"isolet1+2+3+4.data": 3, "isolet5.data": 3}
    monkeypatch.setattr(tabular, "LETTERS", rows)
    write_isolet(alone, lambda name, lines: lines[:3], ending)
    path = alone / "isolet" / f"isolet5.data{ending}"
    whole = path.read_bytes()
    good = tabular._letters("isolet5.data", 3, alone)
    refused = 0
    for damaged in corruptions(whole):
        path.write_bytes(damaged)
        table = read_or_refused(lambda: tabular._letters("isolet5.data", 3, alone), path)
        refused += table is None
        if table is not None:
            assert np.array_equal(table, good if ending else numbers(damaged))
    assert refused > 60


def test_isolet_that_lies_nowhere_says_what_to_do(alone):
    with pytest.raises(DataUnavailable, match=r"yourself, or use .*letters"):
        datasets.isolet(alone)


# --- epilepsy


def test_epilepsy_is_named_when_missing_or_damaged(alone):
    with pytest.raises(DataUnavailable, match=r"uci-epilepsy/data\.csv lies in none.*signals\(\)"):
        datasets.epilepsy(alone)
    (alone / "uci-epilepsy").mkdir()
    (alone / "uci-epilepsy/data.csv").write_text('"","X1","y"\n"X1.V1.1",3,', encoding="utf-8")
    with pytest.raises(ValueError, match=r"data\.csv is refused: it holds .* of shape"):
        datasets.epilepsy(alone)
    with pytest.raises(ValueError, match="not 'book'"):
        datasets.epilepsy(alone, definition="book")


@pytest.mark.realdata
def test_epilepsy_is_split_as_in_the_paper():
    split = datasets.epilepsy()
    parts = (split.train, split.valid, split.test)
    assert [len(part) for part in parts] == [8740, 1380, 1380]
    shares = [round(len(part) / 11500, 2) for part in parts]
    assert shares == [0.76, 0.12, 0.12]
    assert torch.cat([part.y for part in parts]).bincount().tolist() == [2300, 4600, 4600]
    assert (split.train.x.min(), split.train.x.max()) == (-1, 1)


@pytest.mark.realdata
def test_one_class_for_all_explains_the_odd_cells_of_table_2():
    """82.10 % less 44.3 points is the share of tumors among the test samples in file order."""
    labels = datasets.epilepsy().test.y
    assert f"{100 * float((labels == 1).double().mean()):.1f}" == f"{82.10 - 44.3:.1f}"


@pytest.mark.realdata
def test_epilepsy_of_the_text_lies_between_0_and_1():
    text, code = (datasets.epilepsy(definition=d).train.x for d in ("text", "code"))
    assert (text.min(), text.max()) == (0, 1)
    assert torch.allclose(2 * text - 1, code, atol=1e-6)


@pytest.mark.realdata
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b'"', b""),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.rstrip(b"\n"),
        lambda text: gzip.compress(text, 1),
    ],
    ids=["CRLF", "no quotes", "byte order mark", "no last end", "packed"],
)
def test_the_same_numbers_of_epilepsy_are_read_in_any_spelling(alone, change):
    real = files.locate("uci-epilepsy", "data.csv", REAL).read_bytes()
    (alone / "uci-epilepsy").mkdir()
    path = alone / "uci-epilepsy" / "data.csv"
    path.write_bytes(change(real))
    assert datasets.epilepsy(alone).checksum == datasets.epilepsy(REAL).checksum


def test_epilepsy_keeps_the_order_and_scales_all_values_alike(alone, monkeypatch):
    """Segments of constants, 7 above the one before; labels 1 to 5 become 0, 1, 1, 2, 2."""
    values, labels = np.arange(11500) % 300 * 7 - 1000, np.arange(11500) % 5 + 1
    table = np.column_stack([values[:, None].repeat(178, 1), labels])
    digest = hashlib.sha256(table.astype("<i2").tobytes()).hexdigest()
    monkeypatch.setattr(tabular, "EPILEPSY", digest)
    lines = [",".join(["", *(f"X{i}" for i in range(1, 179)), "y"])]
    lines += ["row" + f",{value}" * 178 + f",{label}" for value, label in zip(values, labels)]
    (alone / "uci-epilepsy").mkdir()
    (alone / "uci-epilepsy/data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text, code = (datasets.epilepsy(alone, definition=d) for d in ("text", "code"))
    assert [len(part) for part in (text.train, text.valid, text.test)] == [8740, 1380, 1380]
    x, twice = (torch.cat([s.train.x, s.valid.x, s.test.x]) for s in (text, code))
    share = torch.arange(11500) % 300 / 299
    torch.testing.assert_close(x, share[:, None].expand(-1, 178))
    torch.testing.assert_close(twice, 2 * x - 1)
    y = torch.cat([text.train.y, text.valid.y, text.test.y])
    assert torch.equal(y, torch.tensor([0, 1, 1, 2, 2]).repeat(2300))


@pytest.mark.parametrize("packed", [False, True])
def test_200_damaged_epilepsy_files_are_refused_by_name_or_equal(alone, monkeypatch, packed):
    """The numbers have a checksum, so that nothing but names and spelling can differ."""
    rng = np.random.default_rng(0)
    table = np.concatenate([rng.integers(-99, 99, (10, 178)), rng.integers(1, 6, (10, 1))], axis=1)
    monkeypatch.setattr(tabular, "SEGMENTS", table.shape)
    digest = hashlib.sha256(table.astype("<i2").tobytes()).hexdigest()
    monkeypatch.setattr(tabular, "EPILEPSY", digest)
    lines = [",".join(["", *(f"X{i}" for i in range(1, 179)), "y"])]
    lines += [",".join([f"X{i}", *map(str, row)]) for i, row in enumerate(table)]
    text = ("\n".join(lines) + "\n").encode()
    (alone / "uci-epilepsy").mkdir()
    path = alone / "uci-epilepsy" / "data.csv"
    whole = gzip.compress(text, mtime=0) if packed else text
    refused = 0
    for damaged in corruptions(whole):
        path.write_bytes(damaged)
        found = read_or_refused(lambda: tabular._segments(path), path)
        refused += found is None
        assert found is None or np.array_equal(found, table)
    assert refused > 100
