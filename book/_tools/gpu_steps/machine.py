"""Step 0: what this machine is, what is installed, and what is missing."""

import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from gpu_steps.record import Record

ROOT = Path(__file__).resolve().parents[3]
NECESSARY = ("torch", "triton", "numpy")
# without them something is left out, and a row says what
USEFUL = {
    "pytest": "correctness",
    "hypothesis": "correctness, which loads the tests' settings",
    "numba": "the CPU's kernels, the other side of a comparison",
    "jaxtyping": "nothing: its annotations are stood in for",
}


def run(record: Record) -> None:
    """Write ``machine.json``, which every row repeats, and what is missing."""
    found = {
        "device": device(record),
        "driver": driver(),
        "cuda": torch.version.cuda or "none",
        "python": platform.python_version(),
        **{package: version(package) for package in NECESSARY},
    }
    found |= {"sparselib": own_version(), "commit": commit()}
    file = record.out / "machine.json"
    file.write_text(json.dumps(found), encoding="utf-8")
    record.machine = found
    for package, lost in USEFUL.items():
        number = version(package)
        if number == "absent":
            record.absent("packages", package, f"not installed; without it: {lost}")
        else:
            record.row("packages", package, "version", number, "")
    if not record.rehearse and not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device; --rehearse goes through the steps on a CPU")
    with record.tried("packages", "sparselib"):
        import sparselib

        record.row("packages", "sparselib", "version", sparselib.__version__, "")
    if not record.rehearse:
        properties = torch.cuda.get_device_properties(0)
        record.row("device", "multiprocessors", "count", properties.multi_processor_count, "")
        record.row("device", "memory", "size", properties.total_memory / 2**30, "GiB")
        record.row("device", "L2", "size", properties.L2_cache_size / 2**20, "MiB")


def version(package: str) -> str:
    """Return an installed version, or "absent"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def own_version() -> str:
    """Return the version of this checkout, which need not be installed."""
    text = (ROOT / "sparselib" / "_version.py").read_text(encoding="utf-8")
    return text.partition('__version__ = "')[2].partition('"')[0]


def commit() -> str:
    """Return the commit, or a digest of the library's sources where there is no repository."""
    if named := os.environ.get("SPARSELIB_COMMIT"):
        return named
    answer = asked("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if answer:
        changed = asked("git", "-C", str(ROOT), "status", "--porcelain", "--", "sparselib")
        return answer + "+" * bool(changed)
    digest = hashlib.sha256()
    for file in sorted((ROOT / "sparselib").rglob("*.py")):
        digest.update(file.read_bytes())
    return f"sources {digest.hexdigest()[:16]}"


def device(record: Record) -> str:
    """Name the GPU, or the kind of processor that stands in for it."""
    if record.rehearse or not torch.cuda.is_available():
        return f"CPU, {platform.machine()}"
    return torch.cuda.get_device_name(0)


def driver() -> str:
    """Return the driver's version and the clocks that it allows."""
    asks = "driver_version,clocks.max.sm,clocks.max.mem,power.limit"
    return asked("nvidia-smi", f"--query-gpu={asks}", "--format=csv,noheader") or "none"


def asked(*command: str) -> str:
    """Return the first line of what a program prints, or nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else ""
