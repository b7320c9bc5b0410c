"""Carry out one step, in a process of its own: ``python -m gpu_steps NAME OUT``."""

import argparse
import importlib
import time
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the module with the step's name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("step")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--break", dest="broken", action="store_true")
    parser.add_argument("--hang", action="store_true")
    given = parser.parse_args(arguments)
    if given.broken:
        raise RuntimeError(f"step {given.step} is broken on purpose")
    if given.hang:
        time.sleep(10_000)
    from gpu_steps.record import Record

    record = Record(given.out, given.step, given.rehearse)
    importlib.import_module(f"gpu_steps.{given.step}").run(record)


if __name__ == "__main__":
    main()
