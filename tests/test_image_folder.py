"""Folders of pictures: what is a class, and which values a picture has."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from corrupting import corruptions, read_or_refused
from PIL import Image

from sparselib import datasets
from sparselib.datasets import image_folder
from sparselib.datasets.image_folder import ANNOTATIONS, MEAN, STD


def save(
    path: Path, color: object = 99, size: tuple[int, int] = (40, 40), mode: str = "RGB"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


def bytes_of(samples: datasets.Samples) -> torch.Tensor:
    """Return the pixels of all samples as they were before they were standardized."""
    x = samples.x * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)
    return (x * 255).round().to(torch.uint8)


def colors(folder: Path) -> list[list[int]]:
    """Return the color of each picture, which must have one only."""
    flat = bytes_of(datasets.photographs(folder, side=8)).flatten(2)
    assert bool((flat == flat[..., :1]).all())
    return flat[..., 0].tolist()


def test_photographs_are_scaled_cut_and_standardized(tmp_path: Path) -> None:
    for name, color, size in [("b", (255, 0, 0), (300, 80)), ("a", (0, 255, 0), (40, 90))]:
        save(tmp_path / name / "one.png", color, size)
    samples = datasets.photographs(tmp_path, side=32)
    assert samples.x.shape == (2, 3, 32, 32)
    assert samples.y.tolist() == [0, 1]
    assert samples.class_names == ("a", "b")
    assert samples.x[0, 1].unique().tolist() == [pytest.approx((1 - 0.456) / 0.224)]
    with pytest.raises(ValueError, match="the class 'a', which is not among"):
        datasets.photographs(tmp_path, ["b", "c"])
    (tmp_path / "b" / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="Pillow cannot read it"):
        datasets.photographs(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.jpg"):
        datasets.photographs(tmp_path / "empty")


def test_pictures_without_folders_have_their_class_in_the_name(tmp_path: Path) -> None:
    for name in ("n02_dog.jpeg", "n01_red_cat.JPEG", "n02_hound.png"):
        save(tmp_path / name)
    samples = datasets.photographs(tmp_path, side=8)
    assert samples.y.tolist() == [0, 1, 1]
    assert samples.class_names == ("n01", "n02")
    assert datasets.photographs(tmp_path, ["n02", "n00", "n01"], 8).y.tolist() == [2, 0, 0]
    with pytest.raises(ValueError, match="classes must be distinct"):
        datasets.photographs(tmp_path, ["n02", "n01", "n02"])


def test_the_class_is_the_first_folder_below_the_root(tmp_path: Path) -> None:
    for name in ("n01443537", "n01629819", "n01641577"):
        save(tmp_path / name / "images" / f"{name}_0.JPEG")
        save(tmp_path / name / "images" / "more" / "one.png")
        (tmp_path / name / f"{name}_boxes.txt").write_text(
            "n_0.JPEG\t0\t10\t63\t58\n", encoding="utf-8"
        )
    samples = datasets.photographs(tmp_path, side=8)
    assert samples.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert samples.class_names == ("n01443537", "n01629819", "n01641577")


def test_hidden_files_and_folders_are_no_pictures_and_no_classes(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "one.png")
    for name in (".thumbnails/one.png", "cat/._one.png", "__MACOSX/cat/one.png", "cat/.t/x.png"):
        save(tmp_path / name)
    samples = datasets.photographs(tmp_path, side=8)
    assert (samples.class_names, len(samples)) == (("cat",), 1)


@pytest.mark.parametrize("name", ["two.gif", "two.heic", "two.jpg.part", "two"])
def test_what_may_be_a_picture_and_is_not_read_is_reported(tmp_path: Path, name: str) -> None:
    save(tmp_path / "cat" / "one.png")
    (tmp_path / "cat" / name).write_bytes(b"?")
    with pytest.warns(UserWarning, match=f"{name} is left out: pictures end in .jpg"):
        assert len(datasets.photographs(tmp_path, side=8)) == 1
    (tmp_path / "cat" / "three.gif").write_bytes(b"?")
    with pytest.warns(UserWarning, match="is left out, and 1 others"):
        datasets.photographs(tmp_path, side=8)


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    save(tmp_path / "store" / "wild" / "one.png")
    save(tmp_path / "store" / "single.png")
    root = tmp_path / "root"
    save(root / "cat" / "one.png")
    (root / "lynx").symlink_to(tmp_path / "store" / "wild", target_is_directory=True)
    (root / "cat" / "two.png").symlink_to(tmp_path / "store" / "single.png")
    (root / "cat" / "back").symlink_to(root, target_is_directory=True)
    (root / "cat" / "self").symlink_to(root / "cat", target_is_directory=True)
    samples = datasets.photographs(root, side=8)
    assert samples.class_names == ("cat", "lynx")
    assert samples.y.tolist() == [0, 0, 1]
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"gone\.png is refused"):
        datasets.photographs(root)


def test_layouts_whose_classes_cannot_be_known_are_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "whole" / "train" / "cat" / "one.png")
    save(tmp_path / "whole" / "val" / "cat" / "one.png")
    with pytest.raises(ValueError, match=r"train, val are parts of a data set, no classes\. Name"):
        datasets.photographs(tmp_path / "whole")
    assert datasets.photographs(tmp_path / "whole/train", side=8).class_names == ("cat",)
    save(tmp_path / "test" / "images" / "test_0.JPEG")
    with pytest.raises(ValueError, match="its only folder is 'images', which is no class"):
        datasets.photographs(tmp_path / "test")
    save(tmp_path / "mixed" / "cat" / "one.png")
    save(tmp_path / "mixed" / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png lies beside the folders of classes"):
        datasets.photographs(tmp_path / "mixed")
    (tmp_path / "mixed" / "stray.png").unlink()
    (tmp_path / "mixed" / "dog").mkdir()
    (tmp_path / "mixed" / "dog" / "one.heic").write_bytes(b"")
    with pytest.raises(ValueError, match="the folder 'dog' holds no picture"):
        datasets.photographs(tmp_path / "mixed")
    with pytest.raises(ValueError, match="cannot be listed"):
        datasets.photographs(tmp_path / "nowhere")


def test_the_validation_part_of_tiny_imagenet_has_its_classes_in_a_list(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "images" / f"val_{number}.JPEG", 10 * number)
    lines = [f"val_{n}.JPEG\t{name}\t0\t32\t44\t62" for n, name in enumerate(("n2", "n1", "n2"))]
    listed = tmp_path / ANNOTATIONS
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    samples = datasets.photographs(tmp_path, side=8)
    assert samples.class_names == ("n1", "n2")
    assert samples.y.tolist() == [1, 0, 1]
    for text, sentence in [
        ("\n".join(lines), "last line has no end"),
        ("\n".join(lines[:2]) + "\n", r"lists 2 pictures where .* holds 3; val_2\.JPEG is in one"),
        ("\n".join([*lines, lines[0]]) + "\n", "line 4 is no new file name"),
        ("\n".join([*lines, "val_9.JPEG"]) + "\n", "line 4 is no new file name"),
    ]:
        listed.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=sentence):
            datasets.photographs(tmp_path)


def test_16_bit_gray_is_scaled_to_8(tmp_path: Path) -> None:
    for name, value in {"a": 0, "b": 257 * 99, "c": 257 * 200 + 120, "d": 65_535}.items():
        (tmp_path / name).mkdir()
        array = np.full((20, 20), value, np.uint16)
        for ending in ("png", "tiff"):
            Image.fromarray(array).save(tmp_path / name / f"one.{ending}")
    expected = [[gray] * 3 for gray in (0, 0, 99, 99, 200, 200, 255, 255)]
    assert colors(tmp_path) == expected


def test_gray_values_of_unknown_range_are_refused(tmp_path: Path) -> None:
    for array in (np.full((9, 9), 0.5, np.float32), np.full((9, 9), 10**6, np.int32)):
        Image.fromarray(array).save(tmp_path / "a_one.tiff")
        with pytest.raises(ValueError, match=r"a_one\.tiff is refused.*its gray values"):
            datasets.photographs(tmp_path)


def test_exif_orientation_is_respected(tmp_path: Path) -> None:
    """Orientation 6: the camera was held so that the stored left side is the top."""
    stored = np.zeros((64, 64, 3), np.uint8)
    stored[:, :32] = 255
    upright = {6: "top", 8: "bottom", 3: "right", 1: "left"}
    for orientation, side in upright.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(stored)
        for ending in ("png", "jpg"):
            image.save(tmp_path / f"{side}_{orientation}.{ending}", exif=exif)
    samples = datasets.photographs(tmp_path, side=32)
    pixels = bytes_of(samples)[:, 0].float()
    halves = {
        "top": pixels[:, :12],
        "bottom": pixels[:, 20:],
        "left": pixels[..., :12],
        "right": pixels[..., 20:],
    }
    for number, label in enumerate(samples.y.tolist()):
        side = samples.class_names[label]
        assert float(halves[side][number].mean()) > 250


def test_palettes_and_transparency_show_what_a_viewer_shows(tmp_path: Path) -> None:
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30, 7, 7, 7])
    palette.save(tmp_path / "a_palette.png")
    palette.save(tmp_path / "b_transparent.png", transparency=1)
    palette.save(tmp_path / "c_bytes.png", transparency=bytes([255, 127, 0]))
    save(tmp_path / "d_opaque.png", (9, 8, 7, 255), mode="RGBA")
    save(tmp_path / "e_clear.png", (9, 8, 7, 0), mode="RGBA")
    save(tmp_path / "f_gray.png", (100, 255), mode="LA")
    save(tmp_path / "g_bit.png", 1, mode="1")
    save(tmp_path / "h_cmyk.tiff", (0, 255, 255, 0), mode="CMYK")
    half = [round(value * 127 / 255 + 255 * 128 / 255) for value in (10, 200, 30)]
    found = colors(tmp_path)
    assert found[:2] == [[10, 200, 30], [255] * 3]
    assert np.abs(np.subtract(found[2], half)).max() <= 1
    assert found[3:] == [[9, 8, 7], [255] * 3, [100] * 3, [255] * 3, [255, 0, 0]]


def test_a_ribbon_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a_ribbon.png", size=(5000, 2))
    with pytest.raises(ValueError, match="5,000 x 2 pixels, one side is more than 100 times"):
        datasets.photographs(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_200_damaged_pictures_are_refused_by_name_or_read(tmp_path: Path, kind: str) -> None:
    """PNG has checksums, so that it is equal or refused; in the others pixels may differ."""
    array = np.random.default_rng(0).integers(256, size=(24, 24, 3), dtype=np.uint8)
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.fromarray(array).save(stream, kind, exif=exif)
    path = tmp_path / f"a_one.{kind.lower()}"
    path.write_bytes(stream.getvalue())
    good = datasets.photographs(tmp_path, side=8)
    refused = 0
    for damaged in corruptions(stream.getvalue()):
        path.write_bytes(damaged)
        found = read_or_refused(lambda: datasets.photographs(tmp_path, side=8), path)
        refused += found is None
        assert found is None or kind != "PNG" or torch.equal(found.x, good.x)
    assert refused > (50 if kind != "BMP" else 20)


def test_a_png_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cat" / "one.png"
    save(path)
    content = bytearray(path.read_bytes())
    data = content.index(b"IDAT")
    length = int.from_bytes(content[data - 4 : data], "big")
    content[data + 4 + length] ^= 1  # of the checksum, so that the pixels are as before
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"one\.png is refused: Pillow cannot read it"):
        image_folder._decoded(path)
