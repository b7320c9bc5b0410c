"""Shapes and types are checked in the first calls of a test, and not in all that follow.

A check takes longer than a product of the sizes of these tests, and a loop of hundreds of steps
makes the same calls again and again. `conftest` begins anew for each test and its fixtures.
"""

from collections.abc import Callable
from functools import cache, partial

import jaxtyping
from beartype import beartype

CALLS = 500


class Calls:
    """How many calls of the library were checked since the test began."""

    checked = 0


def begin() -> None:
    """Check the next calls."""
    Calls.checked = 0
    jaxtyping.config.update("jaxtyping_disable", False)


def first(function: Callable[..., object]) -> Callable[..., object]:
    """Check the arguments of a function by beartype, until there were enough calls.

    beartype writes the checks of a function when it is called for the first time: each process of a
    test run imports the whole library, and calls a part of it.
    """
    checked = cache(partial(beartype, function))

    def counted(*arguments: object, **named: object) -> object:
        Calls.checked += 1
        if Calls.checked > CALLS:
            jaxtyping.config.update("jaxtyping_disable", True)
        return checked()(*arguments, **named)

    return counted
