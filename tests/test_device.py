"""The network in C on a processor without an operating system, if its tools are here."""

import importlib.util
import shutil
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parent.parent / "book/_tools/device.py"
spec = importlib.util.spec_from_file_location("device", FILE)
device = importlib.util.module_from_spec(spec)
spec.loader.exec_module(device)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which(device.COMPILER) and shutil.which(device.EMULATOR)),
        reason="there is no compiler or no emulator for a Cortex-M",
    ),
]


@pytest.mark.parametrize("name", device.NETWORKS)
def test_an_emulated_processor_computes_the_same(name):
    dense = device.row(name, 0.0)
    sparse = device.row(name, 0.95)
    assert float(sparse["difference"]) < 1e-5
    assert sparse["instructions"] < dense["instructions"] / 5
    assert sparse["flash"] < dense["flash"] / 5
