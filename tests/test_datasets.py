"""Data sets: strict readers, checked files, honest downloads, seeded splits."""

import functools
import gzip
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from threadpoolctl import threadpool_limits

from sparselib import datasets
from sparselib.datasets import DataUnavailable, Samples, Split, files, synthetic
from sparselib.datasets.images import read_idx
from sparselib.datasets.split import hold_out
from sparselib.datasets.tabular import LETTERS, read_csv

BODY = bytes(range(256)) * 64
SHA = hashlib.sha256(BODY).hexdigest()
SHORT = "ignore:HIGGS is reduced"
HIGGS = {"columns": 29, "label": 0, "labels": range(2)}


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Search nothing but the test's own folder and the checkout."""
    monkeypatch.setenv("SPARSELIB_DATA", "")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


# --- samples and splits


def samples(count, features=3, classes=2):
    x = torch.arange(count * features, dtype=torch.float32).reshape(count, features)
    return Samples(x, torch.arange(count) % classes)


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (torch.zeros(4), torch.zeros(4, dtype=torch.long), r"\(4,\)"),
        (torch.zeros(4, 2), torch.zeros(3, dtype=torch.long), r"\(4, 2\) and y of shape \(3,\)"),
        (torch.zeros(4, 2).double(), torch.zeros(4, dtype=torch.long), "float64"),
        (torch.zeros(4, 2), torch.zeros(4), "float32, torch.float32"),
        (torch.tensor([[0.0], [torch.nan]]), torch.tensor([0, 1]), "nan at row 1, column 0"),
        (torch.tensor([[0.0, -torch.inf]]), torch.tensor([0]), "-inf at row 0, column 1"),
        (torch.zeros(2, 1), torch.tensor([0, -3]), "y holds -3"),
    ],
)
def test_samples_refuse_what_does_not_fit(x, y, sentence):
    with pytest.raises(ValueError, match=sentence):
        Samples(x, y)


def test_split_refuses_unknown_labels_and_other_features():
    three = samples(6, classes=3)
    with pytest.raises(ValueError, match="test part of toy holds the label 2, but 2 classes"):
        Split(samples(6), samples(2), three, classes=2, name="toy", note="")
    with pytest.raises(ValueError, match="valid part of toy has 4 features"):
        Split(samples(6), samples(2, features=4), three, classes=3, name="toy", note="")


def test_split_shows_itself_and_its_checksum():
    split = Split(samples(6), samples(0), samples(2), classes=2, name="toy", note="made up")
    assert split.features == 3
    assert len(split.train) == 6
    assert repr(split) == (
        "Split(toy: 6 train, 0 valid, 2 test; 3 features, 2 classes; checksum 47a8982f6c31)"
    )


def test_checksum_sees_values_labels_and_order():
    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    value, shape = x.clone(), x.reshape(2, 4)
    value[3, 1] = 1e-6
    variants = [Samples(x, y), Samples(value, y), Samples(x, y.flip(0)), Samples(shape, y[:2])]
    splits = [Split(v, v, v, classes=2, name="toy", note="") for v in variants]
    moved = Split(samples(5), samples(1), samples(2), classes=2, name="toy", note="")
    kept = Split(samples(4), samples(2), samples(2), classes=2, name="toy", note="")
    assert len({split.checksum for split in [*splits, moved, kept]}) == 6


@given(total=st.integers(1, 60), share=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 9))
def test_hold_out_is_disjoint_complete_and_seeded(total, share, seed):
    whole, size = samples(total), int(share * total)
    rest, taken = hold_out(whole, size, seed)
    assert (len(rest), len(taken)) == (total - size, size)
    assert torch.equal(torch.cat([rest.x, taken.x]).sort(0).values, whole.x)
    assert all(torch.equal(part.y, (part.x[:, 0] / 3 % 2).long()) for part in (rest, taken))
    assert all((part.x[:, 0].diff() > 0).all() for part in (rest, taken))
    again = hold_out(whole, size, seed)
    assert torch.equal(again[0].x, rest.x)
    assert torch.equal(again[1].x, taken.x)


