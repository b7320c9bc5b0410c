"""Checkpoints: all that a run depends on, in one file that is whole, checked and safe to load.

A file is what ``torch.save`` writes, with the SHA-256 of its bytes at the end. ``torch.load`` reads
it too; `load`, `stage` and `restore` verify the checksum before they look at anything, so that a
flipped bit or a truncated copy is refused instead of loaded. They load tensors, numbers, texts and
containers of these, never code (``weights_only=True``).
"""

import copy
import hashlib
import os
import pickle
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.serialization import MAP_LOCATION

from sparselib import atomic
from sparselib._types import SavedState, StateDict

MARK = b"\nsparselib sha256 "
DIGITS = 64
TRAILER = len(MARK) + DIGITS + 1
BLOCK = 1 << 20
PLAIN = "plain data"
SCALARS = {
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.dtype,
    torch.device,
    torch.Size,
}
SEQUENCES = (list, tuple, set)
# what torch and pickle raise for bytes that are not what they should be
UNREADABLE = (
    RuntimeError,
    ValueError,
    KeyError,
    EOFError,
    AttributeError,
    pickle.UnpicklingError,
)
Path_ = str | os.PathLike[str]


@runtime_checkable
class Stateful(Protocol):
    """Whatever gives and takes its state, as models, optimizers, schedulers and evolutions do."""

    def state_dict(self) -> SavedState:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: StateDict, /) -> object:
        """Take a state over."""
        ...


def save(path: Path_, *, generators: bool = True, **parts: object) -> None:
    """Save all that a run depends on, whole or not at all.

    Parameters
    ----------
    path : path
        The file; what was there is replaced once the new file is on the disk.
    generators : bool
        Save the state of the global generators too: torch's, of the CPU and of every CUDA device,
        Python's and NumPy's.
    **parts
        By names of your choice: what has ``state_dict``, such as the model, the optimizer, the
        scheduler, the evolution, a gradient scaler; a ``torch.Generator``; and plain data, such as
        the history or the position in the data of a loop of your own. That of `training.fit` is
        part of the optimizer's state.

    Raises
    ------
    TypeError
        If something in the state is neither a tensor nor plain data, and would not load again.

    Examples
    --------
    >>> checkpoint.save("run.pt", model=model, optimizer=optimizer, evolution=evolution)
    >>> checkpoint.load("run.pt", model=model, optimizer=optimizer, evolution=evolution)
    """
    everything = (
        {**parts, "generators": _GlobalGenerators()} if generators else parts
    )
    content = {
        "parts": {name: _state(part) for name, part in everything.items()},
        "kinds": {name: _kind(part) for name, part in everything.items()},
    }
    _write(Path(path), content)


def load(
    path: Path_,
    *,
    map_location: MAP_LOCATION = "cpu",
    generators: bool = True,
    **parts: object,
) -> StateDict:
    """Restore what `save` has saved, all of it or nothing.

    Parameters
    ----------
    path : path
        The file.
    map_location
        As in ``torch.load``. States are copied to where the parts are, so the default suits every
        computer.
    generators : bool
        Restore the global generators, if they were saved.
    **parts
        Objects to restore in place, by the names under which they were saved; not all of them need
        be given.

    Returns
    -------
    dict
        The plain data in the file, such as the history, by name.

    Raises
    ------
    ValueError
        If the file is damaged or no checkpoint, a part is not in it, or a state does not fit its
        part. All parts are then as they were.
    """
    path = Path(path)
    content = _read(path, map_location)
    states = content.get("parts")
    kinds = content.get("kinds")
    if not isinstance(states, dict) or not isinstance(kinds, dict):
        raise ValueError(
            f"{path} is not a checkpoint of `save`; use `restore` for a stage"
        )
    targets = dict(parts)
    if generators and "generators" in states:
        targets["generators"] = _GlobalGenerators()
    _check_parts(path, targets, kinds)
    before = {
        name: copy.deepcopy(_state(part)) for name, part in targets.items()
    }
    for name, part in targets.items():
        try:
            _restore(part, states[name])
        except Exception as error:
            for other, state in before.items():
                _restore(targets[other], state)
            raise ValueError(
                f"{path}: the state of {name!r} does not fit, and nothing was loaded: {error}"
            ) from error
    return {
        name: state for name, state in states.items() if kinds[name] == PLAIN
    }


def stage(
    file: Path_ | None,
    module: nn.Module,
    train: Callable[[], dict[str, list[float]]],
    made_by: Mapping[str, object],
) -> dict[str, list[float]]:
    """Train a module, or restore it from the file that an earlier run has left.

    Parameters
    ----------
    file : path or None
        Where the stage is kept; None trains and keeps nothing. A run that is killed leaves no half
        of it.
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
        If the file was made by something else, is damaged, or holds another module.
    """
    if file is None:
        return train()
    file = Path(file)
    if file.is_file():
        kept = _read_stage(file)
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
        _restore_module(file, module, kept["state"])
        return dict(kept["history"])
    history = train()
    _write(
        file,
        {
            "state": module.state_dict(),
            "history": history,
            "made_by": dict(made_by),
        },
    )
    return history


def restore(file: Path_, module: nn.Module) -> StateDict:
    """Load into a module what a stage has kept, and return what it was made by.

    Raises
    ------
    ValueError
        If the file is damaged or holds another module, which is then as it was.
    """
    kept = _read_stage(Path(file))
    _restore_module(Path(file), module, kept["state"])
    return dict(kept["made_by"])


