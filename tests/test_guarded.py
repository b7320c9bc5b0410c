"""What Python can read it cannot write, and no average mixes two topologies."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
)

import sparselib as sl
from sparselib.guarded import ReadOnly, plain

WRITES = {
    "fill_": lambda t: t.fill_(10**8),
    "setitem": lambda t: t.__setitem__(0, 7),
    "a view": lambda t: t[1:].add_(1),
    "data": lambda t: t.data.zero_(),
    "assigned data": lambda t: setattr(t, "data", t.long()),
    "out": lambda t: torch.add(t.clone(), 1, out=t),
    "foreach": lambda t: torch._foreach_add_([t], 1),
    "an operator": lambda t: torch.ops.aten.fill_.Scalar(t, 7),
    "iadd": lambda t: t.__iadd__(1),
    "an element": lambda t: next(iter(t)).fill_(5),
    "detached": lambda t: t.detach().mul_(2),
    "copy_": lambda t: t.copy_(t + 1),
    "unbind": lambda t: t.unbind()[0].fill_(5),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("array", ["crow_indices", "col_indices", "transposed", "reach"])
def test_no_operation_writes_to_a_pattern(name, array):
    layer = sl.SparseConv1d(3, 4, 5, sparsity=0.5)
    target = layer.reach if array == "reach" else getattr(layer.csr, array)
    target = target[1] if array == "transposed" else target
    before = target.clone()
    with pytest.raises(ValueError, match=r"rewire\(positions, values\) or load_state_dict"):
        WRITES[name](target)
    assert torch.equal(target, before)


def test_whatever_reads_gives_plain_tensors_and_copies():
    csr = sl.CSRLinear(8, 6, sparsity=0.5).csr
    before = csr.col_indices.tolist()
    for copied in (csr.col_indices.numpy(), np.asarray(csr.col_indices)):
        copied[:] = 10**8
    torch.from_dlpack(csr.col_indices).fill_(10**8)
    assert csr.col_indices.tolist() == before
    for result in (csr.col_indices + 1, csr.col_indices.long(), copy.deepcopy(csr.col_indices)):
        assert type(result) is torch.Tensor
    assert isinstance(csr.col_indices[1:], ReadOnly)
    csr.col_indices.copy_(csr.col_indices.clone())
    with pytest.raises(ValueError, match="col_indices cannot be assigned"):
        csr.col_indices = csr.col_indices.long()


AVERAGES = [
    {},
    {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    {"avg_fn": get_ema_avg_fn(0.999)},
    {"avg_fn": get_swa_avg_fn()},
]


@pytest.mark.parametrize(("use_buffers", "options"), itertools.product([False, True], AVERAGES))
def test_averages_of_one_topology_pass_and_of_two_are_refused(use_buffers, options):
    model, x = sl.MLP(8, 6, 4, layer=sl.CSRLinear, sparsity=0.5), torch.randn(3, 8)
    average = AveragedModel(model, use_buffers=use_buffers, **options)
    for _ in range(4):
        average.update_parameters(model)
    torch.testing.assert_close(average(x), model(x))
    sl.SET(model, torch.optim.SGD(model.parameters(), 0.1), 0.5).step()
    with pytest.raises(ValueError, match="different topologies"):
        average.update_parameters(model)
    for mixed in (average, copy.deepcopy(average)):
        with pytest.raises(ValueError, match="was overwritten by that of another topology"):
            mixed(x)
    average.module.load_state_dict(model.state_dict())
    assert torch.equal(average(x), model(x))


ASKED = ["data_ptr", "is_floating_point", "element_size", "item", "tolist", "type", "stride"]


@pytest.mark.parametrize("name", ASKED)
def test_a_fingerprint_answers_as_the_tensor_it_is(name):
    number = sl.CSRLinear(8, 6, sparsity=0.5).csr.topology_id
    asked = getattr(number, name)()
    right = getattr(plain(number), name)()
    assert (asked, type(asked)) == (right, type(right))
    assert number.untyped_storage().data_ptr() == number.data_ptr()
