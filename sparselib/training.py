"""The only training loop in the repository."""

import copy
import functools
import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import (
    Any,
    Protocol,
    TypedDict,
    TypeVar,
    final,
    runtime_checkable,
)

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sparselib import metrics
from sparselib._types import Hook
from sparselib.batches import (
    Batch,
    Batches,
    Draw,
    SamplesLike,
    Tensors,
    count_of,
    floating_parameter,
    inputs_like,
    lengths,
    outputs_of,
    take,
)
from sparselib.descent import descended
from sparselib.evolution.schedule import Schedule
from sparselib.modes import in_evaluation
from sparselib.nn._watch import open_watches, unwatched
from sparselib.nn.fusion import fused
from sparselib.ops.backends.cpu_buffers import keep_freed

Model = TypeVar("Model", bound=nn.Module)
# (outputs, targets) -> scalar
Criterion = Callable[..., Tensor]
# (model, samples) -> numbers by name
Measure = Callable[..., Mapping[str, float]]
History = dict[str, list[float]]


@runtime_checkable
class LabeledLike(Protocol):
    """Inputs and the numbers of their classes."""

    @property
    def x(self) -> Tensors:
        """Inputs, whose first dimension counts the samples."""

    @property
    def y(self) -> Tensor:
        """Labels, int64, one per sample."""


@runtime_checkable
class SplitLike(Protocol):
    """Samples to train on and samples to measure on, as `datasets.Split` holds them."""

    @property
    def train(self) -> SamplesLike:
        """What is trained on."""

    @property
    def valid(self) -> SamplesLike:
        """What is measured on, unless other samples are named."""


class LoopOptions(TypedDict, total=False):
    """What `fit` takes by name besides its loss, seed and batch size."""

    drop_last: bool
    measure: Measure
    monitor: SamplesLike | None
    keep: str
    after_epoch: Hook | Iterable[Hook]
    after_step: Hook | Iterable[Hook]
    start_epoch: int | None
    history: Mapping[str, list[float]] | None
    progress: bool


class FitOptions(LoopOptions, total=False):
    """The same, and the batch size."""

    batch_size: int


Loss = Callable[[Model, Batch], Tensor]


def criterion(function: Criterion) -> Loss[nn.Module]:
    """Return the loss that compares a model's outputs with the targets.

    Parameters
    ----------
    function : callable
        ``(outputs, y) -> scalar``, such as ``nn.functional.cross_entropy`` or
        ``nn.CrossEntropyLoss(label_smoothing=0.1)``.

    Returns
    -------
    callable
        ``(model, batch) -> scalar``, as `fit` wants it. Inputs that are a tuple are passed to the
        model as positional arguments, those that are a dictionary as keyword arguments.
    """
    return _Comparison(function)


@final
class _Comparison:
    """A loss that compares a model's outputs with the targets."""

    def __init__(self, function: Criterion) -> None:
        self.function = function

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.function(outputs_of(model, batch.x), batch.y)


def augmented(loss: Loss[Model], change: Callable[[Any], Any]) -> Loss[Model]:
    """Return a loss whose inputs are changed at random in each step, which evaluation does not see.

    Parameters
    ----------
    loss : callable
        ``(model, batch) -> scalar``.
    change : callable
        ``x -> x``, such as `sparselib.datasets.augmentation.shifted_and_flipped`.

    Returns
    -------
    callable
        ``(model, batch) -> scalar``, as `fit` wants it.
    """

    def changed(model: Model, batch: Batch) -> Tensor:
        return loss(model, batch._replace(x=change(batch.x)))

    return changed


