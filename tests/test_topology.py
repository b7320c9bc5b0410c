"""Exact counts, and Ertl's even fan-in."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparselib import topology
from sparselib.csr import CSR

sizes = st.integers(1, 60)
sparsities = st.floats(0, 0.999)


@given(sizes, sizes, sparsities, st.sampled_from([topology.even_fan_in, topology.erdos_renyi]))
def test_the_count_is_exact(rows, columns, sparsity, law):
    positions = law(rows, columns, sparsity)
    assert len(positions) == round(rows * columns * (1 - sparsity))
    CSR.from_positions(positions, (rows, columns))


@given(sizes, sizes, sparsities)
def test_even_fan_in_puts_one_weight_in_each_slice(rows, columns, sparsity):
    csr = CSR.from_positions(topology.even_fan_in(rows, columns, sparsity), (rows, columns))
    fan_in = csr.fan_in()
    assert fan_in.max() - fan_in.min() <= 1
    for row, n in enumerate(fan_in.tolist()):
        start, stop = csr.crow_indices[row : row + 2].tolist()
        for j, column in enumerate(csr.col_indices[start:stop].tolist()):
            assert j * columns // n <= column < (j + 1) * columns // n


@pytest.mark.parametrize(("sparsity", "connections"), [(0.97, 215), (0.99, 72)])
def test_fewer_than_one_weight_a_neuron_as_on_higgs(sparsity, connections):
    csr = CSR.from_positions(topology.even_fan_in(256, 28, sparsity), (256, 28))
    assert csr.fan_in().max() == 1
    assert csr.nnz == connections == round(28 * 256 * (1 - sparsity))


def test_the_paper_s_own_example_of_n_w():
    csr = CSR.from_positions(topology.even_fan_in(256, 800, 0.97), (256, 800))
    assert csr.fan_in().unique().tolist() == [24]


def test_uniform_reaches_every_cell_alike():
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(12)
    for _ in range(3000):
        hits[topology.erdos_renyi(3, 4, 0.75, generator)] += 1
    assert ((hits - 750) ** 2 / 750).sum() < 31.3  # 0.999 quantile of chi-square, 11 degrees


def test_even_fan_in_reaches_every_input_of_a_slice_alike():
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(3 * 12)
    for _ in range(1000):
        hits[topology.even_fan_in(3, 12, 0.75, generator)] += 1
    # 9 slices of 4 inputs; 0.999 quantile of chi-square, 27 degrees
    assert ((hits - 250) ** 2 / 250).sum() < 55.5


def test_the_largest_number_that_is_drawn_stays_in_its_slice(monkeypatch):
    largest = 1 - 2**-53
    monkeypatch.setattr(
        torch, "rand", lambda count, **_: torch.full((count,), largest, dtype=torch.float64)
    )
    assert topology.even_fan_in(1, 6, 0.5).tolist() == [1, 3, 5]
    assert topology.even_fan_in(1, 6, 2 / 3).tolist() == [2, 5]


def test_what_does_not_divide_evenly_goes_to_neurons_drawn_at_random():
    seeds = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    rich = [topology.even_fan_in(50, 28, 0.99, generator) // 28 for generator in seeds]
    assert not torch.equal(*rich)
