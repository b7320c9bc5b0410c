"""Checkpoints and stages: restored bit for bit, or refused with a sentence and nothing changed."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparselib as sl
from sparselib import checkpoint


def test_a_stage_is_trained_once_and_restored_bit_for_bit(tmp_path: Path) -> None:
    calls = []

    def train() -> dict[str, list[float]]:
        calls.append(1)
        nn.init.normal_(model[0].weight)
        model[1].running_mean += 0.5
        return {"loss": [0.25, 0.125]}

    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    file, made_by = tmp_path / "new" / "classifier.pt", {"seed": 0, "lr": 0.1}
    first = checkpoint.stage(file, model, train, made_by)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert checkpoint.stage(file, model, train, made_by) == first
    assert calls == [1]
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    assert [path.name for path in file.parent.iterdir()] == ["classifier.pt"]
    other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert checkpoint.restore(file, other) == made_by
    assert torch.equal(other[0].weight, model[0].weight)
    with pytest.raises(ValueError, match="made with another lr"):
        checkpoint.stage(file, model, train, {"seed": 0, "lr": 0.2})
    checkpoint.stage(None, model, train, made_by)
    assert calls == [1, 1]


def test_a_run_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> dict[str, list[float]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.stage(tmp_path / "a.pt", nn.Linear(1, 1), stopped, {})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A stage of a sparse network, and its bytes."""
    file = tmp_path_factory.mktemp("stages") / "stage.pt"
    checkpoint.stage(file, sparse(), lambda: {"loss": [1.0, 0.5]}, {"seed": 0})
    return file, file.read_bytes()


def sparse(seed: int = 0, inputs: int = 16) -> sl.MLP:
    torch.manual_seed(seed)
    return sl.MLP(inputs, 12, 4, layer=sl.CSRLinear, sparsity=0.7)


def refused(content: bytes, folder: Path) -> None:
    file, model = folder / "copy.pt", sparse(1)
    before = copy.deepcopy(model.state_dict())
    file.write_bytes(content)
    for read in (
        lambda: checkpoint.restore(file, model),
        lambda: checkpoint.stage(file, model, dict, {"seed": 0}),
        lambda: checkpoint.load(file, model=model),
    ):
        with pytest.raises(ValueError, match=r"copy\.pt"):
            read()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_flipped_bit_is_refused(written: tuple[Path, bytes]) -> None:
    """Of 500 bits anywhere in a file without a checksum 200 load silently as another model."""
    file, content = written
    generator = random.Random(0)
    places = [generator.randrange(len(content)) for _ in range(300)]
    places += range(len(content) - checkpoint.TRAILER, len(content))
    damaged = file.with_name("flipped.pt")
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        damaged.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"flipped\.pt (is damaged|does not end)"):
            checkpoint._read(damaged, "cpu")
    refused(bytes(flipped), file.parent)


@given(share=st.floats(0, 1))
def test_every_truncation_and_every_tail_is_refused(
    written: tuple[Path, bytes], share: float
) -> None:
    file, content = written
    damaged = file.with_name("cut.pt")
    for some in (
        content[: int(share * (len(content) - 1))],
        content + content[-int(share * 9) - 1 :],
    ):
        damaged.write_bytes(some)
        with pytest.raises(ValueError, match=r"cut\.pt (is damaged|does not end)"):
            checkpoint._read(damaged, "cpu")


def test_a_file_of_something_else_is_refused(written: tuple[Path, bytes], tmp_path: Path) -> None:
    file, content = written
    refused(b"", tmp_path)
    refused(b"text", tmp_path)
    refused(content[: -checkpoint.TRAILER], tmp_path)
    with pytest.raises(ValueError, match=r"is not a checkpoint of `save`; use `restore`"):
        checkpoint.load(file, model=sparse())
    checkpoint.save(tmp_path / "run.pt", model=sparse())
    with pytest.raises(ValueError, match=r"is not a stage, but holds \['kinds', 'parts'\]"):
        checkpoint.restore(tmp_path / "run.pt", sparse())