class _GlobalGenerators:
    """The generators that are used where none is passed, as one part of a checkpoint."""

    def state_dict(self) -> StateDict:
        """Return the states, as tensors and plain data."""
        # the global generator of NumPy has no other way in or out
        numpy = np.random.get_state(legacy=False)  # noqa: NPY002
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all()
            if torch.cuda.is_initialized()
            else [],
            "python": random.getstate(),
            "numpy": _plain(numpy),
        }

    def load_state_dict(self, state: SavedState) -> None:
        """Take the states over; those of CUDA devices that are not there are left out."""
        torch.set_rng_state(state["torch"].cpu())
        for device, of_cuda in enumerate(
            state["cuda"][: torch.cuda.device_count()]
        ):
            torch.cuda.set_rng_state(of_cuda.cpu(), device)
        random.setstate(state["python"])
        np.random.set_state(_numpy(state["numpy"]))  # noqa: NPY002


def _plain(state: SavedState) -> StateDict:
    """The state of NumPy's generator without arrays."""
    inner = {**state["state"], "key": state["state"]["key"].tolist()}
    return {**state, "state": inner}


def _numpy(state: SavedState) -> StateDict:
    """The same with the array that NumPy wants."""
    inner = {
        **state["state"],
        "key": np.array(state["state"]["key"], dtype=np.uint32),
    }
    return {**state, "state": inner}


def _kind(part: object) -> str:
    """What a state belongs to: a state of Adam fits SGD without an error, and then is none."""
    if isinstance(part, nn.Module):
        return "model"
    if isinstance(part, torch.Generator | Stateful):
        return type(part).__name__
    return PLAIN


def _state(part: object) -> object:
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.state_dict() if isinstance(part, Stateful) else part


def _restore(part: object, state: Any) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state.cpu())
    elif isinstance(part, Stateful):
        part.load_state_dict(state)


def _check_parts(
    path: Path, parts: Mapping[str, object], kinds: Mapping[str, str]
) -> None:
    for name, part in parts.items():
        if name not in kinds:
            raise ValueError(f"{path} holds {sorted(kinds)}, but no {name!r}")
        kind = _kind(part)
        if kind == PLAIN or kinds[name] == PLAIN:
            raise ValueError(
                f"{name!r} is {PLAIN}: do not pass it, `load` returns it; {path} holds a "
                f"{kinds[name]} there"
            )
        if kinds[name] != kind:
            raise ValueError(
                f"{name!r} in {path} is of a {kinds[name]}, not of a {kind}"
            )


def _restore_module(file: Path, module: nn.Module, state: SavedState) -> None:
    before = copy.deepcopy(module.state_dict())
    try:
        module.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        module.load_state_dict(before)
        raise ValueError(
            f"{file} does not fit this {type(module).__name__}, which is as it was: {error}"
        ) from error


def _read_stage(file: Path) -> StateDict:
    kept = _read(file, "cpu")
    if kept.keys() != {"state", "history", "made_by"}:
        raise ValueError(
            f"{file} is not a stage, but holds {sorted(map(str, kept))}"
        )
    return kept


def _write(path: Path, content: StateDict) -> None:
    """Write content and checksum, after a look at whether it can be read again."""
    _check_plain(content, "the content")

    def write(part: Path) -> None:
        torch.save(content, part)
        with part.open("rb+") as file:
            digest = _digest(file, part.stat().st_size)
            file.seek(0, os.SEEK_END)
            file.write(MARK + digest + b"\n")

    atomic.write(path, write)


def _read(path: Path, map_location: MAP_LOCATION) -> StateDict:
    """Verify the checksum of a file, then load what it holds."""
    atomic.clean(path)
    with path.open("rb") as file:
        _verify(path, file)
        file.seek(0)
        try:
            content = torch.load(
                file, map_location=map_location, weights_only=True
            )
        except UNREADABLE as error:
            raise ValueError(
                f"{path} is no checkpoint that can be loaded: {error}"
            ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is no checkpoint, but holds a {type(content).__name__}"
        )
    return content


def _verify(path: Path, file: BinaryIO) -> None:
    length = file.seek(0, os.SEEK_END) - TRAILER
    file.seek(max(0, length))
    trailer = file.read()
    if (
        length < 0
        or not trailer.startswith(MARK)
        or not trailer.endswith(b"\n")
    ):
        raise ValueError(
            f"{path} does not end with its checksum: it is truncated or damaged, or was not "
            f"written by this version of sparselib.checkpoint. Take another copy, or make it anew"
        )
    if _digest(file, length) != trailer[len(MARK) : -1]:
        raise ValueError(
            f"{path} is damaged: its content does not have its checksum. Take another copy, or "
            f"make it anew"
        )


def _digest(file: BinaryIO, length: int) -> bytes:
    """SHA-256 of the first bytes of a file, in hexadecimal."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0:
        block = file.read(min(BLOCK, length))
        if not block:
            break
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()


def _check_plain(content: object, place: str) -> None:
    """Refuse what ``weights_only=True`` would not load again, such as a NumPy number."""
    kind = type(content)
    if isinstance(content, dict) and kind in (dict, OrderedDict):
        for key, value in content.items():
            _check_plain(key, f"a key of {place}")
            _check_plain(value, f"{place}[{key!r}]")
    elif isinstance(content, list | tuple | set) and kind in SEQUENCES:
        for number, value in enumerate(content):
            _check_plain(value, f"{place}[{number}]")
    elif not isinstance(content, Tensor) and kind not in SCALARS:
        raise TypeError(
            f"a checkpoint holds tensors, numbers, texts, lists and dictionaries of Python, but "
            f"{place} is a {kind.__module__}.{kind.__qualname__}"
        )
