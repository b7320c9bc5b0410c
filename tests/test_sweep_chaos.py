"""A few of the kills of `chaos.py`: the table is that of an undisturbed sweep."""

import pytest

pytest.importorskip("distributed", reason="dask is not installed")

from chaos import VICTIMS, trial


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_dies_at_random_leaves_no_trace_in_the_table(tmp_path):
    ordeal = trial(tmp_path, runs=8, kills=3, seed=4)
    assert ordeal.killed.total() > 0
    assert set(ordeal.killed) <= set(VICTIMS)
