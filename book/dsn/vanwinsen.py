"""Numbers of Vanwinsen et al. (2023) beside ours: counts, and what the stored runs measured."""

import pandas as pd

import sparselib as sl
from sparselib import sweep
from sparselib.comparison import Difference, paired_difference

MINUTE = (1, 6000)  # of ECG: one channel, 100 samples per second
NETWORKS = {
    "dense DSN": lambda: sl.DSN(sparsity=0.0),
    "sparse DSN, 95 %": lambda: sl.DSN(sparsity=0.95),
    "OS-CNN": sl.OSCNN,
    "ResNet": sl.ECGResNet,
}
NAMES = {"resnet": "ResNet", "oscnn": "OS-CNN", "deep_oscnn": "OS-CNN-4"}
YARDSTICKS = {"boosting": "boosted trees", "logistic": "logistic regression"}
# Table 1: parameters in thousands, operations in millions, accuracy in percent
TABLE_1 = {
    "dense DSN": (621.955, 7361.956, 92.18),
    "sparse DSN, 95 %": (41.17, 490.679, 91.82),
    "OS-CNN": (235.74, 2767.88, 88.84),
    "ResNet": (578.751, 104.0, 81.48),
}
SPARSE = "DSN, 95 %"
FIXED = "DSN, 95 %, fixed"  # connections that never move
# the accuracies of Table 1, by the names that stored runs have here
ACCURACY = dict(
    zip(
        ("DSN, dense", SPARSE, "OS-CNN", "ResNet"),
        (accuracy for *_, accuracy in TABLE_1.values()),
        strict=True,
    )
)


def counted() -> dict[str, tuple[float, float]]:
    """Return the parameters in thousands and the operations in millions of each network."""
    networks = {name: make() for name, make in NETWORKS.items()}
    return {
        name: (
            sl.cost.parameters(network) / 1e3,
            sl.cost.flops(network, MINUTE, unit="flop") / 1e6,
        )
        for name, network in networks.items()
    }


def saved_by_three_layers() -> float:
    """Return the share of operations that three layers save of four."""
    return 1 - sl.cost.flops(sl.DSN(layers=3), MINUTE) / sl.cost.flops(sl.DSN(), MINUTE)


def slopes() -> tuple[float, float]:
    """Return the operations per tap of the kernel, from 6 to 30 and from 30 to 48 taps."""
    costs = {
        taps: sl.cost.flops(sl.DSN(kernel_size=taps, sparsity=0.8), MINUTE, unit="flop")
        for taps in (6, 30, 48)
    }
    return (costs[30] - costs[6]) / 24, (costs[48] - costs[30]) / 18


def by_night() -> pd.DataFrame:
    """Return the runs on RR intervals that are scaled night by night."""
    rows = sweep.stored("dsn-splits")
    return rows[rows.normalize == "night"]


def on_unseen_nights(
    sparsity: float, model: str = "dsn", column: str = "balanced_accuracy"
) -> Difference:
    """Return how far a network is ahead of the 95 % sparse one in the reduced setting, in points.

    They are paired by the five folds, which test each night once.
    """
    rows = by_night()
    rows = rows[rows.by == "record"].set_index(["model", "sparsity", "fold"]).sort_index()
    kinds = (model, sparsity), ("dsn", 0.95)
    return _paired(*(100 * rows.loc[kind][column] for kind in kinds))


def _paired(ours: pd.Series, theirs: pd.Series) -> Difference:
    """Return how far ours are ahead, paired by the places in the index that both have."""
    shared = ours.index.intersection(theirs.index)
    return paired_difference(ours.loc[shared].to_numpy(), theirs.loc[shared].to_numpy())


def random_splits() -> dict[str, pd.DataFrame]:
    """Return the runs on ten random splits of the minutes (Table 1), by network, then split."""
    rows = sweep.stored("dsn-random-splits")
    named = _named(rows, rows.iloc[:0])
    return {name: part.set_index("split").sort_index() for name, part in named.items()}


def on_random_splits(name: str, column: str = "test_accuracy") -> Difference:
    """Return how far a network is ahead of the 95 % sparse one, in points, paired by split."""
    runs = random_splits()
    return _paired(*(100 * runs[of][column] for of in (name, SPARSE)))


