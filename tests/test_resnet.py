"""Classifiers and the decoder on them: counts and shapes of the papers and of torchvision."""

import copy
from pathlib import Path

import pytest
import torch

import sparselib as sl
from sparselib import datasets, models
from sparselib.datasets.augmentation import shifted_and_flipped
from sparselib.saliency import Selector

# of torchvision's documentation, and of He and others' Table 6 to the digits it prints
PARAMETERS = {
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet20": 269_722,
    "resnet56": 853_018,
}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_residual_networks_have_the_known_parameters(name: str, count: int) -> None:
    assert sl.cost.parameters(getattr(models, name)()) == count


def test_mobilenet_has_the_known_parameters() -> None:
    assert sl.cost.parameters(models.MobileNetV2(1000, stem="large")) == 3_504_872


def test_names_are_those_of_torchvision() -> None:
    basic, bottleneck = models.resnet34().state_dict(), models.resnet50().state_dict()
    assert basic["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert basic["layer4.2.bn2.running_var"].shape == (512,)
    assert bottleneck["layer1.0.conv3.weight"].shape == (256, 64, 1, 1)
    assert bottleneck["conv1.weight"].shape == (64, 3, 7, 7)
    assert (len(basic), len(bottleneck)) == (218, 320)
    mobile = models.MobileNetV2(1000, stem="large").state_dict()
    assert mobile["features.1.conv.0.0.weight"].shape == (32, 1, 3, 3)
    assert mobile["features.2.conv.1.0.weight"].shape == (96, 1, 3, 3)
    assert mobile["features.18.1.running_mean"].shape == (1280,)
    assert mobile["classifier.1.weight"].shape == (1000, 1280)


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "mobilenet_v2"])
def test_weights_of_torchvision_load_and_say_the_same(name: str) -> None:
    torchvision = pytest.importorskip("torchvision", exc_type=Exception)
    theirs = getattr(torchvision.models, name)().eval()
    make = {"mobilenet_v2": lambda: models.MobileNetV2(1000, stem="large")}
    ours = make.get(name, getattr(models, name, None))().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)
SCALES = [
    ("resnet56", CIFAR, [(16, 32), (32, 16), (64, 8)], [(64, 32, 32), (32, 16, 16)]),
    ("mobilenet", CIFAR, [(32, 32), (96, 16), (1280, 8)], [(1280, 96, 96), (96, 32, 32)]),
    (
        "resnet34",
        IMAGENET,
        [(64, 56), (64, 56), (128, 28), (256, 14), (512, 7)],
        [(512, 256, 256), (256, 128, 128), (128, 64, 64)],
    ),
    (
        "resnet50",
        IMAGENET,
        [(64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)],
        [(2048, 1024, 1024), (1024, 512, 512), (512, 256, 256)],
    ),
    (
        "resnet101",
        IMAGENET,
        [(64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)],
        [(2048, 1024, 1024), (1024, 512, 512), (512, 256, 256)],
    ),
    (
        "mobilenet-large",
        IMAGENET,
        [(32, 112), (24, 56), (32, 28), (96, 14), (1280, 7)],
        [(1280, 96, 96), (96, 32, 32), (32, 24, 24)],
    ),
]


@pytest.mark.parametrize(
    ("name", "shape", "scales", "upsampling"), SCALES, ids=lambda v: str(v)[:15]
)
def test_scales_are_those_of_the_supplement(
    name: str, shape: tuple, scales: list, upsampling: list
) -> None:
    classes = 10 if shape is CIFAR else 1000
    mobile = {"mobilenet": "small", "mobilenet-large": "large"}
    with torch.device("meta"):
        model = (
            models.MobileNetV2(classes, stem=mobile[name])
            if name in mobile
            else getattr(models, name)()
        )
        selector = Selector(model, shape, classes)
        last, selector.scales = selector.scales, model.scales
        found = selector.read(torch.zeros(1, *shape))[1]
    assert last == model.scales[-4:]
    assert selector.decoder.upsampling == upsampling
    assert selector.decoder.output.weight.shape[2:] == (scales[-len(last)][1],) * 2
    assert tuple(selector.decoder.embedding.weight.shape) == (classes, scales[-1][0])
    assert [tuple(scale.shape[1:]) for scale in found] == [(c, s, s) for c, s in scales]


