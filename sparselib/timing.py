"""Timing: medians of many rounds, and ratios between calls of the same round."""

import os
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch

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