def test_hold_out_takes_fractions_and_depends_on_the_seed():
    whole = samples(1000)
    assert len(hold_out(whole, 0.25, 0)[1]) == 250
    assert not torch.equal(hold_out(whole, 500, 0)[1].x, hold_out(whole, 500, 1)[1].x)


@pytest.mark.parametrize("size", [-1, 10, 11, -0.5, 1.5, 0.99])
def test_hold_out_refuses_impossible_sizes(size):
    with pytest.raises(ValueError, match=f"valid={size} cannot be taken from 10"):
        hold_out(samples(10), size, 0)


# --- idx files


def write_idx(path, array, kind=8):
    sizes = np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(bytes([0, 0, kind, array.ndim]) + sizes + array.tobytes()))
    return path


@given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6)))
def test_idx_round_trip(tmp_path_factory, array):
    path = write_idx(tmp_path_factory.getbasetemp() / "round-trip.gz", array)
    assert np.array_equal(read_idx(path, array.ndim), array)
    assert read_idx(path, array.ndim).shape == array.shape


def test_idx_cut_short_anywhere_is_refused(tmp_path):
    path = write_idx(tmp_path / "cut.gz", np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.gz is refused"):
            read_idx(path, 3)


def test_idx_with_a_flipped_byte_never_gives_other_values(tmp_path):
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    path = write_idx(tmp_path / "flip.gz", array)
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            assert np.array_equal(read_idx(path, 3), array)
        except ValueError as error:
            refused += "is refused" in str(error)
    # the time, the level and the system in the gzip header carry no data
    assert refused >= len(whole) - 6


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "holds 0 bytes"),
        (bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 1, 7]), "starts with the bytes 00 00 08 02"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1, 7]), "starts with the bytes 00 00 0d 01"),
        (bytes([1, 0, 8, 1, 0, 0, 0, 1, 7]), "starts with the bytes 01 00 08 01"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 2, 7]), r"\(2,\), 2 bytes, but 1 follow"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 1, 7, 7]), r"\(1,\), 1 bytes, but 2 follow"),
    ],
)
def test_idx_with_a_wrong_header_is_refused(tmp_path, data, sentence):
    path = tmp_path / "header.gz"
    path.write_bytes(gzip.compress(data))
    with pytest.raises(ValueError, match=sentence):
        read_idx(path, 1)


def test_idx_that_is_not_gzip_is_refused(tmp_path):
    path = tmp_path / "plain.gz"
    path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
    with pytest.raises(ValueError, match=r"plain\.gz is refused: it is no complete gzip file"):
        read_idx(path, 1)


# --- where files lie


def place(folder, body=BODY, name="file.bin"):
    (folder / "toy").mkdir(parents=True, exist_ok=True)
    (folder / "toy" / name).write_bytes(body)
    return folder / "toy" / name


def test_search_order(monkeypatch, tmp_path):
    explicit, named = tmp_path / "explicit", tmp_path / "named"
    monkeypatch.setenv("SPARSELIB_DATA", str(named))
    assert files.folders(explicit)[:2] == [explicit, named]
    second = place(named)
    assert files.find("toy", "file.bin", explicit, sha256=SHA) == second
    first = place(explicit)
    assert files.find("toy", "file.bin", explicit, sha256=SHA) == first
    assert files.find("toy", "file.bin", sha256=SHA) == second


def test_last_folder_is_data_raw_of_the_checkout(alone, root):
    assert files.folders() == [root / "data" / "raw"]


def test_wrong_content_is_refused_by_name_and_left_alone(alone, serve):
    bad = place(alone, BODY[:-1])
    url, log = serve(answer(BODY))
    found = hashlib.sha256(BODY[:-1]).hexdigest()
    with pytest.raises(ValueError, match=f"{bad} is refused: its SHA-256 is {found}.*{SHA}.*elete"):
        files.find("toy", "file.bin", alone, sha256=SHA, sources=[url])
    assert bad.read_bytes() == BODY[:-1]
    assert not log


def test_any_flipped_byte_is_refused(alone):
    for position in range(0, len(BODY), 1777):
        flipped = bytearray(BODY)
        flipped[position] ^= 1
        place(alone, bytes(flipped), f"{position}.bin")
        with pytest.raises(ValueError, match=f"{position}.bin is refused"):
            files.find("toy", f"{position}.bin", alone, sha256=SHA)


