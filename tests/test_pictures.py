"""Pictures: digits placed in clutter, CIFAR-10 in both official formats, folders of photographs."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparselib import datasets
from sparselib.datasets.cifar import MEAN, STD, read_binary, read_python


def test_placed_spells_lie_where_they_are_said_to() -> None:
    data, spells = datasets.placed_spells(90, 20, 20, seconds=20)
    x, y = data.train.x[:, 0], data.train.y
    inside = torch.stack([x[n, a + 25 : b - 25] for n, (a, b) in enumerate(spells["train"])])
    height = torch.quantile(x, 0.999, dim=1)
    assert data.train.x.shape == (90, 1, 2000)
    assert (spells["train"][:, 1] - spells["train"][:, 0]).unique().tolist() == [400]
    assert int(spells["train"].min()) >= 100
    assert int(spells["train"].max()) <= 1900
    pause = y == 0
    assert bool((inside[pause].amax(1) < 0.5 * height[pause]).all())
    assert bool((inside[y == 1].std(1) > inside[pause].std(1).max()).all())
    saw = torch.fft.rfft(inside - inside.mean(1, keepdim=True)).abs()
    assert float(saw[y == 2][:, 17:19].sum(1).median()) > float(saw[pause][:, 17:19].sum(1).max())
    again, _ = datasets.placed_spells(90, 20, 20, seconds=20)
    assert again.checksum == data.checksum
    with pytest.raises(ValueError, match="5 seconds have no room"):
        datasets.placed_spells(1, 1, 1, seconds=5)


def test_placed_digits_lie_in_their_boxes() -> None:
    data, boxes = datasets.placed_digits(200, 20, 20)
    assert data.train.x.shape == (200, 1, 32, 32)
    assert (data.features, data.classes) == (1024, 10)
    assert float(data.train.x.min()) >= 0
    assert float(data.train.x.max()) <= 1
    box = boxes["train"]
    assert torch.equal(box[:, 2:] - box[:, :2], torch.full((200, 2), 14))
    assert int(box.min()) >= 0
    assert int(box.max()) <= 32
    # more ink inside of the box than a chance place has
    corners = zip(data.train.x, box.tolist())
    inside = [float(x[0, top:low, left:far].mean()) for x, (top, left, low, far) in corners]
    assert np.mean(inside) > 2 * float(data.train.x.mean())


def test_a_seed_places_the_same_digits_and_parts_share_none() -> None:
    first, second = (datasets.placed_digits(50, 10, 10, seed=1)[0] for _ in range(2))
    assert first.checksum == second.checksum
    assert first.checksum != datasets.placed_digits(50, 10, 10, seed=2)[0].checksum


def cifar(folder: Path, per_batch: int = 4, python: bool = False) -> np.ndarray:
    """Write small batches in an official format; return the images of the first."""
    rng = np.random.default_rng(0)
    inner = folder / "cifar-10" / ("cifar-10-batches-py" if python else "cifar-10-batches-bin")
    inner.mkdir(parents=True)
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        pixels = rng.integers(256, size=(per_batch, 3072), dtype=np.uint8)
        labels = rng.integers(10, size=per_batch)
        if python:
            batch = {b"data": pixels, b"labels": labels.tolist()}
            (inner / name).write_bytes(pickle.dumps(batch, protocol=2))
        else:
            rows = np.concatenate([labels[:, None].astype(np.uint8), pixels], 1)
            rows.tofile(inner / f"{name}.bin")
        first = pixels if name == "data_batch_1" else first
    return first.reshape(-1, 3, 32, 32)


@pytest.mark.parametrize("python", [False, True])
def test_both_formats_of_cifar_read_the_same(tmp_path: Path, python: bool) -> None:
    images = cifar(tmp_path, python=python)
    with pytest.warns(UserWarning, match="holds 8 and 4"):
        data = datasets.cifar10(tmp_path, valid=0)
    assert data.note == "reduced: 8 training images, 0 of them held out with seed 0; 4 test images"
    expected = (images[1, 2, 5, 7] / 255 - MEAN[2]) / STD[2]
    assert float(data.train.x[1, 2, 5, 7]) == pytest.approx(expected, abs=1e-6)


def test_damaged_batches_are_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.bin"
    cut.write_bytes(bytes(3074))
    with pytest.raises(ValueError, match="no whole number of images"):
        read_binary(cut)
    wrong = tmp_path / "wrong.bin"
    wrong.write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(ValueError, match="class 10"):
        read_binary(wrong)
    strange = tmp_path / "strange"
    strange.write_bytes(pickle.dumps({b"data": [1]}, protocol=2))
    with pytest.raises(ValueError, match="no 'data' and 'labels'"):
        read_python(strange)
    short = {b"data": np.zeros((2, 5), np.uint8), b"labels": [0, 1]}
    strange.write_bytes(pickle.dumps(short, protocol=2))
    with pytest.raises(ValueError, match="not bytes of shape"):
        read_python(strange)
    for protocol in (2, 4):
        strange.write_bytes(pickle.dumps(os.getcwd, protocol=protocol))
        with pytest.raises(ValueError, match="arrays only"):
            read_python(strange)


def test_without_files_it_says_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPARSELIB_DATA", raising=False)
    with pytest.raises(datasets.DataUnavailable, match=r"use the embedded datasets.placed_digits"):
        datasets.cifar10(tmp_path)


@pytest.mark.realdata
def test_real_cifar_images() -> None:
    with pytest.warns(UserWarning, match="the folder holds 50,000 and 1,000"):
        data = datasets.cifar10()
    assert (len(data.train), len(data.valid), len(data.test)) == (45_000, 5_000, 1_000)
    # the first ten test images are known: cat, ship, ship, aeroplane, frog, ...
    assert data.test.y[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert float(data.train.x.mean().abs()) < 0.02
    assert float(data.train.x.std()) == pytest.approx(1, abs=0.02)


def test_photographs_are_scaled_cut_and_standardised(tmp_path: Path) -> None:
    for name, colour, size in [("b", (255, 0, 0), (300, 80)), ("a", (0, 255, 0), (40, 90))]:
        (tmp_path / name).mkdir()
        Image.new("RGB", size, colour).save(tmp_path / name / "one.png")
    samples = datasets.photographs(tmp_path, side=32)
    assert samples.x.shape == (2, 3, 32, 32)
    assert samples.y.tolist() == [0, 1]
    assert samples.x[0, 1].unique().tolist() == [pytest.approx((1 - 0.456) / 0.224)]
    Image.new("L", (50, 50), 128).save(tmp_path / "c_grey.jpeg")
    assert datasets.photographs(tmp_path, side=16).y.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="the class 'a', which is not among"):
        datasets.photographs(tmp_path, ["b", "c"])
    (tmp_path / "b" / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="Pillow cannot read it"):
        datasets.photographs(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.jpg"):
        datasets.photographs(tmp_path / "empty")


def test_samples_may_be_signals_or_images_of_one_shape() -> None:
    x, y = torch.zeros(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64)
    samples = datasets.Samples(x, y)
    assert repr(samples) == "Samples(3 x 1 x 4 x 4)"
    assert repr(datasets.Samples(x[:, 0], y)) == "Samples(3 x 4 x 4)"
    with pytest.raises(
        ValueError, match="has 1 x 2 x 2 features where the train part has 1 x 4 x 4"
    ):
        datasets.Split(samples, datasets.Samples(x[..., :2, :2], y), samples, 1, "x", "")
    with pytest.raises(ValueError, match=r"\(samples, channels, height, width\)"):
        datasets.Samples(x[:, 0, 0, 0], y)
