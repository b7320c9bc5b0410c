"""Apnea-ECG: every labelled minute is there, and no night is in two parts unless asked for."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sparselib import datasets
from sparselib.datasets import apnea, files


@pytest.mark.realdata
@pytest.mark.parametrize("by", ["record", "minute"])
def test_the_35_nights_have_17045_labelled_minutes_6514_with_apnea(by):
    data = datasets.apnea_ecg("rr", by=by)
    labels = torch.cat([part.y for part in (data.train, data.valid, data.test)])
    assert torch.bincount(labels).tolist() == [10_531, 6514]
    assert data.features == 720
    x = torch.cat([part.x for part in (data.train, data.valid, data.test)])
    assert 0.3 <= float(x.min()) <= float(x.max()) <= 2.0
    groups = [set(part.groups.tolist()) for part in (data.train, data.valid, data.test)]
    assert set.union(*groups) == set(range(35))
    assert len(set.intersection(*groups)) == (0 if by == "record" else 35)
    first = data.groups.index("a01")
    minutes = sum(int((part.groups == first).sum()) for part in (data.train, data.valid, data.test))
    assert minutes == 489


@pytest.mark.realdata
def test_the_paper_s_own_split_has_4000_minutes_fewer_and_no_validation():
    data = datasets.apnea_ecg("rr", by="minute", remove=4000, valid=0.0)
    counts = torch.bincount(torch.cat([data.train.y, data.test.y])).tolist()
    assert counts == [6531, 6514]
    assert (len(data.train), len(data.valid), len(data.test)) == (10_436, 0, 2609)


@pytest.mark.realdata
def test_a_missing_or_damaged_record_is_named(tmp_path, monkeypatch):
    source = files.locate("apnea-ecg", "a01.apn").parent
    monkeypatch.setitem(files.SOURCES, "apnea-ecg", ())
    monkeypatch.delenv("SPARSELIB_DATA")
    monkeypatch.setattr(files, "_home", lambda: Path(tmp_path))
    for name in ("SHA256SUMS.txt", "a01.apn", "a01.qrs", "a02.apn", "a02.qrs"):
        (tmp_path / "apnea-ecg").mkdir(exist_ok=True)
        shutil.copyfile(source / name, tmp_path / "apnea-ecg" / name)
    options = {"valid": 0.0, "test": 0.0}
    assert len(datasets.apnea_ecg("rr", records=["a01", "a02"], **options).train) == 489 + 528
    with (tmp_path / "apnea-ecg" / "a02.qrs").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"a02\.qrs is refused"):
        datasets.apnea_ecg("rr", records=["a01", "a02"], **options)
    with pytest.raises(datasets.DataUnavailable, match=r"apnea-ecg/a03\.apn lies in none"):
        datasets.apnea_ecg("rr", records=["a01", "a03"], **options)


@pytest.mark.parametrize("missed", [True, False])
def test_a_beat_missed_or_seen_twice_leaves_no_trace(missed):
    beats = 80 * np.arange(100)
    spoiled = np.delete(beats, 50) if missed else np.insert(beats, 50, beats[50] - 30)
    times = np.arange(0, 79, 0.25)
    np.testing.assert_allclose(apnea.resampled(spoiled, times), 0.8, atol=1e-12)


def test_intervals_are_read_on_the_line_between_beats():
    beats = np.array([0, 80, 170, 250])
    found = apnea.resampled(beats, np.array([0.0, 0.8, 1.25, 1.7, 9.0]))
    np.testing.assert_allclose(found, [0.8, 0.8, 0.85, 0.9, 0.8], atol=1e-12)


def test_beats_that_are_none_are_refused():
    with pytest.raises(ValueError, match="beat 2 does not follow"):
        apnea.resampled(np.array([0, 80, 80]), np.zeros(1))
    with pytest.raises(ValueError, match="none of 1 intervals"):
        apnea.resampled(np.array([0, 800]), np.zeros(1))


def test_a_minute_and_its_neighbours_are_consecutive_windows_of_the_night():
    wide, narrow = (
        datasets.apnea_ecg(records=["a01"], test=0.0, valid=0.0, neighbours=n).train for n in (1, 0)
    )
    assert (wide.x.shape, narrow.x.shape) == ((40, 720), (40, 240))
    assert torch.equal(wide.x[:-1, 480:], wide.x[1:, 240:480])
    assert torch.equal(wide.x[:-1, 240:], wide.x[1:, :480])


def test_made_up_nights_are_many_patients_and_the_same_for_a_seed():
    first, again, other = (datasets.apnea_ecg(seed=seed) for seed in (0, 0, 1))
    assert first.checksum == again.checksum != other.checksum
    assert [len(set(p.groups.tolist())) for p in (first.train, first.valid, first.test)] == [
        21,
        7,
        7,
    ]
    assert 0.2 < first.train.y.double().mean() < 0.6
    assert "made-up" in first.note


def test_parts_by_record_hold_as_large_a_share_of_each_kind_of_patient():
    data = datasets.apnea_ecg(seed=3)
    for part in (data.valid, data.test):
        kinds = "".join(sorted(data.groups[g][0] for g in set(part.groups.tolist())))
        assert kinds == "aaaabcc"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"source": "ecg"}, "source must be 'rr' or 'synthetic', not 'ecg'"),
        ({"by": "patient"}, "by must be 'record' or 'minute'"),
        ({"test": 0.6, "valid": 0.4}, "leave something to train on"),
        ({"records": ["a01", "x01"]}, r"not \['x01'\]"),
        ({"remove": 99_999}, "minutes without apnea cannot be left out"),
    ],
)
def test_impossible_arguments_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        datasets.apnea_ecg(**options)