class Harmful:
    """What a pickle may do when it is loaded."""

    def __reduce__(self) -> tuple:
        return (pytest.fail, ("code in a file was executed",))


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    """Not even with a checksum that is right."""
    file = tmp_path / "copy.pt"
    torch.save({"state": Harmful(), "history": {}, "made_by": {}}, file)
    with file.open("rb+") as opened:
        digest = checkpoint._digest(opened, file.stat().st_size)
        opened.seek(0, 2)
        opened.write(checkpoint.MARK + digest + b"\n")
    with pytest.raises(ValueError, match="no checkpoint that can be loaded"):
        checkpoint.restore(file, sparse())


def test_torch_reads_the_file_too(written: tuple[Path, bytes]) -> None:
    kept = torch.load(written[0], weights_only=True)
    assert kept["made_by"] == {"seed": 0}
    assert kept["history"] == {"loss": [1.0, 0.5]}


def test_committed_stages_have_their_checksums(root: Path) -> None:
    files = sorted((root / "data/stages").rglob("*.pt"))
    assert files
    for file in files:
        assert checkpoint._read_stage(file)["made_by"]


def test_another_module_is_refused_and_stays_as_it_was(written: tuple[Path, bytes]) -> None:
    model = sparse(1, inputs=9)
    before = copy.deepcopy(model.state_dict())
    for read in (
        lambda: checkpoint.restore(written[0], model),
        lambda: checkpoint.stage(written[0], model, dict, {"seed": 0}),
    ):
        with pytest.raises(ValueError, match=r"stage\.pt does not fit this MLP, which is as"):
            read()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def run(seed: int = 0) -> dict:
    """All that a run depends on, after three steps."""
    model = sparse(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    parts = {
        "model": model,
        "optimizer": optimizer,
        "evolution": sl.GradientGrowth(model, optimizer, 0.3),
        "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100),
        "order": torch.Generator().manual_seed(seed),
    }
    go_on(parts, 3)
    return parts


def go_on(parts: dict, steps: int) -> None:
    for step in range(steps):
        legacy = np.random.rand()  # noqa: NPY002
        noise = random.random() + legacy + torch.rand(()).item()
        x = torch.randn(8, 16, generator=parts["order"]) + noise
        parts["optimizer"].zero_grad()
        parts["model"](x).square().mean().backward()
        parts["optimizer"].step()
        parts["scheduler"].step()
        if step % 2:
            parts["evolution"].step()


def states(parts: dict) -> dict:
    return {name: copy.deepcopy(checkpoint._state(part)) for name, part in parts.items()}


def equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        assert isinstance(other, dict)
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        assert isinstance(other, list | tuple)
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def test_one_call_saves_and_one_restores_all_of_a_run(tmp_path: Path) -> None:
    """Model, optimizer, scheduler, evolution, generators and position: then it goes on alike."""
    file, whole = tmp_path / "run.pt", run()
    checkpoint.save(file, **whole, history={"loss": [1.0]}, position={"epoch": 2, "batch": 17})
    go_on(whole, 5)
    other = run(1)
    plain = checkpoint.load(file, **other)
    assert plain == {"history": {"loss": [1.0]}, "position": {"epoch": 2, "batch": 17}}
    go_on(other, 5)
    assert equal(states(whole), states(other))
    assert whole["evolution"].steps == other["evolution"].steps > 0


def test_generators_are_left_alone_if_asked(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "run.pt", model=sparse())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    checkpoint.load(tmp_path / "run.pt", model=sparse(1), generators=False)
    torch.manual_seed(5)
    assert torch.equal(before, torch.get_rng_state())
    checkpoint.save(tmp_path / "bare.pt", generators=False, loss=0.5)
    assert checkpoint.load(tmp_path / "bare.pt") == {"loss": 0.5}


def test_a_model_alone_is_loaded_for_inference(tmp_path: Path) -> None:
    whole = run()
    checkpoint.save(tmp_path / "run.pt", **whole)
    model = sparse(1)
    checkpoint.load(tmp_path / "run.pt", model=model, map_location="cpu", generators=False)
    assert equal(dict(model.state_dict()), dict(whole["model"].state_dict()))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda parts: {"ema": sparse()}, r"holds \['evolution', .*\], but no 'ema'"),
        (lambda parts: {"history": {}}, r"'history' is plain data: do not pass it"),
        (
            lambda parts: {"optimizer": torch.optim.SGD(parts["model"].parameters(), 0.1)},
            r"'optimizer' in .*run\.pt is of a AdamW, not of a SGD",
        ),
        (lambda parts: {"scheduler": parts["order"]}, "is of a OneCycleLR, not of a Generator"),
        (lambda parts: {"model": sparse(inputs=9)}, "state of 'model' does not fit, and nothing"),
        (
            lambda parts: {"optimizer": torch.optim.AdamW([nn.Parameter(torch.ones(2))])},
            "state of 'optimizer' does not fit, and nothing was loaded",
        ),
        (
            lambda parts: {"evolution": another_evolution()},
            "state of 'evolution' does not fit, and nothing was loaded",
        ),
    ],
)
def test_what_does_not_fit_changes_nothing(tmp_path: Path, change, sentence: str) -> None:
    checkpoint.save(tmp_path / "run.pt", **run(), history={"loss": [1.0]})
    other = run(1)
    parts = other | change(other)
    before = states(parts)
    torch.manual_seed(7)
    random_state = torch.get_rng_state()
    with pytest.raises(ValueError, match=sentence):
        checkpoint.load(tmp_path / "run.pt", **parts)
    assert equal(before, states(parts))
    assert torch.equal(random_state, torch.get_rng_state())


