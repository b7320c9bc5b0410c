"""Numbers of Ertl (2021) beside ours: what the stored runs of this chapter measured."""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

import sparselib as sl
from sparselib import sweep
from sparselib.comparison import Difference, paired_difference, runs_by_seed
from sparselib.tables import human

LEVELS = (0.9, 0.97, 0.99)
WHOLE = 88  # percent on MNIST: a run below has lost a class of ten
WIDE = "[1024, 1024]"
NETWORKS = {"[256, 256, 256]": "three layers of 256", WIDE: "two layers of 1,024"}
MNIST_NETWORK = "[784, 256, 256, 256, 10]"
# the networks of Table 3
INFERENCE = "[512, 512, 512, 512, 512, 10]"
TRAINING = "[256, 256, 256, 10]"
# the table of each machine: AMD's cores with AVX2, and with AVX-512
MACHINES = {f"Zen {number}": f"csr-speed-zen{number}" for number in (3, 4, 5)}
# test accuracy of Table 4, in percent
TABLE_4 = {
    ("mnist", "0.0"): 98.34,
    ("mnist", "0.9"): 97.30,
    ("mnist", "0.97"): 96.16,
    ("mnist", "0.99"): 92.88,
    ("fashion_mnist", "0.0"): 89.40,
    ("fashion_mnist", "0.9"): 88.43,
    ("fashion_mnist", "0.97"): 87.58,
    ("fashion_mnist", "0.99"): 86.08,
    ("higgs", "0.0"): 74.24,
    ("higgs", "0.9"): 74.68,
    ("higgs", "0.97"): 73.74,
    ("higgs", "0.99"): 70.46,
    ("higgs", "[0.95, 0.99, 0.99, 0.9]"): 72.64,
}
SPARSITIES = {"0.0": "dense", "0.9": "90 %", "0.97": "97 %", "0.99": "99 %"}
SPARSITIES["[0.95, 0.99, 0.99, 0.9]"] = "95-99-99-90 %"


def table4() -> pd.DataFrame:
    """Return the runs of Table 4, their sparsity as the sweep writes it."""
    return sweep.stored("csr-table4").astype({"sparsity": str})


def accuracies() -> dict[tuple[str, str], pd.Series]:
    """Return the test accuracies of Table 4 in percent, by data set and sparsity."""
    groups = table4().groupby(["dataset", "sparsity"])
    return {key: 100 * runs.test_accuracy for key, runs in groups}


def whole_runs() -> float:
    """Return the mean accuracy on MNIST at 99 % of the runs that lose no class, in percent."""
    runs = accuracies()["mnist", "0.99"]
    return float(runs[runs > WHOLE].mean())


def growth() -> dict[str, pd.Series]:
    """Return the test accuracies of Figure 8 in percent, by the rule of growth."""
    groups = sweep.stored("csr-figure8").groupby("rule")
    return {rule: 100 * runs.test_accuracy for rule, runs in groups}


def neurons() -> pd.Series:
    """Return the mean test accuracy of Figure 4 in percent, by rule and neurons looked at."""
    rows = sweep.stored("csr-figure4")
    return 100 * rows.groupby(["rule", "neurons"]).test_accuracy.mean()


def steps() -> dict[tuple[str, int, float], pd.DataFrame]:
    """Return the test accuracies of both step sizes in percent, paired by seed.

    Returns
    -------
    dict
        By data set, number of images (0: all but the validation images) and sparsity; a row per
        seed, a column per step.
    """
    rows = sweep.stored("csr-step").query("rule == 'gradient'")
    return _side_by_side(rows, "lr", sorted(set(rows.lr)), ["dataset", "images", "sparsity"])


def images() -> dict[float, pd.DataFrame]:
    """Return test accuracies on MNIST in percent, by sparsity: a row per seed, a column per number.

    The number is that of the training images: 0 for all but 10,000 for validation, and 60,000. The
    step is 1.0.
    """
    rows = sweep.stored("csr-step").query("rule == 'gradient' and dataset == 'mnist' and lr == 1")
    found = _side_by_side(rows, "images", [0, 60_000], ["dataset", "sparsity"])
    return {sparsity: pairs for (_, sparsity), pairs in found.items()}


def widths() -> dict[tuple[str, float], pd.DataFrame]:
    """Return test accuracies in percent of three layers of 256 neurons and of two of 1,024.

    The step is 1.0; by data set and sparsity, a row per seed, a column per network.
    """
    narrow = sweep.stored("csr-step").query("rule == 'gradient' and images == 0 and lr == 1")
    rows = pd.concat([narrow, sweep.stored("csr-width")])
    return _side_by_side(rows, "hidden", list(NETWORKS), ["dataset", "sparsity"])


