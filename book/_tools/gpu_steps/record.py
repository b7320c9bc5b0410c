"""Rows of numbers that are on the disk as soon as they are measured."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

FLUSHED = 256 * 2**20  # bytes written to push everything else out of L2
WARMUP = 3

Call = Callable[[], object]


class Record:
    """Where a step writes what it finds.

    Parameters
    ----------
    out : Path
        Folder of ``rows.jsonl``, and of ``machine.json`` with what every row repeats.
    step : str
        Name of the step.
    rehearse : bool
        Whether this is the CPU and times mean nothing.
    """

    def __init__(self, out: Path, step: str, rehearse: bool) -> None:
        self.out = out
        self.step = step
        self.rehearse = rehearse
        self.device = torch.device("cpu" if rehearse else "cuda")
        self.rounds = 50
        file = out / "machine.json"
        self.machine = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def row(self, case: str, variant: str, quantity: str, value: object, unit: str, **more) -> None:
        """Write a row: `sparsity`, `low`, `high`, `rounds` and `note` may come with it."""
        found = {"step": self.step, "case": case, "variant": variant}
        found |= {"quantity": quantity, "value": value, "unit": unit, **more}
        found |= {"rehearsal": self.rehearse}
        found |= {"date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())}
        with (self.out / "rows.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(self.machine | found) + "\n")
        kept = "" if "sparsity" not in more else f" {more['sparsity']:.0%}"
        note = more.get("note", "")
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"  {case}, {variant}{kept}: {quantity} {shown} {unit}  {note}", flush=True)

    def absent(self, case: str, variant: str, why: str, **more) -> None:
        """Write that something was not measured, and why."""
        self.row(case, variant, "absent", None, "", note=why[:300], **more)

    @contextmanager
    def tried(self, case: str, variant: str, **more) -> Iterator[None]:
        """Write a row of what goes wrong in the block, and go on after it."""
        try:
            yield
        except Exception as error:
            why = (str(error).strip().splitlines() or [""])[0]
            self.absent(case, variant, f"{type(error).__name__}: {why}", **more)

    def on_device_only(self, case: str, variant: str, **more) -> bool:
        """Whether there is a GPU; if not, write that this needs one."""
        if self.rehearse:
            self.absent(case, variant, "needs a CUDA device", **more)
        return not self.rehearse

    def time(self, case: str, variant: str, call: Call, **more) -> float:
        """Write the milliseconds of a call; calls follow each other, L2 is as the last left it."""
        if self.rehearse:
            began = time.perf_counter()
            call()
            seconds = time.perf_counter() - began
            self.row(case, variant, "time", 1000 * seconds, "ms", rounds=1, **more)
            return 1000 * seconds
        from sparselib import timing

        found = timing.milliseconds(call, self.rounds, self.device)
        spread = {"low": found.low, "high": found.high, "rounds": found.rounds}
        self.row(case, variant, "time", found.median, "ms", **spread, **more)
        return found.median

    def time_flushed(self, case: str, variant: str, call: Call, **more) -> None:
        """Write the milliseconds of a call that finds nothing of its own in L2."""
        if self.rehearse:
            call()
            self.absent(case, variant + ", L2 flushed", "needs a CUDA device", **more)
            return
        other = torch.empty(FLUSHED, dtype=torch.uint8, device=self.device)
        pairs = []
        for _ in range(self.rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            other.zero_()
            start.record()
            call()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        low, median, high = quantiles([start.elapsed_time(end) for start, end in pairs])
        spread = {"low": low, "high": high, "rounds": self.rounds}
        self.row(case, variant + ", L2 flushed", "time", median, "ms", **spread, **more)


def can_run_triton(record: Record) -> bool:
    """Whether the kernels of sparselib run: on a GPU, or in the interpreter."""
    from sparselib.ops import dispatch

    return not record.rehearse or dispatch.CHOSEN == "interpret"


def quantiles(values: Sequence[float]) -> list[float]:
    """Return the 20 %, 50 % and 80 % quantiles."""
    asked = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    return torch.tensor(values, dtype=torch.float64).quantile(asked).tolist()


def captured(call: Call) -> Call:
    """Record a call that writes where it wrote before; on the CPU this is the call."""
    if not torch.cuda.is_available():
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Multiply float32 as it is ("fp32") or on tensor cores ("tf32") within the block."""
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
