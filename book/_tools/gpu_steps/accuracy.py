"""Step 5: MNIST at 97 % by the paper's setting, for 50 epochs, each step a replayed graph."""

import time

import torch
from torch import Tensor, nn

import sparselib as sl
from gpu_steps.record import Record
from sparselib.evolution import resident

EPOCHS = 50
BATCH = 512


def run(record: Record) -> None:
    """Train the sparse network, and its dense twin."""
    case = "MNIST, 784-256-256-256-10"
    if record.rehearse:
        case = "synthetic images"
        data = sl.datasets.synthetic.images(64, 16, 16, side=12)
    else:
        try:
            data = sl.datasets.mnist()
        except (sl.datasets.DataUnavailable, ImportError) as error:
            why = str(error).splitlines()[0]
            record.absent(case, "data", f"set SPARSELIB_DATA: {why}")
            return
    for variant, sparsity in (("evolving", 0.97), ("dense", 0.0)):
        with record.tried(case, variant, sparsity=sparsity):
            train(record, case, variant, sparsity, data)


def train(record: Record, case: str, variant: str, sparsity: float, data) -> None:
    """Train with the rate 0.5 and evolution after each epoch; write accuracy and seconds."""
    epochs, batch = (2, 8) if record.rehearse else (EPOCHS, BATCH)
    hidden = [12] if record.rehearse else [256, 256, 256]
    torch.manual_seed(0)
    options = {}
    if sparsity:
        options = {"layer": sl.CSRLinear, "sparsity": sparsity, "init": sl.init.sparse_xavier_}
    model = sl.MLP(data.features, *hidden, data.classes, **options).to(record.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    x = data.train.x.to(record.device)
    y = data.train.y.to(record.device)
    if record.rehearse:  # the interpreter takes a second for what a GPU does in microseconds
        x = x[: 2 * batch]
        y = y[: 2 * batch]
    loss = sl.sigmoid_squared_error
    step = sl.graphs.training(model, optimizer, loss, x[:batch], y[:batch])
    evolution = resident.GradientGrowth(model, optimizer, 0.1) if sparsity else None
    began = time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(len(x), device=record.device)
        for part in order.split(batch):
            if len(part) == batch:
                error = step(x[part], y[part])
        if evolution and epoch + 1 < epochs:
            evolution.step()
    last = error.item()
    seconds = time.perf_counter() - began
    more = {"sparsity": sparsity, "note": f"{epochs} epochs, validation images left out"}
    record.row(case, variant, "seconds of training", seconds, "s", **more)
    record.row(case, variant, "loss of the last batch", last, "", **more)
    images = data.test.x[:batch] if record.rehearse else data.test.x
    score = accuracy(model, images, data.test.y)
    record.row(case, variant, "test accuracy", score, "", **more)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of images in their class."""
    model.eval()
    given = next(model.parameters()).device
    guesses = model(x.to(given)).argmax(1).cpu()
    return (guesses == y[: len(guesses)]).double().mean().item()
