"""What is called with a wrong shape is refused, in the first calls of a test."""

import checking
import jaxtyping
import pytest
import torch

from sparselib import metrics


def test_the_first_calls_are_checked_and_the_rest_of_a_loop_is_not() -> None:
    flat, scores = torch.zeros(3), torch.eye(3)
    labels = torch.arange(3)
    with pytest.raises(jaxtyping.TypeCheckError, match="accuracy"):
        metrics.accuracy(flat, labels)
    for _ in range(checking.CALLS):
        metrics.accuracy(scores, labels)
    with pytest.raises(Exception) as error:  # noqa: PT011 - torch's own
        metrics.accuracy(flat, labels)
    assert not isinstance(error.value, jaxtyping.TypeCheckError)


def test_each_test_begins_anew() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="accuracy"):
        metrics.accuracy(torch.zeros(3), torch.arange(3))