def in_table_1(name: str) -> str:
    """Write how far a network is ahead of the 95 % sparse one: on random splits, all minutes."""
    ten = on_random_splits(name)
    words = f"{ten.mean:+.1f} points | Ten splits, reduced: {ten:.1f}"
    tests = {"minute": "random", "record": "unseen nights"}
    tested = classifiers().index.droplevel("fold").unique()
    found = [
        f"{shown} {ahead(name, SPARSE, by=by):.1f}"
        for by, shown in tests.items()
        if (name, by, 1) in tested
    ]
    return f"{words}; all minutes: {', '.join(found)}." if found else f"{words}."


def proposed(column: str) -> dict[str, Difference]:
    """Return what two proposals of Section 6.2 gain on unseen nights, in points.

    Training without noisy minutes, and with augmented signals; paired by five folds and two seeds.
    """
    rows = sweep.stored("dsn-noise").set_index(["seed", "fold"])
    plain = rows[(rows.spoiled == 1) & ~rows.augment]
    changed = {
        "without noisy training minutes": rows[rows.spoiled < 1],
        "training signals augmented": rows[rows.augment],
    }
    return {
        name: _paired(100 * part[column], 100 * plain[column]) for name, part in changed.items()
    }


def nights(rows: pd.DataFrame) -> pd.DataFrame:
    """Join the nights that some runs tested: minutes with apnea per hour, and their severity.

    ``off`` is by how much the predicted minutes per hour are off.
    """
    found = [
        pd.DataFrame(
            {
                "night": row.nights.split(),
                "labeled": [float(rate) for rate in str(row.labeled_rates).split()],
                "predicted": [float(rate) for rate in str(row.predicted_rates).split()],
            }
        )
        for row in rows.itertuples()
    ]
    joined = pd.concat(found).sort_values("night").set_index("night")
    joined["off"] = (joined.predicted - joined.labeled).abs()
    rates = ("labeled", "predicted")
    return joined.assign(**{f"{c} class": joined[c].map(sl.metrics.ahi_class) for c in rates})


