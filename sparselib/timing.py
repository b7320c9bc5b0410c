"""Timing: medians of many rounds, ratios between calls of the same round, and reasons."""

import os
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from sparselib.nn.fusion import apart
from sparselib.nn.sparse_layer import sparse_layers
from sparselib.ops.dispatch import Way, noting

Call = Callable[[], object]


class Timing(NamedTuple):
    """Median and the 20 % and 80 % quantiles over the rounds that were not disturbed."""

    median: float
    low: float
    high: float
    rounds: int


def milliseconds(
    call: Call, rounds: int = 20, device: torch.device | str = "cpu"
) -> Timing:
    """Time one call.

    Parameters
    ----------
    call : callable
        What to time, without arguments.
    rounds : int
        How many times, after a warm-up.
    device : torch.device
        On a GPU, CUDA events measure, otherwise the clock of the processor.
    """
    return quantiles(measure({"call": call}, rounds, device)["call"])


def ratios(
    calls: Mapping[str, Call],
    baseline: str,
    rounds: int = 20,
    device: torch.device | str = "cpu",
) -> dict[str, Timing]:
    """Time several calls in turn; return the speedup of each over the baseline.

    A ratio is taken within a round, in which all calls meet the same clock and the same neighbors,
    and the median of the ratios is returned. The order alternates.
    """
    times = measure(calls, rounds, device)
    return {
        name: quantiles(times[baseline] / row) for name, row in times.items()
    }


def measure(
    calls: Mapping[str, Call],
    rounds: int = 20,
    device: torch.device | str = "cpu",
) -> dict[str, np.ndarray]:
    """Return milliseconds of each call, one per round, without the rounds that were disturbed.

    In each round a call is made once before it is timed, so that it finds the cache as it left it,
    as a step of training that follows another does. Calls shorter than two milliseconds are
    repeated until they are not. A round counts as disturbed if in any call the processor time per
    second of wall time stayed more than a tenth below what is usual for that call: another program
    had the core.
    """
    device = torch.device(device)
    repeats = {name: _repeats(call, device) for name, call in calls.items()}
    names = list(calls)
    wall = np.empty((rounds, len(names)))
    busy = np.empty((rounds, len(names)))
    for turn in range(rounds):
        for place in range(len(names))[:: 1 if turn % 2 else -1]:
            name = names[place]
            calls[name]()
            wall[turn, place], busy[turn, place] = _time(
                calls[name], repeats[name], device
            )
    quiet = (
        undisturbed(busy)
        if device.type == "cpu"
        else np.ones(rounds, dtype=bool)
    )
    return {name: 1000 * wall[quiet, place] for place, name in enumerate(names)}


def undisturbed(busy: np.ndarray) -> np.ndarray:
    """Mark the rounds (rows) in which no call (column) got clearly less processor than usual."""
    usual = np.quantile(busy, 0.75, axis=0)
    quiet = (busy >= 0.9 * usual).all(axis=1)
    return quiet if quiet.sum() >= 3 else np.ones(len(busy), dtype=bool)


def quantiles(values: np.ndarray) -> Timing:
    """Summarize rounds."""
    low, median, high = np.quantile(values, [0.2, 0.5, 0.8])
    return Timing(float(median), float(low), float(high), len(values))


def cores() -> int:
    """Count the cores that this process may use."""
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


def _repeats(call: Call, device: torch.device) -> int:
    # the minimum of a few, as one may be disturbed
    seconds = min(_time(call, 1, device)[0] for _ in range(4))
    return max(1, round(0.002 / max(seconds, 1e-7)))


def _time(
    call: Call, repeats: int, device: torch.device
) -> tuple[float, float]:
    if device.type == "cuda":
        return _time_events(call, repeats), 1.0
    wall_start = time.perf_counter()
    processor_start = time.process_time()
    for _ in range(repeats):
        call()
    wall = time.perf_counter() - wall_start
    processor = time.process_time() - processor_start
    return wall / repeats, processor / wall


def _time_events(call: Call, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


class Passage(NamedTuple):
    """How one layer was computed.

    Attributes
    ----------
    layer : str
        Its name in the model.
    kernel : str
        What computed it, such as ``"cpu: network"``, or nothing if nothing did.
    together : int
        How many layers the kernel computed at once.
    reasons : tuple of str
        Why there was no faster one; empty if there is none.
    """

    layer: str
    kernel: str
    together: int
    reasons: tuple[str, ...]


class Explanation(tuple[Passage, ...]):
    """The passages through the sparse layers of a model; prints as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        head = ("layer", "kernel", "layers at once", "why not faster")
        rows = [
            (name, kernel or "none", str(together), "; ".join(reasons))
            for name, kernel, together, reasons in self
        ]
        columns = zip(head, *rows)
        widths = [max(map(len, column)) for column in columns]
        return "\n".join(
            "  ".join(map(str.ljust, row, widths)).rstrip()
            for row in (head, *rows)
        )


def explain(model: nn.Module, *inputs: object) -> Explanation:
    """Run a model once and return which kernel computed each sparse layer, and why no faster one.

    The model runs as it is: in training or evaluation, with or without a gradient, under autocast
    if the call stands in such a block. Print the result for a table.

    Parameters
    ----------
    model : nn.Module
        A model with sparse layers.
    *inputs
        What its `forward` reads.

    Returns
    -------
    Explanation
        One `Passage` for each sparse layer.

    Raises
    ------
    ValueError
        If the model has no sparse layer.
    """
    layers = sparse_layers(model)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no sparse layer to explain, such as CSRLinear"
        )
    with noting() as ways:
        model(*inputs)
    passages = []
    for name, layer in layers.items():
        found = [
            way for way in ways if any(csr is layer.csr for csr in way.patterns)
        ]
        passages.append(_passage(model, name, found))
    return Explanation(passages)


def _passage(model: nn.Module, name: str, ways: list[Way]) -> Passage:
    if not ways:
        reason = "no sparse product read its connections in this pass"
        return Passage(name, "", 0, (reason,))
    way = ways[-1]
    together = len(way.patterns)
    reasons = way.obstacles
    if together == 1 and not reasons:
        reasons = apart(model, name, way.samples)
    return Passage(name, way.kernel, together, reasons)
