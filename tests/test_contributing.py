"""The page for contributors: its example runs, and the paths it names are there."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "book" / "contributing.md").read_text(encoding="utf-8")


def test_the_example_of_a_rule_runs_and_keeps_the_number_of_connections() -> None:
    (block,) = re.findall(r"(?ms)^```python\n(.*?)^```$", PAGE)
    names: dict[str, object] = {}
    torch.manual_seed(0)
    exec(compile(block, "contributing", "exec"), names)
    evolution = names["evolution"]
    assert evolution.steps == 2
    assert [layer.csr.nnz for layer in evolution.layers.values()] == [819, 128]
    fan_out = evolution.layers["layers.0"].csr.fan_out()
    assert fan_out.min() > 0


def test_every_file_that_it_names_is_there() -> None:
    named = re.findall(r"`((?:sparselib|tests|book)/[\w./]+\.\w+)`", PAGE)
    assert len(named) > 5
    assert [path for path in named if not (ROOT / path).exists()] == []