def _named(networks: pd.DataFrame, yardsticks: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of each network and of each yardstick that has run, by its name."""
    dsn = networks[networks.model == "dsn"]
    runs = {
        f"DSN, {100 * sparsity:.0f} %" if sparsity else "DSN, dense": rows
        for sparsity, rows in dsn[dsn.rule != "static"].groupby("sparsity")
    }
    runs[FIXED] = dsn[dsn.rule == "static"]
    runs |= {name: networks[networks.model == model] for model, name in NAMES.items()}
    runs |= {name: yardsticks[yardsticks.model == model] for model, name in YARDSTICKS.items()}
    return {name: rows for name, rows in runs.items() if len(rows)}


def classifiers() -> pd.DataFrame:
    """Return the runs on all minutes, by classifier, kind of test, minutes around and fold.

    Networks, and two classifiers that read the heart rate's variability, on the same five folds; of
    a network those that have run.
    """
    yardsticks = sweep.stored("dsn-yardsticks")
    yardsticks = yardsticks[(yardsticks.normalize == "night") & (yardsticks.split == 0)]
    runs = _named(sweep.stored("dsn-windows"), yardsticks)
    place = ["by", "neighbors", "fold"]
    found = {name: rows.set_index(place) for name, rows in runs.items()}
    return pd.concat(found, names=["classifier"]).sort_index()


def official() -> dict[str, pd.DataFrame]:
    """Return the runs that x01 to x35 test, three minutes at once, by classifier.

    They need the labels of these nights, which the repository does not have: so there may be none.
    """
    tables = []
    for name in ("dsn-official", "dsn-official-yardsticks"):
        try:
            rows = sweep.stored(name)
        except FileNotFoundError:
            rows = pd.DataFrame(columns=["model", "sparsity", "rule", "neighbors"])
        tables.append(rows[rows.neighbors == 1])
    return _named(*tables)


def ahead(name: str, other: str, column: str = "test_accuracy", by: str = "record") -> Difference:
    """Return how far one classifier of three minutes is ahead of another, in points.

    They are paired by the folds that both have been tested on.
    """
    runs = classifiers()
    return _paired(*(100 * runs.loc[(of, by, 1)][column] for of in (name, other)))


def off(name: str, neighbors: int = 1) -> pd.Series:
    """Return by how much a classifier's index of each unseen night is off, per hour."""
    return nights(classifiers().loc[(name, "record", neighbors)]).off


def further_off(name: str, other: str, neighbors: int = 1) -> Difference:
    """Return how much further off one classifier's index is than another's, paired by night."""
    return _paired(off(name, neighbors), off(other, neighbors))


def windows() -> pd.DataFrame:
    """Return the runs on all minutes of the 95 % sparse network and of boosted trees.

    By classifier, kind of test, minutes around and fold; only folds that both have been tested on.
    """
    runs = classifiers()
    pair = {name: runs.loc[name] for name in (SPARSE, "boosted trees")}
    shared = pair[SPARSE].index.intersection(pair["boosted trees"].index)
    joined = {name: rows.loc[shared] for name, rows in pair.items()}
    return pd.concat(joined, names=["classifier"]).sort_index()


def right_grades() -> float:
    """Return the share of unseen nights whose severity the sparse network predicts right.

    It reads three minutes at once.
    """
    tested = nights(windows().loc[(SPARSE, "record", 1)])
    return float((tested["labeled class"] == tested["predicted class"]).mean())


def reached() -> pd.Series:
    """Return the accuracy on all minutes in percent, by classifier, kind of test and window.

    A window is the number of minutes before and after that are read, too.
    """
    return 100 * windows().test_accuracy.groupby(level=[0, 1, 2]).mean()


def single_nights() -> dict[str, pd.DataFrame]:
    """Return the runs of three minutes that 34 nights train and the other tests, by classifier."""
    networks, yardsticks = (sweep.stored(f"dsn-{name}") for name in ("nights", "nights-yardsticks"))
    named = _named(networks, yardsticks[yardsticks.neighbors == 1])
    return {name: rows.set_index("nights").sort_index() for name, rows in named.items()}


def left_out(name: str) -> pd.DataFrame:
    """Return the counts of each night that one classifier of three minutes has not learned from.

    A row for each of the 35 nights: ``quiet`` and ``apnea``, its minutes of either class, those of
    them that are right, and the night's accuracy.
    """
    rows = single_nights()[name]
    minutes = rows.test_minutes
    apnea = (rows.labeled_rates.astype(float) / 60 * minutes).round()
    right = (rows.test_accuracy * minutes).round()
    right_apnea = (rows.sensitivity.fillna(0) * apnea).round()
    counts = {
        "quiet": minutes - apnea,
        "apnea": apnea,
        "right quiet": right - right_apnea,
        "right apnea": right_apnea,
    }
    return pd.DataFrame(counts).astype(int).assign(accuracy=rows.test_accuracy)


def graded_alone(name: str) -> pd.DataFrame:
    """Return the index of each night that one classifier of three minutes has not learned from."""
    return nights(single_nights()[name].reset_index())


def ahead_by_night(name: str, other: str) -> dict[str, Difference]:
    """Return how far one classifier is ahead of another on nights left out, paired by night.

    ``accuracy`` in points, ``off`` by how many minutes per hour its index is further off.
    """
    accuracy = (100 * left_out(of).accuracy for of in (name, other))
    off = (graded_alone(of).off for of in (name, other))
    return {"accuracy": _paired(*accuracy), "off": _paired(*off)}


def without_noise(column: str) -> Difference:
    """Return what boosted trees gain by leaving out noisy training minutes, in points.

    They are paired by the folds of three splits of the nights, three minutes at once.
    """
    place = ["split", "fold"]
    kept, clean = (sweep.stored(f"dsn-{name}") for name in ("yardsticks", "noise-yardsticks"))
    kept = kept[(kept.normalize == "night") & (kept.by == "record") & (kept.neighbors == 1)]
    both = (rows[rows.model == "boosting"].set_index(place) for rows in (clean, kept))
    return _paired(*(100 * rows[column] for rows in both))


def without_movement() -> dict[str, Difference]:
    """Return how far connections that never move are ahead, in points, by kind of test.

    All minutes, three at once, paired by the five folds.
    """
    return {by: ahead(FIXED, SPARSE, by=by) for by in ("record", "minute")}


def by_taps() -> pd.Series:
    """Return the accuracy in percent by taps of the kernel, at 80 % sparsity (Figure 4)."""
    rows = sweep.stored("dsn-figures")
    return 100 * rows[rows.sparsity == 0.8].groupby("kernel_size").test_accuracy.mean()


def by_sparsity() -> pd.Series:
    """Return the accuracy in percent by sparsity, with kernels of 30 taps (Figure 5)."""
    rows = sweep.stored("dsn-figures")
    return 100 * rows[rows.kernel_size == 30].groupby("sparsity").test_accuracy.mean()