def reconstruction(function: Criterion) -> Loss[nn.Module]:
    """Return the loss that compares a model's outputs with its inputs: an autoencoder's.

    Parameters
    ----------
    function : callable
        ``(outputs, x) -> scalar``, such as ``nn.functional.mse_loss``.

    Returns
    -------
    callable
        ``(model, batch) -> scalar``, as `fit` wants it.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return function(outputs_of(model, batch.x), batch.x)

    return loss


CROSS_ENTROPY = criterion(functional.cross_entropy)


def sigmoid_squared_error(
    outputs: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]
) -> Float[Tensor, ""]:
    r"""Mean over the batch of :math:`\frac12 \sum_i (\sigma(a_i) - y_i)^2` (Ertl, Section 4.2).

    The paper names sigmoid outputs and the mean squared error and is silent on the scale. With
    this one its learning rate :math:`\eta = 1 / (2 \cdot batch size)` for gradients summed over the
    batch is 0.5 here, where they are averaged. `criterion` makes a loss of `fit` out of it.
    """
    target = functional.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
    return 0.5 * (outputs.sigmoid() - target).square().sum(1).mean()


def accuracy(model: nn.Module, samples: LabeledLike) -> dict[str, float]:
    """Measure what `fit` measures by default: the share of samples that are classified rightly."""
    return {"accuracy": evaluate(model, samples)}


def fit(
    model: Model,
    data: SplitLike,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    batch_size: int = 512,
    drop_last: bool = False,
    loss: Loss[Model] = CROSS_ENTROPY,
    measure: Measure = accuracy,
    monitor: SamplesLike | None = None,
    keep: str = "",
    after_epoch: Hook | Iterable[Hook] = (),
    after_step: Hook | Iterable[Hook] = (),
    start_epoch: int | None = None,
    history: Mapping[str, list[float]] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train by mini-batches; return each measure, once per epoch.

    A second call with the same optimizer, or with one that has loaded its ``state_dict``, goes on
    where the first call stopped: ``fit(..., 2)`` twice is ``fit(..., 4)``, bit for bit, if the
    model, the evolution and the generators that it uses are restored too (`checkpoint.save` and
    `checkpoint.load` do that). How many epochs an optimizer has gone through stands in its first
    parameter group, as ``"epochs"``; ``"after_epoch_due"`` beside it records that the hooks of the
    last one were left out, and the next call runs them first.

    A small network of sparse layers costs calls more than products. Loss and gradients of `MLP`, or
    of an ``nn.Sequential`` that is nothing else, are therefore computed in one call where nobody
    looks in between, see `sparselib.descent.descended`. Else layers that follow each other are
    computed at once, as after `sparselib.fuse`, whose class the model has for the time of its
    steps. Watches of an evolution are open in the
    last step of an epoch, and in every step after which a hook may evolve: any but those of
    schedules, which are asked, and of learning rates.

    On Linux the process keeps up to 64 MiB of what it frees, from the first call on, so that steps
    do not wait for new pages.

    Parameters
    ----------
    model : nn.Module
        Trained in place.
    data : Split
        Has `train` and `valid`, each with `x` and `y`: tensors, or tuples or dictionaries of
        tensors, whose first dimension counts the samples. See `Batch` for how they are converted.
    optimizer : torch.optim.Optimizer
        Built from the model's parameters.
    epochs : int
        Passes over ``data.train``. Samples are shuffled anew in each.
    batch_size : int
        Samples per step.
    drop_last : bool
        Leave out a last incomplete batch, unless it is the only one. By default every sample is
        trained on once per epoch, and each has the same weight in the mean of the loss.
    loss : callable
        ``(model, batch) -> scalar``, with a `Batch`. `criterion` makes one of an ordinary loss
        function of outputs and targets, `reconstruction` of one that compares outputs with inputs;
        by default ``criterion(nn.functional.cross_entropy)``.
    measure : callable
        ``(model, samples) -> {name: number}``, called after every epoch in evaluation mode and
        without gradients; the accuracy by default.
    monitor : Samples, optional
        What is measured after every epoch; ``data.valid`` by default.
    keep : str
        Name of a measure: the model ends with the parameters of the epoch where it was lowest.
        By default it ends with those of the last. A run that goes on after that goes on from the
        parameters that were kept.
    after_epoch : callable or several
        Called without arguments after every epoch but the last: what changes the network then,
        as an evolution does, would not be trained any more. A hook that saves a checkpoint stands
        last.
    after_step : callable or several
        Called without arguments after every optimizer step.
    start_epoch : int, optional
        How many epochs were trained before; by default the optimizer's count. 0 starts anew: the
        order of the samples begins again, and no hook is due.
    history : mapping, optional
        What `fit` returned for the epochs before; the history that is returned continues it.
    seed : int
        Fixes the order of the samples, of every epoch.
    progress : bool
        Show a bar with the time left.

    Returns
    -------
    dict of list
        ``loss``, the measures (``accuracy``, in [0, 1]) and ``seconds`` with all that belongs to
        the epoch, the measurement and what comes after it too; one entry per epoch.

    Raises
    ------
    TypeError
        If `loss` is a function of outputs and targets, or does not return a scalar.
    ValueError
        If there are no samples to train on or to monitor, their numbers differ, the history is not
        that of the epochs before, a measure is called ``loss`` or ``seconds``, or none is called
        `keep`.
    FloatingPointError
        If the loss stops being finite; the sentence names the epoch.
    """
    from tqdm import tqdm

    keep_freed()
    monitor = data.valid if monitor is None else monitor
    _check_loss(loss)
    _check_samples(data.train, monitor, batch_size)
    start, due = _position(optimizer, start_epoch)
    columns = _continued(history, start)
    batches = Batches(
        data.train, batch_size, drop_last, torch.Generator().manual_seed(seed)
    )
    batches.skip(start)
    between = _all(after_epoch)
    if due:
        _record(optimizer, start, due=False)
        _run(between)
    best = _Best(model, keep, columns)
    stop = start + epochs
    bar = tqdm(
        range(start, stop), "epochs", stop, initial=start, disable=not progress
    )
    for epoch in bar:
        began = time.perf_counter()
        with fused(model):
            mean = _epoch(model, batches, optimizer, loss, _all(after_step))
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss became {mean} in epoch {epoch + 1} of {stop}; lower the learning rate"
            )
        numbers = _measured(model, monitor, measure, keep)
        for name, number in {"loss": mean, **numbers}.items():
            columns.setdefault(name, []).append(number)
        best.compare(numbers)
        bar.set_postfix(
            {
                name: f"{column[-1]:.4g}"
                for name, column in columns.items()
                if column
            }
        )
        last = epoch + 1 == stop
        _record(optimizer, epoch + 1, due=last)
        if not last:
            _run(between)
        columns["seconds"].append(time.perf_counter() - began)
    best.restore()
    return columns


