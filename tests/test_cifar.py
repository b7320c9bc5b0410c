"""CIFAR-10 in both official formats: exactly its batches, and no pickle is carried out."""

import hashlib
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from corrupting import corruptions, read_or_refused

from sparselib import datasets
from sparselib.datasets import cifar
from sparselib.datasets.cifar import STATISTICS, read_binary, read_python

REDUCED = "ignore:CIFAR-10 has 50,000"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Search nothing but the test's own folder and the checkout."""
    monkeypatch.setenv("SPARSELIB_DATA", "")
    return tmp_path


def write(folder: Path, python: bool = False, per_batch: int = 4, batches: int = 2) -> np.ndarray:
    """Write small batches in an official format; return the images of the first."""
    rng = np.random.default_rng(0)
    inner = folder / "cifar-10" / ("cifar-10-batches-py" if python else "cifar-10-batches-bin")
    inner.mkdir(parents=True)
    names = [f"data_batch_{number}" for number in range(1, batches + 1)]
    images = {}
    for name in (*names, "test_batch"):
        pixels = rng.integers(256, size=(per_batch, 3072), dtype=np.uint8)
        labels = rng.integers(10, size=per_batch)
        if python:
            batch = {b"data": pixels, b"labels": labels.tolist()}
            (inner / name).write_bytes(pickle.dumps(batch, protocol=2))
        else:
            rows = np.concatenate([labels[:, None].astype(np.uint8), pixels], 1)
            rows.tofile(inner / f"{name}.bin")
        images[name] = pixels.reshape(-1, 3, 32, 32)
    return images["data_batch_1"]


@pytest.mark.parametrize("python", [False, True])
def test_both_formats_of_cifar_read_the_same(alone: Path, python: bool) -> None:
    images = write(alone, python=python)
    with pytest.warns(UserWarning, match="holds 8 and 4"):
        data = datasets.cifar10(alone, valid=0)
    assert data.note == "reduced: 8 training images, 0 of them held out with seed 0; 4 test images"
    mean, std = STATISTICS["cifar10"]
    expected = (images[1, 2, 5, 7] / 255 - mean[2]) / std[2]
    assert float(data.train.x[1, 2, 5, 7]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.filterwarnings(REDUCED)
def test_only_the_official_names_are_read_and_others_are_named(alone: Path, python: bool) -> None:
    write(alone, python, batches=5)
    first = datasets.cifar10(alone, valid=0)
    assert len(first.train) == 20
    inner = next((alone / "cifar-10").iterdir())
    ending = "" if python else ".bin"
    batch = (inner / f"data_batch_1{ending}").read_bytes()
    strangers = [
        f"data_batch_1 (1){ending}",
        f"data_batch_1{ending}.bak",
        f"data_batch_6{ending}",
        f"Data_Batch_2 copy{ending}",
        f"data_batch_01{ending}",
    ]
    for name in (*strangers, f"test_batch{ending}~", "batches.meta", "readme.html"):
        (inner / name).write_bytes(batch)
    with pytest.warns(UserWarning, match="left out, for CIFAR-10 has") as caught:
        again = datasets.cifar10(alone, valid=0)
    said = " ".join(str(warning.message) for warning in caught)
    assert all(name in said for name in (*strangers, f"test_batch{ending}~"))
    assert "readme" not in said
    assert again.checksum == first.checksum


@pytest.mark.filterwarnings(REDUCED)
def test_a_batch_under_two_names_is_refused(alone: Path) -> None:
    write(alone)
    inner = alone / "cifar-10" / "cifar-10-batches-bin"
    (inner / "data_batch_2.bin").write_bytes((inner / "data_batch_1.bin").read_bytes())
    with pytest.raises(ValueError, match=r"data_batch_2\.bin is refused.*same images as data_batc"):
        datasets.cifar10(alone)


@pytest.mark.parametrize("python", [False, True])
def test_a_whole_batch_that_is_not_the_official_one_is_named(
    alone: Path, python: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(alone, python, batches=5)
    monkeypatch.setattr(cifar, "IMAGES", 4)
    inner = next((alone / "cifar-10").iterdir())
    official = {}
    for path in inner.iterdir():
        pixels, labels = (read_python if python else read_binary)(path)
        rows = np.concatenate([labels.astype(np.uint8)[:, None], pixels.reshape(4, -1)], axis=1)
        official[path.stem] = hashlib.sha1(rows.tobytes()).hexdigest()
    monkeypatch.setattr(cifar, "OFFICIAL", official | {"data_batch_3": "another"})
    with pytest.warns(UserWarning, match="not those of the official data_batch_3") as caught:
        datasets.cifar10(alone)
    assert sum("official" in str(warning.message) for warning in caught) == 1


@pytest.mark.filterwarnings(REDUCED)
def test_a_part_of_the_test_batch_is_read_only_where_the_whole_is_missing(alone: Path) -> None:
    write(alone)
    inner = alone / "cifar-10" / "cifar-10-batches-bin"
    whole = (inner / "test_batch.bin").read_bytes()
    (inner / "test_batch_first1000.bin").write_bytes(whole[:3073])
    assert len(datasets.cifar10(alone).test) == 4
    (inner / "test_batch.bin").unlink()
    assert len(datasets.cifar10(alone).test) == 1


def test_damaged_batches_are_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.bin"
    cut.write_bytes(bytes(3074))
    with pytest.raises(ValueError, match="no whole number of images"):
        read_binary(cut)
    wrong = tmp_path / "wrong.bin"
    wrong.write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(ValueError, match="class 10"):
        read_binary(wrong)
    wrong.write_bytes(bytes(3073 * 10_001))
    with pytest.raises(ValueError, match=r"10,001 images, but a batch has 1 to 10,000"):
        read_binary(wrong)
    strange = tmp_path / "strange"
    for protocol in (2, 4):
        strange.write_bytes(pickle.dumps(os.getcwd, protocol=protocol))
        with pytest.raises(ValueError, match="arrays only"):
            read_python(strange)


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ({b"data": [1]}, "no 'data' and 'labels'"),
        ({b"labels": [1]}, "no 'data' and 'labels'"),
        ([PIXELS, [0, 1]], "no 'data' and 'labels'"),
        ({b"data": None, b"labels": [0, 1]}, "no 'data' and 'labels'"),
        ({b"data": PIXELS[:, :5], b"labels": [0, 1]}, "not bytes of shape"),
        ({b"data": PIXELS, b"labels": [0, 1, 2]}, "not bytes of shape"),
        ({b"data": PIXELS.ravel(), b"labels": [0, 1]}, "not bytes of shape"),
        ({b"data": PIXELS.astype(np.int64), b"labels": [0, 1]}, "data are int64"),
        ({b"data": PIXELS.astype(np.float32), b"labels": [0, 1]}, "data are float32"),
        ({b"data": PIXELS[:0], b"labels": np.zeros(0, np.int64)}, "(holds 0 images|bytes)"),
        ({b"data": PIXELS, b"labels": [0, 10]}, "class 10"),
        ({b"data": PIXELS, b"labels": [0, -1]}, "class -1"),
        ({b"data": PIXELS, b"labels": [0, 2**64]}, "labels are object"),
        ({b"data": PIXELS, b"labels": [0, 1.5]}, "labels are float64"),
        ({b"data": PIXELS, b"labels": [0, 1.0]}, "labels are float64"),
        ({b"data": PIXELS, b"labels": [True, False]}, "labels are bool"),
        ({b"data": PIXELS, b"labels": ["0", "1"]}, "labels are <U1"),
        ({b"data": PIXELS, b"labels": [[0], [1]]}, r"int64 of shape \(2, 1\)"),
        ({b"data": PIXELS, b"labels": [[0], [1, 2]]}, "'labels' is no array"),
    ],
)
def test_a_pickle_that_is_no_batch_is_refused_by_name(
    tmp_path: Path, batch: object, sentence: str
) -> None:
    path = tmp_path / "data_batch_1"
    for protocol in (2, 5):
        path.write_bytes(pickle.dumps(batch, protocol))
        with pytest.raises(ValueError, match=f"{path} is refused: .*{sentence}"):
            read_python(path)


