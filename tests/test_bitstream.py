"""Sparse maps as bytes: what is decoded is what was rounded, and little more than its entropy."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparselib as sl
from sparselib import bitstream

LEVELS = st.one_of(st.just(0), st.integers(-130, 130), st.integers(-32767, 32767))


@given(st.lists(LEVELS, min_size=1, max_size=60), st.integers(0, 900), st.floats(1e-6, 1e3))
def test_a_code_decodes_to_what_was_rounded(levels, gap, step):
    cells = torch.tensor(levels, dtype=torch.float64)
    maps = torch.cat([cells, torch.zeros(gap), cells]).view(1, 1, -1)
    maps = maps * step
    rounded = bitstream.quantized(maps, step)
    found = bitstream.decode(bitstream.encode(maps, step), maps.shape)
    assert torch.equal(found, rounded)
    assert torch.allclose(found, maps, rtol=1e-6, atol=0.51 * step)


def test_maps_of_a_network_come_back_and_decode_alike():
    x = torch.randn(3, 200, dtype=torch.float64)
    san = sl.SAN([9, 20], dtype=torch.float64, std=0.3)
    maps = san.encode(x).detach()
    data = bitstream.encode(maps, 0.05)
    found = bitstream.decode(data, maps.shape)
    assert torch.equal(san.decode(found), san.decode(bitstream.quantized(maps, 0.05)))
    assert len(data) < san.describe(x).nbytes / 2


def test_silence_takes_a_few_bytes():
    data = bitstream.encode(torch.zeros(2, 3, 4), 1.0)
    assert len(data) <= 5
    assert torch.equal(bitstream.decode(data, (2, 3, 4)), torch.zeros(2, 3, 4).double())


def entropy(values):
    """Bits per value that no code of independent values can undercut on average."""
    counts = torch.unique(values, return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float(-(shares * shares.log2()).sum())


def test_a_long_code_is_within_a_tenth_of_its_entropy():
    torch.manual_seed(0)
    maps = torch.zeros(40000)
    places = (torch.rand(40000) < 0.1).nonzero().flatten()
    maps[places] = (6 * torch.randn(len(places))).round()
    places = maps.nonzero().flatten()
    gaps = places.diff(prepend=torch.tensor([-1]))
    bits = len(places) * (entropy(gaps) + entropy(maps[places]))
    assert bits < 8 * len(bitstream.encode(maps, 1.0)) < 1.1 * bits


def test_one_more_level_for_every_bit_of_amplitude():
    """Halving the step of dense Gaussian amplitudes costs a bit each (high-rate theory)."""
    torch.manual_seed(0)
    maps = torch.randn(40000)
    lengths = [8 * len(bitstream.encode(maps, step)) / 40000 for step in (0.2, 0.1, 0.05)]
    assert lengths[1] - lengths[0] == pytest.approx(1, abs=0.1)
    assert lengths[2] - lengths[1] == pytest.approx(1, abs=0.1)
    ideal = 0.5 * math.log2(2 * math.pi * math.e) + math.log2(10)
    assert ideal < lengths[1] < 1.05 * ideal


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf, 1e-60, 1e39])
def test_a_step_is_a_positive_number(step):
    with pytest.raises(ValueError, match="positive number"):
        bitstream.encode(torch.ones(3), step)


@pytest.mark.parametrize("value", [math.nan, math.inf, 32768.0])
def test_amplitudes_that_no_level_holds_are_refused(value):
    with pytest.raises(ValueError, match="at most 32767 steps"):
        bitstream.encode(torch.tensor([1.0, value]), 1.0)


@pytest.mark.parametrize("damage", [b"", b"\x00\x00", b"\x00\x00\x80\x3fabc"])
def test_damaged_bytes_are_refused(damage):
    with pytest.raises(ValueError, match="no code of sparse maps"):
        bitstream.decode(damage, (3,))


def test_a_code_of_longer_maps_is_refused():
    data = bitstream.encode(torch.tensor([0.0, 0.0, 1.0]), 1.0)
    with pytest.raises(ValueError, match="cell 2"):
        bitstream.decode(data, (2,))
