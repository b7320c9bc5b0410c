"""Images as vectors: idx files, the embedded digits, MNIST and Fashion-MNIST."""

import gzip
import hashlib

import numpy as np
import pytest
import torch
from corrupting import corruptions, read_or_refused
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from sparselib import datasets
from sparselib.datasets import files
from sparselib.datasets.images import read_idx
from sparselib.datasets.split import hold_out


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Search nothing but the test's own folder and the checkout."""
    monkeypatch.setenv("SPARSELIB_DATA", "")
    return tmp_path


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


@pytest.mark.parametrize("name", ["plain.gz", "plain"])
def test_idx_is_read_packed_or_not_whatever_its_name_says(tmp_path, name):
    """A browser that unpacks what it fetches leaves the ending as it was."""
    path = tmp_path / name
    plain = bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])
    for content in (plain, gzip.compress(plain)):
        path.write_bytes(content)
        assert read_idx(path, 1).tolist() == [7, 9]
    path.write_bytes(plain[:-1])
    with pytest.raises(ValueError, match=f"{path} is refused: its header announces"):
        read_idx(path, 1)
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=f"{path} is refused: it starts with the bytes 3c 68"):
        read_idx(path, 1)


@pytest.mark.parametrize("packed", [True, False])
def test_200_damaged_idx_files_are_refused_by_name_or_equal_or_as_long(tmp_path, packed):
    """Gzip has a checksum; in an unpacked file the header and the length are all that can tell."""
    array = np.random.default_rng(0).integers(256, size=(9, 8, 7), dtype=np.uint8)
    path = write_idx(tmp_path / "images-idx3-ubyte.gz", array)
    whole = path.read_bytes() if packed else gzip.decompress(path.read_bytes())
    refused = 0
    for damaged in corruptions(whole):
        path.write_bytes(damaged)
        found = read_or_refused(lambda: read_idx(path, 3), path)
        refused += found is None
        if found is not None and not np.array_equal(found, array):
            assert not packed
            assert (found.shape, len(damaged)) == (array.shape, len(whole))
    assert refused > 90


# --- other spellings of the same files


NAMES = {
    "images": "{part}-images-idx3-ubyte.gz",
    "labels": "{part}-labels-idx1-ubyte.gz",
}
PARTS = {"train": 30, "t10k": 10}


@pytest.fixture
def small(alone, monkeypatch):
    """Write a small MNIST in its official layout, whose checksums take the place of MNIST's."""
    rng = np.random.default_rng(0)
    folder = alone / "mnist"
    folder.mkdir()
    for part, count in PARTS.items():
        for kind, name in NAMES.items():
            shape = (count, 4, 4) if kind == "images" else (count,)
            array = rng.integers(10, size=shape, dtype=np.uint8)
            path = write_idx(folder / name.format(part=part), array)
            packed = path.read_bytes()
            key = f"mnist/{path.name}"
            monkeypatch.setitem(files.SHA256, key, hashlib.sha256(packed).hexdigest())
            content = hashlib.sha256(gzip.decompress(packed)).hexdigest()
            monkeypatch.setitem(files.CONTENT, key, content)
    monkeypatch.setitem(files.SOURCES, "mnist", ())
    return alone


def packed_again(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=9))


def unpacked(path):
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()


def unpacked_under_its_name(path):
    path.write_bytes(gzip.decompress(path.read_bytes()))


def capitals(path):
    path.rename(path.with_name(path.name.upper()))


def dotted(path):
    """Kaggle's spelling."""
    unpacked(path)
    plain = path.with_suffix("")
    plain.rename(plain.with_name(plain.name.replace("-idx", ".idx")))


CHANGES = [packed_again, unpacked, unpacked_under_its_name, capitals, dotted]


@pytest.mark.parametrize("inner", ["mnist", "MNIST", "MNIST/raw"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_same_content_in_another_spelling_is_read(small, change, inner):
    expected = datasets.mnist(small, valid=5)
    for path in sorted((small / "mnist").iterdir()):
        change(path)
    (small / "mnist").rename(small / "away")
    (small / inner).parent.mkdir(exist_ok=True)
    (small / "away").rename(small / inner)
    assert datasets.mnist(small, valid=5).checksum == expected.checksum


@pytest.mark.parametrize("change", CHANGES)
def test_another_content_is_refused_in_every_spelling(small, change):
    path = small / "mnist" / "t10k-images-idx3-ubyte.gz"
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(data)))
    change(path)
    with pytest.raises(ValueError, match=r"(?i)t10k-images.idx3-ubyte.* is refused: its SHA-256"):
        datasets.mnist(small, valid=5)


# --- embedded digits


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
