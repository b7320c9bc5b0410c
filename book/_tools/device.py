"""Measure sparse networks on an emulated Cortex-M4: bytes, instructions, correctness.

    python book/_tools/device.py [--dry-run]

needs ``arm-none-eabi-gcc`` and ``qemu-system-arm``. The emulator executes one instruction per
nanosecond of its clock (``-icount shift=0``); the board's timer counts at 25 MHz, so that a tick is
40 instructions. Networks are as they are at initialization: what is counted does not depend on
the weights.
"""

import argparse
import shutil
import struct
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import sparselib as sl
from sparselib.sweep.rows import provenance

HERE = Path(__file__).parent / "cortex"
TABLE = Path(__file__).resolve().parents[2] / "data/results/dsn-device.csv"
COMPILER = "arm-none-eabi-gcc"
EMULATOR = "qemu-system-arm"
OPTIONS = [
    *("-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard", "-O2"),
    *("-std=c99", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib"),
]
BOARD = ["-M", "mps2-an386", "-nographic", "-semihosting", "-icount", "shift=0"]
INSTRUCTIONS = 40  # per tick
SPARSITIES = (0.0, 0.8, 0.9, 0.95, 0.99)


def mnist(sparsity: float) -> tuple[nn.Module, tuple[int, ...]]:
    """The network of Ertl's Table 4."""
    layer = partial(sl.CSRLinear, sparsity=sparsity) if sparsity else nn.Linear
    return sl.MLP(784, 256, 256, 256, 10, layer=layer), (784,)


def apnea(sparsity: float) -> tuple[nn.Module, tuple[int, ...]]:
    """The network of the apnea chapter, on the intervals between beats of one minute."""
    return sl.DSN(8, 3, 12, sparsity), (1, sl.datasets.apnea_ecg("synthetic").features)


NETWORKS = {"MNIST, 784-256-256-256-10": mnist, "apnea, 8 filters, 3 layers": apnea}


def measure(
    source: sl.export.Source, sample: torch.Tensor, folder: Path
) -> tuple[int, list[float]]:
    """Return the instructions of a sample, and what the network returned."""
    numbers = ", ".join(f"{value.hex()}f" for value in sample.flatten().tolist())
    given = f"static const float sample[] = {{{numbers}}};\n"
    file = folder / "network.c"
    main = (HERE / "main.c").read_text(encoding="ascii")
    file.write_text(source.text + given + main, encoding="ascii")
    program = folder / "network.elf"
    script = ["-T", str(HERE / "memory.ld")]
    subprocess.run([COMPILER, *OPTIONS, *script, file, "-o", program, "-lgcc"], check=True)
    command = [EMULATOR, *BOARD, "-kernel", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    ticks, *bits = done.stderr.split()
    results = [struct.unpack(">f", bytes.fromhex(each))[0] for each in bits]
    return INSTRUCTIONS * int(ticks, 16), results


def row(name: str, sparsity: float) -> dict[str, object]:
    """Measure one network."""
    torch.manual_seed(0)
    model, shape = NETWORKS[name](sparsity)
    sample = torch.randn(1, *shape)
    source = sl.export.c(model, sample)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        instructions, results = measure(source, sample, Path(folder))
        expected = model.eval()(sample).flatten().tolist()
    difference = max(abs(a - b) for a, b in zip(results, expected, strict=True))
    assert difference < 1e-5, (name, sparsity, difference)
    return {
        "network": name,
        "sparsity": sparsity,
        "flash": source.flash,
        "ram": source.ram,
        "instructions": instructions,
        "difference": f"{difference:.0e}",
    }


def main() -> None:
    """Measure every network at every sparsity."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print, and write no table")
    dry = parser.parse_args().dry_run
    if not (shutil.which(COMPILER) and shutil.which(EMULATOR)):
        parser.error(f"{COMPILER} and {EMULATOR} are needed; Debian: gcc-arm-none-eabi, "
                     "qemu-system-arm")  # fmt: skip
    rows = []
    for name in NETWORKS:
        for sparsity in SPARSITIES:
            rows.append(row(name, sparsity))
            print(rows[-1])
    if not dry:
        pd.DataFrame([one | provenance() for one in rows]).to_csv(TABLE, index=False)


if __name__ == "__main__":
    main()
