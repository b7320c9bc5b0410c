"""Measure the speed claims on this machine; status 1 if one of them does not hold.

The floors are what two quiet cores with AVX-512 have to reach. Each case is a run of
`book/csr/timing.ipynb`, so what is measured is what the book shows.
"""

import json
import sys
import tempfile
from pathlib import Path

import kernels
import numpy as np
import papermill

PAGE = Path(__file__).parents[1] / "csr/timing.ipynb"
SPARSITIES = [0.9, 0.97, 0.99]
NETWORK = {"mode": "inference", "sizes": [512, 512, 512, 512, 512, 10], "batch": 10_000}
SMALL = {"mode": "training", "sizes": [256, 256, 256, 10], "batch": 512}
WIDE = {"mode": "training", "sizes": [784, 1024, 1024, 10], "batch": 512}
# what runs, how often, what is divided by what, and the floors at 90, 97 and 99 %
CASES = {
    "inference, the network at once": (NETWORK, 11, "dense", "sparse", (9, 22, 42)),
    "inference, layer by layer": (NETWORK, 11, "dense_in_place", "layers", (4.4, 7, 8)),
    "a training step, 256-256-256-10": (SMALL, 41, "dense", "sparse", (2.6, 3.1, 3.3)),
    "a training step, 784-1024-1024-10": (WIDE, 21, "dense", "sparse", (5, 9, 13)),
}


def measured(point: dict[str, object], rounds: int, over: str, under: str) -> np.ndarray:
    """Return the ratios of medians at the three sparsities."""
    with tempfile.TemporaryDirectory() as folder, kernels.private_kernel() as config:
        row = Path(folder) / "row.json"
        given = {"sparsities": SPARSITIES, "threads": 2, "only": [over, under], "rounds": rounds}
        papermill.execute_notebook(
            PAGE,
            Path(folder) / "page.ipynb",
            point | given | {"results": str(row)},
            progress_bar=False,
            config=config,
        )
        found = json.loads(row.read_text(encoding="utf-8"))
    times = {name: np.array(found[f"{name}_ms"]) for name in (over, under)}
    return times[over] / times[under]


def main() -> int:
    """Print each case beside its floor."""
    held = True
    for name, (point, rounds, over, under, floors) in CASES.items():
        ratios = measured(point, rounds, over, under)
        held &= bool((ratios >= floors).all())
        shown = "   ".join(
            f"{s:.0%} {ratio:5.1f} {'>=' if ratio >= floor else '< '} {floor:<4}"
            for s, ratio, floor in zip(SPARSITIES, ratios, floors)
        )
        print(f"{name:35} {shown}", flush=True)
    print("all floors hold" if held else "some floors do not hold on this machine")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
