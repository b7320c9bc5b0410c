"""Numbers of Ganjdanesh et al. (2022) beside ours: architectures, masks, and stored runs."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

import sparselib as sl
from sparselib import checkpoint, comparison, metrics, models, saliency, sweep

STAGES = Path("data/stages/placed-digits")
RESNETS = "(64, 56) (256, 56) (512, 28) (1024, 14) (2048, 7)"
WIDE = "(2048, 1024, 1024) (1024, 512, 512) (512, 256, 256)"
# Section 3: the scales that a decoder reads (channels, side), the channels of its upsamplings
# (in, passing by, out), the rows and columns of its feature filter
PRINTED = {
    "ResNet-56": ("(16, 32) (32, 16) (64, 8)", "(64, 32, 32) (32, 16, 16)", "10 x 64"),
    "MobileNetV2, CIFAR-10": (
        "(32, 32) (96, 16) (1280, 8)",
        "(1280, 96, 96) (96, 32, 32)",
        "10 x 1280",
    ),
    "ResNet-34": (
        "(64, 56) (64, 56) (128, 28) (256, 14) (512, 7)",
        "(512, 256, 256) (256, 128, 128) (128, 64, 64)",
        "1000 x 512",
    ),
    "ResNet-50": (RESNETS, WIDE, "1000 x 2048"),
    "ResNet-101": (RESNETS, WIDE, "1000 x 2048"),
    "MobileNetV2": (
        "(32, 112) (24, 56) (32, 28) (96, 14) (1280, 7)",
        "(1280, 96, 96) (96, 32, 32) (32, 24, 24)",
        "1000 x 1280",
    ),
}
QUANTITIES = ("scales", "upsampling", "feature filter")
# what decides which channels stay, and the weight of the saliency, if any
STRUCTURES = (
    ("saliency term", "gates", 0.5),
    ("no saliency term", "gates", 0.0),
    ("magnitude", "magnitude", 0.5),
    ("uniform", "uniform", 0.5),
    ("random", "random", 0.5),
)
# and the share of operations that stays
ON_CIFAR10 = (
    (0.5, "half, saliency term", "gates", 0.5),
    (0.5, "half, no saliency term", "gates", 0.0),
    (0.5, "half, random", "random", 0.5),
    (0.4, "60 %, saliency term", "gates", 0.5),
)
# the same for the public ResNet-20, with what steers
PUBLIC = {
    ("gates", 0.0, "selector"): "no saliency",
    ("gates", 0.5, "selector"): "saliency",
    ("gates", 5.0, "selector"): "saliency, ten times",
    ("gates", 0.5, "activations"): "activation maps",
    ("gates", 5.0, "activations"): "activation maps, ten times",
    ("taylor", 0.5, "selector"): "Taylor",
    ("group_norm", 0.5, "selector"): "group norm",
    ("magnitude", 0.5, "selector"): "L1",
    ("uniform", 0.5, "selector"): "uniform",
    ("random", 0.5, "selector"): "random",
    ("anew", 0.5, "selector"): "uniform, new weights",
    ("whole", 0.5, "selector"): "nothing cut",
}
ENCODERS = {
    "ResNet-56": models.resnet56,
    "MobileNetV2, CIFAR-10": models.MobileNetV2,
    "ResNet-34": models.resnet34,
    "ResNet-50": models.resnet50,
    "ResNet-101": models.resnet101,
    "MobileNetV2": lambda: models.MobileNetV2(1000, stem="large"),
}


def architecture(encoder: str) -> tuple[str, str, str]:
    """Read the scales, upsamplings and feature filter off a selector, in the paper's words."""
    small = PRINTED[encoder][2].startswith("10 x")
    classes, side = (10, 32) if small else (1000, 224)
    with torch.device("meta"):
        model = ENCODERS[encoder]()
        selector = sl.Selector(model, (3, side, side), classes)
        selector.scales = model.scales
        scales = selector.read(torch.zeros(1, 3, side, side))[1]
    rows, columns = selector.decoder.embedding.weight.shape
    return (
        " ".join(str(tuple(scale.shape[1:3])) for scale in scales),
        " ".join(map(str, selector.decoder.upsampling)),
        f"{rows} x {columns}",
    )


def architectures() -> list[tuple[str, str, str, str]]:
    """List encoder, quantity, the paper's words and ours."""
    return [
        (encoder, *row)
        for encoder, printed in PRINTED.items()
        for row in zip(QUANTITIES, printed, architecture(encoder))
    ]


def modes_on_the_digit() -> tuple[float, float]:
    """Return how often a mask has its mode on the digit: the selector's, and one in the middle."""
    data, boxes = sl.datasets.placed_digits()
    classifier = models.ResNet((1, 1, 1), (8, 16, 32), 10, inputs=1, stem="half").eval()
    selector = sl.Selector(classifier, (1, 32, 32), 10).eval()
    folder = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / STAGES).is_dir()) / STAGES
    checkpoint.restore(folder / "classifier.pt", classifier)
    checkpoint.restore(folder / "selector.pt", selector)
    with torch.no_grad():
        numbers = selector.numbers(data.test.x)
    hit, _ = metrics.localization(selector.masks(numbers), boxes["test"])
    middle, _ = metrics.localization(selector.centered(numbers), boxes["test"])
    return hit, middle


