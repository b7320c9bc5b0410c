"""The modules beside the first pages: each number once more, by a second way or as a fact."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sparselib import sweep
from sparselib.datasets import apnea_records

ROOT = Path(__file__).resolve().parent.parent
RATES = ("labeled_rates", "predicted_rates")
CHAPTERS = ("csr", "liset", "dsn", "san", "pruning")
sys.path[:0] = [str(ROOT / "book" / chapter) for chapter in CHAPTERS]

import bizopoulos  # noqa: E402
import daubechies  # noqa: E402
import ertl  # noqa: E402
import ganjdanesh  # noqa: E402
import radu  # noqa: E402
import vanwinsen  # noqa: E402


@pytest.fixture(autouse=True)
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages run in their own folder."""
    monkeypatch.chdir(ROOT / "book" / "csr")


def test_a_99_percent_layer_of_512_is_56_times_smaller_and_less_with_a_transpose() -> None:
    plain, transposed = ertl.memory()
    assert round(plain) == 56
    assert transposed < plain


def test_gains_are_differences_of_runs_with_the_same_seed() -> None:
    accuracy = {
        (row["rule"], row["sparsity"], row["seed"]): 100 * float(row["test_accuracy"])
        for row in sweep.stored("csr-figure10").astype(str).to_dict("records")
    }
    gains = ertl.gains()
    assert set(gains) == set(ertl.LEVELS)
    for sparsity, gain in gains.items():
        seeds = {seed for _, level, seed in accuracy if level == str(sparsity)}
        of_seeds = [
            accuracy["gradient", str(sparsity), seed] - accuracy["static", str(sparsity), seed]
            for seed in seeds
        ]
        assert gain.pairs == len(seeds) >= 5
        assert gain.mean == pytest.approx(np.mean(of_seeds))


def test_step_sizes_are_paired_by_seed() -> None:
    rows = sweep.stored("csr-step").query("rule == 'gradient'")
    for (dataset, images, level), pairs in ertl.steps().items():
        same = rows[(rows.dataset == dataset) & (rows["images"] == images)]
        same = same[same.sparsity == level].set_index(["lr", "seed"]).test_accuracy
        assert len(pairs) >= 3
        for seed, line in pairs.iterrows():
            assert line[1.0] == pytest.approx(100 * same[1.0, seed])
            assert line[0.5] == pytest.approx(100 * same[0.5, seed])


def test_speedups_are_those_of_three_sparsities_in_rising_order() -> None:
    for mode, sizes in (("inference", ertl.INFERENCE), ("training", ertl.TRAINING)):
        found = ertl.speedups(mode, sizes)
        assert len(found) == 3
        assert found == sorted(found)
        rows = sweep.stored("csr-speed-zen3")
        rows = rows[(rows["mode"] == mode) & (rows.sizes == sizes) & rows.sparse_ms.notna()]
        curves = np.array([cell.split() for cell in rows.sparse_speedup], dtype=float)
        assert set(found) <= set(np.median(curves, axis=0))


def test_seconds_are_counted_in_whole_epochs_of_each_network() -> None:
    timed = sweep.stored("csr-seconds")
    timed = timed[timed.sizes == ertl.MNIST_NETWORK]
    sparse = ertl.table4().query("dataset == 'mnist' and sparsity == '0.9'")
    dense = sweep.stored("csr-step").query("dataset == 'mnist' and rule == 'dense'")
    dense = dense[(dense.lr == 1) & (dense.init == "torch") & (dense.epochs == 100)]
    for place, (sparsity, runs) in enumerate(((0.0, dense), (0.9, sparse))):
        measured = timed[timed.sparsity == sparsity]
        epoch = measured.train_seconds.median() / measured.epochs.iloc[0]
        thirtieth = 100 * np.mean([sweep.curve(cell)[29] for cell in runs.valid_curve])
        assert ertl.at_equal_seconds(30.001 * epoch)[place] == pytest.approx(thirtieth)
    for seconds in (0, 1e6):
        with pytest.raises(ValueError, match="epochs; the runs have 1 to 100"):
            ertl.at_equal_seconds(seconds)


def test_every_printed_cell_of_table_4_has_runs() -> None:
    assert set(ertl.TABLE_4) <= set(ertl.accuracies())
    assert {sparsity for _, sparsity in ertl.TABLE_4} == set(ertl.SPARSITIES)
    assert ertl.series([1, 2.25], ".1f") == "1.0, 2.2"


