"""Samples in batches: tensors, or tuples and dictionaries of them, shuffled anew in each epoch."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn

# a tensor, or a tuple or dictionary of what are tensors in the end
Tensors = Tensor | Sequence[object] | Mapping[str, object]


@runtime_checkable
class SamplesLike(Protocol):
    """Inputs and targets, as `datasets.Samples` holds them."""

    @property
    def x(self) -> Tensors:
        """Inputs, whose first dimension counts the samples."""

    @property
    def y(self) -> Tensors:
        """Targets, likewise."""


class Batch(NamedTuple):
    """Some samples, on the model's device.

    Parameters
    ----------
    x
        Inputs: a tensor, or a tuple or dictionary of tensors, as in the data. Floating-point
        tensors have the type of the model's parameters, others keep their own.
    y
        Targets: likewise, but every tensor keeps its type.
    indices
        int64, on the CPU: the numbers of these samples in the data, counted from 0.
    """

    x: Any
    y: Any
    indices: Int[Tensor, "batch"]


@final
class Batches:
    """The samples of one epoch after the other, shuffled anew in each."""

    def __init__(
        self,
        samples: SamplesLike,
        batch_size: int,
        drop_last: bool,
        generator: torch.Generator,
    ) -> None:
        self.samples = samples
        self.count = count_of(samples.y)
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.generator = generator

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(self.count, self.batch_size)
        return whole + bool(rest and not (self.drop_last and whole))

    def skip(self, epochs: int) -> None:
        """Bring the generator to where it stands after so many epochs."""
        for _ in range(epochs):
            torch.randperm(self.count, generator=self.generator)

    def epoch(self, like: Tensor) -> Iterator["Draw"]:
        """Shuffle, and draw batches on the device and of the type of a parameter."""
        order = torch.randperm(self.count, generator=self.generator)
        for indices in order.split(self.batch_size)[: self.steps]:
            yield Draw(self.samples, indices, like)


@final
class Draw:
    """Samples of one step, which are gathered when somebody wants them side by side."""

    def __init__(
        self,
        samples: SamplesLike,
        indices: Int[Tensor, "batch"],
        like: Tensor,
    ) -> None:
        self.samples = samples
        self.indices = indices
        self.like = like

    @functools.cached_property
    def batch(self) -> Batch:
        """The samples side by side, on the device and of the type of a parameter."""
        x = inputs_like(take(self.samples.x, self.indices), self.like)
        y = each(
            lambda tensor: tensor.to(self.like.device),
            take(self.samples.y, self.indices),
        )
        return Batch(x, y, self.indices)

    @property
    def is_ready(self) -> bool:
        """Whether inputs are of the type that they would have in a batch, and lie in order."""
        x = self.samples.x
        return (
            isinstance(x, Tensor)
            and x.is_contiguous()
            and (x.dtype, x.device) == (self.like.dtype, self.like.device)
        )


def floating_parameter(model: nn.Module) -> Tensor:
    """Return the parameter whose device and type inputs take: the first floating-point one."""
    floating = (
        parameter
        for parameter in model.parameters()
        if parameter.is_floating_point()
    )
    return next(floating, torch.empty(()))


def outputs_of(model: nn.Module, x: Tensors) -> Any:
    """Call a model with inputs: those of a tuple by place, those of a dictionary by name."""
    if isinstance(x, Mapping):
        return model(**x)
    if isinstance(x, tuple):
        return model(*x)
    return model(x)


def inputs_like(x: Tensors, like: Tensor) -> Tensors:
    """Move inputs to the device of a parameter, and floating-point ones to its type."""

    def moved(tensor: Tensor) -> Tensor:
        return (
            tensor.to(like)
            if tensor.is_floating_point()
            else tensor.to(like.device)
        )

    return each(moved, x)


def take(tensors: Tensors, indices: Tensor) -> Tensors:
    """Return the samples with these numbers."""
    return each(
        lambda tensor: tensor.index_select(0, indices.to(tensor.device)),
        tensors,
    )


def each(function: Callable[[Tensor], Tensor], tensors: object) -> Tensors:
    """Apply a function to every tensor of a tuple or dictionary of them."""
    if isinstance(tensors, Tensor):
        return function(tensors)
    if isinstance(tensors, Mapping):
        return {name: each(function, part) for name, part in tensors.items()}
    if isinstance(tensors, tuple | list):
        return tuple(each(function, part) for part in tensors)
    raise TypeError(
        f"samples are a tensor, or a tuple or dictionary of tensors, not {type(tensors).__name__}"
    )


def lengths(tensors: object) -> set[int]:
    """Return the numbers of samples that tensors have, which should be one."""
    found: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        found.add(len(tensor))
        return tensor

    each(note, tensors)
    return found


def count_of(tensors: object) -> int:
    """Return the number of samples."""
    return max(lengths(tensors), default=0)