def evaluate(
    model: nn.Module, samples: LabeledLike, batch_size: int = 512
) -> float:
    """Accuracy on `samples`, in evaluation mode; the model's mode is restored."""
    outputs = predict(model, samples.x, batch_size)
    return metrics.accuracy(outputs, samples.y.to(outputs.device))


@torch.no_grad()
def predict(
    model: nn.Module, x: Tensors, batch_size: int = 512
) -> Float[Tensor, "samples *outputs"]:
    """Outputs for samples, in evaluation mode; the model's mode is restored.

    Parameters
    ----------
    model : nn.Module
        Returns a tensor whose first dimension counts the samples.
    x : tensor, or tuple or dictionary of tensors
        Inputs, passed to the model as `criterion` does and converted as in `Batch`.
    batch_size : int
        Samples per call.
    """
    like = floating_parameter(model)
    parts = torch.arange(count_of(x)).split(batch_size)
    with in_evaluation(model), fused(model):
        return torch.cat(
            [
                outputs_of(model, inputs_like(take(x, part), like))
                for part in parts
            ]
        )


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    function: Criterion,
) -> Tensor:
    """Take one training step with a loss function of outputs and targets; return the loss before.

    For loops of one's own; `fit` takes the same step.
    """
    name = _name(function)
    return _descend(
        optimizer,
        lambda: None if name is None else descended(model, x, y, name),
        lambda: function(model(x), y),
    )


