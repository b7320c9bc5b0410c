"""Numbers that the ledger of discrepancies takes from stored rows are those of the rows."""

from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
PAPER = {0.9: 97.30, 0.97: 96.16, 0.99: 92.88}  # Ertl, Table 4, MNIST


def step_table() -> str:
    """Test accuracies of both readings of Ertl's step size, a line per sparsity."""
    rows = pd.read_csv(ROOT / "data/results/csr-step.csv")
    rows = rows[(rows.dataset == "mnist") & (rows.rule == "gradient") & (rows.images == 0)]
    lines = ["| sparsity | paper | step 0.5 | step 1.0 |", "|---|---:|---:|---:|"]
    for sparsity, paper in PAPER.items():
        cells = []
        for lr in (0.5, 1.0):
            found = rows[(rows.sparsity == sparsity) & (rows.lr == lr)].sort_values("seed")
            cells.append(", ".join(f"{100 * accuracy:.2f}" for accuracy in found.test_accuracy))
        lines.append(f"| {sparsity:.0%} | {paper:.2f} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def test_the_two_step_sizes_have_the_accuracies_of_their_rows() -> None:
    """To mend it, copy what this file prints, run as a program."""
    assert step_table() in (ROOT / "book/discrepancies.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    print(step_table())
