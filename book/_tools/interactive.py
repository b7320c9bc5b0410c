"""Write what the two interactive figures read: ``python book/_tools/interactive.py``.

They work from the disk, without a server: the stored rows of the speed page and the topologies of
one run become two scripts that assign a constant.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import sparselib as sl
from sparselib import grow, sweep

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book/csr"))

import ertl  # noqa: E402

STATIC = ROOT / "book/_static"
MODES = {"inference": "inference", "training": "training step"}
EPOCHS = 25
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def speed() -> list[dict[str, Any]]:
    """Median of the processes that measured each case, on each machine."""
    found = []
    for machine, name in ertl.MACHINES.items():
        rows = pd.read_csv(ROOT / f"data/results/{name}.csv")
        rows = rows[rows["mode"].isin(MODES) & rows.sparse_ms.notna()]
        rows = rows[rows.measured_threads == 2]
        for (mode, sizes, batch), runs in rows.groupby(["mode", "sizes", "batch"]):
            middle = {
                key: np.median([sweep.curve(cell) for cell in runs[key]], axis=0)
                for key in ("sparse_ms", "dense_ms", "sparse_speedup")
            }
            found.append(
                {
                    "machine": f"AMD {machine}",
                    "mode": MODES[str(mode)],
                    "network": str(sizes).strip("[]").replace(", ", "-"),
                    "batch": int(batch),
                    "sparsity": json.loads(runs.sparsities.iloc[0]),
                }
                | {key: [float(f"{value:.4g}") for value in middle[key]] for key in middle}
            )
    return found


def evolution() -> dict[str, Any]:
    """Connections per pixel, and how many are new, after each epoch: the run of its page."""
    torch.manual_seed(0)
    options = {"layer": sl.CSRLinear, "sparsity": 0.97, "dtype": torch.float64}
    options["init"] = sl.init.sparse_xavier_
    strokes = sl.datasets.synthetic.images()
    model = sl.MLP(784, 96, 96, 10, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    drop = partial(sl.drop.adaptive_threshold, start=0.05)
    rules = drop, grow.gradient_of_costliest
    engine = sl.Evolution(model, optimizer, *rules, fraction=0.1)
    masks = [model.layers[0].csr.mask()]

    def snapshot() -> None:
        if engine.steps == len(masks):
            masks.append(model.layers[0].csr.mask())

    sl.fit(
        model,
        strokes,
        optimizer,
        EPOCHS,
        after_epoch=[engine.step, snapshot],
        batch_size=64,
        drop_last=True,
        loss=sl.criterion(sl.sigmoid_squared_error),
        progress=False,
    )
    dark = strokes.train.x.max(0).values == 0
    return {
        "connections": int(masks[0].sum()),
        "neurons": masks[0].shape[0],
        "frames": ["".join(DIGITS[min(int(n), 35)] for n in mask.sum(0)) for mask in masks],
        "new": [int((mask & ~masks[0]).sum()) for mask in masks],
        "dark": [int(mask[:, dark].sum()) for mask in masks],
    }


def script(name: str, value: object) -> str:
    """A script that hands a constant to the figures."""
    text = json.dumps(value, separators=(",", ":"))
    return f"window.sparselibRows = {{...window.sparselibRows, {name}: {text}}};\n"


def main() -> None:
    """Write both scripts."""
    for make in (speed, evolution):
        path = STATIC / f"rows-{make.__name__}.js"
        path.write_text(script(make.__name__, make()), encoding="utf-8")
        print(path.relative_to(ROOT), path.stat().st_size)


if __name__ == "__main__":
    main()