def _name(function: object) -> str | None:
    """Return what kernels call a loss function, or None."""
    if type(function) is nn.CrossEntropyLoss:
        is_mean = function.weight is None and function.reduction == "mean"
        is_plain = not function.label_smoothing and function.ignore_index < 0
        return "cross-entropy" if is_mean and is_plain else None
    if function is functional.cross_entropy:
        return "cross-entropy"
    return "squared error" if function is sigmoid_squared_error else None


def _descend(
    optimizer: torch.optim.Optimizer,
    at_once: Callable[[], Tensor | None],
    loss: Callable[[], Tensor],
) -> Tensor:
    """Take one training step, at once where that can be done; return the loss before."""
    optimizer.zero_grad()
    error = at_once()
    if error is None:
        error = loss()
        error.backward()
    optimizer.step()
    torch.clear_autocast_cache()  # of weights as they were, around many steps
    return error.detach()


@torch.no_grad()
def _measured(
    model: nn.Module, monitor: SamplesLike, measure: Measure, keep: str
) -> dict[str, float]:
    with in_evaluation(model):
        numbers = {
            name: float(number)
            for name, number in measure(model, monitor).items()
        }
    if numbers.keys() & {"loss", "seconds"} or (keep and keep not in numbers):
        raise ValueError(
            f"measures are called {sorted(numbers)}: 'loss' and 'seconds' are taken by the "
            f"training loop, and keep={keep!r} has to be one of them"
        )
    return numbers


class _Best:
    """The parameters of the epoch where a measure was lowest, if one is named."""

    def __init__(self, model: nn.Module, name: str, history: History) -> None:
        self.model = model
        self.name = name
        self.lowest = min(history.get(name, []), default=math.inf)
        self.state = (
            copy.deepcopy(model.state_dict())
            if name and history.get(name)
            else None
        )

    def compare(self, numbers: Mapping[str, float]) -> None:
        if self.name and numbers[self.name] < self.lowest:
            self.lowest = numbers[self.name]
            self.state = copy.deepcopy(self.model.state_dict())

    def restore(self) -> None:
        if self.state is not None:
            self.model.load_state_dict(self.state)


def _epoch(
    model: Model,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    loss: Loss[Model],
    after_step: list[Hook],
) -> float:
    """Train on every batch once; return the mean of the loss."""
    like = floating_parameter(model)
    model.train()
    total = torch.zeros((), dtype=torch.float64, device=like.device)
    weights = 0.0
    call: Loss[Model] = functools.partial(_checked, loss)
    watches = open_watches(model)
    for number, draw in enumerate(batches.epoch(like), 1):
        # who evolves by gradient looks at the last step before; others need keep nothing for that
        is_seen = number == batches.steps or not all(map(_is_blind, after_step))
        # whole batches weigh 1, so that their mean is exact
        weight = len(draw.indices) / batches.batch_size
        with unwatched(() if is_seen else watches):
            error = _descend(
                optimizer,
                functools.partial(_at_once, loss, model, draw),
                functools.partial(_of_batch, call, model, draw),
            )
        total += weight * error
        weights += weight
        call = loss
        _run(after_step)
    return float(total) / weights


def _is_blind(hook: Hook) -> bool:
    """Whether a hook is known not to look at what the step before it has left in the layers."""
    owner = getattr(hook, "__self__", None)
    if isinstance(owner, Schedule):
        return not owner.is_due(owner.steps + 1)
    return isinstance(owner, torch.optim.lr_scheduler.LRScheduler)


def _at_once(loss: Loss[Model], model: Model, draw: Draw) -> Tensor | None:
    """Set the gradients of a loss by one call, or return None where no kernel does that."""
    name = _name(loss.function) if isinstance(loss, _Comparison) else None
    if name is None:
        return None
    if draw.is_ready:
        x, y = draw.samples.x, draw.samples.y
        return descended(model, x, y, name, draw.indices)
    return descended(model, draw.batch.x, draw.batch.y, name)