def test_liset_takes_runs_of_set_and_of_one_gamma() -> None:
    rows = radu.program()
    of_set = radu.runs(rows, ("mnist", 4.5), "SET")
    assert set(rows.loc[of_set.index].rule) == {"set"}
    of_three = radu.runs(rows, ("mnist", 4.5), 3, "accuracy")
    assert set(rows.loc[of_three.index].gamma) == {3}
    ends = radu.from_set_to(3, ("mnist", 4.5), "accuracy")
    mean = 100 * rows.loc[of_three.index].test_accuracy.mean()
    assert ends.endswith(f" to {mean:.2f} %")
    assert len(radu.above_set()) == 44


@pytest.mark.parametrize(
    ("ours", "why"),
    [
        ([0.6577, 0.6577], ""),
        ([0.64, 0.68], ""),
        ([0.6500, 0.6501], "The paper has single runs; four of its cells of equal odds spread by"),
        ([0.50, 0.501], "Open: the paper has a single run."),
    ],
)
def test_a_difference_from_print_has_a_reason(
    monkeypatch: pytest.MonkeyPatch, ours: list[float], why: str
) -> None:
    rows = radu.program().iloc[:2].copy()
    rows["dataset"], rows["epsilon"], rows["rule"], rows["ara"] = "mnist", 4.5, "set", ours
    monkeypatch.setattr(radu, "program", lambda: rows)
    assert radu.reason(("mnist", 4.5), "SET", "ARA").startswith(why)
    assert bool(radu.reason(("mnist", 4.5), "SET", "ARA")) == bool(why)


