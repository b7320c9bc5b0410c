"""The loop of which a share is stated does what is counted."""

import pytest
import torch

pytest.importorskip("numba")

from sparselib.ops.backends import cpu_roof


@pytest.mark.parametrize("threads", [1, 2])
def test_each_thread_adds_as_many_products_as_are_counted(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sums = cpu_roof.compute(5)
        counted = cpu_roof.operations(5)
    finally:
        torch.set_num_threads(before)
    lanes = cpu_roof.LANES
    numbers = (torch.arange(14 * lanes, dtype=torch.float32) / (14 * lanes)).view(14, lanes)
    expected = numbers[2:] + 5 * numbers[0] * numbers[1]
    torch.testing.assert_close(sums, expected.expand(threads, -1, -1))
    assert counted == 2 * 5 * sums.numel()


@pytest.mark.parametrize("threads", [1, 2])
def test_each_thread_reads_as_many_numbers_as_are_counted(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    x = torch.arange(cpu_roof.NUMBERS, dtype=torch.float32).remainder(5)
    try:
        sums = cpu_roof.read(3, x)
        counted = cpu_roof.readings(3)
    finally:
        torch.set_num_threads(before)
    expected = 3 * x.view(-1, sums.shape[1]).sum(0)
    torch.testing.assert_close(sums, expected.expand(threads, -1))
    assert counted == 2 * 3 * x.numel() * threads