def test_a_batch_that_python_3_has_written_again_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    for protocol in range(6):
        batch = {"data": PIXELS, "labels": np.array([3, 4]), "filenames": [b"a.png", b"b.png"]}
        path.write_bytes(pickle.dumps(batch, protocol))
        assert read_python(path).labels.tolist() == [3, 4]


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_200_damaged_files_are_refused_by_name_or_equal_or_reported(
    alone: Path, python: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole batch has a known checksum of its content; damage that no rule finds, that does."""
    write(alone, python)
    monkeypatch.setattr(cifar, "IMAGES", 4)
    inner = next((alone / "cifar-10").iterdir())
    path = inner / f"data_batch_1{'' if python else '.bin'}"
    whole = path.read_bytes()
    read = read_python if python else read_binary
    good = read(path)
    monkeypatch.setitem(cifar.OFFICIAL, "data_batch_1", cifar._digest(good))
    refused = 0
    for damaged in corruptions(whole):
        path.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = read_or_refused(lambda: datasets.cifar10(alone, valid=0), path)
        if data is None:
            refused += 1
            continue
        said = " ".join(str(warning.message) for warning in caught)
        found = read(path)
        equal = np.array_equal(found.pixels, good.pixels)
        equal = equal and np.array_equal(found.labels, good.labels)
        assert equal or f"{path} holds 4 images, but not" in said or "the folder holds" in said
    assert refused > 50


def test_without_files_it_says_where_to_put_them(alone: Path) -> None:
    with pytest.raises(datasets.DataUnavailable, match=r"use the embedded datasets.placed_digits"):
        datasets.cifar10(alone)


def test_images_are_standardized_as_a_network_wants_them(alone: Path) -> None:
    with pytest.raises(ValueError, match="statistics are one of cifar10, imagenet, not 'mnist'"):
        datasets.cifar10(alone, statistics="mnist")
    with pytest.raises(ValueError, match="statistics are one of cifar10, imagenet, not 'mnist'"):
        cifar.black("mnist")


@pytest.mark.slow
@pytest.mark.realdata
def test_real_cifar_images() -> None:
    with pytest.warns(UserWarning, match="the folder holds 50,000 and 1,000") as caught:
        data = datasets.cifar10()
    assert not [warning for warning in caught if "official" in str(warning.message)]
    assert (len(data.train), len(data.valid), len(data.test)) == (45_000, 5_000, 1_000)
    # the first ten test images are known: cat, ship, ship, aeroplane, frog, ...
    assert data.test.y[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert float(data.train.x.mean().abs()) < 0.02
    assert float(data.train.x.std()) == pytest.approx(1, abs=0.02)
    assert torch.bincount(data.train.y).min() > 4300
