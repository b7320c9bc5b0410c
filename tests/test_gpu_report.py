"""The report on a GPU, rehearsed on the CPU: rows of every step, whatever becomes of the others."""

import csv
import json
import os
import subprocess
import sys
import time

import gpu_report
import psutil
import pytest

STEPS = list(gpu_report.STEPS)
UNMEASURED = {
    "needs a CUDA device",
    "Triton cannot interpret here",
    "the library has no such layer yet",
    "not installed; without it",
}


def report(out, *options):
    command = [sys.executable, gpu_report.__file__, str(out), "--rehearse", *map(str, options)]
    quiet = {k: v for k, v in os.environ.items() if k != "SPARSELIB_BACKEND"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    with (out / "rows.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return done, rows


def ends(rows):
    """How each step ended, and why: rows without a case."""
    return {row["step"]: (row["quantity"], row["note"]) for row in rows if not row["case"]}


# a rehearsal spends most of its time in loading the same; where copies of a process can be had,
# its steps are copies of one, and the other tests see processes as they are started for a GPU
COPIES = ["--fork"] * (sys.platform == "linux")


@pytest.mark.slow
def test_a_rehearsal_leaves_rows_of_every_step(tmp_path):
    done, rows = report(tmp_path, *COPIES)
    assert ends(rows) == dict.fromkeys(STEPS, ("done", "")), done.stderr[-3000:]
    assert done.returncode == 0
    unexpected = [
        row for row in rows
        if row["quantity"] == "absent" and row["note"].partition(":")[0] not in UNMEASURED
    ]  # fmt: skip
    assert unexpected == []
    assert {row["rehearsal"] for row in rows} == {"True"}
    assert {row["torch"] for row in rows} == {rows[-1]["torch"]} != {""}
    assert all(row["commit"] and row["device"].startswith("CPU") for row in rows)
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(rows)
    measured = [row for row in rows if row["quantity"] == "time"]
    assert {row["step"] for row in measured} >= {"table3", "roofline", "convolution", "evolution"}
    assert all(float(row["value"]) > 0 for row in measured)


@pytest.mark.slow
def test_a_broken_and_a_hanging_step_leave_the_rows_of_others(tmp_path):
    steps = ["--steps", "roofline", "accuracy", "tiles"]
    options = ["--break", "roofline", "--hang", "accuracy", "--limit", "accuracy=2"]
    done, rows = report(tmp_path, *steps, *options)
    assert done.returncode == 1
    assert ends(rows) == {
        "machine": ("done", ""),
        "roofline": ("failed", "RuntimeError: step roofline is broken on purpose"),
        "accuracy": ("killed", "took longer than its 2 s"),
        "tiles": ("done", ""),
    }
    assert {row["step"] for row in rows if row["case"]} == {"machine", "tiles"}


@pytest.mark.skipif(sys.platform == "win32", reason="a process there cannot be asked to end")
def test_a_report_that_is_ended_ends_its_step(tmp_path):
    command = [sys.executable, gpu_report.__file__, tmp_path, "--rehearse", "--steps", "accuracy"]
    process = subprocess.Popen([*command, "--break", "machine", "--hang", "accuracy"])
    file = tmp_path / "rows.jsonl"
    while process.poll() is None and not file.exists():
        time.sleep(0.05)  # until the first step has failed
    step = None
    while step is None and process.poll() is None:
        step = next(iter(psutil.Process(process.pid).children()), None)
    process.terminate()
    assert process.wait(60) == 143
    assert not step.is_running()
    assert len(file.read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(not COPIES, reason="copies of a process are for Linux")
def test_copies_of_a_process_end_as_processes_do(tmp_path):
    steps = ["--steps", "roofline", "accuracy"]
    options = ["--break", "machine", "roofline", "--hang", "accuracy", "--limit", "accuracy=2"]
    done, rows = report(tmp_path, *steps, *options, *COPIES)
    assert done.returncode == 1
    assert ends(rows) == {
        "machine": ("failed", "RuntimeError: step machine is broken on purpose"),
        "roofline": ("failed", "RuntimeError: step roofline is broken on purpose"),
        "accuracy": ("killed", "took longer than its 2 s"),
    }
    assert done.stderr.count("Traceback") == 2


def test_every_step_may_break_the_first_too(tmp_path):
    done, rows = report(tmp_path, "--break", *STEPS)
    assert done.returncode == 1
    assert list(ends(rows)) == STEPS
    assert {how for how, _ in ends(rows).values()} == {"failed"}


def test_a_line_that_was_cut_off_costs_no_other(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"step": "table3", "value": 1.5}\n{"step": "table3", "val', encoding="utf-8")
    gpu_report.publish(tmp_path, {"step": "table3", "quantity": "killed"})
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [(row["value"], row["quantity"]) for row in rows] == [("1.5", ""), ("", "killed")]
    assert json.loads(file.read_text(encoding="utf-8").splitlines()[-1])["quantity"] == "killed"


def test_rows_of_another_run_are_not_written_over(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "rows.csv").write_text("", encoding="utf-8")
    done, _ = report(tmp_path)
    assert done.returncode == 2
    assert "holds the rows of another run" in done.stderr
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == "{}\n"


def test_limits_fit_the_whole():
    without_rest = {name: limit for name, limit in gpu_report.STEPS.items() if name != "tiles"}
    # a machine that is known in a few seconds leaves the others their own
    assert sum(without_rest.values()) - without_rest["machine"] <= gpu_report.WHOLE


@pytest.mark.slow
@pytest.mark.skipif(not gpu_report.can_interpret(), reason="Triton cannot interpret here")
def test_the_probe_and_the_block_sparse_baseline_compute_what_they_claim():
    from apart import run_plain

    run_plain(f"""
import os
os.environ["TRITON_INTERPRET"] = "1"
import sys, torch
sys.path.insert(0, {str(gpu_report.TOOLS)!r})
from gpu_steps.kernels import Blocks, Processor, gather
x = torch.randn(9, 256)
index = torch.randint(9, (3, 8), dtype=torch.int32)
sums = gather(index, x, torch.empty(3, 256))
torch.testing.assert_close(sums, x[index.long()].sum(1))
weights = Blocks(32, 64, 0.5, 16, torch.float32, torch.device("cpu"))
y = torch.randn(64, 37)
exact = (weights.dense().double() @ y[: weights.dense().shape[1]].double()).float()
torch.testing.assert_close(
    weights(y, relu=True), (exact + weights.bias[:, None]).relu(), rtol=1e-4, atol=1e-4
)
hopper = Processor(65_536, 2048, 228 * 1024)
assert hopper.occupancy(64, 16, 0) == 2 * 16 / 64  # of 64 warps; registers decide
assert hopper.occupancy(80, 8, 0) == 3 * 8 / 64
assert hopper.occupancy(32, 1, 0) == 32 / 64  # no more programs than that
assert hopper.occupancy(32, 16, 0) == 1
assert hopper.occupancy(32, 4, 100 * 1024) == 2 * 4 / 64  # shared memory decides
""")


def test_precision_is_put_back_where_it_was():
    import torch
    from gpu_steps.record import precision

    def both():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    def broken():
        with precision("fp32"):
            assert both() == ("highest", False)
            raise KeyError

    before = both()
    with precision("tf32"):
        assert both() == ("high", True)
        with pytest.raises(KeyError):
            broken()
        assert both() == ("high", True)
    assert both() == before


def test_a_baseline_of_semi_structured_weights_is_what_sparse_tensor_cores_take():
    import torch
    from gpu_steps.table3 import close, dense_chain, two_in_four

    weight = two_in_four(64, 32, torch.device("cpu"))
    assert weight.shape == (32, 64)
    assert weight.dtype == torch.bfloat16
    assert weight.is_contiguous()
    assert ((weight != 0).view(32, 16, 4).sum(2) <= 2).all()
    x = torch.randn(24, 64).bfloat16()
    last = torch.randn(10, 32).bfloat16()
    exact = (x.double() @ weight.double().t()).relu() @ last.double().t()
    close(dense_chain([weight, last], x)().double(), exact, 2e-2)
    with pytest.raises(AssertionError):
        close(dense_chain([weight.roll(1, 0), last], x)().double(), exact, 2e-2)


def shown(capsys, root, folder):
    """Run the page's cell on the rows of a folder; return what it prints and shows."""
    import pandas as pd

    from sparselib.tables import listing

    page = json.loads((root / "book/csr/speed.ipynb").read_text(encoding="utf-8"))
    (cell,) = (cell for cell in page["cells"] if cell["id"] == "ongpu001")
    tables = []
    names = {"pd": pd, "folder": folder, "display": tables.append, "listing": listing}
    exec("".join(cell["source"]), names)
    return capsys.readouterr().out, tables


def test_the_page_shows_rows_of_a_gpu_and_no_rehearsal(tmp_path, root, capsys):
    results = tmp_path / "data/results"
    results.mkdir(parents=True)
    assert shown(capsys, root, tmp_path) == ("on a GPU: not yet measured\n", [])
    row = {"step": "table3", "case": "inference 512", "variant": "sparse", "sparsity": 0.9}
    row |= {"quantity": "speedup", "value": 1.75, "date": "2030-01-01", "device": "a GPU"}
    version = {"step": "machine", "quantity": "version", "value": "0.68.1", "rehearsal": False}
    gpu_report.publish(results, version)  # so not all values are numbers
    for is_rehearsal in (True, False):
        gpu_report.publish(results, row | {"rehearsal": is_rehearsal})
        (results / "rows.csv").replace(results / "csr-gpu.csv")
        printed, tables = shown(capsys, root, tmp_path)
        assert ("not yet measured" in printed) == is_rehearsal
    assert "a GPU" in printed
    [head, line] = str(tables[0]).splitlines()[-2:]
    assert head.split() == ["case", "quantity", "variant", "90%"]
    assert line.split() == ["inference", "512", "speedup", "sparse", "1.8"]


def test_readme_claims_no_speed_on_a_gpu_before_one_was_measured(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    is_measured = (root / "data/results/csr-gpu.csv").exists()
    assert ("On a GPU nothing is measured yet" in text) != is_measured
