"""Signals: PhysioNet's records, UCI's epilepsy, and made-up ones that stand in for them."""

import numpy as np
import pytest
import torch
import wfdb

from sparselib import datasets
from sparselib.datasets import DataUnavailable, synthetic

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


# --- epilepsy


def test_epilepsy_is_named_when_missing_or_damaged(alone):
    with pytest.raises(DataUnavailable, match=r"uci-epilepsy/data\.csv lies in none.*signals\(\)"):
        datasets.epilepsy(alone)
    (alone / "uci-epilepsy").mkdir()
    (alone / "uci-epilepsy/data.csv").write_text('"","X1","y"\n"X1.V1.1",3,', encoding="utf-8")
    with pytest.raises(ValueError, match=r"data\.csv is refused: its SHA-256 is"):
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
    """82.10 % less 44.3 points is the share of tumours among the test samples in file order."""
    labels = datasets.epilepsy().test.y
    assert f"{100 * float((labels == 1).double().mean()):.1f}" == f"{82.10 - 44.3:.1f}"


@pytest.mark.realdata
def test_epilepsy_of_the_text_lies_between_0_and_1():
    text, code = (datasets.epilepsy(definition=d).train.x for d in ("text", "code"))
    assert (text.min(), text.max()) == (0, 1)
    assert torch.allclose(2 * text - 1, code, atol=1e-6)


# --- made-up signals


@pytest.mark.parametrize("kind", KINDS)
def test_made_up_signals_are_seeded_and_standardised(kind):
    split = synthetic.signals([kind])
    assert (split.train.x.shape, split.valid.x.shape, split.test.x.shape) == (
        (6, 1000),
        (2, 1000),
        (4, 1000),
    )
    assert split.checksum == synthetic.signals([kind]).checksum
    assert split.checksum != synthetic.signals([kind], seed=1).checksum
    x = split.train.x
    assert x.mean(1).abs().max() < 1e-4
    assert (x.std(1) - 1).abs().max() < 1e-3
    assert torch.equal(x, (x.double() * 1e4).round().div(1e4).float())


def rhythm(x):
    """Distance in samples at which a signal is most like itself, between 50 and 400."""
    flat = x.flatten() - x.mean()
    power = torch.fft.rfft(flat, 2 * flat.numel()).abs() ** 2
    return int(torch.fft.irfft(power)[50:400].argmax()) + 50


def test_hearts_beat_every_four_fifths_of_a_second_and_breaths_come_every_second():
    assert 185 < rhythm(synthetic.signals(["ecg"]).train.x) < 215
    assert 215 < rhythm(synthetic.signals(["respiration"]).train.x) < 285


def test_an_eeg_has_waves_of_ten_a_second():
    x = synthetic.signals(["eeg"], train=40, valid=0, test=0).train.x
    power = (torch.fft.rfft(x).abs() ** 2).mean(0)
    hertz = torch.arange(len(power)) / 4
    near = power[(hertz > 8) & (hertz < 12)].mean()
    assert near > 3 * power[(hertz > 14) & (hertz < 18)].mean()


def test_kinds_of_signals_are_labels():
    split = synthetic.signals(KINDS, train=200, valid=20, test=20, length=178)
    assert split.classes == 4
    assert min(split.train.y.bincount()) > 30
    kurtosis = [float((split.train.x[split.train.y == k] ** 4).mean()) for k in range(4)]
    assert kurtosis[0] > 5 > kurtosis[2]


def test_unknown_kinds_are_refused():
    for kinds in ([], ["ecg", "radio"]):
        with pytest.raises(ValueError, match="kinds are some of ecg, eeg, respiration, emg, not"):
            synthetic.signals(kinds)
