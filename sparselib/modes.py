"""The modes of a model, training and evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model into evaluation mode for the time of a ``with`` block."""
    was_training = model.training
    try:
        yield model.eval()
    finally:
        model.train(was_training)