def test_counts_of_table_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters do not depend on the length of a minute; shares of operations nearly not."""
    assert set(vanwinsen.NETWORKS) == set(vanwinsen.TABLE_1)
    of_any_length = {name: vanwinsen.NETWORKS[name] for name in ("dense DSN", "OS-CNN")}
    monkeypatch.setattr(vanwinsen, "NETWORKS", of_any_length)
    monkeypatch.setattr(vanwinsen, "MINUTE", (1, 300))
    counted = vanwinsen.counted()
    assert counted["dense DSN"][0] == 621.955
    assert counted["OS-CNN"][0] == 235.741
    first, second = vanwinsen.slopes()
    assert first == pytest.approx(second, rel=1e-2)
    assert vanwinsen.saved_by_three_layers() == pytest.approx(1 / 3, abs=0.01)


def test_a_night_is_right_if_its_grade_is() -> None:
    rows = vanwinsen.windows().loc[("DSN, 95 %", "record", 1)]
    count = sum(len(cell.split()) for cell in rows.labeled_rates)
    agree = sum(
        float(share) * len(cell.split())
        for share, cell in zip(rows.class_agrees, rows.labeled_rates, strict=True)
    )
    assert vanwinsen.right_grades() == pytest.approx(agree / count)


def test_the_network_and_the_trees_are_tested_on_the_same_minutes() -> None:
    runs = vanwinsen.windows()
    network, trees = (runs.loc[name].sort_index() for name in runs.index.levels[0])
    shared = network.index.intersection(trees.index)
    assert len(shared) == len(network) > 0
    for column in ("test_minutes", "nights", "labeled_rates"):
        assert network[column].tolist() == trees.loc[shared][column].tolist()
    tested = vanwinsen.nights(network.loc[("record", 0)])
    assert tested.index.is_unique


def test_classifiers_are_paired_by_the_folds_that_both_were_tested_on() -> None:
    every = vanwinsen.classifiers()
    for name, by in {(name, by) for name, by, _, _ in every.index if name != "DSN, 95 %"}:
        if (name, by, 1) not in every.index or len(every.loc[(name, by, 1)]) < 2:
            continue
        theirs, ours = every.loc[(name, by, 1)], every.loc[("DSN, 95 %", by, 1)].loc
        ours = ours[theirs.index]
        assert ours.test_minutes.tolist() == theirs.test_minutes.tolist()
        assert ours.labeled_rates.tolist() == theirs.labeled_rates.tolist()
        mean = 100 * (theirs.balanced_accuracy.mean() - ours.balanced_accuracy.mean())
        found = vanwinsen.ahead(name, "DSN, 95 %", "balanced_accuracy", by)
        assert found.mean == pytest.approx(mean)
        assert found.pairs == len(theirs)
    assert vanwinsen.ahead("DSN, 95 %", "DSN, 95 %") == (0, 0, 0, 5)


def test_indices_are_paired_by_night() -> None:
    found = vanwinsen.further_off("boosted trees", "DSN, 95 %")
    errors = [vanwinsen.off(name) for name in ("boosted trees", "DSN, 95 %")]
    assert [len(part) for part in errors] == [35, 35]
    assert (found.pairs, found.mean) == (35, pytest.approx(errors[0].mean() - errors[1].mean()))
    rows = vanwinsen.classifiers().loc[("DSN, 95 %", "record", 1)]
    labeled, predicted = (sweep.curve(rows[name].iloc[0]) for name in RATES)
    assert errors[1][rows.nights.iloc[0].split()].tolist() == abs(labeled - predicted).tolist()


def test_counts_of_a_night_left_out_are_those_of_its_confusion_matrix() -> None:
    rows = vanwinsen.single_nights()["boosted trees"]
    cells = np.stack([sweep.curve(cell) for cell in rows.confusion])
    counts = vanwinsen.left_out("boosted trees")
    assert counts["right quiet"].tolist() == cells[:, 0].tolist()
    assert counts["right apnea"].tolist() == cells[:, 3].tolist()
    assert counts.quiet.tolist() == (cells[:, 0] + cells[:, 1]).tolist()
    assert counts.apnea.tolist() == (cells[:, 2] + cells[:, 3]).tolist()


def test_nights_left_out_are_paired_by_night() -> None:
    pair = ("DSN, 95 %", "boosted trees")
    network, trees = (vanwinsen.left_out(name).accuracy for name in pair)
    found = vanwinsen.ahead_by_night(*pair)
    assert found["accuracy"].pairs == found["off"].pairs == 35
    assert found["accuracy"].mean == pytest.approx(100 * (network.mean() - trees.mean()))


def test_noise_is_left_out_of_training_alone() -> None:
    kept, clean = (sweep.stored(f"dsn-{name}") for name in ("yardsticks", "noise-yardsticks"))
    cases = kept[(kept.normalize == "night") & (kept.by == "record") & (kept.neighbors == 1)]
    pair = [rows[rows.model == "boosting"].set_index(["split", "fold"]) for rows in (cases, clean)]
    with_noise, without = (rows.sort_index() for rows in pair)
    assert with_noise.test_minutes.tolist() == without.test_minutes.tolist()
    lost = with_noise.train_minutes - without.train_minutes
    assert ((lost > 0) & (lost < 1437)).all()
    gain = 100 * (without.auroc - with_noise.auroc).mean()
    found = vanwinsen.without_noise("auroc")
    assert (found.pairs, found.mean) == (15, pytest.approx(gain))


def test_the_official_test_set_is_shown_as_soon_as_its_tables_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of other tests stand for them: only their columns matter here."""
    tables = tmp_path / "data" / "results"
    tables.mkdir(parents=True)
    monkeypatch.chdir(tables)
    assert vanwinsen.official() == {}
    stored = ROOT / "data" / "results"
    (tables / "dsn-official.csv").write_bytes((stored / "dsn-windows.csv").read_bytes())
    assert len(vanwinsen.official()["DSN, 95 %"]) == 10
    yardsticks = stored / "dsn-yardsticks.csv"
    (tables / "dsn-official-yardsticks.csv").write_bytes(yardsticks.read_bytes())
    assert {"DSN, 95 %", "boosted trees", "logistic regression"} <= set(vanwinsen.official())


@pytest.mark.parametrize("name", ["DSN, 95 %", "boosted trees"])
def test_one_night_left_out_tests_every_minute_once(name: str) -> None:
    nights = vanwinsen.left_out(name)
    assert nights.index.tolist() == list(apnea_records.LEARNING)
    assert (nights.quiet.sum(), nights.apnea.sum()) == (17_045 - 6514, 6514)


def test_only_the_topology_differs_between_runs_that_move_and_runs_that_do_not() -> None:
    moved = vanwinsen.without_movement()
    assert {by: difference.pairs for by, difference in moved.items()} == {"minute": 5, "record": 5}
    runs = vanwinsen.classifiers()
    chosen = ["model", "sparsity", "epochs", "kept", "lr", "channels", "layers", "kernel_size"]
    chosen += ["normalize", "balance", "valid", "topology", "padding", "seed"]
    still, moving = (
        runs.loc[name].xs(1, level="neighbors") for name in (vanwinsen.FIXED, vanwinsen.SPARSE)
    )
    assert still[chosen].sort_index().equals(moving[chosen].sort_index())
    assert set(still.rule) == {"static"}


