"""Apnea-ECG: every labeled minute is there, and no night is in two parts unless asked for."""

import functools
import hashlib
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from corrupting import corruptions, read_or_refused

from sparselib import datasets
from sparselib.datasets import apnea, apnea_records, files, synthetic_ecg

pytestmark = pytest.mark.usefixtures("cache")
WHOLE = {"folds": 0, "valid": 0.0}


@pytest.fixture
def remembered(monkeypatch):
    """Compute each synthetic night and its intervals once, for tests that ask for them often."""
    monkeypatch.setattr(synthetic_ecg, "draw_night", functools.cache(synthetic_ecg.draw_night))
    known = {}

    def intervals(night, neighbors):
        key = (night.record, neighbors, night.beats.tobytes())
        if key not in known:
            known[key] = apnea_records_intervals(night, neighbors)
        return known[key]

    apnea_records_intervals = apnea_records.intervals
    monkeypatch.setattr(apnea_records, "intervals", intervals)


@pytest.fixture
def cache(monkeypatch, tmp_path_factory):
    """Keep what is computed from the data away from the cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    return tmp_path_factory.getbasetemp() / "cache" / "sparselib" / "apnea-ecg"


def parts(data):
    return data.train, data.valid, data.test


def written(folder, records=("a01", "a02", "c01")):
    """Write a small database of synthetic nights; return its folder's parent."""
    apnea.write_synthetic(folder / "made-up", records)
    return {"folder": folder, "database": "made-up", "records": list(records)}


def with_test_nights(folder, learning=("a01", "a02", "a03", "b01", "c01"), tests=5):
    """Write learning nights once more under the names of test nights, their labels as answers.

    The labels are those of the learning nights, in the format of the official `event-2-answers`.
    """
    database = folder / "made-up"
    apnea.write_synthetic(database, learning)
    lines, labels = [], {}
    for number, name in enumerate(learning[:tests], 1):
        night = synthetic_ecg.draw_night(name, 34 - number, minutes=75 + number)
        night = night._replace(record=f"x{number:02}")
        synthetic_ecg.write(database, night, seed=number)
        (database / f"{night.record}.apn").unlink()
        labels[night.record] = night.labels
        letters = "".join("NA"[label] for label in night.labels)
        hours = [letters[start : start + 60] for start in range(0, len(letters), 60)]
        lines += [night.record, *(f" {hour} {row}" for hour, row in enumerate(hours)), ""]
    checksummed(database)
    (database / "event-2-answers").write_text("\n".join(lines) + "\n", encoding="ascii")
    return {"folder": folder, "database": "made-up"}, labels


# --- the database's own split


def test_the_official_split_trains_on_abc_and_tests_on_x(tmp_path):
    where, labels = with_test_nights(tmp_path)
    records = ["a01", "a02", "a03", "b01", "c01", *labels]
    data = datasets.apnea_ecg("rr", **where, records=records, by="official", valid=0.2)
    names = [{data.groups[g] for g in part.groups.tolist()} for part in parts(data)]
    assert names[2] == set(labels)
    assert names[0] | names[1] == {"a01", "a02", "a03", "b01", "c01"}
    assert (len(names[0]), len(names[1])) == (4, 1)
    assert torch.equal(data.test.y, torch.from_numpy(np.concatenate(list(labels.values()))))
    assert "the database's own split, 5 to train and 5 to test" in data.note
    again = datasets.apnea_ecg("rr", **where, records=records, by="official", folds=0)
    assert again.checksum == data.checksum
    ecg = datasets.apnea_ecg("ecg", **where, records=records, by="official")
    assert torch.equal(ecg.test.y, data.test.y)
    fewer = datasets.apnea_ecg("rr", **where, records=records, by="official", remove=20)
    assert torch.equal(fewer.test.x, data.test.x)
    assert len(fewer.train) < len(data.train)


def test_test_nights_alone_are_tested_and_nothing_trains(tmp_path):
    where, labels = with_test_nights(tmp_path)
    data = datasets.apnea_ecg("rr", **where, records=["x02", "x04"], by="official")
    assert (len(data.train), len(data.valid)) == (0, 0)
    assert data.train.x.shape == (0, 720)
    assert len(data.test) == len(labels["x02"]) + len(labels["x04"])
    alone = datasets.apnea_ecg("rr", **where, records=["x02", "x04"], **WHOLE)
    assert torch.equal(alone.train.x, data.test.x)