def another_evolution() -> sl.Evolution:
    model = nn.Sequential(sl.CSRLinear(8, 8, sparsity=0.5))
    return sl.SET(model, torch.optim.SGD(model.parameters(), 0.1))


@pytest.mark.parametrize("value", [np.float64(1.0), np.ones(2), pytest, {"a": [object()]}])
def test_what_would_not_load_is_not_saved(tmp_path: Path, value: object) -> None:
    file = tmp_path / "run.pt"
    checkpoint.save(file, loss=1.0)
    with pytest.raises(TypeError, match=r"but the content\['parts'\]\['loss'\].* is a "):
        checkpoint.save(file, loss=value)
    assert checkpoint.load(file) == {"loss": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


def test_a_run_of_fit_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """fit(4) = fit(2), save, load, fit(2), with all of the states in one file."""
    digits = sl.datasets.digits()
    part = sl.datasets.Samples(digits.train.x[:150], digits.train.y[:150])
    data = sl.datasets.Split(part, part, part, 10, "few", "")

    def build() -> dict:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Dropout(0.2), sl.MLP(64, 32, 10, layer=sl.CSRLinear, sparsity=0.9))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        evolution = sl.RigL(model, optimizer, fraction=0.3)
        return {"model": model, "optimizer": optimizer, "evolution": evolution}

    def fit(parts: dict, epochs: int, **options) -> dict:
        hook = parts["evolution"].step
        model, optimizer = parts["model"], parts["optimizer"]
        options = {"after_epoch": hook, "batch_size": 32, "progress": False} | options
        return sl.fit(model, data, optimizer, epochs, **options)

    whole = build()
    expected = fit(whole, 4)
    first = build()
    checkpoint.save(tmp_path / "run.pt", **first, history=fit(first, 2))
    # what is passed is evaluated in order: the states are read after the history
    second = build()
    history = checkpoint.load(tmp_path / "run.pt", **second)["history"]
    history = fit(second, 2, history=history)
    assert equal(dict(whole["model"].state_dict()), dict(second["model"].state_dict()))
    assert history["loss"] == expected["loss"]
    assert second["evolution"].steps == whole["evolution"].steps == 3
