"""Signals: PhysioNet's records, UCI's epilepsy, and synthetic ones that stand in for them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb
from corrupting import corruptions, read_or_refused

from sparselib import datasets
from sparselib.datasets import DataUnavailable, physionet_records

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


# --- several samples per frame


def write_frames(folder, per_frame=(4, 1, 2), frames=12_000):
    """Write a record whose signals have different rates, as in drivedb; return its signals."""
    place = folder / "physionet" / "own"
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    signals = [rng.integers(-900, 900, frames * count) for count in per_frame]
    rows = [signal.reshape(frames, count) for signal, count in zip(signals, per_frame)]
    np.concatenate(rows, axis=1).astype("<i2").tofile(place / "rec.dat")
    lines = [f"rec {len(per_frame)} 15.5 {frames}"]
    for number, (signal, count) in enumerate(zip(signals, per_frame)):
        checksum = int(signal.sum()) % 2**16
        lines.append(f"rec.dat 16x{count} 200/mV 16 0 {signal[0]} {checksum} 0 lead {number}")
    (place / "rec.hea").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return signals


def windows_of(signal):
    raw = torch.from_numpy(np.asarray(signal[:12_000], dtype=np.float64)).view(12, 1000)
    return (raw - raw.mean(1, keepdim=True)) / raw.std(1, keepdim=True)


def joined(split):
    return torch.cat([split.train.x, split.valid.x, split.test.x]).double()


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_signals_at_different_rates_are_read_at_their_own(alone, channel):
    signals = write_frames(alone)
    split = datasets.physionet("own/rec", alone, channel)
    assert torch.allclose(joined(split), windows_of(signals[channel]), atol=1e-5)
    rate = {0: ", 62 samples per second", 1: "start", 2: ", 31 samples per second"}
    assert split.note.endswith(rate[channel])


def test_every_sample_of_a_frame_counts_in_the_checksum(alone):
    write_frames(alone)
    path = alone / "physionet/own/rec.dat"
    whole = path.read_bytes()
    # frames of 7 samples: the first four bytes pairs are of signal 0
    for place in (0, 2, 4, 6, 14 * 999 + 6):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"rec\.dat is refused: its signal lead 0 has the che"):
            datasets.physionet("own/rec", alone, channel=0)
        datasets.physionet("own/rec", alone, channel=1)


# --- formats that `wfdb` does not write


def packed_310(samples):
    """Pack three samples of 10 bits: two above the lowest bit of 16, one in their five highest."""
    first, second, third = (samples.reshape(-1, 3) & 0x3FF).T
    low = (first << 1) | ((third & 0x1F) << 11)
    high = (second << 1) | ((third >> 5) << 11)
    return np.stack([low, high], axis=1).astype("<u2").tobytes()


def packed_311(samples):
    """Pack three samples of 10 bits, one above the other, into 32."""
    first, second, third = (samples.reshape(-1, 3) & 0x3FF).T
    return (first | (second << 10) | (third << 20)).astype("<u4").tobytes()


def differences(samples):
    """Return what each of two signals in turn has more than it had before, in 8 bits."""
    rows = samples.reshape(-1, 2)
    return np.diff(rows, axis=0, prepend=rows[:1]).astype(np.int8).tobytes()


FORMATS = {
    "8": differences,
    "16": lambda samples: samples.astype("<i2").tobytes(),
    "24": lambda samples: samples.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes(),
    "32": lambda samples: samples.astype("<i4").tobytes(),
    "61": lambda samples: samples.astype(">i2").tobytes(),
    "80": lambda samples: (samples + 128).astype(np.uint8).tobytes(),
    "160": lambda samples: (samples + 32768).astype("<u2").tobytes(),
    "310": packed_310,
    "311": packed_311,
}


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("fmt", FORMATS)
def test_the_samples_of_every_format_are_those_written(alone, fmt, channel):
    place = alone / "physionet" / "own"
    place.mkdir(parents=True)
    # steps of at most 60 within -120 to 120 fit into all formats
    rng = np.random.default_rng(0)
    steps = rng.integers(0, 61, (12_000, 2))
    samples = np.abs((steps.cumsum(0) + 120) % 480 - 240) - 120
    (place / "rec.dat").write_bytes(FORMATS[fmt](samples.ravel()))
    lines = ["rec 2 250 12000"]
    for number in range(2):
        checksum = int(samples[:, number].sum()) % 2**16
        lines.append(f"rec.dat {fmt} 200 12 0 {samples[0, number]} {checksum} 0 lead {number}")
    (place / "rec.hea").write_text("\n".join(lines) + "\n", encoding="utf-8")
    split = datasets.physionet("own/rec", alone, channel)
    assert torch.allclose(joined(split), windows_of(samples[:, channel]), atol=1e-5)
    # the same once more without the checksum, so that nothing is read by luck
    (place / "rec.hea").write_text(
        "\n".join(" ".join(line.split()[:6]) for line in lines) + "\n", encoding="utf-8"
    )
    without = datasets.physionet("own/rec", alone, channel)
    assert torch.equal(without.train.x, split.train.x)


# --- what is refused with its reason


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("rec/2 2 250 24000\none 12000\n", "announces 2 segments and names 1"),
        ("rec/2 2 250 24000\none 12000\ntwo 12\n", r"24000 frames, and segments of \[12000, 12\]"),
        ("rec/2 2 250 24000\none 12000\n../two 12000\n", "'../two' is no name of a segment"),
        ("rec/1 2 250 12000\nrec 12000\n", "its segment rec consists of segments"),
        ("rec/x 2 250 12000\none 12000\n", "damaged or cut short"),
        ("rec.1 1 250 12000\nrec.dat 16\n", r"the name 'rec\.1', and WFDB allows letters"),
        ("r\u00e9c 1 250 12000\nr c.dat 16\n", r"the name 'r c\.dat'"),
        ("rec 1 250 12000\nmy rec.dat 16 200\n", r"the name 'my rec\.dat'"),
        ("rec 1 250 12000\nrec.v2.dat 16\n", r"the name 'rec\.v2\.dat'"),
        ("rec 1 250 12000\n../rec.dat 16\n", r"the name '\.\./rec\.dat'"),
        ("rec 1 250 12000\nrec.dat 99\n", "its format 99 is none of WFDB"),
        ("rec 1 250 12000\nrec.dat 61x2\n", "wfdb does not read format 61"),
        ("rec one 250 12000\nrec.dat 16\n", "damaged or cut short"),
        ("rec 0 250 12000\n", "has no channel 0: .* are none"),
        ("rec 1 250 912000000000\nrec.dat 16\n", "it holds 48,000 bytes, but its header announ"),
        ("rec 1 250 12000\nrec.dat 16x99999999\n", "it holds 48,000 bytes, but its header announ"),
        ("", "it holds no line"),
        ("# a comment only\n", "it holds no line"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused_with_the_reason(alone, header, sentence):
    place = write(alone, noise())
    (place / "rec.hea").write_text(header, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"rec\.(hea|dat) .*{sentence}"):
        datasets.physionet("own/rec", alone)


# --- damage


def test_200_damaged_headers_are_refused_by_name_or_give_equal_windows(alone):
    place = write(alone, noise(2400))
    options = {"windows": (2, 1, 1), "length": 600}
    path = place / "rec.hea"
    whole = path.read_bytes()
    good = joined(datasets.physionet("own/rec", alone, **options))
    refused = 0
    for damaged in corruptions(whole):
        path.write_bytes(damaged)
        split = read_or_refused(
            lambda: datasets.physionet("own/rec", alone, **options), Path("rec")
        )
        refused += split is None
        # a gain that is negative turns the windows upside down, which no rule forbids
        equal = split is None or any(
            torch.allclose(sign * joined(split), good, atol=1e-4) for sign in (1, -1)
        )
        other = split is None or "signal lead 0" not in split.note
        assert equal or other, damaged
    assert refused > 90


@pytest.mark.parametrize("fmt", ["16", "212"])
def test_200_damaged_signal_files_are_refused_by_name_or_equal(alone, fmt):
    path = write(alone, noise(2400), fmt) / "rec.dat"
    options = {"windows": (2, 1, 1), "length": 600}
    whole = path.read_bytes()
    good = joined(datasets.physionet("own/rec", alone, **options))
    refused = 0
    for damaged in corruptions(whole):
        path.write_bytes(damaged)
        split = read_or_refused(lambda: datasets.physionet("own/rec", alone, **options), path)
        refused += split is None
        # a sum does not see an exchange of blocks; whatever else it does not see is equal
        assert split is None or torch.equal(joined(split), good) or _exchanged(damaged, whole)
    assert refused > 100


def _exchanged(damaged, whole):
    return len(damaged) == len(whole) and sorted(damaged) == sorted(whole)


def test_200_damaged_excerpts_are_refused_by_name_or_equal(alone):
    folder = alone / "apnea-ecg-minutes"
    folder.mkdir(parents=True)
    ecg = np.random.default_rng(0).integers(-300, 300, 2500).astype(np.int16)
    path = folder / "ecg_excerpts.npz"
    np.savez(path, a01_from360000=ecg, a01_from0=ecg[:500])
    options = {"windows": (2, 1, 1), "length": 600}
    whole = path.read_bytes()
    good = joined(datasets.apnea_excerpt(folder=alone, **options))
    refused = 0
    for damaged in corruptions(whole):
        path.write_bytes(damaged)
        split = read_or_refused(lambda: datasets.apnea_excerpt(folder=alone, **options), path)
        refused += split is None
        assert split is None or torch.equal(joined(split), good)
    assert refused > 100


@pytest.mark.parametrize(
    "array", [np.zeros((2, 9), np.int16), np.zeros(9), np.array(["a"]), np.array([{}])]
)
def test_an_excerpt_of_another_kind_is_refused(alone, array):
    (alone / "apnea-ecg-minutes").mkdir()
    path = alone / "apnea-ecg-minutes" / "ecg_excerpts.npz"
    np.savez(path, a01_from360000=array)
    with pytest.raises(ValueError, match=f"{path} is refused"):
        datasets.apnea_excerpt(folder=alone)


# --- records of segments


def in_segments(alone, header, *segments, record="rec"):
    """Write segments, each a record, and the header of the record that they make."""
    for name, signals in segments:
        place = write(alone, signals, record=name)
    (place / f"{record}.hea").write_text(header, encoding="utf-8")
    return place


def whole(split):
    return torch.cat([split.train.x, split.valid.x, split.test.x])


@pytest.mark.parametrize("channel", [0, 1])
def test_segments_follow_each_other(alone, channel):
    signals = noise(13_000)
    header = "rec/2 2 250 13000\n# a comment\none 5000\ntwo 8000\n"
    place = in_segments(alone, header, ("one", signals[:5000]), ("two", signals[5000:]))
    write(alone, signals, record="plain")
    split = datasets.physionet("own/rec", alone, channel)
    assert torch.equal(whole(split), whole(datasets.physionet("own/plain", alone, channel)))
    theirs = wfdb.rdrecord(str(place / "rec")).p_signal[:12_000, channel]
    raw = torch.from_numpy(theirs).float()
    assert torch.equal(whole(split), whole_of(raw))


def whole_of(raw):
    return physionet_records.standardized_windows(raw, 1000)


def test_a_layout_gives_signals_by_name_and_gaps_where_they_are_missing(alone):
    signals = noise(13_000)
    place = in_segments(
        alone,
        "rec/4 2 250 13100\nlay 0\none 12000\n~ 100\ntwo 1000\n",
        ("one", signals[:12_000]),
        ("two", signals[12_000:, :1]),
    )
    lines = ["lay 2 250 0", "~ 0 200(0)/mV 16 0 0 0 0 lead 1", "~ 0 200(0)/mV 16 0 0 0 0 lead 0"]
    (place / "lay.hea").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write(alone, signals, record="plain")
    split = datasets.physionet("own/rec", alone, 0)
    assert "signal lead 1" in split.note
    assert torch.equal(whole(split), whole(datasets.physionet("own/plain", alone, 1)))
    with pytest.raises(ValueError, match=r"signal lead 1 has a gap at sample 12,000"):
        datasets.physionet("own/rec", alone, 0, windows=(7, 2, 4))
    with pytest.raises(ValueError, match=r"has no channel 2: .* are lead 1, lead 0"):
        datasets.physionet("own/rec", alone, 2)


def test_segments_that_are_not_what_their_record_announces_are_refused(alone):
    signals = noise(13_000)
    header = "rec/2 2 250 13000\none 5000\ntwo 8000\n"
    place = in_segments(alone, header, ("one", signals[:5000]), ("two", signals[5000:12_000]))
    with pytest.raises(ValueError, match=r"announces 8,000 samples of the segment two, .* 7,000"):
        datasets.physionet("own/rec", alone)
    in_segments(alone, header, ("two", signals[5000:]))
    content = bytearray((place / "two.dat").read_bytes())
    content[4] ^= 1
    (place / "two.dat").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"two\.dat is refused: its signal lead 0 has the checksum"
    ):
        datasets.physionet("own/rec", alone)
    (place / "two.hea").unlink()
    with pytest.raises(
        DataUnavailable, match=r"two\.hea is missing, a segment that rec\.hea names"
    ):
        datasets.physionet("own/rec", alone)
