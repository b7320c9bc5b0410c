"""Measure the kernels on this machine, as shares of what its cores could compute.

Status 1 if a share is below its floor. Each case is a run of `book/csr/timing.ipynb`, so what is
measured is what the book shows. Ratios to the dense layers are printed; no floor is one of them,
for they depend on the processor and on the library that PyTorch was built with.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import kernels
import numpy as np
import papermill

PAGE = Path(__file__).parents[1] / "csr/timing.ipynb"
SPARSITIES = [0.9, 0.97, 0.99]
Shares = tuple[float, float, float]


class Case(NamedTuple):
    """What runs, and the least shares of the roof at 90, 97 and 99 % that it has to reach."""

    name: str
    point: dict[str, object]
    floors: dict[str, Shares]


def layer(size: int) -> Case:
    """The three products of a square layer, 512 samples."""
    floors = {
        "sparse": (0.35, 0.20, 0.09),
        "input_gradient": (0.30, 0.17, 0.08),
        "weight_gradient": (0.30, 0.20, 0.12),
    }
    point = {"mode": "kernels", "sizes": [size, size], "batch": 512, "rounds": 21}
    return Case(f"{size} x {size}, 512 samples", point, floors)


def network(mode: str, sizes: list[int], batch: int, rounds: int, floors: Shares) -> Case:
    """A network at once, or a step of its training."""
    point = {"mode": mode, "sizes": sizes, "batch": batch, "rounds": rounds}
    only = ["sparse", "roof"] + ["onednn"] * (mode == "inference")
    name = f"{mode}, {'-'.join(map(str, sizes))}, {batch} samples"
    return Case(name, point | {"only": only}, {"sparse": floors})


CASES = [
    *map(layer, (512, 1024, 2048)),
    network("inference", [512, 512, 512, 512, 512, 10], 10_000, 11, (0.4, 0.35, 0.25)),
    network("training", [256, 256, 256, 10], 512, 41, (0.08, 0.03, 0.01)),
    network("training", [784, 1024, 1024, 10], 512, 21, (0.25, 0.12, 0.05)),
]
NAMES = {
    "sparse": "forward",
    "input_gradient": "input gradient",
    "weight_gradient": "weight gradient",
}


def measured(point: dict[str, object]) -> dict[str, object]:
    """Run the page and return its row."""
    with tempfile.TemporaryDirectory() as folder, kernels.private_kernel() as config:
        row = Path(folder) / "row.json"
        given = {"sparsities": SPARSITIES, "threads": 2, "results": str(row)}
        output = Path(folder) / "page.ipynb"
        papermill.execute_notebook(PAGE, output, point | given, progress_bar=False, config=config)
        found: dict[str, object] = json.loads(row.read_text(encoding="utf-8"))
    return found


def work(point: dict[str, object], sparsity: float) -> float:
    """Count the operations of one product of each layer; a step has nearly three of each."""
    sizes, batch = point["sizes"], point["batch"]
    assert isinstance(sizes, list)
    assert isinstance(batch, int)
    cells = [a * b for a, b in itertools.pairwise(sizes)]
    products = 3 * sum(cells) - cells[0] if point["mode"] == "training" else sum(cells)
    return 2 * (1 - sparsity) * products * batch


def run(case: Case) -> bool:
    """Measure a case, print it, and return whether its shares hold."""
    row = measured(case.point)
    roof = np.array(row["roof_gflops"])
    held = True
    print(f"{case.name}; this machine's roof: {np.median(roof):.0f} GFLOP/s")
    for kernel, floors in case.floors.items():
        milliseconds = np.array(row[f"{kernel}_ms"])
        rates = np.array([work(case.point, s) for s in SPARSITIES]) / milliseconds / 1e6
        shares = rates / roof
        held &= bool((shares >= floors).all())
        dense = np.array(row["dense_ms"]) / milliseconds
        onednn = np.array(row["onednn_ms"]) / milliseconds if "onednn_ms" in row else None
        name = "step" if case.point["mode"] == "training" else NAMES[kernel]
        for place, sparsity in enumerate(SPARSITIES):
            other = "" if onednn is None else f", {onednn[place]:.1f} by oneDNN"
            sign = ">=" if shares[place] >= floors[place] else "< "
            print(
                f"  {name:16} {sparsity:.0%}: {shares[place]:4.0%} of the roof "
                f"{sign} {floors[place]:.0%}; {dense[place]:.1f} times dense{other}",
                flush=True,
            )
    rounds = case.point["rounds"]
    quiet = int(min(row["quiet_rounds"]))  # type: ignore[call-overload]
    if quiet < rounds / 2:  # type: ignore[operator]
        print(f"  not quiet: other programs disturbed all but {quiet} of {rounds} rounds")
    return held


def main() -> int:
    """Print each case beside its floors."""
    held = [run(case) for case in CASES]
    print("all floors hold" if all(held) else "some floors do not hold on this machine")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
