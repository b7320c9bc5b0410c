"""Images as vectors: idx files, the embedded digits, MNIST and Fashion-MNIST."""

import gzip

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from sparselib import datasets
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


def test_idx_that_is_not_gzip_is_refused(tmp_path):
    path = tmp_path / "plain.gz"
    path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
    with pytest.raises(ValueError, match=r"plain\.gz is refused: it is no complete gzip file"):
        read_idx(path, 1)


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