def test_a_check_is_remembered_until_size_or_time_changes(alone):
    path = place(alone)
    files.find("toy", "file.bin", alone, sha256=SHA)
    before = path.stat()
    path.write_bytes(BODY[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files.find("toy", "file.bin", alone, sha256=SHA) == path
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    with pytest.raises(ValueError, match="is refused"):
        files.find("toy", "file.bin", alone, sha256=SHA)


# --- downloads from a real server


def answer(body, status=200, announced=None):
    def respond(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if announced is None else announced))
        handler.end_headers()
        handler.wfile.write(body)

    return respond


@pytest.fixture
def serve():
    """Start servers on this machine; each gives its answers in turn, then repeats the last."""
    servers = []

    def start(*answers):
        log = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                log.append((self.path, self.headers["Accept-Encoding"]))
                answers[min(len(log), len(answers)) - 1](self)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/", log

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def waits(monkeypatch):
    """Record the pauses between attempts instead of sitting through them."""
    pauses = []
    monkeypatch.setattr("pooch.core.time.sleep", pauses.append)
    return pauses


def dead():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


def fetch(folder, *sources):
    return files.find("toy", "file.bin", folder, sha256=SHA, sources=sources)


def test_download(alone, serve, capfd):
    url, log = serve(answer(BODY))
    path = fetch(alone, url)
    assert path == alone / "toy" / "file.bin"
    assert path.read_bytes() == BODY
    assert path.stat().st_mode & 0o777 == 0o644
    # a server that unpacks .gz on the way would break every checksum
    assert log == [("/file.bin", "identity")]
    assert "100%" in capfd.readouterr().err
    assert fetch(alone, url) == path
    assert len(log) == 1
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_download_goes_to_the_named_folder(monkeypatch, alone, serve):
    monkeypatch.setenv("SPARSELIB_DATA", str(alone / "new"))
    path = files.find("toy", "file.bin", sha256=SHA, sources=[serve(answer(BODY))[0]])
    assert path == alone / "new" / "toy" / "file.bin"


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (answer(BODY[:5000], announced=len(BODY)), "IncompleteRead"),
        (answer(BODY[:5000]), "does not match the known hash"),
        (answer(BODY[::-1]), "does not match the known hash"),
        (answer(b"", status=503), "503"),
    ],
    ids=["cut", "short", "wrong", "server error"],
)
def test_bad_download_is_tried_again_then_refused(alone, serve, waits, bad, sentence):
    url, log = serve(bad)
    with pytest.raises(DataUnavailable, match=sentence):
        fetch(alone, url)
    assert len(log) == 4
    assert waits == [1, 2, 3]
    assert not list((alone / "toy").iterdir())


def test_server_that_recovers(alone, serve, waits):
    url, log = serve(answer(b"", 500), answer(BODY[:99], announced=len(BODY)), answer(BODY))
    assert fetch(alone, url).read_bytes() == BODY
    assert len(log) == 3
    assert waits == [1, 2]


def test_dead_mirror_is_passed_over_at_once(alone, serve, waits):
    absent, log = serve(answer(b"", 404))
    assert fetch(alone, dead(), absent, serve(answer(BODY))[0]).read_bytes() == BODY
    assert len(log) == 1
    assert waits == []


def test_killed_download_leaves_no_file_under_the_final_name(alone, serve):
    released = threading.Event()

    def stall(handler):
        answer(BODY[:9000], announced=len(BODY))(handler)
        handler.wfile.flush()
        released.wait(30)

    url, log = serve(stall)
    call = f"find('toy', 'file.bin', {str(alone)!r}, sha256={SHA!r}, sources=[{url!r}])"
    program = f"from sparselib.datasets.files import find; {call}"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 30
        while not log and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        process.kill()
    released.set()
    assert log
    assert files.locate("toy", "file.bin", alone) is None
    good, _ = serve(answer(BODY))
    assert fetch(alone, good).read_bytes() == BODY