def _of_batch(loss: Loss[Model], model: Model, draw: Draw) -> Tensor:
    return loss(model, draw.batch)


def _checked(loss: Loss[Model], model: Model, batch: Batch) -> Tensor:
    """Call a loss; where it fails before the model does, explain how losses are passed."""
    try:
        error = loss(model, batch)
    except (TypeError, AttributeError) as fault:
        codes = {
            frame.f_code for frame, _ in traceback.walk_tb(fault.__traceback__)
        }
        if nn.Module._call_impl.__code__ in codes:
            raise
        raise TypeError(
            f"fit called loss(model, batch): {fault}. {_spelling(loss)}"
        ) from fault
    if not isinstance(error, Tensor) or error.numel() != 1:
        found = (
            tuple(error.shape)
            if isinstance(error, Tensor)
            else type(error).__name__
        )
        raise TypeError(
            f"a loss returns one number, a tensor of shape (), not {found}"
        )
    return error


def _check_loss(loss: object) -> None:
    """Refuse what is known to compare outputs with targets."""
    function = loss
    while isinstance(function, functools.partial):
        function = function.func
    torchs = str(getattr(function, "__module__", "")).startswith("torch.")
    if (
        isinstance(function, nn.Module)
        or torchs
        or function is sigmoid_squared_error
    ):
        raise TypeError(f"fit calls loss(model, batch). {_spelling(function)}")


def _spelling(function: object) -> str:
    name = getattr(function, "__name__", f"{type(function).__name__}(...)")
    return (
        f"If {name} is a function of outputs and targets, pass loss=sl.criterion({name}); if it "
        f"compares outputs with inputs, loss=sl.reconstruction({name})"
    )


def _check_samples(
    train: SamplesLike, monitor: SamplesLike, batch_size: int
) -> None:
    if count_of(monitor.y) == 0:
        raise ValueError(
            "there are no samples to measure on after each epoch; hold some out for "
            "validation, or pass monitor="
        )
    count = count_of(train.y)
    if count == 0:
        raise ValueError("there are no samples to train on")
    if lengths((train.x, train.y)) != {count}:
        raise ValueError(
            f"inputs and targets differ in their number of samples: "
            f"{sorted(lengths((train.x, train.y)))}"
        )
    if batch_size < 1:
        raise ValueError(f"a batch has at least one sample, not {batch_size}")


def _position(
    optimizer: torch.optim.Optimizer, start_epoch: int | None
) -> tuple[int, bool]:
    """How many epochs were trained before, and whether the hooks of the last are due."""
    if start_epoch is not None and start_epoch < 0:
        raise ValueError(f"start_epoch counts epochs from 0, not {start_epoch}")
    group = optimizer.param_groups[0]
    trained = int(group.get("epochs", 0))
    start = trained if start_epoch is None else start_epoch
    due = start == trained and bool(group.get("after_epoch_due", False))
    return start, due and start > 0


def _record(
    optimizer: torch.optim.Optimizer, epochs: int, *, due: bool
) -> None:
    # beside "initial_lr" of the schedulers: state_dict carries it, whatever the optimizer
    optimizer.param_groups[0]["epochs"] = epochs
    optimizer.param_groups[0]["after_epoch_due"] = due


def _continued(
    history: Mapping[str, list[float]] | None, start: int
) -> History:
    if history is None:
        return {"loss": [], "seconds": []}
    if {len(column) for column in history.values()} != {start}:
        lengths = {name: len(column) for name, column in history.items()}
        raise ValueError(
            f"the history has entries {lengths}, but {start} epochs were trained before: pass the "
            f"history of these epochs, or none"
        )
    return {name: list(column) for name, column in history.items()}


def _run(hooks: list[Hook]) -> None:
    for hook in hooks:
        hook()


def _all(hooks: Hook | Iterable[Hook]) -> list[Hook]:
    return [hooks] if callable(hooks) else list(hooks)
