"""Stages of a long run, each kept when it is done, so that the run resumes after the last."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparselib import atomic


def stage(
    file: str | os.PathLike[str] | None,
    module: nn.Module,
    train: Callable[[], dict[str, list[float]]],
    made_by: Mapping[str, Any],
) -> dict[str, list[float]]:
    """Train a module, or restore it from the file that an earlier run has left.

    Parameters
    ----------
    file : path or None
        Where the stage is kept; None trains and keeps nothing. It is written beside its place and
        then moved, so that a run that is killed leaves no half of it.
    module : nn.Module
        What `train` trains; its parameters and buffers are kept.
    train : callable
        Trains the module in place and returns a history, which is kept too.
    made_by : mapping
        Numbers and words that the result depends on.

    Returns
    -------
    dict of list
        The history.

    Raises
    ------
    ValueError
        If the file was made by something else.
    """
    if file is None:
        return train()
    file = Path(file)
    if file.is_file():
        kept = torch.load(file, weights_only=True)
        if kept["made_by"] != dict(made_by):
            differing = sorted(
                key
                for key in {*made_by, *kept["made_by"]}
                if kept["made_by"].get(key) != made_by.get(key)
            )
            raise ValueError(
                f"{file.name} was made with another {', '.join(differing)}: delete it, or keep "
                f"the stages of this run in another folder"
            )
        module.load_state_dict(kept["state"])
        return dict(kept["history"])
    history = train()
    kept = {"state": module.state_dict(), "history": history, "made_by": dict(made_by)}
    atomic.write(file, lambda part: torch.save(kept, part))
    return history


def restore(file: str | os.PathLike[str], module: nn.Module) -> dict[str, Any]:
    """Load into a module what a stage has kept, and return what it was made by."""
    kept = torch.load(file, weights_only=True)
    module.load_state_dict(kept["state"])
    return dict(kept["made_by"])
