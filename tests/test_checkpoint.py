"""Stages of a run: kept once, restored bit for bit, refused when they belong to another run."""

from pathlib import Path

import pytest
import torch
from torch import nn

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