def with_all_images() -> list[float]:
    """Return the mean accuracies on MNIST with all 60,000 images, in percent, by `LEVELS`."""
    found = images()
    return [found[level][60_000].mean() for level in LEVELS]


def broad(dataset: str) -> list[float]:
    """Return the mean accuracies of two layers of 1,024, in percent, by `LEVELS`."""
    found = widths()
    return [found[dataset, level][WIDE].mean() for level in LEVELS]


def _side_by_side(
    rows: pd.DataFrame, column: str, values: Sequence[object], setting: list[str]
) -> dict[tuple, pd.DataFrame]:
    """Return test accuracies in percent by setting: a row per seed, a column per value."""
    pairs = runs_by_seed(rows, column, values, "test_accuracy", setting)
    found = dict(iter(pairs.groupby(level=setting)))
    sets = ("mnist", "fashion_mnist", "higgs")
    order = sorted(found, key=lambda key: (key[1:-1], sets.index(key[0]), key[-1]))
    return {key: 100 * found[key].droplevel(setting) for key in order}


def between(pairs: pd.DataFrame, one: object, other: object) -> Difference:
    """Return how far a column is ahead of another one of the same table."""
    return paired_difference(pairs[one], pairs[other])


def paired(
    rows: pd.DataFrame,
    column: str,
    one: object,
    other: object,
    by: str = "sparsity",
    measure: str = "test_accuracy",
) -> dict[object, Difference]:
    """Return by how many points one value of a parameter is ahead of another, paired by seed.

    Parameters
    ----------
    rows : DataFrame
        Rows of a sweep.
    column : str
        The parameter.
    one, other : object
        Its two values.
    by : str
        The parameter by whose values differences are told apart.
    measure : str
        The column that is compared, a share.
    """
    pairs = 100 * runs_by_seed(rows, column, (one, other), measure, [by])
    return {key: between(part, one, other) for key, part in pairs.groupby(level=0)}


def early(rows: pd.DataFrame, epochs: int = 20) -> list[float]:
    """Return the mean validation accuracy of the first epochs, in percent, of each run."""
    return [100 * float(sweep.curve(cell)[:epochs].mean()) for cell in rows.valid_curve]


def jumps(rows: pd.DataFrame, epochs: slice) -> list[float]:
    """Return the mean change of validation accuracy from one epoch to the next, in points."""
    curves = [100 * sweep.curve(cell)[epochs] for cell in rows.valid_curve]
    return [float(np.abs(np.diff(curve)).mean()) for curve in curves]


def after(rows: pd.DataFrame, epoch: int) -> pd.DataFrame:
    """Return the rows with a column `reached`: the validation accuracy after an epoch."""
    return rows.assign(reached=[sweep.curve(cell)[epoch - 1] for cell in rows.valid_curve])


def gains() -> dict[object, Difference]:
    """Return what evolution gains over a fixed topology, in points, by sparsity."""
    return paired(sweep.stored("csr-figure10"), "rule", "gradient", "static")


def gradient_minus_random() -> dict[int, Difference]:
    """Return by how many points growth by gradient leads, by epoch: validation accuracy."""
    rows = sweep.stored("csr-figure8")
    rules = ("gradient", "threshold/random")
    return {
        epoch: paired(after(rows, epoch), "rule", *rules, measure="reached")[0.97]
        for epoch in (10, 400)
    }


def dense_with_the_papers_weights() -> dict[float, pd.Series]:
    """Return the test accuracies of dense networks on MNIST in percent, by step, 40 epochs."""
    rows = sweep.stored("csr-step").query("rule == 'dense' and init == 'ertl' and epochs == 40")
    return {lr: 100 * part.test_accuracy for lr, part in rows.groupby("lr")}


def intervals(differences: dict[object, Difference], spec: str = "+.2f") -> str:
    """Write intervals in one line, such as "+0.12 to +0.35, +0.61 to +1.02"."""
    ends = [(format(d.low, spec), format(d.high, spec)) for d in differences.values()]
    return ", ".join(f"{low} to {high}" for low, high in ends)


def released() -> dict[float, pd.Series]:
    """Return the test accuracies with lost weights released, in percent, by sparsity."""
    groups = sweep.stored("csr-repair").query("repair").groupby("sparsity")
    return {level: 100 * runs.test_accuracy for level, runs in groups}


def lost_weights() -> pd.DataFrame:
    """Return the runs that keep or release lost weights, with four columns more.

    `level` is the sparsity of all layers, or that of all but the output layer's 90 %, in words;
    `setting` the data, and what else is not the paper's; `lost_share` the share of the connections
    that are lost at the end; `fewer` how many classes are never predicted on test samples.
    """
    return _described(pd.concat([sweep.stored("csr-lost"), sweep.stored("csr-error")]))


