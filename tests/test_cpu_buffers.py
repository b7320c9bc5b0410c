"""Memory of results is written again, but never while anybody can still read it."""

import gc
import platform
import threading

import apart
import numpy as np
import pytest
import torch

from sparselib.ops.backends import cpu_buffers

ROWS, COLUMNS = 512, 1024


@pytest.fixture(autouse=True)
def none_waits():
    cpu_buffers.release()
    yield
    cpu_buffers.release()


def test_memory_that_nobody_holds_is_written_again():
    address = cpu_buffers.empty(ROWS, COLUMNS).data_ptr()
    assert cpu_buffers.waiting() == 4 * ROWS * COLUMNS
    assert cpu_buffers.empty(ROWS, COLUMNS).data_ptr() == address


@pytest.mark.parametrize(
    "holder",
    [
        lambda t: t.t(),
        lambda t: t.view(-1)[5:6],
        lambda t: t.numpy(),
        lambda t: t.detach(),
        lambda t: torch.from_dlpack(t),
        lambda t: t.untyped_storage(),
        lambda t: (t.requires_grad_() * 2).grad_fn,
    ],
)
def test_memory_that_is_held_in_any_way_is_left_alone(holder):
    address = cpu_buffers.empty(ROWS, COLUMNS).data_ptr()
    held = holder(cpu_buffers.empty(ROWS, COLUMNS).fill_(7))
    if not hasattr(held, "next_functions"):
        assert cpu_buffers.waiting() == 0
        assert cpu_buffers.empty(ROWS, COLUMNS).data_ptr() != address
    del held
    gc.collect()
    assert cpu_buffers.empty(ROWS, COLUMNS).data_ptr() == address


def test_what_autograd_saves_is_held():
    x = cpu_buffers.empty(ROWS, COLUMNS).fill_(3).requires_grad_()
    y = (x * x).sum()
    del x
    assert cpu_buffers.waiting() == 0
    leaf = y.grad_fn.next_functions[0][0].next_functions[0][0].variable
    y.backward()
    assert torch.equal(leaf.grad, torch.full((ROWS, COLUMNS), 6.0))


def test_small_results_do_not_wait():
    cpu_buffers.empty(2, 3)
    assert cpu_buffers.waiting() == 0


def test_no_more_waits_than_the_limit(monkeypatch):
    monkeypatch.setattr(cpu_buffers, "LIMIT", 3 * 4 * ROWS * COLUMNS)
    held = [cpu_buffers.empty(ROWS, COLUMNS) for _ in range(5)]
    held.clear()
    assert cpu_buffers.waiting() == cpu_buffers.LIMIT
    cpu_buffers.empty(2 * ROWS, COLUMNS)
    assert cpu_buffers.waiting() <= cpu_buffers.LIMIT


def test_threads_never_share_memory():
    def work(number):
        for _ in range(300):
            block = cpu_buffers.empty(ROWS, COLUMNS)
            block[::64, ::64] = number
            if not (block[::64, ::64] == number).all():
                faults.append(number)

    faults: list[int] = []
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_result_is_an_ordinary_tensor():
    block = cpu_buffers.empty(ROWS, COLUMNS)
    assert block.dtype == torch.float32
    assert block.is_contiguous()
    assert block.data_ptr() % 64 == 0
    assert isinstance(block.numpy(), np.ndarray)


STEPS = """
import resource
from types import SimpleNamespace
import torch
from torch import nn
import sparselib as sl

torch.set_num_threads(1)
san = sl.SAN([2, 2], sl.nn.relu, 2, dtype=torch.float32)
model = nn.Sequential(nn.Unflatten(1, (28, 28)), san, nn.Flatten())
part = SimpleNamespace(x=torch.rand(64, 784), y=torch.zeros(64).long())
optimizer = torch.optim.Adam(model.parameters(), 0.01)

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.l1_loss(model(part.x), part.x).backward()
        optimizer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

options = {"loss": sl.reconstruction(nn.functional.l1_loss), "measure": lambda *_: {}}
new_pages()
data = SimpleNamespace(train=part, valid=part)
sl.fit(model, data, optimizer, 1, progress=False, **options)
new_pages()
print(new_pages())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone gives back so soon")
def test_steps_after_a_fit_begin_on_no_new_pages():
    """Without `keep_freed` each of the 20 had some 1,500."""
    (told,) = apart.run_plain(STEPS)
    assert int(told) < 20 * 100
