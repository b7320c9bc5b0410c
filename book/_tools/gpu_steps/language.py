"""Step 7: a small GPT on characters, a minute in all: dense, and with 90 % of its weights absent.

Both get the same seconds on the clock, so the sparse one pays for what it is slower.
"""

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import sparselib as sl
from gpu_steps.record import Record

SECONDS = 20  # of training, for each network
ROOT = Path(__file__).resolve().parents[3]


class Block(nn.Module):
    """Attention and a feed-forward network, each after a normalization and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attend = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return activations (batch, length, width); no position sees a later one."""
        batch, length, width = x.shape
        parts = self.attend(self.norms[0](x)).chunk(3, dim=2)
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed(self.norms[1](x))


class GPT(nn.Module):
    """Predicts the next of `kinds` characters from up to `length` that came before."""

    def __init__(self, kinds: int, width: int, heads: int, blocks: int, length: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(kinds, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, kinds)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (batch, length, kinds)."""
        places = self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(self.characters(x) + places)))


def run(record: Record) -> None:
    """Train both networks on the text."""
    case = "GPT on characters"
    found = text(record)
    if found is None:
        record.absent(case, "text", "tinyshakespeare/input.txt is not in SPARSELIB_DATA")
        return
    kinds = sorted(set(found))
    numbers = torch.tensor([kinds.index(c) for c in found[:20_000]]) if record.rehearse else None
    if numbers is None:
        place = {c: n for n, c in enumerate(kinds)}
        numbers = torch.tensor([place[c] for c in found])
    numbers = numbers.to(record.device)
    for variant, sparsity in (("dense", 0.0), ("sparse", 0.9)):
        with record.tried(case, variant, sparsity=sparsity):
            train(record, case, variant, sparsity, numbers, len(kinds))


def text(record: Record) -> str | None:
    """Return Shakespeare's plays; in a rehearsal any text will do."""
    file = Path(os.environ.get("SPARSELIB_DATA", ".")) / "tinyshakespeare" / "input.txt"
    if record.rehearse:
        file = ROOT / "README.md"
    return file.read_text(encoding="utf-8") if file.exists() else None


def train(
    record: Record, case: str, variant: str, sparsity: float, numbers: Tensor, kinds: int
) -> None:
    """Train for the seconds that there are, by graph; write loss, steps and time of a step."""
    sizes = {"width": 384, "heads": 6, "blocks": 6, "length": 256}
    batch, seconds = 64, SECONDS
    if record.rehearse:
        sizes = {"width": 8, "heads": 2, "blocks": 1, "length": 8}
        batch, seconds = 2, 0
    torch.manual_seed(0)
    model = GPT(kinds, **sizes)
    if sparsity:
        model = sl.sparsify(model, sparsity, skip=["head"], fresh=True)
    model.to(record.device)
    capturable = not record.rehearse
    groups = sl.parameter_groups(model, lr=1e-3, weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups, capturable=capturable)
    border = len(numbers) * 9 // 10
    length = sizes["length"]
    x, y = drawn(numbers[:border], batch, length)
    step = sl.graphs.training(model, optimizer, loss, x, y)
    count = 0
    began = time.perf_counter()
    while count < 1 or time.perf_counter() - began < seconds:
        last = step(*drawn(numbers[:border], batch, length))
        count += 1
        if count % 20 == 0:
            last.item()  # the clock is to run with the device
    last.item()
    spent = time.perf_counter() - began
    more = {"sparsity": sparsity, "note": f"{spent:.1f} s, {batch} x {length} characters a step"}
    record.row(case, variant, "steps", count, "", **more)
    record.row(case, variant, "time of a step", 1000 * spent / count, "ms", **more)
    record.row(case, variant, "validation loss", score(model, numbers[border:], batch, length),
               "nats per character", **more)  # fmt: skip


def drawn(numbers: Tensor, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Draw stretches of the text, and the same a character later."""
    starts = torch.randint(len(numbers) - length - 1, (batch, 1), device=numbers.device)
    places = starts + torch.arange(length, device=numbers.device)
    return numbers[places], numbers[places + 1]


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the next character."""
    return functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())


@torch.no_grad()
def score(model: nn.Module, numbers: Tensor, batch: int, length: int) -> float:
    """Return the loss on stretches that were not trained on."""
    model.eval()
    batches = [drawn(numbers, batch, length) for _ in range(1 if batch < 8 else 20)]
    return torch.stack([loss(model(x), y) for x, y in batches]).mean().item()
