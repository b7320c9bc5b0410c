"""A few of the kills of `chaos.py`: the table is that of an undisturbed sweep."""

import pytest

pytest.importorskip("distributed", reason="dask is not installed")

from chaos import VICTIMS, trial, undisturbed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_dies_at_random_leaves_no_trace_in_the_table(tmp_path):
    for name in ("calm", "wild"):
        (tmp_path / name).mkdir()
    ordeal = trial(tmp_path / "wild", undisturbed(tmp_path / "calm", runs=6), kills=3, seed=4)
    assert ordeal.killed.total() > 0
    assert set(ordeal.killed) <= set(VICTIMS)
