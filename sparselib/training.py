"""The only training loop in the repository."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from sparselib import metrics

Loss = Callable[[Tensor, Tensor], Tensor]
Measure = Callable[[nn.Module, Any], Mapping[str, float]]
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


def accuracy(model: nn.Module, samples: Any) -> dict[str, float]:
    """Measure what `fit` measures by default: the share of samples that are classified rightly."""
    return {"accuracy": evaluate(model, samples)}


def fit(
    model: nn.Module,
    data: Any,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    batch_size: int = 512,
    loss: Loss = functional.cross_entropy,
    target: str = "y",
    measure: Measure = accuracy,
    monitor: Any = None,
    keep: str = "",
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
        ``(outputs, targets) -> scalar``.
    target : str
        What outputs are compared with: ``"y"``, the labels, or ``"x"``, the samples themselves,
        which trains an autoencoder.
    measure : callable
        ``(model, samples) -> {name: number}``, called after every epoch in evaluation mode and
        without gradients; the accuracy by default.
    monitor : Samples, optional
        What is measured after every epoch; ``data.valid`` by default.
    keep : str
        Name of a measure: the model ends with the parameters of the epoch where it was lowest.
        By default it ends with those of the last.
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
        ``loss``, the measures (``accuracy``, in [0, 1]) and ``seconds`` with all that belongs to
        the epoch, the measurement and what comes after it too; one entry an epoch.

    Raises
    ------
    ValueError
        If there are no samples to monitor, the target is neither, a measure is called ``loss`` or
        ``seconds``, or none is called `keep`.
    FloatingPointError
        If the loss stops being finite; the sentence names the epoch.
    """
    monitor = data.valid if monitor is None else monitor
    if len(monitor.y) == 0:
        raise ValueError(
            "there are no samples to measure on after each epoch; hold some out for "
            "validation, or pass monitor="
        )
    if target not in ("x", "y"):
        raise ValueError(f"target must be 'y', the labels, or 'x', the samples, not {target!r}")
    history: History = {"loss": [], "seconds": []}
    generator = torch.Generator().manual_seed(seed)
    lowest, kept = math.inf, model.state_dict()
    order = _Order(batch_size, target, generator)
    bar = tqdm(range(epochs), desc="epochs", disable=not progress)
    for epoch in bar:
        start = time.perf_counter()
        mean = _epoch(model, data.train, optimizer, loss, order, _all(after_step))
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss became {mean} in epoch {epoch + 1} of {epochs}; lower the learning rate"
            )
        numbers = _measured(model, monitor, measure, keep)
        for name, number in {"loss": mean, **numbers}.items():
            history.setdefault(name, []).append(number)
        if keep and numbers[keep] < lowest:
            lowest, kept = numbers[keep], copy.deepcopy(model.state_dict())
        bar.set_postfix({name: f"{column[-1]:.4g}" for name, column in history.items() if column})
        if epoch + 1 < epochs:
            for hook in _all(after_epoch):
                hook()
        history["seconds"].append(time.perf_counter() - start)
    if keep and epochs:
        model.load_state_dict(kept)
    return history


def evaluate(model: nn.Module, samples: Any, batch_size: int = 512) -> float:
    """Accuracy on `samples`, in evaluation mode; the model's mode is restored."""
    outputs = predict(model, samples.x, batch_size)
    return metrics.accuracy(outputs, samples.y.to(outputs.device))


@torch.no_grad()
def predict(
    model: nn.Module, x: Float[Tensor, "samples ..."], batch_size: int = 512
) -> Float[Tensor, "samples classes"]:
    """Outputs for samples, in evaluation mode; the model's mode is restored."""
    like = next(model.parameters())
    with in_evaluation(model):
        return torch.cat([model(part.to(like)) for part in x.split(batch_size)])


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model into evaluation mode for the time of a ``with`` block."""
    was_training = model.training
    try:
        yield model.eval()
    finally:
        model.train(was_training)


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, loss: Loss
) -> Tensor:
    """Take one training step; return the loss before it."""
    optimizer.zero_grad()
    error = loss(model(x), y)
    error.backward()
    optimizer.step()
    return error.detach()


@torch.no_grad()
def _measured(model: nn.Module, monitor: Any, measure: Measure, keep: str) -> dict[str, float]:
    with in_evaluation(model):
        numbers = {name: float(number) for name, number in measure(model, monitor).items()}
    if numbers.keys() & {"loss", "seconds"} or (keep and keep not in numbers):
        raise ValueError(
            f"measures are called {sorted(numbers)}: 'loss' and 'seconds' are taken by the "
            f"training loop, and keep={keep!r} has to be one of them"
        )
    return numbers


class _Order(NamedTuple):
    """How samples become batches."""

    batch_size: int
    target: str
    generator: torch.Generator

    def batches(self, count: int) -> list[Tensor]:
        """Shuffle, and leave out a last incomplete batch unless it is the only one."""
        batches = list(torch.randperm(count, generator=self.generator).split(self.batch_size))
        if len(batches) > 1 and len(batches[-1]) < self.batch_size:
            batches.pop()
        return batches


def _epoch(
    model: nn.Module,
    samples: Any,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    order: _Order,
    after_step: list[Hook],
) -> float:
    like = next(model.parameters())
    batches = order.batches(len(samples.y))
    model.train()
    total = torch.zeros((), dtype=torch.float64, device=like.device)
    for batch in batches:
        x = samples.x.index_select(0, batch).to(like)
        y = x if order.target == "x" else samples.y[batch].to(like.device)
        total += step(model, optimizer, x, y, loss)
        for hook in after_step:
            hook()
    return float(total) / len(batches)


def _all(hooks: Hook | Iterable[Hook]) -> list[Hook]:
    return [hooks] if callable(hooks) else list(hooks)
