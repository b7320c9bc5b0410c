"""Signals: PhysioNet's records, UCI's epilepsy, and made-up ones that stand in for them."""

import numpy as np
import pytest
import torch
import wfdb

from sparselib import datasets
from sparselib.datasets import DataUnavailable

KINDS = ("ecg", "eeg", "respiration", "emg")


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Search nothing but the test's own folder and the checkout."""
    monkeypatch.setenv("SPARSELIB_DATA", "")
    return tmp_path


def write(folder, signals, fmt="16", record="rec"):
    """Write a record of PhysioNet's kind with one signal a column; return its folder."""
    place = folder / "physionet" / "own"
    place.mkdir(parents=True, exist_ok=True)
    columns = signals.shape[1]
    names, units = [f"lead {i}" for i in range(columns)], ["mV"] * columns
    options = {"fmt": [fmt] * columns, "adc_gain": [200.0] * columns, "baseline": [0] * columns}
    wfdb.wrsamp(record, 250, units, names, signals, write_dir=str(place), **options)
    return place


def noise(count=12_000, columns=2):
    return np.random.default_rng(0).integers(-900, 900, (count, columns)) / 200


# --- PhysioNet


@pytest.mark.parametrize("fmt", ["16", "212"])
@pytest.mark.parametrize("channel", [0, 1])
def test_windows_follow_each_other_and_have_mean_0_and_deviation_1(alone, fmt, channel):
    signals = noise()
    write(alone, signals, fmt)
    split = datasets.physionet("own/rec", alone, channel)
    assert [len(part) for part in (split.train, split.valid, split.test)] == [6, 2, 4]
    x = torch.cat([split.train.x, split.valid.x, split.test.x]).double()
    raw = torch.from_numpy(signals[:, channel]).view(12, 1000)
    expected = (raw - raw.mean(1, keepdim=True)) / raw.std(1, keepdim=True)
    assert torch.allclose(x, expected, atol=1e-5)
    assert (split.classes, split.features, int(split.train.y.sum())) == (1, 1000, 0)
    assert split.note.startswith(f"signal lead {channel} of PhysioNet's own/rec")


def test_an_excerpt_of_apnea_ecg_is_cut_like_a_record(alone):
    folder = alone / "apnea-ecg-minutes"
    folder.mkdir(parents=True)
    ecg = np.random.default_rng(0).integers(-300, 300, 12_500).astype(np.int16)
    np.savez(folder / "ecg_excerpts.npz", a01_from360000=ecg, a01_from0=ecg[:5000])
    split = datasets.apnea_excerpt(folder=alone)
    raw = torch.from_numpy(ecg[:12_000]).double().view(12, 1000)
    expected = (raw - raw.mean(1, keepdim=True)) / raw.std(1, keepdim=True)
    x = torch.cat([split.train.x, split.valid.x, split.test.x]).double()
    assert torch.allclose(x, expected, atol=1e-5)
    assert split.name == "apnea-ecg/a01_from360000"
    for part in ("a01_from0", "x99"):
        with pytest.raises(ValueError, match=f"no '{part}' of 12,000.*enough are a01_from360000"):
            datasets.apnea_excerpt(part, alone)


def test_windows_of_other_lengths_and_numbers(alone):
    write(alone, noise(400))
    split = datasets.physionet("own/rec", alone, windows=(2, 1, 1), length=100)
    assert split.train.x.shape == (2, 100)
    assert split.test.x.shape == (1, 100)


def test_missing_files_are_named(alone):
    with pytest.raises(DataUnavailable, match=r"physionet/own/rec\.hea lies in none.*signals\(\)"):
        datasets.physionet("own/rec", alone)
    (write(alone, noise()) / "rec.dat").unlink()
    with pytest.raises(DataUnavailable, match=r"own/rec\.dat is missing, which rec\.hea names"):
        datasets.physionet("own/rec", alone)


@pytest.mark.parametrize("fmt", ["16", "212"])
def test_a_signal_file_cut_short_anywhere_is_refused(alone, fmt):
    path = write(alone, noise(), fmt) / "rec.dat"
    whole = path.read_bytes()
    for length in (0, 1, 2, 3, 4001, len(whole) // 2, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"own/rec\.dat is refused.*etch the record again"):
            datasets.physionet("own/rec", alone)


def test_a_damaged_signal_file_is_refused(alone):
    path = write(alone, noise()) / "rec.dat"
    whole = path.read_bytes()
    for place in range(0, len(whole), 4799):
        # every second sample is of the other signal, which is not read
        place -= place % 4
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"rec\.dat is refused: its signal lead 0 has the che"):
            datasets.physionet("own/rec", alone)


def test_a_header_cut_short_anywhere_gives_the_same_values_or_is_refused(alone):
    path = write(alone, noise(columns=1)) / "rec.hea"
    whole, refused = path.read_bytes(), 0
    good = datasets.physionet("own/rec", alone).train.x
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            found = datasets.physionet("own/rec", alone).train.x
            assert torch.allclose(found, good, atol=1e-5)
        except (DataUnavailable, ValueError) as error:
            refused += "rec." in str(error)
    # what stands behind the format is optional, and a cut gain cancels in the windows
    assert refused >= whole.index(b" 200.0")


def test_what_cannot_be_windows_is_refused(alone):
    signals = noise()
    write(alone, signals[:11_999])
    with pytest.raises(ValueError, match="has 11,999 samples, but 12 windows of 1,000 need 12,000"):
        datasets.physionet("own/rec", alone)
    with pytest.raises(
        ValueError, match="no channel 2: its signals, counted from 0, are lead 0, lead 1"
    ):
        datasets.physionet("own/rec", alone, channel=2)
    signals[3000:4000, 0] = 0.5
    signals[5007, 1] = np.nan
    write(alone, signals)
    with pytest.raises(ValueError, match="lead 0 never changes in samples 3,000 to 3,999"):
        datasets.physionet("own/rec", alone)
    with pytest.raises(ValueError, match="lead 1 has a gap at sample 5,007"):
        datasets.physionet("own/rec", alone, channel=1)


@pytest.mark.realdata
@pytest.mark.parametrize("record", datasets.RECORDS.values())
def test_the_paper_s_records_have_its_windows(record):
    split = datasets.physionet(record)
    parts = (split.train, split.valid, split.test)
    assert [tuple(part.x.shape) for part in parts] == [(6, 1000), (2, 1000), (4, 1000)]
    for part in parts:
        assert part.x.mean(1).abs().max() < 1e-5
        assert torch.allclose(part.x.std(1), torch.ones(len(part)), atol=1e-5)