def test_a_file_is_hashed_again_only_when_it_has_changed(alone, monkeypatch):
    hashed = []

    def counted(*arguments):
        hashed.append(arguments)
        return digest(*arguments)

    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", counted)
    path = alone / "toy" / "file.bin"
    path.parent.mkdir()
    path.write_bytes(BODY)
    for _ in range(2):
        assert files.find("toy", "file.bin", alone, sha256=SHA) == path
    assert len(hashed) == 1
    path.write_bytes(BODY[:-1])
    with pytest.raises(ValueError, match="is refused: its SHA-256 is"):
        files.find("toy", "file.bin", alone, sha256=SHA)
    assert len(hashed) == 2


def test_offline_error_says_everything(alone, root):
    sources = ["http://mirror.invalid/mnist/", dead()]
    with pytest.raises(DataUnavailable) as caught:
        files.find("mnist", "train-images-idx3-ubyte.gz", alone, sha256=SHA, sources=sources)
    text = str(caught.value)
    assert "mnist/train-images-idx3-ubyte.gz lies in none of" in text
    for part in (alone, root / "data" / "raw", *sources, "datasets.digits()"):
        assert str(part) in text
    assert isinstance(caught.value, OSError)


def test_file_without_a_source_is_only_found(alone):
    with pytest.raises(DataUnavailable, match=r"no public source.*datasets\.synthetic"):
        files.find("toy", "file.bin", alone)
    path = place(alone, b"anything")
    assert files.find("toy", "file.bin", alone) == path


def test_import_is_light():
    program = "import sys, sparselib.datasets; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "sparselib.datasets.tabular" in loaded
    assert not {"pooch", "requests", "pandas", "sklearn"} & set(loaded)


# --- HIGGS files


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
    split = datasets.higgs(alone, rows=60, standardise=False)
    assert (len(split.train), len(split.valid), len(split.test)) == (50, 0, 10)
    assert np.array_equal(torch.cat([split.train.x, split.test.x]).numpy(), table[:60, 1:])
    assert np.array_equal(torch.cat([split.train.y, split.test.y]).numpy(), table[:60, 0])
    assert (
        split.note == "50 / 0 / 10 rows: reduced to 60 of the paper's 600,000 rows, divided 5 : 1"
    )