def test_without_any_test_night_there_is_no_official_split(tmp_path, monkeypatch):
    where, labels = with_test_nights(tmp_path, tests=2)
    monkeypatch.setitem(files.SOURCES, "made-up", ())
    answers = tmp_path / "made-up" / "event-2-answers"
    answers.rename(tmp_path / "made-up" / "event-2-answers.txt")
    records = ["a01", "c01", *labels]
    split = datasets.apnea_ecg("rr", **where, records=records, by="official")
    assert len(split.test) == sum(map(len, labels.values()))
    with pytest.warns(UserWarning, match=r"left out: x03.*holds no labels of x03, but of x01, x02"):
        datasets.apnea_ecg("rr", **where, records=[*records, "x03"], by="official")
    (tmp_path / "made-up" / "event-2-answers.txt").unlink()
    with pytest.raises(datasets.DataUnavailable, match="made-up/event-2-answers lies in none"):
        datasets.apnea_ecg("rr", **where, records=records, by="official")


@pytest.mark.slow
@pytest.mark.realdata
def test_real_test_nights_are_tested_on_the_answers_that_lie_beside_them(tmp_path):
    """The answers themselves are not available: random labels, as many as the night has minutes."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(1, 36):
        beats = files.locate("apnea-ecg", f"x{number:02}.qrs")
        minutes = int(apnea_records._marks(beats).sample[-1]) // 6000
        letters = "".join(rng.choice(["N", "A"], minutes))
        hours = [letters[start : start + 60] for start in range(0, minutes, 60)]
        lines += [f"x{number:02}", *(f" {hour} {row}" for hour, row in enumerate(hours)), ""]
    (tmp_path / "apnea-ecg").mkdir()
    path = tmp_path / "apnea-ecg" / "event-2-answers"
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    data = datasets.apnea_ecg("rr", tmp_path, by="official")
    assert data.groups == (*apnea_records.LEARNING, *apnea_records.TESTING)
    groups = [set(part.groups.tolist()) for part in parts(data)]
    assert groups[2] == set(range(35, 70))
    assert groups[0] | groups[1] == set(range(35))
    assert len(data.train) + len(data.valid) == 17_045


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x01\n 0 NNA", "its last line has no end"),
        ("", "its last line has no end"),
        ("x01\n 0 NNX\n", "line 2 is neither"),
        ("a01\n 0 NNA\n", "line 1 is neither"),
        ("x36\n 0 NNA\n", "line 1 is neither"),
        (" 0 NNA\n", "line 1 is neither"),
        ("x01\n 0 NNA\nx01\n", "line 3 is neither"),
        ("x01\n 0 NNA\n 1 NNA\n", "line 3 is neither"),
        (f"x01\n 0 {'N' * 60}\n 2 NNA\n", "line 3 is neither"),
        (f"x01\n 1 {'N' * 60}\n", "line 2 is neither"),
        (f"x01\n 0 {'N' * 61}\n", "line 2 is neither"),
    ],
)
def test_answers_that_are_damaged_are_refused_by_line(tmp_path, text, sentence):
    path = tmp_path / "event-2-answers"
    path.write_text(text, encoding="ascii")
    with pytest.raises(ValueError, match=f"{path} is refused: {sentence}"):
        apnea_records.answers(path)


def test_more_answers_than_minutes_are_refused(tmp_path):
    where, _ = with_test_nights(tmp_path, tests=1)
    letters = "N" * 60
    path = tmp_path / "made-up" / "event-2-answers"
    path.write_text(f"X01\r\n 0 {letters}\r\n 1 {letters}\r\n", encoding="ascii")
    with pytest.raises(ValueError, match=r"x01 is refused: it has labels of 120 minutes, but x01"):
        datasets.apnea_ecg("rr", **where, records=["x01"], by="official")


def test_fewer_answers_than_minutes_are_refused(tmp_path):
    """An hour is missing: the file ends with a whole line, and nothing in it shows that."""
    where, labels = with_test_nights(tmp_path, tests=1)
    path = tmp_path / "made-up" / "event-2-answers"
    letters = "".join("NA"[label] for label in labels["x01"])
    path.write_text(f"x01\n 0 {letters[:46]}\n", encoding="ascii")
    assert len(datasets.apnea_ecg("rr", **where, records=["x01"], by="official").test) == 46
    path.write_text(f"x01\n 0 {letters[:45]}\n", encoding="ascii")
    with pytest.raises(ValueError, match=r"x01 is refused: it has labels of 45 minutes, but x01"):
        datasets.apnea_ecg("rr", **where, records=["x01"], by="official")


@pytest.mark.realdata
def test_real_learning_nights_as_test_nights_have_the_labels_of_their_annotations(tmp_path):
    """Nights of the learning set, once by their annotations and once by a file of answers."""
    (tmp_path / "made-up").mkdir()
    taken = ["a06", "b02", "c04"]
    lines = []
    for record in ["a01", "c01", *taken]:
        name = f"x{taken.index(record) + 1:02}" if record in taken else record
        beats = files.locate("apnea-ecg", f"{record}.qrs")
        marks = files.locate("apnea-ecg", f"{record}.apn")
        (tmp_path / "made-up" / f"{name}.qrs").write_bytes(beats.read_bytes())
        if record not in taken:
            (tmp_path / "made-up" / marks.name).write_bytes(marks.read_bytes())
            continue
        letters = "".join(apnea_records._marks(marks).symbol)
        hours = [letters[start : start + 60] for start in range(0, len(letters), 60)]
        lines += [name, *(f" {hour} {row}" for hour, row in enumerate(hours)), ""]
    checksummed(tmp_path / "made-up")
    answers = tmp_path / "made-up" / "event-2-answers"
    answers.write_text("\n".join(lines) + "\n", encoding="ascii")
    where = {
        "folder": tmp_path,
        "database": "made-up",
        "records": ["a01", "c01", "x01", "x02", "x03"],
    }
    data = datasets.apnea_ecg("rr", **where, by="official", valid=0.0, normalize="night")
    same = datasets.apnea_ecg("rr", records=taken, normalize="night", **WHOLE)
    assert torch.equal(data.test.x, same.train.x)
    assert torch.equal(data.test.y, same.train.y)
    rest = datasets.apnea_ecg("rr", records=["a01", "c01"], normalize="night", **WHOLE)
    assert torch.equal(data.train.x, rest.train.x)


# --- noisy minutes


def test_minutes_with_more_spoiled_intervals_do_not_train(tmp_path):
    """Every other beat of some minutes is missing: their intervals are twice as long."""
    where = written(tmp_path)
    database = tmp_path / "made-up"
    night = synthetic_ecg.draw_night("a01", 0)
    minute = night.beats // 6000
    lost = np.isin(minute, (3, 4, 20)) & (np.arange(len(minute)) % 4 == 0)
    synthetic_ecg.write(database, night._replace(beats=night.beats[~lost]))
    checksummed(database)
    whole = datasets.apnea_ecg("rr", **where, **WHOLE, neighbors=0)
    kept = datasets.apnea_ecg("rr", **where, **WHOLE, neighbors=0, spoiled=0.2)
    left = [m for m in range(len(whole.train)) if m not in (3, 4, 20)]
    assert torch.equal(kept.train.x, whole.train.x[left])
    assert torch.equal(kept.train.y, whole.train.y[left])
    assert kept.note == whole.note + "; 3 noisy minutes left out"
    all_kept = datasets.apnea_ecg("rr", **where, **WHOLE, neighbors=0, spoiled=1.0)
    assert all_kept.checksum == whole.checksum


@pytest.mark.realdata
@pytest.mark.parametrize("by", ["record", "minute"])
def test_noisy_minutes_choose_and_test_as_before(by):
    options = {"by": by, "neighbors": 0, "valid": 0.1}
    whole, kept = (datasets.apnea_ecg("rr", **options, spoiled=most) for most in (1.0, 0.1))
    assert torch.equal(kept.test.x, whole.test.x)
    assert torch.equal(kept.valid.x, whole.valid.x)
    assert 0 < len(whole.train) - len(kept.train) < 1437


@pytest.mark.realdata
def test_of_17045_minutes_1437_have_more_than_a_tenth_of_their_intervals_spoiled():
    data = datasets.apnea_ecg("rr", neighbors=0, **WHOLE, spoiled=0.1)
    assert len(data.train) == 17_045 - 1437


# --- damage


def test_200_damaged_answers_are_refused_by_name_or_hold_whole_hours(tmp_path):
    path = tmp_path / "event-2-answers"
    hours = "".join(f"x{n:02}\n 0 {'NNA' * 20}\n 1 {'A' * 60}\n 2 {'AN' * 9}\n\n" for n in (1, 2))
    path.write_bytes(hours.encode())
    refused = 0
    for damaged in corruptions(hours.encode()):
        path.write_bytes(damaged)
        found = read_or_refused(lambda: apnea_records.answers(path), path)
        refused += found is None
        assert found is None or set(found) <= set(apnea_records.TESTING)
    assert refused > 100


def test_200_damaged_lists_of_checksums_are_refused_by_name_or_equal_for_apnea_ecg(
    tmp_path, monkeypatch
):
    (tmp_path / "apnea-ecg").mkdir()
    path = tmp_path / "apnea-ecg" / "SHA256SUMS.txt"
    whole = "".join(f"{number:064x} a{number:02}.qrs\n" for number in range(1, 21))
    content = "".join(sorted(whole.splitlines(keepends=True), key=lambda line: line.split()[1]))
    digest = hashlib.sha256(content.encode()).hexdigest()
    monkeypatch.setattr(apnea_records, "OFFICIAL_LIST", digest)
    path.write_text(whole, encoding="ascii")
    good = apnea_records.checksums("apnea-ecg", tmp_path)
    refused = 0
    for damaged in corruptions(whole.encode()):
        path.write_bytes(damaged)
        found = read_or_refused(lambda: apnea_records.checksums("apnea-ecg", tmp_path), path)
        refused += found is None
        assert found is None or found == good
    assert refused > 100


@pytest.mark.realdata
def test_the_official_list_is_read_in_every_spelling_and_no_other_list(tmp_path):
    official = files.locate("apnea-ecg", "SHA256SUMS.txt").read_text(encoding="ascii")
    expected = apnea_records.checksums("apnea-ecg", None)
    (tmp_path / "apnea-ecg").mkdir()
    path = tmp_path / "apnea-ecg" / "SHA256SUMS.txt"
    starred = official.replace(" ", " *")
    for text in (official.replace("\n", "\r\n"), starred, official.replace(" ", "  ./") + "\n\n"):
        path.write_bytes(text.encode())
        assert apnea_records.checksums("apnea-ecg", tmp_path) == expected
    path.write_text(official.replace("a01.qrs", "a99.qrs"), encoding="ascii")
    with pytest.raises(ValueError, match="it is not the list of checksums of apnea-ecg"):
        apnea_records.checksums("apnea-ecg", tmp_path)


@pytest.mark.parametrize("kind", ["qrs", "apn"])
def test_200_damaged_annotation_files_are_refused_by_name_or_equal(tmp_path, kind):
    """Also without their checksums, which would refuse them all, whatever is decoded is refused."""
    night = synthetic_ecg.draw_night("a01", 0, minutes=12)
    synthetic_ecg.write(tmp_path, night)
    path = tmp_path / f"a01.{kind}"
    decode = apnea_records._labels if kind == "apn" else apnea_records._marks
    whole = path.read_bytes()
    refused = 0
    for damaged in corruptions(whole):
        path.write_bytes(damaged)
        refused += read_or_refused(lambda: decode(path), path) is None
    assert refused > (50 if kind == "apn" else 3)


@pytest.mark.parametrize("kind", ["dat", "hea", "qrs", "apn"])
def test_a_damaged_file_of_a_night_is_refused_by_its_checksum(tmp_path, kind):
    where = written(tmp_path, ["a01"])
    path = tmp_path / "made-up" / f"a01.{kind}"
    whole = path.read_bytes()
    for damaged in corruptions(whole, 12):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{path} is refused: its SHA-256 is"):
            datasets.apnea_ecg("ecg", **where, **WHOLE)


def test_computed_arrays_that_are_damaged_or_empty_are_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "sparselib" / "apnea-ecg"
    good = np.arange(600, dtype=np.int16).reshape(2, 300)
    made = []

    def make():
        made.append(1)
        return good

    assert np.array_equal(apnea_records.cached("x.npy", make), good)
    whole = (folder / "x.npy").read_bytes()
    for number, damaged in enumerate(corruptions(whole), 2):
        (folder / "x.npy").write_bytes(damaged)
        assert np.array_equal(apnea_records.cached("x.npy", make), good)
        assert len(made) == number
    apnea_records.cached("x.npy", make)
    assert len(made) == 201


@pytest.mark.realdata
@pytest.mark.parametrize("by", ["record", "minute"])
def test_the_35_nights_have_17045_labeled_minutes_6514_with_apnea(by):
    data = datasets.apnea_ecg("rr", by=by)
    labels = torch.cat([part.y for part in parts(data)])
    assert torch.bincount(labels).tolist() == [10_531, 6514]
    assert data.features == 720
    x = torch.cat([part.x for part in parts(data)])
    assert 0.3 <= float(x.min()) <= float(x.max()) <= 2.0
    groups = [set(part.groups.tolist()) for part in parts(data)]
    assert set.union(*groups) == set(range(35))
    assert len(set.intersection(*groups)) == (0 if by == "record" else 35)
    first = data.groups.index("a01")
    assert sum(int((part.groups == first).sum()) for part in parts(data)) == 489


@pytest.mark.realdata
def test_the_paper_s_own_split_has_4000_minutes_fewer_and_no_validation():
    data = datasets.apnea_ecg("rr", by="minute", remove=4000, valid=0.0)
    counts = torch.bincount(torch.cat([data.train.y, data.test.y])).tolist()
    assert counts == [6531, 6514]
    assert (len(data.train), len(data.valid), len(data.test)) == (10_436, 0, 2609)


@pytest.mark.realdata
def test_test_nights_load_with_the_official_answers(tmp_path):
    (tmp_path / "apnea-ecg").mkdir()
    lines = []
    for record, minutes in (("x01", 522), ("x02", 472)):
        letters = ("NA" * 300)[:minutes]
        hours = [letters[start : start + 60] for start in range(0, minutes, 60)]
        lines += [record, *(f" {hour} {row}" for hour, row in enumerate(hours)), ""]
    (tmp_path / "apnea-ecg" / "event-2-answers").write_text(
        "\n".join(lines) + "\n", encoding="utf-8"
    )
    data = datasets.apnea_ecg("rr", tmp_path, records=["x01", "x02"], **WHOLE)
    assert (data.groups, len(data.train)) == (("x01", "x02"), 522 + 472)
    assert torch.equal(data.train.y[:522], torch.arange(522) % 2)
    (tmp_path / "apnea-ecg" / "event-2-answers").write_text("x01\n 0 NAX\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 is neither a record"):
        datasets.apnea_ecg("rr", tmp_path, records=["x01"], **WHOLE)


@pytest.mark.realdata
def test_real_minutes_of_ecg_come_back_as_they_were_recorded(tmp_path):
    import wfdb

    folder = files.locate("apnea-ecg-minutes", "ecg_minutes.npz").parent
    pieces = np.load(folder / "ecg_excerpts.npz")["a01_from360000"]
    known = np.load(folder / "ecg_minutes.npz")
    is_piece = (known["record"] == "a01") & (known["minute"] >= 60)
    write = {"fs": 100, "write_dir": str(tmp_path / "pieces")}
    (tmp_path / "pieces").mkdir()
    options = {"fmt": ["16"], "adc_gain": [200.0], "baseline": [0], "units": ["mV"]}
    wfdb.wrsamp("a01", sig_name=["ECG"], d_signal=pieces[:, None], **options, **write)
    wfdb.wrann("a01", "apn", 6000 * np.arange(20), list(known["label"][is_piece]), **write)
    wfdb.wrann("a01", "qrs", np.arange(50, 120_000, 80), ["N"] * 1500, **write)
    checksummed(tmp_path / "pieces")
    data = datasets.apnea_ecg("ecg", tmp_path, database="pieces", records=["a01"], **WHOLE)
    steps = np.rint(data.train.x.numpy() * 200)
    assert np.array_equal(steps, known["ecg"][is_piece])
    np.testing.assert_allclose(data.train.x.numpy(), steps / 200, atol=1e-6)
    assert data.train.y.sum() == (known["label"][is_piece] == "A").sum()


@pytest.mark.realdata
def test_a_drawn_heartbeat_looks_like_a_recorded_one():
    folder = files.locate("apnea-ecg-minutes", "ecg_minutes.npz").parent
    real = np.load(folder / "ecg_excerpts.npz")["a01_from360000"] / 200
    sums = apnea_records.checksums("apnea-ecg", None)
    beats = apnea_records.read("a01", "apnea-ecg", None, sums).beats
    drawn = synthetic_ecg.waveform(beats, 480_000)[360_000:480_000]
    inside = beats[(beats > 360_100) & (beats < 479_900)] - 360_000
    around = inside[:, None] + np.arange(-25, 40)
    # .qrs marks the beginning of a beat, so the two may be shifted by some hundredths of a second
    means = [signal[around].mean(0) - signal[around].mean() for signal in (real, drawn)]
    lags = [np.corrcoef(np.roll(means[1], shift), means[0])[0, 1] for shift in range(-8, 9)]
    assert max(lags) > 0.8


def checksummed(folder):
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.name}" for p in folder.iterdir()]
    (folder / "SHA256SUMS.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_record_with_a_baseline_holds_the_same_millivolts(tmp_path, cache):
    import wfdb

    where = written(tmp_path)
    first = datasets.apnea_ecg("ecg", **where, **WHOLE)
    database = tmp_path / "made-up"
    record = wfdb.rdrecord(str(database / "a02"), physical=False)
    shifted = (record.d_signal + 100).astype(np.int16)
    options = {"fmt": ["16"], "adc_gain": record.adc_gain, "baseline": [100], "units": ["mV"]}
    wfdb.wrsamp("a02", 100, sig_name=["ECG"], d_signal=shifted, write_dir=str(database), **options)
    checksummed(database)
    again = datasets.apnea_ecg("ecg", **where, **WHOLE)
    assert torch.equal(again.train.x, first.train.x)


def test_written_nights_are_read_as_they_were_made(tmp_path):
    where = written(tmp_path)
    made = [
        synthetic_ecg.draw_night(name, apnea_records.LEARNING.index(name))
        for name in where["records"]
    ]
    ecg = datasets.apnea_ecg("ecg", **where, **WHOLE)
    assert ecg.train.x.shape == (120, 6000)
    assert torch.equal(ecg.train.y, torch.from_numpy(np.concatenate([n.labels for n in made])))
    seeds = [apnea_records.LEARNING.index(name) for name in where["records"]]
    drawn = np.concatenate(
        [synthetic_ecg.waveform(n.beats, 240_000, s).reshape(40, 6000) for n, s in zip(made, seeds)]
    )
    # 200 steps a millivolt: half a step is lost
    assert np.abs(ecg.train.x.numpy() - drawn).max() <= 0.5 / 200 + 1e-4
    read = datasets.apnea_ecg("rr", **where, **WHOLE)
    direct = datasets.apnea_ecg(records=where["records"], **WHOLE)
    assert torch.equal(read.train.x, direct.train.x)


def test_rhythm_and_ecg_are_made_once_and_mapped_from_then_on(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache = tmp_path / "cache" / "sparselib" / "apnea-ecg"
    where = written(tmp_path)
    first = [datasets.apnea_ecg(source, **where, **WHOLE) for source in ("rhythm", "ecg")]
    kinds = sorted(path.stem.split("-")[-1] for path in cache.iterdir())
    assert kinds == ["0"] * 3 + ["beats"] * 3 + ["ecg"] * 3
    monkeypatch.setattr(synthetic_ecg, "waveform", None)
    again = [datasets.apnea_ecg(source, **where, **WHOLE) for source in ("rhythm", "ecg")]
    assert [data.checksum for data in again] == [data.checksum for data in first]
    assert {np.load(path).dtype.name for path in cache.glob("*-ecg.npy")} == {"int16"}


def test_rhythm_has_its_peaks_at_the_beats():
    night = synthetic_ecg.draw_night("a01", 0)
    ecg = synthetic_ecg.waveform(night.beats, 240_000)
    inside = night.beats[(night.beats > 30) & (night.beats < 239_970)]
    alone = inside[np.minimum(np.diff(inside, prepend=0), np.diff(inside, append=250_000)) > 30]
    peaks = ecg[alone[:, None] + np.arange(-20, 21)].argmax(1) - 20
    assert np.abs(peaks).max() <= 1


def test_a_missing_or_damaged_night_is_named_and_left_out(tmp_path, monkeypatch):
    where = written(tmp_path)
    monkeypatch.setitem(files.SOURCES, "made-up", ())
    with (tmp_path / "made-up" / "a02.qrs").open("ab") as file:
        file.write(b"x")
    (tmp_path / "made-up" / "c01.apn").unlink()
    with pytest.warns(UserWarning, match=r"2 nights left out: a02, c01.*a02\.qrs is refused"):
        data = datasets.apnea_ecg("rr", **where, **WHOLE)
    assert (data.groups, len(data.train)) == (("a01",), 40)
    assert "2 nights left out: a02, c01" in data.note
    where["records"] = ["c01"]
    with pytest.raises(datasets.DataUnavailable, match=r"made-up/c01\.apn lies in none"):
        datasets.apnea_ecg("rr", **where, **WHOLE)
    (tmp_path / "made-up" / "a01.dat").write_bytes(b"")
    where["records"] = ["a01"]
    with pytest.raises(ValueError, match=r"a01\.dat is refused"):
        datasets.apnea_ecg("ecg", **where, **WHOLE)


def test_nights_are_fetched_once_and_what_is_there_is_kept(tmp_path, monkeypatch, capfd):
    written(tmp_path / "server")
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path.rsplit("/", 1)[1])
            super().do_GET()

        def log_message(self, *_):
            pass

    folder = functools.partial(Handler, directory=str(tmp_path / "server" / "made-up"))
    with ThreadingHTTPServer(("127.0.0.1", 0), folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setitem(files.SOURCES, "made-up", (address,))
        sums = (tmp_path / "server" / "made-up" / "SHA256SUMS.txt").read_text(encoding="utf-8")
        (tmp_path / "made-up").mkdir()
        (tmp_path / "made-up" / "SHA256SUMS.txt").write_text(sums, encoding="utf-8")
        (tmp_path / "server" / "made-up" / "c01.dat").rename(tmp_path / "away")
        where = {"folder": tmp_path, "database": "made-up", "records": ["a01", "a02", "c01"]}
        with pytest.warns(UserWarning, match=r"1 nights left out: c01.*404"):
            data = datasets.apnea_ecg("ecg", **where, **WHOLE)
        assert data.groups == ("a01", "a02")
        assert "100%" in capfd.readouterr().err
        (tmp_path / "away").rename(tmp_path / "server" / "made-up" / "c01.dat")
        asked.clear()
        assert len(datasets.apnea_ecg("ecg", **where, **WHOLE).train) == 120
        assert asked == ["c01.dat"]
        server.shutdown()


@pytest.mark.usefixtures("remembered")
@pytest.mark.parametrize("folds", [5, 35])
def test_every_night_is_tested_in_one_fold(folds, monkeypatch):
    drawn = functools.cache(synthetic_ecg.draw_night)
    monkeypatch.setattr(synthetic_ecg, "draw_night", drawn)
    tested = []
    for fold in range(folds):
        data = datasets.apnea_ecg(fold=fold, folds=folds, valid=0.1)
        of = [set(part.groups.tolist()) for part in parts(data)]
        assert sum(map(len, of)) == 35 == len(set.union(*of))
        tested += sorted(data.groups[group] for group in of[2])
    assert sorted(tested) == sorted(apnea_records.LEARNING)


@pytest.mark.usefixtures("remembered")
def test_folds_hold_as_large_a_share_of_each_kind_of_patient():
    for fold in range(5):
        data = datasets.apnea_ecg(seed=3, fold=fold)
        kinds = "".join(sorted(data.groups[g][0] for g in set(data.test.groups.tolist())))
        assert kinds == "aaaabcc"


@pytest.mark.usefixtures("remembered")
def test_minutes_are_tested_in_one_fold_each():
    tested = [datasets.apnea_ecg(by="minute", fold=fold, seed=2).test for fold in range(5)]
    assert sum(map(len, tested)) == 1400
    assert len({row.numpy().tobytes() for part in tested for row in part.x}) == 1400


def test_split_by_record_only_training_nights_lose_minutes():
    whole, fewer = (datasets.apnea_ecg(remove=remove) for remove in (0, 500))
    assert len(fewer.valid) == len(whole.valid)
    assert len(fewer.test) == len(whole.test)
    assert len(fewer.train) < len(whole.train)
    assert int(fewer.train.y.sum()) == int(whole.train.y.sum())
    minutes = datasets.apnea_ecg(by="minute", remove=500)
    assert sum(map(len, parts(minutes))) == 1400 - 500


def test_normalized_minutes_and_nights_have_mean_0_and_deviation_1():
    minute = datasets.apnea_ecg(normalize="minute", **WHOLE).train.x.double()
    assert minute.mean(1).abs().max() < 1e-3
    assert (minute.std(1, correction=0) - 1).abs().max() < 1e-3
    night = datasets.apnea_ecg(normalize="night", neighbors=0, **WHOLE).train
    for group in range(35):
        x = night.x[night.groups == group].double()
        assert abs(float(x.mean())) < 1e-3
        assert float(x.std()) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("missed", [True, False])
def test_a_beat_missed_or_seen_twice_leaves_no_trace(missed):
    beats = 80 * np.arange(100)
    spoiled = np.delete(beats, 50) if missed else np.insert(beats, 50, beats[50] - 30)
    times = np.arange(0, 79, 0.25)
    np.testing.assert_allclose(apnea_records.resampled(spoiled, times), 0.8, atol=1e-12)


def test_intervals_are_read_on_the_line_between_beats():
    beats = np.array([0, 80, 170, 250])
    found = apnea_records.resampled(beats, np.array([0.0, 0.8, 1.25, 1.7, 9.0]))
    np.testing.assert_allclose(found, [0.8, 0.8, 0.85, 0.9, 0.8], atol=1e-12)


def test_beats_that_are_none_are_refused():
    with pytest.raises(ValueError, match="beat 2 does not follow"):
        apnea_records.resampled(np.array([0, 80, 80]), np.zeros(1))
    with pytest.raises(ValueError, match="none of 1 intervals"):
        apnea_records.resampled(np.array([0, 800]), np.zeros(1))


def test_a_minute_and_its_neighbors_are_consecutive_windows_of_the_night():
    wide, narrow = (datasets.apnea_ecg(records=["a01"], neighbors=n, **WHOLE).train for n in (1, 0))
    assert (wide.x.shape, narrow.x.shape) == ((40, 720), (40, 240))
    assert torch.equal(wide.x[:-1, 480:], wide.x[1:, 240:480])
    assert torch.equal(wide.x[:-1, 240:], wide.x[1:, :480])
    assert torch.equal(wide.x[:, 240:480], narrow.x)


def loudest(signal, rate, lowest):
    """The frequency from `lowest` to 1 Hz at which a signal has most of its power."""
    power = np.abs(np.fft.rfft(signal - signal.mean())) ** 2
    frequency = np.fft.rfftfreq(len(signal), 1 / rate)
    power[(frequency < lowest) | (frequency > 1)] = 0
    return frequency[power.argmax()]


def test_synthetic_people_breathe_12_to_18_times_a_minute():
    found = []
    for number in range(12):
        beats = synthetic_ecg.draw_night("c01", number).beats / 100
        times = np.arange(1, beats[-1], 0.25)
        found.append(loudest(np.interp(times, beats[1:], np.diff(beats)), 4, 0.15))
    assert 0.2 < np.median(found) < 0.3
    # the floor of an ECG, here without a beat
    floors = [synthetic_ecg.waveform(np.zeros(0, np.int64), 30_000, seed) for seed in range(12)]
    assert all(0.19 < loudest(floor, 100, 0.01) < 0.31 for floor in floors)


def test_beats_lie_within_the_night_and_follow_its_intervals():
    assert synthetic_ecg._beats(np.ones(40), 5).tolist() == [0, 100, 200, 300, 400]
    # an interval is read where the heart is: one of a second, and then those of a half
    quick = np.repeat([1.0, 0.5], [synthetic_ecg.RATE, 40])
    assert synthetic_ecg._beats(quick, 3).tolist() == [0, 100, 150, 200, 250]


def test_synthetic_apnea_is_a_slow_wave_of_20_to_60_seconds():
    slow = []
    for number, name in enumerate(apnea_records.LEARNING[:20]):
        night = synthetic_ecg.draw_night(name, number)
        power = np.abs(np.fft.rfft(apnea_records.intervals(night, 0) - 1, axis=1)) ** 2
        share = power[:, 1:4].sum(1) / power[:, 1:].sum(1)  # periods of 60, 30 and 20 seconds
        slow.append([share[night.labels == label].mean() for label in (0, 1)])
    assert np.nanmean(slow, axis=0)[1] > 2 * np.nanmean(slow, axis=0)[0]


def test_synthetic_nights_are_many_patients_and_the_same_for_a_seed():
    first, again, other = (datasets.apnea_ecg(seed=seed) for seed in (0, 0, 1))
    assert first.checksum == again.checksum != other.checksum
    assert [len(set(part.groups.tolist())) for part in parts(first)] == [21, 7, 7]
    assert 0.2 < first.train.y.double().mean() < 0.6
    assert "synthetic nights" in first.note


def test_a_night_of_a_seed_is_that_of_every_release():
    night = synthetic_ecg.draw_night("a01", 0)
    ecg = np.rint(synthetic_ecg.waveform(night.beats, 30_000) * 200).astype(np.int16)
    sums = [hashlib.sha256(part.tobytes()).hexdigest()[:12] for part in (*night[1:], ecg)]
    assert sums == ["38b962f4db04", "ae84d7293681", "351e5667f58f"]


def test_a_drawn_part_trains_alone():
    data = datasets.apnea_ecg()
    fewer = data.drawn(100, seed=1)
    assert (len(fewer.train), len(fewer.test)) == (100, len(data.test))
    rows = {row.numpy().tobytes() for row in data.train.x}
    assert all(row.numpy().tobytes() in rows for row in fewer.train.x)
    assert data.drawn(0) is data
    with pytest.raises(ValueError, match="9999 samples cannot be drawn from 840"):
        data.drawn(9999)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"source": "eeg"}, "source must be one of ecg, rhythm, rr, synthetic, not 'eeg'"),
        ({"by": "official"}, "synthetic nights have no official split"),
        ({"by": "official", "source": "rr", "fold": 1}, "fold must be 0, not 1"),
        ({"by": "patient"}, "by must be 'record' or 'minute'"),
        ({"normalize": "all"}, "normalize must be 'none', 'minute' or 'night', not 'all'"),
        ({"folds": 2, "valid": 0.5}, "leave nothing to train on"),
        ({"fold": 5}, "fold counts from 0 below folds"),
        ({"folds": 36}, "35 nights cannot be split into 36 folds"),
        ({"records": ["a01", "x01"]}, r"not \['x01'\]"),
        ({"spoiled": 1.5}, "spoiled is a share from 0 to 1, not 1.5"),
        ({"remove": 99_999}, "minutes without apnea cannot be left out"),
    ],
)
def test_impossible_arguments_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        datasets.apnea_ecg(**options)
