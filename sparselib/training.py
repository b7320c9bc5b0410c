"""The only training loop in the repository."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from sparselib import metrics

Loss = Callable[[Tensor, Tensor], Tensor]
Hook = Callable[[], Any]
History = dict[str, list[float]]


def sigmoid_squared_error(
    outputs: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]
) -> Float[Tensor, ""]:
    r"""Mean over the batch of :math:`\frac12 \sum_i (\sigma(a_i) - y_i)^2` (Ertl, Section 4.2).

    The paper names sigmoid outputs and the mean squared error and is silent on the scale. With
    this one its learning rate :math:`\eta = 1 / (2 \cdot batch size)` for gradients summed over the
    batch is 0.5 here, where they are averaged.
    """
    target = functional.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
    return 0.5 * (outputs.sigmoid() - target).square().sum(1).mean()


def fit(
    model: nn.Module,
    data: Any,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    batch_size: int = 512,
    loss: Loss = functional.cross_entropy,
    monitor: Any = None,
    after_epoch: Hook | Iterable[Hook] = (),
    after_step: Hook | Iterable[Hook] = (),
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train by mini-batches; return one number an epoch of each measure.

    Parameters
    ----------
    model : nn.Module
        Trained in place. Samples are moved to the device and type of its first parameter.
    data : Split
        Has `train` and `valid`, each with tensors `x` and `y`.
    optimizer : torch.optim.Optimizer
        Built from the model's parameters.
    epochs : int
        Passes over ``data.train``. Samples are shuffled anew in each; a last incomplete batch is
        left out, unless it is the only one.
    batch_size : int
        Samples a step.
    loss : callable
        ``(outputs, labels) -> scalar``.
    monitor : Samples, optional
        What `accuracy` in the history is measured on; ``data.valid`` by default.
    after_epoch : callable or several
        Called without arguments after every epoch but the last: what changes the network then,
        as an evolution does, would not be trained any more.
    after_step : callable or several
        Called without arguments after every optimizer step.
    seed : int
        Fixes the order of the samples.
    progress : bool
        Show a bar with the time left.

    Returns
    -------
    dict of list
        ``loss``, ``accuracy`` (in [0, 1]) and ``seconds`` with all that belongs to the epoch, the
        measurement and what comes after it too; one entry an epoch.

    Raises
    ------
    ValueError
        If there are no samples to monitor.
    FloatingPointError
        If the loss stops being finite; the sentence names the epoch.
    """
    monitor = data.valid if monitor is None else monitor
    if len(monitor.y) == 0:
        raise ValueError(
            "there are no samples to measure accuracy on after each epoch; hold some out for "
            "validation, or pass monitor="
        )
    history: History = {"loss": [], "accuracy": [], "seconds": []}
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(range(epochs), desc="epochs", disable=not progress)
    for epoch in bar:
        start = time.perf_counter()
        mean = _epoch(model, data.train, optimizer, batch_size, loss, generator, _all(after_step))
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss became {mean} in epoch {epoch + 1} of {epochs}; lower the learning rate"
            )
        history["loss"].append(mean)
        history["accuracy"].append(evaluate(model, monitor, max(batch_size, 512)))
        bar.set_postfix(loss=f"{mean:.4f}", accuracy=f"{history['accuracy'][-1]:.2%}")
        if epoch + 1 < epochs:
            for hook in _all(after_epoch):
                hook()
        history["seconds"].append(time.perf_counter() - start)
    return history


def evaluate(model: nn.Module, samples: Any, batch_size: int = 10_000) -> float:
    """Accuracy on `samples`, in evaluation mode; the model's mode is restored."""
    outputs = predict(model, samples, batch_size)
    return metrics.accuracy(outputs, samples.y.to(outputs.device))


@torch.no_grad()
def predict(
    model: nn.Module, samples: Any, batch_size: int = 10_000
) -> Float[Tensor, "samples classes"]:
    """Outputs for `samples`, in evaluation mode; the model's mode is restored."""
    was_training = model.training
    model.eval()
    like = next(model.parameters())
    outputs = [model(x.to(like)) for x in samples.x.split(batch_size)]
    model.train(was_training)
    return torch.cat(outputs)


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, loss: Loss
) -> Tensor:
    """Take one training step; return the loss before it."""
    optimizer.zero_grad()
    error = loss(model(x), y)
    error.backward()
    optimizer.step()
    return error.detach()


def _epoch(
    model: nn.Module,
    samples: Any,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    loss: Loss,
    generator: torch.Generator,
    after_step: list[Hook],
) -> float:
    like = next(model.parameters())
    order = torch.randperm(len(samples.y), generator=generator)
    batches = order.split(batch_size)
    if len(batches) > 1 and len(batches[-1]) < batch_size:
        batches = batches[:-1]
    model.train()
    total = torch.zeros((), dtype=torch.float64, device=like.device)
    for batch in batches:
        x = samples.x.index_select(0, batch).to(like)
        total += step(model, optimizer, x, samples.y[batch].to(like.device), loss)
        for hook in after_step:
            hook()
    return float(total) / len(batches)


def _all(hooks: Hook | Iterable[Hook]) -> list[Hook]:
    return [hooks] if callable(hooks) else list(hooks)