def test_higgs_warns_if_the_file_is_shorter_than_asked(alone):
    write_higgs(alone, higgs_lines(120))
    with pytest.warns(UserWarning, match="the file holds 120 of the 600,000 rows asked for"):
        split = datasets.higgs(alone)
    assert (len(split.train), len(split.test)) == (100, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets.higgs(alone, rows=120)


def test_higgs_is_standardised_by_the_training_part_only(alone):
    write_higgs(alone, higgs_lines(120))
    raw = datasets.higgs(alone, rows=120, valid=0.2, standardise=False)
    split = datasets.higgs(alone, rows=120, valid=20)
    mean, std = raw.train.x.double().mean(0), raw.train.x.double().std(0, correction=0)
    for part in ("train", "valid", "test"):
        expected = (getattr(raw, part).x - mean) / std
        torch.testing.assert_close(getattr(split, part).x.double(), expected, rtol=0, atol=1e-6)
    assert (len(split.train), len(split.valid), len(split.test)) == (80, 20, 20)
    assert split.valid.x.mean(0).abs().max() > 0.05


def test_constant_feature_is_centred(alone):
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
    with pytest.raises(ValueError, match=f"rows={rows} cannot be divided"):
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
    for data in (bytes(packed), text):
        path.write_bytes(data)
        with pytest.raises(
            ValueError, match=r"damaged\.csv\.gz is refused: it is no complete gzip"
        ):
            read_csv(path, 20, **HIGGS)


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


# --- embedded data


def test_digits_are_always_the_same():
    split = datasets.digits()
    assert split.checksum == "f6d0c590be23"
    assert datasets.digits(seed=1).checksum != split.checksum
    assert (len(split.train), len(split.valid), len(split.test)) == (1197, 300, 300)
    assert (split.train.x.min(), split.train.x.max()) == (0, 1)
    for part in (split.train, split.valid, split.test):
        assert (part.y.bincount() / len(part) - 0.1).abs().max() < 0.005


def test_digits_parts_are_disjoint_and_complete():
    from sklearn.datasets import load_digits

    split = datasets.digits()
    together = torch.cat([split.train.x, split.valid.x, split.test.x]).numpy() * 16
    assert sorted(map(bytes, together.astype(np.uint8))) == sorted(
        map(bytes, load_digits().data.astype(np.uint8))
    )


def score(model, split):
    with threadpool_limits(1):
        model.fit(split.train.x.numpy(), split.train.y.numpy())
        return model.score(split.test.x.numpy(), split.test.y.numpy())


def test_synthetic_images_look_like_mnist():
    split = synthetic.images()
    x = split.train.x
    assert split.checksum == synthetic.images().checksum == "84db63ce238e"
    assert synthetic.images(train=60, valid=6, test=6, seed=1).checksum != split.checksum
    assert (x.shape, x.min(), x.max()) == ((6000, 784), 0, 1)
    assert torch.equal((x * 255).round() / 255, x)
    assert 0.05 < x.mean() < 0.2
    square = x.reshape(-1, 28, 28)
    assert square[:, 2:-2, 2:-2].count_nonzero() == square.count_nonzero()
    assert "synthetic" in split.note


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_synthetic_images_need_a_hidden_layer():
    from sklearn.linear_model import RidgeClassifier
    from sklearn.neural_network import MLPClassifier

    split = synthetic.images()
    deep = score(MLPClassifier((64,), learning_rate_init=4e-3, max_iter=8, random_state=0), split)
    assert 0.94 < deep < 0.995
    assert score(RidgeClassifier(100), split) < deep - 0.05


def test_synthetic_collisions_look_like_higgs():
    split = synthetic.collisions()
    x = split.train.x
    assert split.checksum == synthetic.collisions().checksum == "aeb5fbbcd471"
    assert synthetic.collisions(seed=1).checksum != split.checksum
    assert (x.shape, len(split.valid), len(split.test)) == ((5000, 28), 500, 1000)
    torch.testing.assert_close(x.mean(0), torch.zeros(28), rtol=0, atol=1e-4)
    torch.testing.assert_close(x.std(0), torch.ones(28), rtol=0, atol=1e-3)
    assert 0.5 < split.train.y.double().mean() < 0.56
    assert "synthetic" in split.note


def test_synthetic_collisions_need_a_hidden_layer():
    from sklearn.linear_model import RidgeClassifier
    from sklearn.neural_network import MLPClassifier

    split = synthetic.collisions()
    model = MLPClassifier((64,), learning_rate_init=3e-3, early_stopping=True, random_state=0)
    assert 0.69 < score(model, split) < 0.77
    assert 0.56 < score(RidgeClassifier(), split) < 0.66


def test_synthetic_sizes_are_free():
    split = synthetic.images(train=20, valid=0, test=5, side=12, classes=3)
    assert (split.train.x.shape, split.valid.x.shape, split.classes) == ((20, 144), (0, 144), 3)


# --- the real files


@pytest.fixture(scope="module")
def whole():
    return datasets.mnist(valid=0)


@pytest.mark.realdata
def test_mnist_is_the_official_one(whole):
    x, y = whole.train.x, whole.train.y
    assert (x.shape, whole.valid.x.shape) == ((60000, 784), (0, 784))
    assert whole.test.x.shape == (10000, 784)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert y.bincount().tolist() == counts
    assert whole.test.y[:5].tolist() == [7, 2, 1, 0, 4]
    assert (x.min(), x.max()) == (0, 1)
    assert round(x.mean(dtype=torch.float64).item(), 4) == 0.1307
    assert round(x.std().item(), 4) == 0.3081


@pytest.mark.realdata
def test_mnist_holds_out_a_seeded_part(whole):
    split = datasets.mnist(valid=1 / 6, seed=3)
    assert (len(split.train), len(split.valid)) == (50000, 10000)
    train, valid = hold_out(whole.train, 10_000, 3)
    assert torch.equal(split.train.x, train.x)
    assert torch.equal(split.valid.x, valid.x)
    assert torch.equal(split.test.x, whole.test.x)
    assert min(split.valid.y.bincount()) > 800


@pytest.mark.realdata
def test_fashion_mnist_is_the_official_one():
    split = datasets.fashion_mnist()
    assert (len(split.train), len(split.valid), len(split.test)) == (50000, 10000, 10000)
    both = split.train.y.bincount() + split.valid.y.bincount()
    assert both.tolist() == [6000] * 10
    assert split.test.y.bincount().tolist() == [1000] * 10
    total = split.train.x.sum(dtype=torch.float64) + split.valid.x.sum(dtype=torch.float64)
    assert round(total.item() / (60000 * 784), 4) == 0.286


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


@functools.cache
def isolet_lines(name):
    """Draw the lines of a file, once per process."""
    rows = LETTERS[name]
    rng = np.random.default_rng(rows)
    cells = np.char.mod("%.4f", rng.uniform(-1, 1, (rows, 617)))
    labels = np.arange(rows) % 26 + 1
    return [", ".join([*row, f"{label}."]) for row, label in zip(cells, labels)]


def write_isolet(folder, change=lambda name, lines: lines, ending=""):
    (folder / "isolet").mkdir(parents=True, exist_ok=True)
    for name in LETTERS:
        lines = isolet_lines(name)
        text = ("\n".join(change(name, lines)) + "\n").encode()
        path = folder / "isolet" / f"{name}{ending}"
        path.write_bytes(gzip.compress(text, 1) if ending else text)


@pytest.mark.xdist_group("isolet")
def test_isolet_is_read_as_it_is(alone):
    write_isolet(alone)
    split = datasets.isolet(alone)
    assert (len(split.train), len(split.valid), len(split.test)) == (6238, 0, 1559)
    assert (split.features, split.classes) == (617, 26)
    assert split.train.y[:27].tolist() == [*range(26), 0]
    first = (alone / "isolet/isolet5.data").read_text(encoding="utf-8").split("\n")[0].split(", ")
    assert split.test.x[0].tolist() == pytest.approx([float(value) for value in first[:-1]])
    assert len(datasets.isolet(alone, valid=0.1).valid) == 624


@pytest.mark.xdist_group("isolet")
def test_a_header_that_is_not_there_costs_a_row(alone):
    write_isolet(alone, ending=".gz")
    text, code = datasets.isolet(alone), datasets.isolet(alone, definition="code")
    assert (len(code.train), len(code.test)) == (6237, 1558)
    assert torch.equal(code.train.x, text.train.x[1:])
    with pytest.raises(ValueError, match="not 'kod'"):
        datasets.isolet(alone, definition="kod")


@pytest.mark.xdist_group("isolet")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: lines[:-1], "1,559 rows are expected, but it holds only 1,558"),
        (lambda lines: [*lines, lines[0]], "1,559 rows are expected, but it holds more"),
        (lambda lines: [edit(lines[0], 618, "27."), *lines[1:]], "label '27.', none of 1 to 26"),
        (lambda lines: [edit(lines[0], 5, "?"), *lines[1:]], "line 1, column 5 holds '?'"),
        (lambda lines: [lines[0].split(",", 1)[1], *lines[1:]], "line 1 has 617 columns"),
    ],
)
def test_isolet_with_a_fault_is_refused(alone, change, sentence):
    write_isolet(alone, lambda name, lines: change(lines) if "5" in name else lines)
    with pytest.raises(ValueError, match=sentence):
        datasets.isolet(alone)


def test_isolet_that_lies_nowhere_says_what_to_do(alone):
    with pytest.raises(DataUnavailable, match=r"by hand, or use .*letters"):
        datasets.isolet(alone)


def test_synthetic_letters_can_be_learnt_and_are_seeded():
    split = synthetic.letters(600, 50, 200, features=60)
    assert split.checksum == synthetic.letters(600, 50, 200, features=60).checksum
    assert split.train.x.abs().max() <= 1
    whole = synthetic.letters()
    assert (len(whole.train), len(whole.test), whole.features, whole.classes) == (
        6238,
        1559,
        617,
        26,
    )
