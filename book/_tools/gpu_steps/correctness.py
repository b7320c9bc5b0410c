"""Step 1: what has to be right before a time means anything."""

from collections import Counter
from pathlib import Path

from gpu_steps.record import Record

TESTS = Path(__file__).resolve().parents[3] / "tests"
# the order counts: what comes late is what is lost if compiling takes long
ON_DEVICE = [
    "test_gpu.py::test_a_layer_and_its_gradients_equal_the_dense_twin",
    "test_gpu.py::test_a_network_gives_what_its_layers_give",
    "test_gpu.py::test_what_is_not_finite_passes_as_in_the_definition",
    "test_gpu.py::test_a_replayed_step_is_a_step",
    "test_gpu.py::test_evolution_between_replays_is_evolution_between_steps",
    "test_gpu.py::test_a_recorded_forward_pass_sees_new_weights_and_connections",
    "test_gpu.py::test_evolution_on_the_device_waits_for_nothing",
    "test_gpu.py::test_cpu_and_gpu_choose_the_same_connections",
    "test_gpu.py::test_the_same_numbers_come_every_time",
    "test_gpu.py::test_offsets_beyond_two_to_the_thirty_first",
    "test_gpu_conv.py",
    "test_gpu.py::test_products_equal_the_definition_in_float64",
]
# on the CPU: what is recorded there, and a kernel as it is interpreted
WITHOUT_INTERPRETER = ["test_cuda_graphs.py::test_inference_is_the_forward_pass_in_evaluation_mode"]
REHEARSED = [*WITHOUT_INTERPRETER, "interpreted.py::test_every_tile_gives_the_product[shape5]"]


class Counting:
    """Counts the outcomes of a test function, and writes a row once it is over."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.current = ""
        self.counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report) -> None:
        """Count what ran, what was skipped, and what failed anywhere."""
        name = report.nodeid.partition("[")[0].rpartition("/")[2]
        if name != self.current:
            self.write()
            self.current = name
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.outcome == "failed":
            why = str(report.longrepr).strip().splitlines()[-1]
            self.record.row("test", report.nodeid, "failed", 1, "", note=why[:300])

    def write(self) -> None:
        """Write what the function's tests came to."""
        for outcome, count in sorted(self.counts.items()):
            self.record.row("tests", self.current, outcome, count, "")
        self.counts.clear()


def run(record: Record) -> None:
    """Run the tests, without the options of the suite, which need more packages."""
    import pytest

    from sparselib.ops import dispatch

    chosen = ON_DEVICE
    if record.rehearse:
        own = REHEARSED if dispatch.CHOSEN == "interpret" else WITHOUT_INTERPRETER
        chosen = [*own, *ON_DEVICE]  # the latter are skipped, if they are found
    counting = Counting(record)
    nothing = record.out / "pytest.ini"
    nothing.write_text("[pytest]\n", encoding="utf-8")
    options = ["-q", "-c", str(nothing), f"--rootdir={TESTS.parent}", "-p", "no:cacheprovider"]
    options += ["-W", "ignore", "--tb=short", "--no-header"]
    status = pytest.main([*options, *(str(TESTS / name) for name in chosen)], plugins=[counting])
    counting.write()
    if status != pytest.ExitCode.OK:
        raise SystemExit(f"pytest ended with {status!r}")
