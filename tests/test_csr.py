"""The pattern: invariants, round trips, the named faults, and nothing of size out x in."""

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparselib as sl
from sparselib.csr import CSR, check, compress, transpose


@st.composite
def patterns(draw, largest=12):
    rows, columns = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    cells = st.sets(st.integers(0, rows * columns - 1), max_size=rows * columns)
    return torch.tensor(sorted(draw(cells)), dtype=torch.int64), (rows, columns)


@given(patterns())
def test_positions_round_trip_through_csr_and_dense(pattern):
    positions, shape = pattern
    csr = CSR.from_positions(positions, shape)
    assert torch.equal(csr.positions, positions)
    assert torch.equal(CSR.from_dense(csr.mask()).positions, positions)
    values = torch.arange(1.0, csr.nnz + 1)
    assert torch.equal(csr.to_dense(values).flatten()[positions], values)
    assert csr.to_dense(values).count_nonzero() == csr.nnz
    assert torch.equal(csr.fan_in(), csr.mask().sum(1))
    assert torch.equal(csr.fan_out(), csr.mask().sum(0))


@given(patterns())
def test_transpose_is_the_pattern_of_the_transposed_matrix(pattern):
    positions, shape = pattern
    csr = CSR.from_positions(positions, shape)
    turned = csr.transposed
    check(turned.crow_indices, turned.col_indices, shape[::-1])
    twin = CSR.from_dense(csr.mask().t())
    assert torch.equal(turned.crow_indices, twin.crow_indices)
    assert torch.equal(turned.col_indices, twin.col_indices)
    values = torch.arange(1.0, csr.nnz + 1)
    assert torch.equal(
        twin.to_dense(values[turned.permutation.long()]), csr.to_dense(values).t().contiguous()
    )


def test_every_row_and_column_count_to_four_with_every_number_of_nonzeros():
    for rows, columns in itertools.product(range(1, 5), repeat=2):
        for nnz in range(rows * columns + 1):
            positions = torch.randperm(rows * columns)[:nnz].sort().values
            crow, col = compress(positions, (rows, columns))
            check(crow, col, (rows, columns))
            back = transpose(*transpose(crow, col, columns)[:2], rows)
            assert torch.equal(back.crow_indices, crow)
            assert torch.equal(back.col_indices, col)


@given(patterns(), st.randoms(use_true_random=False))
def test_rewire_takes_any_topology_of_the_same_count(pattern, random):
    positions, shape = pattern
    csr = CSR.from_positions(positions, shape)
    others = sorted(random.sample(range(shape[0] * shape[1]), csr.nnz))
    address = csr.col_indices.data_ptr()
    csr.rewire(torch.tensor(others, dtype=torch.int64))
    assert csr.positions.tolist() == others
    assert csr.col_indices.data_ptr() == address
    fresh = transpose(csr.crow_indices, csr.col_indices, shape[1])
    assert all(map(torch.equal, csr.transposed, fresh))


FAULTS = [
    ([0, 1], [0, 1], "runs from 0 to 1; it must run from 0 to 2"),
    ([0, 1, 2, 2], [0, 1], "crow_indices has 4 entries; 2 rows need 3"),
    ([1, 1, 2], [0, 1], "runs from 1 to 2"),
    ([0, 3, 2], [0, 1], "falls from 3 to 2 at row 1"),
    ([0, 1, 2], [0, 3], r"col_indices\[1\] is 3; columns run 0..2"),
    ([0, 1, 2], [-1, 2], r"col_indices\[0\] is -1"),
    ([0, 2, 2], [1, 0], "row 0: column 0 is out of order after column 1"),
    ([0, 0, 2], [1, 1], "row 1: column 1 repeats column 1"),
    ([0.0, 1.0, 2.0], [0, 1], "must be a 1-D int32 or int64 tensor"),
    ([[0, 1, 2]], [0, 1], "not 2-D"),
]


@pytest.mark.parametrize(("crow", "col", "sentence"), FAULTS)
def test_a_faulty_pattern_is_refused_by_name(crow, col, sentence):
    rows = 1 if len(crow) == 2 else 2
    with pytest.raises(ValueError, match=sentence):
        check(torch.tensor(crow), torch.tensor(col), (rows, 3))


def test_more_rows_than_int32_can_count_are_refused():
    empty = torch.empty(0, dtype=torch.int32)
    with pytest.raises(ValueError, match="int32 indices cannot hold"):
        check(torch.zeros(2, dtype=torch.int32), empty, (1, 2**31))


