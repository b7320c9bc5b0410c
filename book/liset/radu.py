"""Numbers of Radu (2021) beside ours: what the stored runs of this chapter measured."""

import pandas as pd

from sparselib import sweep
from sparselib.comparison import Difference, may_end_at, paired_difference, runs_by_seed

# ARA and accuracy of Tables 2 and 3: SET, gamma 0, and the gamma of the best accuracy or ARA
PRINTED = {
    ("mnist", 4.5): {"SET": (65.77, 85.14), 0: (74.03, 85.41), 3: (72.52, 87.14)},
    ("mnist", 9): {"SET": (75.17, 88.28), 0: (81.26, 89.60), 3: (79.57, 89.87)},
    ("isolet", 21): {"SET": (60.21, 83.26), 0: (64.41, 84.41), -18: (64.59, 85.70)},
    ("isolet", 42): {"SET": (79.99, 92.88), 0: (81.08, 93.39)},
}
# the largest less the smallest of the paper's four cells of equal odds (gamma of -8 and less)
NOISE = {("mnist", 4.5): (0.89, 0.56), ("mnist", 9): (0.43, 0.37)}
NOISE |= {("isolet", 21): (1.77, 3.79), ("isolet", 42): (2.11, 1.35)}
SPARSITY = {4.5: "97.5 %", 9: "95 %", 21: "90 %", 42: "80 %"}
MEASURES = {"ARA": "ara", "accuracy": "test_accuracy"}
# a setting of Tables 2 and 3: data set and epsilon
Setting = tuple[str, float]


def program() -> pd.DataFrame:
    """Return the runs that draw connections as the author's program does."""
    return sweep.stored("liset-tables")


def text() -> pd.DataFrame:
    """Return the runs that draw connections by Equation 2, as the paper's text has it."""
    return pd.concat([sweep.stored("liset-table2"), sweep.stored("liset-table3")])


def runs(
    rows: pd.DataFrame, setting: Setting, gamma: float | str, measure: str = "ARA"
) -> pd.Series:
    """Return a measure of the runs of SET, or of LiSET with a gamma, in percent."""
    dataset, epsilon = setting
    part = rows[(rows.dataset == dataset) & (rows.epsilon == epsilon)]
    is_set = part.rule == "set"
    found = part[is_set] if gamma == "SET" else part[~is_set & (part.gamma == gamma)]
    return 100 * found[MEASURES[measure]]


def from_set_to(gamma: float, setting: Setting, measure: str = "ARA") -> str:
    """Write the means of SET and of LiSET with a gamma, by the program's draw."""
    rows = program()
    ends = [runs(rows, setting, rule, measure).mean() for rule in ("SET", gamma)]
    return f"{ends[0]:.2f} to {ends[1]:.2f} %"


def above_set() -> list[bool]:
    """Return for each setting and gamma of the tables whether LiSET has a higher ARA than SET."""
    rows = program()
    gammas = sorted(set(rows[rows.rule == "liset"].gamma))
    mean = {s: {g: runs(rows, s, g).mean() for g in ("SET", *gammas)} for s in PRINTED}
    return [mean[s][gamma] > mean[s]["SET"] for s in PRINTED for gamma in gammas]


def gains(dataset: str) -> dict[str, float]:
    """Return what each part of LiSET gains in ARA over SET, in points: five seeds, gamma = 1.

    Returns
    -------
    dict
        ``"skips"``, skip layers with random growth; ``"text"``, with Equation 2; ``"program"``,
        with the program's draw.
    """
    rows = sweep.stored("liset-ablation")
    rows = rows[(rows.dataset == dataset) & (rows.gamma <= 1) & (rows.dropout == 0.3)]
    rows = rows[rows.definition.isin(["text", "code"])]
    ara = 100 * rows.set_index(["rule", "definition", "seed"]).ara
    parts = {"skips": ("skips", "text"), "text": ("liset", "text"), "program": ("liset", "code")}
    return {name: float((ara[part] - ara["set", "text"]).mean()) for name, part in parts.items()}


def skip_connections() -> tuple[int, int]:
    """Return the connections of skip layers and of the network, MNIST at 97.5 %."""
    rows = text()
    rows = rows[(rows.dataset == "mnist") & (rows.epsilon == 4.5) & (rows.rule == "liset")]
    return int(rows.skip_weights.iloc[0]), int(rows.connections.iloc[0])


def against_static() -> pd.Series:
    """Return the accuracy on Fashion-MNIST in percent, by rule and dropout ("code" or "text")."""
    rows = sweep.stored("liset-set")
    rows = rows[rows.definition == "scipy"]
    return 100 * rows.groupby(["rule", "zeros"]).test_accuracy.mean()


def over_random(rows: pd.DataFrame, dataset: str, rule: str, measure: str) -> Difference:
    """Return what a rule of growth gains over growth at random, in points, paired by seed.

    Parameters
    ----------
    rows : DataFrame
        The runs of the controls.
    dataset, rule : str
        Of which runs.
    measure : str
        "ara" or "test_accuracy".
    """
    part = rows[rows.dataset == dataset]
    pairs = 100 * runs_by_seed(part, "rule", (rule, "skips"), measure)
    return paired_difference(pairs[rule], pairs["skips"])


def controls(dataset: str) -> list[float]:
    """Return the ARA over growth at random: in a new half of the inputs, in a kept one, LiSET's."""
    rows = sweep.stored("liset-controls")
    rules = ("subset", "constant", "liset")
    return [over_random(rows, dataset, rule, "ara").mean for rule in rules]


def reason(setting: Setting, gamma: float | str, measure: str) -> str:
    """Write why our runs differ from print, if they do.

    The paper has single runs. Four of its cells have equal odds, so their spread is its noise.
    """
    place = list(MEASURES).index(measure)
    printed = PRINTED[setting][gamma][place]
    noise = NOISE[setting][place]
    ours = runs(program(), setting, gamma, measure)
    if not len(ours) or round(printed, 2) == round(ours.mean(), 2):
        return ""
    if may_end_at(printed, ours):
        return ""
    if abs(printed - ours.mean()) <= noise:
        return f"The paper has single runs; four of its cells of equal odds spread by {noise:.2f}."
    return "Open: the paper has a single run."
