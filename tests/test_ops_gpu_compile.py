"""What the GPU's kernels are compiled to for Ampere, Hopper and Blackwell, seen without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", "3.6", reason="no Triton 3.6 is installed; it exists for Linux only")
pytestmark = pytest.mark.slow
CAPABILITIES = [
    pytest.param(
        capability, id=f"sm_{capability}", marks=pytest.mark.xdist_group(f"sm_{capability}")
    )
    for capability in (80, 90, 100)
]


@pytest.fixture(scope="module", params=CAPABILITIES)
def kernels(request):
    """Registers and instructions of every kernel, by name; compiled in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    answer = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compiled.py")), str(request.param)],
        env=environment | {"SPARSELIB_BACKEND": "auto"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    rows = list(map(json.loads, answer.stdout.splitlines()))
    assert {row.pop("capability") for row in rows} == {request.param}
    return {row.pop("kernel"): row for row in rows}


def of(kernels, family):
    found = {name: row for name, row in kernels.items() if name.startswith(family + " ")}
    assert found, f"nothing was compiled for {family}"
    return found


def test_no_kernel_spills_and_all_leave_room_for_others(kernels):
    assert {name for name, row in kernels.items() if row["spills"] or row["stack"]} == set()
    # of 65,536 registers: two programs of sixteen warps, three of eight
    assert {name: row["registers"] for name, row in kernels.items() if row["registers"] > 80} == {}
    large = "256x32", "128x64", "32x8"
    names = [n for n in kernels if n.startswith("network") or n.endswith(large)]
    assert max(kernels[name]["registers"] for name in names) <= 64


@pytest.mark.parametrize(
    ("family", "tile", "count"),
    [
        ("spmm", " 64x64", 32),  # sixteen sums of a thread, two nonzeros a step
        ("spmm", "256x32", 16),  # one nonzero a step
        ("spmm_t", "64x64", 32),
        ("spmm_t", "256x32", 16),
        ("spmm_odd", "64x32", 4),
        ("sddmm", "64", 16),
        ("network", "", 64),
        ("network_odd", "", 32),
        ("convolve", "32x8", 16),  # two rows of eight stretches
        ("convolve_t", "32x8", 16),
        ("correlate", "", 16),  # eight nonzeros, two stretches
    ],
)
def test_multiplications_are_fused_with_additions(kernels, family, tile, count):
    rows = [row for name, row in of(kernels, family).items() if name.endswith(tile)]
    assert {row["fma"] for row in rows} == {count}
    assert {name for name, row in kernels.items() if row["multiplications"]} == set()


def test_nothing_is_added_by_atomic_operations(kernels):
    assert {name for name, row in kernels.items() if row["atomics"]} == set()


@pytest.mark.parametrize(
    ("family", "kind", "count"),
    [
        ("spmm", "fp32 64x64", 8),
        ("spmm", "fp32 256x32", 4),
        ("spmm_t", "fp32 64x64", 8),
        ("spmm", "bf16 64x64", 4),
        ("spmm", "fp16 64x64", 4),
        ("network", "fp32", 16),
        ("network", "bf16", 8),
        ("sddmm", "fp32 64", 4),
    ],
)
def test_activations_are_read_sixteen_bytes_at_a_time(kernels, family, kind, count):
    rows = [row for name, row in of(kernels, family).items() if kind in name]
    assert {row["wide_loads"] for row in rows} == {count}


def test_a_network_waits_between_layers_and_sees_what_it_wrote(kernels):
    for row in of(kernels, "network").values():
        assert row["barriers"] >= 4
        assert row["cached_for_good"] == 0


CONVOLUTIONS = ["convolve", "convolve_t", "convolve_short", "correlate"]


@pytest.mark.parametrize("family", CONVOLUTIONS)
def test_a_warp_has_a_filter_of_its_own_and_its_lanes_read_side_by_side(kernels, family):
    # so taps may shift signals by one number, and nothing that is strided is read
    assert all(row["a_row_each"] for row in of(kernels, family).values())


@pytest.mark.parametrize("family", ["convolve", "convolve_t"])
def test_a_weight_is_read_once_for_all_stretches_of_its_filter(kernels, family):
    rows = [row for name, row in of(kernels, family).items() if name.endswith("32x8")]
    assert rows
    for row in rows:
        # seven stretches in eight are read at a distance from the first that the code names
        assert row["loads_beside"] >= row["fma"] * 7 // 8
        assert row["loads"] < 2 * row["fma"]


@pytest.mark.parametrize("family", ["convolve", "convolve_t", "convolve_short"])
def test_filters_of_a_tile_do_not_wait_for_each_other(kernels, family):
    assert {row["barriers"] for row in of(kernels, family).values()} == {0}