def test_keys_beyond_int32_are_exact():
    shape = (70_000, 70_000)
    positions = torch.tensor([0, 2**31 - 1, 2**31 + 5, 70_000 * 70_000 - 1])
    assert torch.equal(CSR.from_positions(positions, shape).positions, positions)


@pytest.mark.parametrize(
    ("positions", "sentence"),
    [([0, 1], "3 are here, 2 were given"), ([2, 1, 3], "1 follows 2"), ([0, 1, 6], "cells 0..5")],
)
def test_an_impossible_rewire_leaves_the_topology_alone(positions, sentence):
    csr = CSR.from_positions(torch.tensor([0, 2, 5]), (2, 3))
    with pytest.raises(ValueError, match=sentence):
        csr.rewire(torch.tensor(positions))
    assert csr.positions.tolist() == [0, 2, 5]


def test_state_dict_holds_the_topology_and_nothing_derived_from_it():
    csr = CSR.from_positions(torch.tensor([0, 2, 5]), (2, 3))
    assert list(csr.state_dict()) == ["crow_indices", "col_indices"]
    other = CSR.from_positions(torch.tensor([1, 3, 4]), (2, 3))
    other.load_state_dict(csr.state_dict())
    assert other.positions.tolist() == [0, 2, 5]
    assert all(map(torch.equal, other.transposed, csr.transposed))


def test_a_corrupt_saved_topology_is_refused_and_the_old_one_stays():
    csr = CSR.from_positions(torch.tensor([0, 2, 5]), (2, 3))
    saved = {name: array.clone() for name, array in csr.state_dict().items()}
    saved["col_indices"][1] = 7
    with pytest.raises(RuntimeError, match=r"the pattern: .*col_indices\[1\] is 7"):
        csr.load_state_dict(saved)
    # a part of a model is named as the model names it
    named = {f"encoder.{name}": array for name, array in saved.items()}
    with pytest.raises(RuntimeError, match=r"\tencoder: .*col_indices\[1\] is 7"):
        torch.nn.ModuleDict({"encoder": csr}).load_state_dict(named)
    assert csr.positions.tolist() == [0, 2, 5]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_a_matrix_without_rows_or_columns_has_no_connections(shape):
    csr = CSR.from_positions(torch.zeros(0, dtype=torch.int64), shape)
    assert csr.nnz == 0
    assert csr.mask().shape == shape


@pytest.mark.parametrize("name", ["crow_indices", "col_indices"])
def test_an_index_array_that_is_assigned_is_refused_and_the_old_one_stays(name):
    csr = CSR.from_positions(torch.tensor([0, 2, 5]), (2, 3))
    with pytest.raises(ValueError, match=f"{name} cannot be assigned"):
        setattr(csr, name, torch.tensor([0, 1, 1]))
    assert csr.positions.tolist() == [0, 2, 5]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda csr: pickle.loads(pickle.dumps(csr))])
def test_a_copy_is_equal_and_independent(copied):
    csr = CSR.from_positions(torch.tensor([0, 2, 5]), (2, 3))
    twin = copied(csr)
    csr.rewire(torch.tensor([1, 3, 4]))
    assert twin.positions.tolist() == [0, 2, 5]
    twin.load_state_dict(csr.state_dict())
    assert all(map(torch.equal, twin.transposed, csr.transposed))


def test_indices_are_int32_copies_of_what_was_given():
    crow, col = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 2])
    csr = CSR(crow, col, (2, 3))
    crow[1], col[0] = 2, 1
    assert csr.crow_indices.dtype == csr.col_indices.dtype == torch.int32
    assert csr.positions.tolist() == [0, 4, 5]


def test_a_large_transpose_keeps_rows_in_order():
    csr = CSR.from_positions(torch.arange(0, 300 * 300, 7), (300, 300))
    check(*csr.transposed[:2], (300, 300))


def test_a_copy_made_in_inference_mode_can_be_used_and_trained():
    layer = sl.CSRLinear(8, 5, sparsity=0.5)
    with torch.inference_mode():
        twin = copy.deepcopy(layer.csr)
        assert torch.equal(twin.positions, layer.positions)
    twin.rewire(layer.positions)
    assert torch.equal(twin.mask(), layer.csr.mask())


def test_a_fingerprint_in_parts_is_that_of_the_whole():
    positions = torch.randint(2**60, (100_000,)).sort().values
    whole = sl.csr._mixed(positions) & (2**52 - 1)
    assert sl.csr.fingerprint(positions) == whole
    positions[-1] += 1
    assert sl.csr.fingerprint(positions) != whole