@pytest.mark.filterwarnings("error")
def test_networks_are_compared_night_by_night() -> None:
    assert vanwinsen.on_unseen_nights(0.95) == (0, 0, 0, 5)
    rows = vanwinsen.by_night()
    mean = 100 * rows.groupby(["model", "sparsity", "by"]).balanced_accuracy.mean()
    gap = mean["dsn", 0.0, "record"] - mean["dsn", 0.95, "record"]
    assert vanwinsen.on_unseen_nights(0.0).mean == pytest.approx(gap)


def test_phi_at_a_size_is_the_number_at_its_place() -> None:
    rows = bizopoulos.table(2)
    same = rows[rows.activation == "extrema"]
    sizes = [json.loads(cell) for cell in same.sizes]
    for size in (8, 15):
        found = bizopoulos.runs(rows, size, "test_phi", activation="extrema")
        phi = [dict(zip(m, sweep.curve(cell))) for m, cell in zip(sizes, same.test_phi)]
        assert found.tolist() == [curve[size] for curve in phi]
    assert bizopoulos.lowest("mitdb/100", "identity").mean() == pytest.approx(2, abs=0.01)
    assert bizopoulos.change(1, "") == 0
    assert bizopoulos.span([0.5, 0.25]) == "0.25 to 0.50"


def test_an_architecture_is_read_off_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ganjdanesh.architecture("ResNet-56") == ganjdanesh.PRINTED["ResNet-56"]
    small = {"ResNet-56": ganjdanesh.PRINTED["ResNet-56"]}
    monkeypatch.setattr(ganjdanesh, "PRINTED", small)
    rows = ganjdanesh.architectures()
    assert [row[:2] for row in rows] == [("ResNet-56", q) for q in ganjdanesh.QUANTITIES]


def test_structures_of_the_controls_have_equally_many_runs() -> None:
    seeds = len(ganjdanesh.whole(ganjdanesh.digits()))
    for _, structure, gamma_1 in ganjdanesh.STRUCTURES:
        assert len(ganjdanesh.on_digits(structure, gamma_1)) == seeds
    for flops, _, structure, gamma_1 in ganjdanesh.ON_CIFAR10:
        assert len(ganjdanesh.on_photographs(flops, structure, gamma_1)) >= 2


def test_as_printed_equation_14_keeps_less_than_it_should() -> None:
    assert ganjdanesh.share_kept() == pytest.approx(1 - np.exp(-1), abs=0.005)
    assert ganjdanesh.share_open() > 0.99
    low, high = ganjdanesh.bounds_of_centers()
    assert (low, high) == pytest.approx((16 - 14 * np.tanh(1), 16 + 14 * np.tanh(1)), abs=1e-4)


WAYS = (*bizopoulos.ACTIVATIONS, "pursuit", "csc", "wavelet")


@pytest.mark.parametrize("kind", ["", "_squared", "_sent"])
def test_streams_of_a_record_are_a_front_and_the_shortest_is_on_it(kind) -> None:
    for _, row in sweep.stored("san-bits").iterrows():
        for way in WAYS:
            bits = sweep.curve(row[f"{way}{kind}_bits"])
            errors = sweep.curve(row[f"{way}{kind}_error"])
            assert (np.diff(bits) >= 0).all()
            assert (np.diff(errors) <= 0).all()
            shortest = bits[errors == errors[-1]].min()  # errors round alike
            assert bizopoulos.least_bits(row, [way], errors[-1], kind) == shortest
            assert bizopoulos.least_bits(row, [way], -1.0, kind) == np.inf


def test_kernels_cost_bits_and_a_wavelet_has_none() -> None:
    for _, row in sweep.stored("san-bits").iterrows():
        assert row.wavelet_bits == row.wavelet_sent_bits
        for level in (0.6, 0.3):
            sent, alone = (bizopoulos.least_bits(row, WAYS[:5], level, k) for k in ("_sent", ""))
            assert sent > alone


def test_the_wavelet_is_orthonormal_and_does_not_see_cubics() -> None:
    """Four vanishing moments (Daubechies, 1992): details of a cubic are zero away from its ends."""
    basis = daubechies.basis(128, levels=2).numpy()
    assert np.allclose(basis @ basis.T, np.eye(128), atol=1e-12)
    cubic = np.linspace(-1, 1, 128) ** 3
    details = basis[64:] @ cubic
    assert np.abs(details[:60]).max() < 1e-9
    assert np.abs(details).max() > 0.1