def test_feature_filter_is_equation_13() -> None:
    decoder = models.UNet([(2, 8, 8), (4, 4, 4)], 3)
    x, labels = torch.randn(5, 4, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    found = decoder.filter(x, labels)
    for sample, place in [(0, (0, 0)), (4, (3, 2))]:
        here = x[sample][(..., *place)]
        expected = here * torch.sigmoid(here @ decoder.embedding.weight[labels[sample]])
        assert torch.allclose(found[sample][(..., *place)], expected)


def test_pixel_shuffle_of_signals_keeps_every_number() -> None:
    up = models.unet._Up(3, 2, 1)
    up.conv = torch.nn.Identity()
    x = torch.arange(8.0).view(1, 4, 2)
    assert up(x).tolist() == [[[0, 2, 1, 3], [4, 6, 5, 7]]]


@pytest.mark.parametrize("mixing", ["bottleneck", "basic"])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_decoders_give_one_number_more_than_dimensions(mixing: str, dimensions: int) -> None:
    model = models.ResNet((1, 1), (4, 8), 3, inputs=1, dimensions=dimensions)
    shape = (1, *(16,) * dimensions)
    selector = Selector(model, shape, 3, mixing=mixing, blocks=1)
    assert selector.numbers(torch.randn(2, *shape)).shape == (2, dimensions + 1)
    assert selector(torch.randn(2, *shape)).shape == (2, *shape)


def test_classes_and_sizes_out_of_range_get_a_sentence() -> None:
    model = models.ResNet((1, 1), (4, 8), 3, inputs=1)
    selector = Selector(model, (1, 16, 16), 3, blocks=1)
    with pytest.raises(ValueError, match="class 3 is out of range"):
        selector(torch.zeros(2, 1, 16, 16), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"made for images of size \(16, 16\)"):
        selector(torch.zeros(2, 1, 18, 18))
    with pytest.raises(ValueError, match="not twice the next"):
        Selector(model, (1, 17, 17), 3)
    with pytest.raises(ValueError, match="no attribute `scales`"):
        Selector(torch.nn.Linear(3, 3), (1, 16, 16), 3)


def test_zeros_of_a_shortcut_stand_behind_the_channels_or_on_both_sides() -> None:
    x = torch.randn(2, 3, 8, 8)
    for shortcut, before in (("pad", 0), ("pad_both", 2)):
        model = models.ResNet((1, 1), (3, 8), shortcut=shortcut)
        aside = model.layer2[0].downsample(x)
        assert torch.equal(aside[:, before : before + 3], x[:, :, ::2, ::2])
        assert aside.shape == (2, 8, 4, 4)
        assert int((aside != 0).sum()) == x[:, :, ::2, ::2].numel()


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:CIFAR-10 has 50,000")
def test_public_weights_reach_what_their_authors_measured() -> None:
    """91.73 and 93.39 % of 10,000 images; two standard errors of 1,000 images are 1.7 points."""
    data = datasets.cifar10(valid=0, statistics="imagenet").test
    for depth, least in ((20, 0.90), (56, 0.91)):
        model = models.cifar10_resnet(depth).to(memory_format=torch.channels_last)
        assert sl.evaluate(model, data, 250) > least


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:CIFAR-10 has 50,000")
def test_public_weights_know_black_margins() -> None:
    """Measured anew on images padded as they were for training, normalizations stay the same."""
    images = datasets.cifar10(valid=0, statistics="imagenet").train.x[:2000]
    known = models.cifar10_resnet(20).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = known(images[1000:]).argmax(1)
    agreement = {}
    for name, fill in (("black", datasets.cifar.black("imagenet")), ("mean color", 0.0)):
        model = copy.deepcopy(known)
        torch.manual_seed(0)
        changed = shifted_and_flipped(images[:1000], fill=fill)
        torch.optim.swa_utils.update_bn(changed.split(250), model)
        with torch.no_grad():
            found = model.eval()(images[1000:]).argmax(1)
        agreement[name] = float((found == expected).double().mean())
    assert agreement["black"] > 0.985
    assert agreement["mean color"] < 0.97


def test_there_are_public_weights_of_two_depths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of 20 and 56 layers, not of 32"):
        models.cifar10_resnet(32)
    (tmp_path / "pretrained-cifar10").mkdir()
    (tmp_path / "pretrained-cifar10/resnet20-12fca82f.th").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="resnet20-12fca82f"):
        models.cifar10_resnet(20, tmp_path)


@pytest.mark.parametrize(
    "options", [{"blocks": (1,)}, {"stem": "big"}, {"shortcut": "none"}, {"dimensions": 3}]
)
def test_impossible_networks_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"ResNet|stem"):
        models.ResNet(**options)
    with pytest.raises(ValueError, match="stem must be"):
        models.MobileNetV2(stem="big")
