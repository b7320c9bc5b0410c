"""Measure on a GPU what only a GPU can tell: ``python book/_tools/gpu_report.py OUT``.

Seven steps, each a process of its own with its own time limit, in 480 seconds in all. What a step
measures is in ``OUT/rows.jsonl`` at once and in ``OUT/rows.csv`` after every step, one number per
row, with the device, the versions and the commit; so a run that is cut off is still worth
something, and a step that fails takes nothing from the others. What is not installed is named in
a row, and what does not need it goes on: nothing but Python, torch, Triton and numpy is necessary,
neither network nor installation.

``--rehearse`` goes through every step on the CPU, with tiny shapes, by Triton's interpreter where
it can interpret and by the definition elsewhere. Its times mean nothing, and its rows say so; so
its steps have ten minutes each, and there is no limit to the whole.
"""

import argparse
import csv
import importlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "book" / "_tools"
ABSENT = TOOLS / "gpu_steps" / "absent"
WHOLE = 480  # seconds
REHEARSED = 600  # seconds of a step of a rehearsal, which may wait for other work on its processor
# in this order, with their limits in seconds
STEPS = {
    "machine": 60,  # of which a machine that has read its files before needs five
    "correctness": 90,
    "table3": 120,
    "roofline": 60,
    "evolution": 40,
    "accuracy": 40,
    "convolution": 60,
    "language": 60,
    "tiles": 60,  # in the time that is left
}
# what asks this process to end
ENDING = {signal.SIGINT, signal.SIGTERM}
COLUMNS = [
    *("step", "case", "variant", "sparsity", "quantity", "value", "unit"),
    *("low", "high", "rounds", "note", "rehearsal", "date"),
    *("device", "driver", "cuda", "python", "torch", "triton", "numpy", "sparselib", "commit"),
]


def release(package: str) -> tuple[int, ...]:
    """Return the first two numbers of an installed version; empty if there is none."""
    try:
        return tuple(map(int, metadata.version(package).split(".")[:2]))
    except metadata.PackageNotFoundError:
        return ()


def can_interpret() -> bool:
    """Whether Triton's interpreter works with this numpy: 3.6 fails with numpy 2.4."""
    triton = release("triton")
    return triton >= (3, 7) or (triton >= (3, 6) and release("numpy") < (2, 4))


def environment(rehearse: bool) -> dict[str, str]:
    """Return the environment of a step, in which the library of this checkout is found."""
    chosen = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = [str(ROOT), str(TOOLS)]
    if not release("jaxtyping"):  # its annotations are all that the library needs of it
        paths.append(str(ABSENT))
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    chosen["PYTHONPATH"] = os.pathsep.join(paths)
    for data in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data"):
        if data.is_dir():
            chosen.setdefault("SPARSELIB_DATA", str(data))
    if rehearse:
        chosen |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        chosen["SPARSELIB_BACKEND"] = "interpret" if can_interpret() else "reference"
        if can_interpret():
            chosen["TRITON_INTERPRET"] = "1"
    return chosen


def hold_back() -> None:
    """Let what asks this process to end wait until `listen`: a step that starts would be left."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def listen() -> None:
    """End if asked to, from now on."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def started(arguments: list[str], seconds: float, rehearse: bool) -> tuple[int | None, str]:
    """Run a step in a group of processes of its own; return its status, None if killed, and why."""
    hold_back()
    process = subprocess.Popen(
        [sys.executable, "-m", "gpu_steps", *arguments],
        cwd=ROOT,
        env=environment(rehearse),
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        preexec_fn=listen,
    )
    try:
        listen()
        _, errors = process.communicate(timeout=seconds)
    except BaseException as error:  # an interrupt too ends what was started
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            return None, ""
        raise
    return process.returncode, errors


def load() -> None:
    """Load in this process what the steps of a rehearsal load, each in its own."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ |= environment(True)
    sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
    import torch

    importlib.import_module("sparselib")
    if can_interpret():
        importlib.import_module("sparselib.ops.backends.gpu_conv")
    torch.optim.SGD([torch.zeros(1)], 0.1)  # the first one loads the compiler


def forked(arguments: list[str], seconds: float) -> tuple[int | None, str]:
    """Run a step of a rehearsal in a copy of this process, after `load`; as `started`."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        context = multiprocessing.get_context("fork")
        copy = context.Process(target=_step, args=(arguments, errors.fileno()))
        hold_back()
        copy.start()
        try:
            listen()
            copy.join(seconds)
        finally:
            is_late = copy.is_alive()
            if is_late:
                copy.kill()
                copy.join()
        errors.seek(0)
        return (None, "") if is_late else (copy.exitcode, errors.read())