def growth_from_fed() -> pd.DataFrame:
    """Return those whose growth at random keeps to neurons with inputs, with the same columns."""
    return _described(sweep.stored("csr-fed"))


def _described(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.astype({"sparsity": str}).reset_index(drop=True)
    network = rows.hidden.map({"[256, 256, 256]": "", "[1024, 1024]": ", 1024-1024"})
    optimizer = rows.optimizer.map({"sgd": "", "adam": ", Adam"})
    error = rows.error.map({"squared": "", "cross_entropy": ", cross-entropy"})
    sizes = rows.sizes.map(json.loads)
    connections = rows.trainable - sizes.map(lambda neurons: sum(neurons[1:]))  # less the biases
    return rows.assign(
        level=rows.sparsity.map(_level),
        setting=rows.dataset.map(human) + error + optimizer + network,
        lost_share=rows.lost / connections,
        fewer=sizes.str[-1] - rows.predicted_classes,
    )


def release(rule: str = "gradient") -> dict[tuple[str, str], Difference]:
    """Return what the release of lost weights gains, in points, by setting and level.

    Only of what at least five seeds have run both with and without.
    """
    rows = lost_weights()
    parts = rows[rows.rule == rule].groupby("setting", sort=False)
    gains = {
        (setting, level): gain
        for setting, part in parts
        for level, gain in paired(part, "repair", True, False, by="level").items()
    }
    return {case: gain for case, gain in gains.items() if gain.pairs >= 5}


def _level(sparsity: str) -> str:
    """Write the sparsity of all layers, or of all but the output layer."""
    first, *others = np.ravel(json.loads(sparsity))
    return f"{100 * first:g} %" + (", output 90 %" if others else "")


def memory() -> tuple[float, float]:
    """Return how much less memory a 512 x 512 layer of 99 % needs: without and with a transpose."""
    layer = sl.CSRLinear(512, 512, sparsity=0.99)
    return sl.cost.compression(layer, False), sl.cost.compression(layer, True)


def speedups(mode: str, sizes: str, machine: str = "Zen 3") -> list[float]:
    """Return the speedup over dense at 90, 97 and 99 %: medians of the processes that measured.

    Parameters
    ----------
    mode : str
        "inference" or "training".
    sizes : str
        The network, as the sweep writes it.
    machine : str
        One of `MACHINES`.
    """
    median = _speedups(mode, sizes, machine)
    return [median[sparsity] for sparsity in LEVELS]


def faster_from(mode: str, sizes: str, machine: str = "Zen 3") -> float:
    """Return the lowest of the measured sparsities that is faster than dense, in percent."""
    median = _speedups(mode, sizes, machine)
    return 100 * min(sparsity for sparsity, speedup in median.items() if speedup > 1)


def _speedups(mode: str, sizes: str, machine: str) -> dict[float, float]:
    """Return the median speedup over dense by sparsity."""
    rows = sweep.stored(MACHINES[machine])
    rows = rows[(rows["mode"] == mode) & (rows.sizes == sizes) & rows.sparse_ms.notna()]
    levels = [float(level) for level in rows.sparsities.iloc[0].strip("[]").split(",")]
    median = np.median([sweep.curve(cell) for cell in rows.sparse_speedup], axis=0)
    return dict(zip(levels, median.tolist()))


def at_equal_seconds(budget: float) -> tuple[float, float]:
    """Return the validation accuracy on MNIST after as many seconds: dense and 90 % sparse.

    Each has the best of its steps, which is 1.0 for both, dense with PyTorch's initialization.

    Raises
    ------
    ValueError
        If a network has no epoch that ends then.
    """
    timed = sweep.stored("csr-seconds")
    timed = timed[timed.sizes == MNIST_NETWORK]
    epoch = timed.groupby("sparsity").train_seconds.median() / timed.epochs.iloc[0]
    dense = sweep.stored("csr-step").query("rule == 'dense' and epochs == 100")
    sparse = table4().query("dataset == 'mnist' and sparsity == '0.9'")
    found = []
    for sparsity, same in ((0.0, dense), (0.9, sparse)):
        curve = np.mean([sweep.curve(cell) for cell in same.valid_curve], axis=0)
        epochs = int(budget / epoch[sparsity])
        if not 1 <= epochs <= len(curve):
            raise ValueError(
                f"at {sparsity:.0%} sparsity {budget} s are {epochs} epochs; the runs have "
                f"1 to {len(curve)}"
            )
        found.append(100 * float(curve[epochs - 1]))
    return found[0], found[1]


def series(numbers: object, spec: str = ".1f") -> str:
    """Write numbers in one line, such as "9.7, 24.5, 54.4"."""
    return ", ".join(format(number, spec) for number in numbers)