def bounds_of_centers() -> tuple[float, float]:
    """Return the centers of masks on 32 pixels for u = -14 and u = 14."""
    numbers = torch.tensor([[-14.0, 14.0, 0.0]])
    low, high = saliency.center_and_sigma(numbers, (32, 32))[0][0]
    return float(low), float(high)


def share_kept() -> float:
    """Return how often Equation 14 as printed keeps a pixel of f = 1."""
    source = torch.Generator().manual_seed(0)
    kept = saliency.sample(torch.ones(100_000), 1.0, "gumbel", source)
    return float((kept > 0.5).double().mean())


def share_open() -> float:
    """Return how many new gates are open (Equation 15)."""
    source = torch.Generator().manual_seed(1)
    gates = sl.nn.ChannelGate(100_000).draw(source)
    return float((gates > 0.5).double().mean())


def digits() -> pd.DataFrame:
    """Return the runs on digits at half of the operations, of those seeds that have all runs."""
    rows = sweep.stored("pruning-controls")
    half = rows[(rows.statistics == "stored") & (rows.flops == 0.5)]
    count = half.groupby("seed").size()
    return half[half.seed.isin(count.index[count == count.max()])]


def photographs() -> pd.DataFrame:
    """Return the runs on CIFAR-10."""
    return sweep.stored("pruning-cifar10")


def masks() -> pd.DataFrame:
    """Return the runs that compare masks of equal area."""
    return sweep.stored("pruning-masks")


def explains(kind: str, other: str, score: str) -> comparison.Difference:
    """Return by how many points a network agrees more with one kind of masks, on photographs."""
    rows = masks()
    rows = rows[rows.dataset == "cifar10"]
    return comparison.paired_difference(
        100 * rows[f"{score}_{kind}"], 100 * rows[f"{score}_{other}"]
    )


def public() -> pd.DataFrame:
    """Return the runs on the public ResNet-20, each with its way of `PUBLIC`."""
    return _with_ways(sweep.stored("pruning-pretrained"))


def own() -> pd.DataFrame:
    """Return the runs on ResNet-20s trained here, likewise; four epochs of fine-tuning or fewer."""
    rows = sweep.stored("pruning-own")
    return _with_ways(rows[(rows.tune_epochs <= 4) | (rows.structure == "anew")])


def _with_ways(rows: pd.DataFrame) -> pd.DataFrame:
    keys = zip(rows.structure, rows.gamma_1, rows.steer)
    return rows.assign(way=[PUBLIC[key] for key in keys])


def ahead(rows: pd.DataFrame, way: str, other: str, measure: str) -> comparison.Difference:
    """Return by how many points one way of pruning is ahead of another, paired by seed."""
    pairs = comparison.runs_by_seed(rows, "way", [way, other], measure)
    return comparison.paired_difference(100 * pairs[way], 100 * pairs[other])


def on_digits(structure: str = "gates", gamma_1: float = 0.5) -> pd.Series:
    """Return the accuracies of pruned networks on digits in percent, after fine-tuning."""
    rows = digits()
    rows = rows[(rows.structure == structure) & (rows.gamma_1 == gamma_1)]
    return 100 * rows.tuned_accuracy


def on_photographs(flops: float, structure: str = "gates", gamma_1: float = 0.5) -> pd.Series:
    """Return the accuracies of pruned networks on CIFAR-10 in percent, after fine-tuning."""
    rows = photographs()
    rows = rows[(rows.flops == flops) & (rows.structure == structure)]
    return 100 * rows[rows.gamma_1 == gamma_1].tuned_accuracy


def selectors() -> pd.DataFrame:
    """Return the runs of both kinds of selectors, with the gains in agreement of both networks."""
    rows = sweep.stored("pruning-pixels").sort_values("seed")
    for name in ("predictor", "evaluator"):
        rows[f"{name}_gain"] = rows[f"{name}_agrees"] - rows[f"{name}_agrees_elsewhere"]
    return rows


def by_selectors(epochs: int) -> pd.DataFrame:
    """Return what five selectors reach, means in percent by kind of mask, round or pixels.

    The columns are the pointing game, and the gain of the network that learned from hidden pixels.
    """
    rows = selectors()
    rows = rows[rows.epochs == epochs]
    return 100 * rows.groupby("masks")[["pointing", "evaluator_gain"]].mean()


def whole(rows: pd.DataFrame) -> pd.Series:
    """Return the accuracies of the networks before pruning in percent, by seed."""
    return 100 * rows.groupby("seed").whole_accuracy.first()


def lost(flops: float) -> float:
    """Return how many points a network on CIFAR-10 loses by pruning to a share of operations."""
    before = whole(photographs()).mean()
    return float(before - on_photographs(flops).mean())


def default(function: Callable[..., object], name: str) -> object:
    """Return the default value of an argument."""
    return inspect.signature(function).parameters[name].default
