"""A layer is loaded and rewired as a whole, or not at all."""

import copy
from pathlib import Path

import pytest
import torch
from apart import run_plain
from torch import nn

import sparselib as sl


def test_another_sparsity_is_refused_by_layer_and_both_counts():
    model = sl.MLP(32, 16, 4, layer=sl.CSRLinear, sparsity=0.8)
    other = sl.MLP(32, 16, 4, layer=sl.CSRLinear, sparsity=0.5)
    x = torch.randn(5, 32)
    before = model(x)
    sentence = r"'layers.0': the state dict has 256 connections, this layer has 102; build"
    with pytest.raises(RuntimeError, match=sentence):
        model.load_state_dict(other.state_dict())
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("assign", [False, True])
def test_int64_indices_are_converted(assign):
    for layer, x in (
        (sl.CSRLinear(8, 6, sparsity=0.5), torch.randn(3, 8)),
        (sl.SparseConv1d(2, 4, 3, sparsity=0.5), torch.randn(3, 2, 9)),
        (sl.SparseConv2d(2, 4, 3, 2, sparsity=0.5), torch.randn(3, 2, 9, 8)),
    ):
        state = layer.state_dict()
        wide = {k: v.clone() if v.is_floating_point() else v.long() for k, v in state.items()}
        twin = copy.deepcopy(layer)
        twin.load_state_dict(wide, assign=assign)
        assert torch.equal(twin(x), layer(x))
        assert twin.csr.col_indices.dtype == torch.int32


FAULTS = {
    "has no crow_indices": lambda s: s.pop("csr.crow_indices"),
    "has no col_indices": lambda s: s.pop("csr.col_indices"),
    "a pattern and no values": lambda s: s.pop("values"),
    "not 1-D of torch.float32": lambda s: s.update({"csr.col_indices": torch.ones(24) * 1.7}),
    "must be real numbers": lambda s: s.update(bias=torch.ones(6, dtype=torch.complex64)),
    "5 numbers of shape": lambda s: s.update(values=torch.ones(5)),
    "is -4; columns run": lambda s: s["csr.col_indices"].fill_(-4),
}


@pytest.mark.parametrize("sentence", FAULTS)
@pytest.mark.parametrize("strict", [False, True])
def test_what_does_not_fit_together_changes_nothing(sentence, strict):
    layer = sl.CSRLinear(8, 6, sparsity=0.5)
    state = {
        name: tensor.clone()
        for name, tensor in sl.CSRLinear(8, 6, sparsity=0.5).state_dict().items()
    }
    FAULTS[sentence](state)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=sentence):
        layer.load_state_dict(state, strict=strict)
    after = layer.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


KEYS = {
    'Missing key.*"bias"': lambda s: s.pop("bias"),
    'Missing key.*"values"': lambda s: [s.pop(name) for name in list(s) if name != "bias"],
    'Missing key.*"reach"': lambda s: s.pop("reach"),
    'Missing key.*"csr.crow_indices", "csr.col_indices"': lambda s: (
        s.pop("csr.crow_indices"),
        s.pop("csr.col_indices"),
    ),
    'Unexpected key.*"weight"': lambda s: s.update(weight=torch.ones(4)),
    'Unexpected key.*"csr.permutation"': lambda s: s.update({"csr.permutation": torch.ones(4)}),
}


@pytest.mark.parametrize("sentence", KEYS)
def test_a_key_too_few_or_too_many_changes_nothing(sentence):
    layer, other = (sl.SparseConv1d(2, 4, 3, sparsity=0.5) for _ in range(2))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state = other.state_dict()
    KEYS[sentence](state)
    with pytest.raises(RuntimeError, match=sentence) as caught:
        layer.load_state_dict(state)
    for key in {*before, *state}:
        assert str(caught.value).count(f'"{key}"') == (key not in state or key not in before)
    after = layer.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("sentence", KEYS)
def test_within_a_model_such_a_key_is_reported_once_and_the_rest_fits_together(sentence):
    model, other = (nn.Sequential(sl.SparseConv1d(2, 4, 3, sparsity=0.5)) for _ in range(2))
    state = other[0].state_dict()
    KEYS[sentence](state)
    keys = model.load_state_dict({f"0.{key}": state[key] for key in state}, strict=False)
    own = model[0].state_dict()
    assert sorted(keys.missing_keys) == sorted(f"0.{key}" for key in own.keys() - state.keys())
    assert keys.unexpected_keys == [f"0.{key}" for key in state.keys() - own.keys()]
    for name in own.keys() & state.keys():
        assert torch.equal(own[name], state[name])


def test_numbers_that_are_on_meta_change_nothing():
    layer, other = (sl.CSRLinear(8, 6, sparsity=0.5) for _ in range(2))
    before = layer.to_dense().weight
    state = dict(other.state_dict(), bias=torch.zeros(6, device="meta"))
    with pytest.raises(RuntimeError, match="bias of the state dict are on meta"):
        layer.load_state_dict(state)
    assert torch.equal(layer.to_dense().weight, before)


