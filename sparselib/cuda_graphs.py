"""CUDA graphs: what a network does with a batch, recorded once and replayed at a single launch.

A small sparse network spends most of its time in launching kernels. A graph holds the launches with
their addresses, so what runs in it must leave shapes and places alone. Layers and evolutions here
do: as long as the number of connections stays, a topology, its transposed pattern, weights and the
optimizer's state change in place. So evolve between replays, and the next replay computes with the
new connections. What is a Python number is recorded too: a learning rate that is to change must
be a tensor (``lr=torch.tensor(0.01)``), and Adam needs ``capturable=True``.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sparselib.ops.dispatch import refresh
from sparselib.training import Criterion, step

WARMUP = 3


def inference(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Record a model's forward pass in evaluation mode, without gradients.

    Parameters
    ----------
    model : nn.Module
        Is left in evaluation mode.
    x : Tensor
        A batch like those to come, in shape, type, strides and device.

    Returns
    -------
    callable
        ``x -> outputs``. On a CUDA device the outputs are one tensor, written anew by each call.
        On the CPU this is the plain call.
    """
    model.eval()

    @torch.no_grad()
    def call(x: Tensor) -> Tensor:
        return model(x)

    return _recorded(model, call, x) if x.is_cuda else call


def training(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Criterion,
    x: Tensor,
    y: Tensor,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Record one training step; nothing is trained by recording it.

    Parameters
    ----------
    model : nn.Module
        Is left in training mode.
    optimizer : torch.optim.Optimizer
        Keeps its state on the device. What it makes of it in its first step must begin at zero, as
        the averages of SGD, RMSprop and Adam do.
    loss : callable
        ``(outputs, labels) -> scalar``, without a look at a value from Python.
    x, y : Tensor
        A batch like those to come, in shape, type, strides and device.

    Returns
    -------
    callable
        ``(x, y) -> loss`` before the step. On a CUDA device the loss is one tensor, written anew by
        each call. On the CPU this is the plain call.

    Raises
    ------
    ValueError
        On a CUDA device, if the optimizer keeps its step count on the CPU.
    """
    model.train()

    def call(x: Tensor, y: Tensor) -> Tensor:
        return step(model, optimizer, x, y, loss)

    if not x.is_cuda:
        return call
    if not all(
        group.get("capturable", True) for group in optimizer.param_groups
    ):
        raise ValueError(
            f"{type(optimizer).__name__} counts its steps on the CPU, where a graph cannot; build "
            f"it with capturable=True"
        )
    with _untrained(model, optimizer):
        return _recorded(model, call, x, y)


def _recorded(
    model: nn.Module, call: Callable[..., Tensor], *batch: Tensor
) -> Callable[..., Tensor]:
    inputs = [tensor.clone() for tensor in batch]
    with torch.cuda.device(inputs[0].device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP):
                call(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call(*inputs)
    addresses = _addresses(model)

    def replay(*batch: Tensor) -> Tensor:
        for place, (own, given) in enumerate(zip(inputs, batch, strict=True)):
            if own.shape != given.shape:
                raise ValueError(
                    f"input {place} of this graph was recorded with shape {tuple(own.shape)}, not "
                    f"{tuple(given.shape)}; record another graph"
                )
            own.copy_(given)
        if _addresses(model) != addresses:
            raise ValueError(
                "a parameter lies elsewhere than when this graph was recorded, as after a layer "
                "got another number of connections; record another graph"
            )
        refresh()
        graph.replay()
        return output

    return replay


def _addresses(model: nn.Module) -> list[int]:
    return [parameter.data_ptr() for parameter in model.parameters()]


@contextmanager
def _untrained(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Put parameters, buffers and the optimizer's state back, in place, where they were."""
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    kept = {
        parameter: {
            name: tensor.clone() for name, tensor in _tensors(state).items()
        }
        for parameter, state in optimizer.state.items()
    }
    yield
    with torch.no_grad():
        for tensor, value in zip(tensors, before):
            tensor.copy_(value)
        for parameter, state in optimizer.state.items():
            for name, tensor in _tensors(state).items():
                former = kept.get(parameter, {}).get(name)
                tensor.zero_() if former is None else tensor.copy_(former)


def _tensors(state: Mapping[str, object]) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