def _step(arguments: list[str], errors: int) -> None:
    from gpu_steps.__main__ import main

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    listen()
    os.dup2(errors, 2)
    main(arguments)


def outcome(status: int | None, errors: str, seconds: float) -> tuple[str, str]:
    """Return how a step ended, and why."""
    if status is None:
        return "killed", f"took longer than its {seconds:g} s"
    if status == 0:
        return "done", ""
    lines = errors.strip().splitlines() or [f"ended with status {status}"]
    print("\n".join(lines[-20:]), file=sys.stderr)
    return "failed", lines[-1][:300]


def read(out: Path) -> list[dict[str, object]]:
    """Return the rows so far; a line that was cut off is left out."""
    found = []
    for line in (out / "rows.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def publish(out: Path, row: dict[str, object]) -> None:
    """Add how a step ended, and write the table anew."""
    file = out / "rows.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    described = out / "machine.json"
    if described.exists():
        row = json.loads(described.read_text(encoding="utf-8")) | row
    with file.open("a", encoding="utf-8") as lines:
        cut_off = text and not text.endswith("\n")
        lines.write("\n" * bool(cut_off) + json.dumps(row) + "\n")
    fresh = out / "rows.csv.new"
    with fresh.open("w", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(read(out))
    fresh.replace(out / "rows.csv")


def main() -> int:
    """Carry out the steps; status 1 if one of them did not end well, 2 if there is no device."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and with it the step under way
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if (out / "rows.jsonl").exists():
        print(f"{out} holds the rows of another run; name another folder", file=sys.stderr)
        return 2
    if given.fork:
        load()
    end = time.monotonic() + (math.inf if given.rehearse else WHOLE)
    outcomes = {}
    for name in ["machine", *(step for step in given.steps if step != "machine")]:
        began = time.monotonic()
        usual = REHEARSED if given.rehearse else STEPS[name]
        limit = min(given.limit.get(name, given.limit.get("", usual)), end - began)
        if limit < 1:
            how, why = "left out", f"the {WHOLE} s were over"
        else:
            step = [name, str(out), *["--rehearse"] * given.rehearse]
            step += ["--break"] * (name in given.broken)
            step += ["--hang"] * (name in given.hanging)
            found = forked(step, limit) if given.fork else started(step, limit, given.rehearse)
            how, why = outcome(*found, limit)
        outcomes[name] = how
        seconds = round(time.monotonic() - began, 1)
        row = {"step": name, "quantity": how, "value": seconds, "unit": "s", "note": why}
        row |= {"rehearsal": given.rehearse}
        row |= {"date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())}
        publish(out, row)
        print(f"{name:12} {how:8} {seconds:6.1f} s of {limit:.0f}  {why}", flush=True)
        if name == "machine" and how == "failed" and not given.rehearse:
            return 2
    print(f"{len(read(out))} rows in {out / 'rows.csv'}")
    return 0 if set(outcomes.values()) == {"done"} else 1


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the rows, made if it is not there")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP")
    parser.add_argument(
        *("--limit", "--limits"),
        nargs="+",
        type=limited,
        default=[],
        metavar="[STEP=]SECONDS",
        help="seconds of each step, or of one of them, in place of its own",
    )
    for_tests = {"nargs": "+", "choices": STEPS, "default": [], "help": argparse.SUPPRESS}
    parser.add_argument("--break", dest="broken", **for_tests)
    parser.add_argument("--hang", dest="hanging", **for_tests)
    # Python, torch and the library are loaded once, which is most of a rehearsal
    parser.add_argument("--fork", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.fork and not given.rehearse:
        parser.error("a copy of a process cannot use CUDA; --fork is for --rehearse")
    given.limit = dict(given.limit)
    return given


def limited(text: str) -> tuple[str, float]:
    """Read ``STEP=SECONDS``; seconds alone are those of every step, whose name is empty here."""
    name, _, seconds = text.rpartition("=")
    if name and name not in STEPS:
        raise argparse.ArgumentTypeError(f"no step {name!r}; there are {', '.join(STEPS)}")
    return name, float(seconds)


if __name__ == "__main__":
    sys.exit(main())