def test_values_alone_are_loaded_onto_the_connections_that_are_there():
    layer = sl.CSRLinear(8, 6, sparsity=0.5)
    layer.load_state_dict({"values": torch.ones(24)}, strict=False)
    assert torch.equal(layer.to_dense().weight, layer.csr.mask().float())


def test_assigning_tensors_of_unlike_types_is_refused():
    layer = sl.CSRLinear(8, 6, sparsity=0.5)
    state = dict(layer.state_dict(), bias=torch.zeros(6, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="tensors of unlike types or devices"):
        layer.load_state_dict(state, assign=True)
    layer.load_state_dict(sl.CSRLinear(8, 6, sparsity=0.5).double().state_dict(), assign=True)
    assert layer(torch.randn(2, 8, dtype=torch.float64)).dtype == torch.float64


def test_a_reach_that_is_impossible_changes_nothing():
    layer = sl.SparseConv1d(4, 8, 5, sparsity=0.5)
    state = dict(layer.state_dict(), reach=torch.full((8,), -4))
    with pytest.raises(RuntimeError, match="reach needs a number from 1 to 5"):
        layer.load_state_dict(state)
    state["reach"] = torch.ones(8, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="may use only the first 1 taps"):
        layer.load_state_dict(state)
    assert layer.reach.tolist() == [5] * 8


def test_a_rewire_to_another_count_keeps_the_parameter():
    layer, x = sl.CSRLinear(8, 6, sparsity=0.5), torch.randn(3, 8)
    values, version = layer.values, layer.csr.version
    layer(x).sum().backward()
    layer.rewire(torch.arange(7), torch.ones(7))
    assert layer.values is values
    assert values.grad is None
    assert layer.csr.version != version
    layer(x).sum().backward()
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


IMPOSSIBLE = {
    "1-D int32 or int64 tensor": (torch.tensor([0.2, 0.9]), torch.ones(2)),
    "as many values": (torch.arange(2), torch.ones(3)),
    "convert them": (torch.arange(2), torch.ones(2, dtype=torch.float64)),
    "ascend strictly": (torch.tensor([3, 3]), torch.ones(2)),
    "has the cells 0..47": (torch.tensor([3, 48]), torch.ones(2)),
    "the positions are on meta": (torch.arange(2, device="meta"), torch.ones(2)),
}


@pytest.mark.parametrize("sentence", IMPOSSIBLE)
def test_an_impossible_rewire_changes_nothing(sentence):
    layer = sl.CSRLinear(8, 6, sparsity=0.5)
    before = layer.positions, layer.values.detach().clone()
    with pytest.raises(ValueError, match=sentence):
        layer.rewire(*IMPOSSIBLE[sentence])
    assert torch.equal(layer.positions, before[0])
    assert torch.equal(layer.values, before[1])


@pytest.mark.parametrize(
    ("make", "sizes", "shape"),
    [
        (sl.CSRLinear, (8, 6), (3, 8)),
        (sl.SparseConv1d, (2, 4, 3), (3, 2, 9)),
        (sl.SparseConv2d, (2, 4, 3), (3, 2, 9, 8)),
        (sl.SparseConv2d, (2, 4, 3, 2), (3, 2, 9, 8)),
    ],
)
def test_a_layer_from_meta_needs_its_pattern_before_it_computes(make, sizes, shape):
    x = torch.randn(shape)
    layer = make(*sizes, sparsity=0.5)
    with torch.device("meta"):
        empty, assigned = (make(*sizes, sparsity=0.5) for _ in range(2))
    empty.to_empty(device="cpu")
    with pytest.raises(ValueError, match="was emptied or overwritten"):
        empty(x)
    empty.load_state_dict(layer.state_dict())
    assigned.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(empty(x), layer(x))
    assert torch.equal(assigned(x), layer(x))


def test_densify_is_the_inverse_of_sparsify():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(nn.Conv1d(2, 4, 3, 2), nn.Flatten(), nn.Linear(16, 8), shared, shared)
    sl.sparsify(model, 0.5, convolutions=True)
    x = torch.randn(3, 2, 9)
    sparse = copy.deepcopy(model)
    assert sl.densify(model) is model
    assert [type(m).__name__ for m in model] == ["Conv1d", "Flatten", "Linear", "Linear", "Linear"]
    assert model[3] is model[4]
    torch.testing.assert_close(model(x), sparse(x))
    with pytest.raises(ValueError, match="no sparse layer"):
        sl.densify(model)


def test_a_dense_layer_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"what an nn\.Linear does, not a Conv1d"):
        sl.CSRLinear.from_dense(torch.nn.Conv1d(2, 3, 1))
    with pytest.raises(ValueError, match=r"what an nn\.Conv1d does, not a Linear"):
        sl.SparseConv1d.from_dense(torch.nn.Linear(2, 3), 0.5)


@pytest.mark.slow
def test_no_corruption_crashes_or_goes_unseen():
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    printed = run_plain(program + "import fuzzed; fuzzed.main(1250)")
    refused, accepted = map(int, printed[-1].split())
    assert refused + accepted == 1250
    assert min(refused, accepted) > 150
