"""CSRLinear is nn.Linear at its connections."""

import copy
from functools import partial

import pytest
import torch
from apart import run_plain
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparselib as sl


@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from([0.0, 0.3, 0.9, 0.999]),
    st.booleans(),
)
def test_outputs_and_gradients_equal_the_dense_twin(in_features, out_features, sparsity, bias):
    layer = sl.CSRLinear(in_features, out_features, bias, sparsity=sparsity, dtype=torch.float64)
    dense = layer.to_dense()
    x = torch.randn(4, in_features, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-10, atol=1e-10)
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(dx, torch.autograd.grad(dense(x).square().sum(), x)[0])
    again = sl.CSRLinear.from_dense(dense)
    torch.testing.assert_close(again(x), layer(x))


LAYERS = {
    "linear": (partial(sl.CSRLinear, 40, 60, sparsity=0.9), (5, 40)),
    "of one sample": (partial(sl.CSRLinear, 40, 60, sparsity=0.9), (40,)),
    "of a sequence": (partial(sl.CSRLinear, 40, 60, sparsity=0.9), (2, 3, 40)),
    "convolution": (partial(sl.nn.SparseConv1d, 3, 8, 5, sparsity=0.7), (2, 3, 50)),
    "of images": (partial(sl.nn.SparseConv2d, 3, 8, 3, sparsity=0.7, padding=1), (2, 3, 9, 8)),
    "chain": (lambda **_: sl.MLP(40, 60, 8, layer=sl.CSRLinear, sparsity=0.9), (5, 40)),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_what_follows_a_layer_may_work_in_place(name, dtype, bias, autocast):
    make, shape = LAYERS[name]
    layer, x = make(bias=bias).to(dtype), torch.randn(shape, dtype=dtype)
    gradients = []
    for inplace in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = nn.Sequential(layer, nn.ReLU(inplace))(x)
        gradients.append(torch.autograd.grad(y.sum(), tuple(layer.parameters())))
    for theirs, ours in zip(*gradients):
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize("name", ["linear", "of a sequence", "convolution", "of images", "chain"])
def test_transforms_of_functions_give_the_gradients_of_each_sample(name):
    make, shape = LAYERS[name]
    layer, x = make(bias=True), torch.randn(shape)
    parameters = {key: value.detach() for key, value in layer.named_parameters()}

    def loss(parameters, sample):
        return torch.func.functional_call(layer, parameters, (sample[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for number, sample in enumerate(x):
        layer.zero_grad()
        layer(sample[None]).square().sum().backward()
        for key, value in layer.named_parameters():
            torch.testing.assert_close(each[key][number], value.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["linear", "of a sequence", "convolution"])
def test_sixteen_bits_are_those_of_the_float32_numbers(name, kind):
    make, shape = LAYERS[name]
    layer, x = make(bias=True).to(kind), torch.randn(shape).to(kind)
    wide = copy.deepcopy(layer).float()
    close = {"rtol": 0.02, "atol": 0.02, "check_dtype": False}
    torch.testing.assert_close(layer(x), wide(x.float()), **close)
    layer(x).mean().backward()
    wide(x.float()).mean().backward()
    assert layer.values.grad.dtype == kind
    torch.testing.assert_close(layer.values.grad, wide.values.grad, **close)


def test_layers_are_initialized_and_called_where_the_default_device_is():
    for make, shape in LAYERS.values():
        with torch.device("meta"):
            assert make(bias=True)(torch.empty(shape)).is_meta
    with torch.device("meta"):
        assert sl.DSN(4, 2, 6)(torch.empty(2, 100)).shape == (2, 2)


NESTED = """
import torch, sparselib as sl
layer = sl.CSRLinear(8, 4, sparsity=0.5)
twin = layer.to_dense()
parts = [torch.randn(3, 8), torch.randn(0, 8), torch.randn(5, 8)]
for layout in (torch.strided, torch.jagged):
    ours, theirs = (
        torch.nested.nested_tensor(parts, layout=layout, requires_grad=True) for _ in range(2)
    )
    y, right = layer(ours), twin(theirs)
    assert y.is_nested and y.layout == layout
    for one, other in zip(y.unbind(), right.unbind(), strict=True):
        torch.testing.assert_close(one, other)
    layer.zero_grad()
    twin.zero_grad()
    for nested in (y, right):
        sum(part.square().sum() for part in nested.unbind()).backward()
    dense = twin.weight.grad.flatten()[layer.positions]
    torch.testing.assert_close(layer.values.grad, dense)
    for one, other in zip(ours.grad.unbind(), theirs.grad.unbind(), strict=True):
        torch.testing.assert_close(one, other)
for convolution, x in ((sl.SparseConv1d(8, 4, 1), 1), (sl.SparseConv2d(8, 4, 1), 2)):
    nested = torch.nested.nested_tensor([torch.randn(8, *[size] * x) for size in (2, 3)])
    try:
        convolution(nested)
    except ValueError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_nested_tensor_is_read_as_nn_linear_reads_it_and_by_no_convolution():
    """Without the checks of shapes, which a nested tensor does not have."""
    told = run_plain(NESTED)
    assert [line.partition(";")[0] for line in told] == [
        "a SparseConv1d reads no nested tensor",
        "a SparseConv2d reads no nested tensor",
    ]


def test_from_dense_keeps_the_largest_weights():
    dense = nn.Linear(20, 10)
    layer = sl.CSRLinear.from_dense(dense, sparsity=0.75)
    kept = layer.csr.mask()
    assert kept.sum() == 50
    assert dense.weight.abs()[kept].min() >= dense.weight.abs()[~kept].max()
    assert torch.equal(layer.values, dense.weight[kept])
    assert torch.equal(layer.bias, dense.bias)


def test_a_layer_too_large_to_be_dense_trains_one_step_and_evolves():
    size, connections = 200_000, 1_000_000
    layer = sl.CSRLinear(size, size, sparsity=1 - connections / size**2)
    assert layer.values.numel() == connections
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    evolution = sl.SET(layer, optimizer, fraction=0.01)
    before = layer.values.detach().clone()
    layer(torch.randn(4, size)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(layer.values, before)
    assert evolution.step() == {"": 10_000}
    assert layer.values.numel() == connections


def test_a_fresh_layer_has_the_output_variance_of_a_dense_one():
    x = torch.randn(2000, 400)
    dense = nn.Linear(400, 300, bias=False)(x).var().item()
    for layer in (
        sl.CSRLinear(400, 300, False, sparsity=0.95),
        sl.sparsify(nn.Linear(400, 300, bias=False), 0.95, fresh=True),
    ):
        assert layer(x).var().item() == pytest.approx(dense, rel=0.05)
        bound = (layer.csr.nnz / 300) ** -0.5
        assert 0.99 * bound < layer.values.abs().max().item() <= bound


def test_the_arguments_are_those_of_a_dense_layer_in_its_order():
    assert sl.CSRLinear(64, 10, False).bias is None
    layer = sl.CSRLinear(64, 10, True, "meta", torch.float64)
    assert layer.values.is_meta
    assert layer.values.dtype == torch.float64
    with pytest.raises(ValueError, match=r"CSRLinear\(64, 10, sparsity=0.9\)"):
        sl.CSRLinear(64, 10, 0.99)
    with pytest.raises(ValueError, match="sparsity is a number in"):
        sl.CSRLinear(64, 10, sparsity=False)


def test_the_distribution_of_the_papers_values_is_ertls():
    layer = sl.CSRLinear(1000, 1000, sparsity=0.9, init=sl.init.sparse_xavier_)
    assert layer.values.std().item() == pytest.approx(2 / (2000 * 0.1) ** 0.5, rel=0.02)
    plain = sl.CSRLinear(1000, 1000, sparsity=0.9, init=sl.init.xavier_)
    assert plain.values.std().item() == pytest.approx(2 / 2000**0.5, rel=0.02)
    # five standard errors of the mean of 100,000
    assert abs(plain.values.mean().item()) < 5 * plain.values.std().item() / 100_000**0.5
    assert layer.bias.count_nonzero() == 0


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
def test_outputs_of_a_fresh_layer_vary_as_those_of_the_dense_one(sparsity):
    """Variance within 5 %, of 2 million outputs, without the biases."""
    torch.manual_seed(0)
    x = torch.randn(2000, 1000)
    dense = torch.nn.Linear(1000, 1000, bias=False)
    variance = dense(x).var().item()
    layer = sl.CSRLinear(1000, 1000, bias=False, sparsity=sparsity)
    fresh = sl.sparsify(dense, sparsity, fresh=True)
    for sparse in (layer, fresh):
        assert sparse(x).detach().var().item() == pytest.approx(variance, rel=0.05)


def test_a_generator_fixes_topology_and_weights():
    first, second = (
        sl.CSRLinear(30, 20, generator=torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert torch.equal(first.positions, second.positions)
    assert torch.equal(first.values, second.values)


def test_state_dict_carries_values_bias_and_topology():
    first, second = sl.CSRLinear(30, 20), sl.CSRLinear(30, 20)
    assert set(first.state_dict()) == {
        "values",
        "bias",
        "csr.crow_indices",
        "csr.col_indices",
    }
    second.load_state_dict(first.state_dict())
    x = torch.randn(3, 30, requires_grad=True)
    assert torch.equal(first(x), second(x))
    gradients = [torch.autograd.grad(layer(x).sum(), x)[0] for layer in (first, second)]
    assert torch.equal(*gradients)


def test_the_masked_product_gives_the_same_numbers():
    layer = sl.CSRLinear(30, 20, dtype=torch.float64)
    twin = copy.deepcopy(layer)
    twin.product = sl.masked_product
    x = torch.randn(5, 30, dtype=torch.float64)
    for one in (layer, twin):
        one(x).square().sum().backward()
    torch.testing.assert_close(layer(x), twin(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.values.grad, twin.values.grad, rtol=1e-12, atol=1e-12)


def test_sparsify_converts_a_model_in_one_line():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), shared, shared, nn.Linear(8, 3))
    assert sl.sparsify(model, sparsity=0.5, skip=["4"]) is model
    assert [type(m).__name__ for m in model] == [
        "CSRLinear",
        "ReLU",
        "CSRLinear",
        "CSRLinear",
        "Linear",
    ]
    assert model[2] is model[3]
    assert model(torch.randn(2, 12)).shape == (2, 3)
    assert isinstance(sl.sparsify(nn.Linear(4, 4), 0.5, fresh=True), sl.CSRLinear)
    kept = torch.arange(8)
    born = sl.sparsify(nn.Linear(4, 4), 0.5, fresh=True, topology=lambda *_: kept)
    assert torch.equal(born.positions, kept)


def test_a_transformer_becomes_sparse_and_evolves():
    block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(block, 2)
    sl.sparsify(model, 0.8)
    layers = sl.nn.sparse_layers(model)
    attention = [f"self_attn.{one}_proj" for one in ("q", "k", "v", "out")]
    inside = [*attention, "linear1", "linear2"]
    assert list(layers) == [f"layers.{block}.{name}" for block in (0, 1) for name in inside]
    x = torch.randn(3, 7, 32)
    torch.testing.assert_close(model(x), sl.densify(copy.deepcopy(model))(x))
    evolution = sl.RigL(model, torch.optim.Adam(model.parameters()))
    model(x)[..., 0].sum().backward()
    assert min(evolution.step().values()) > 0
    dense = sl.densify(copy.deepcopy(model))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), dense.eval()(x), rtol=1e-4, atol=1e-5)


def test_sparsify_refuses_an_unknown_name_and_an_empty_job():
    with pytest.raises(ValueError, match=r"skip names \['head'\]"):
        sl.sparsify(nn.Sequential(nn.Linear(2, 2)), 0.5, skip=["head"])
    with pytest.raises(ValueError, match=r"no nn.Linear to convert"):
        sl.sparsify(nn.Sequential(nn.ReLU()), 0.5)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5])
def test_impossible_sparsity_is_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity must lie in"):
        sl.CSRLinear(4, 4, sparsity=sparsity)


def test_an_mlp_takes_one_sparsity_or_one_a_layer():
    model = sl.MLP(28, 50, 50, 50, 2, layer=sl.CSRLinear, sparsity=[0.95, 0.99, 0.99, 0.9])
    assert [layer.csr.nnz for layer in model.layers] == [70, 25, 25, 10]
    assert model(torch.randn(3, 4, 7)).shape == (3, 2)
    with pytest.raises(ValueError, match="4 layers need 4 sparsities"):
        sl.MLP(28, 50, 50, 50, 2, layer=sl.CSRLinear, sparsity=[0.95, 0.9])
    with pytest.raises(ValueError, match="at least two sizes"):
        sl.MLP(28)


@pytest.mark.parametrize("p", [0.0, 0.001, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("by_feature", [False, True])
def test_dropout_is_zero_with_probability_p_and_keeps_the_mean(p, by_feature):
    torch.manual_seed(0)
    dropout, n = sl.nn.Dropout(p), 10**6
    ones = torch.ones(1000, 1001).t() if by_feature else torch.ones(1001, 1000)
    x = ones.requires_grad_()
    y = dropout(x)
    kept = y != 0
    assert float(kept.double().mean()) == pytest.approx(1 - p, abs=5 * (p * (1 - p) / n) ** 0.5)
    assert set(y[kept].tolist()) <= {y.max().item()}
    if p < 1:
        assert float(y.detach().max()) == pytest.approx(1 / (1 - p), rel=2**-6 if p > 0.9 else 1e-4)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    assert y.stride() == x.stride()
    assert dropout.eval()(x) is x


def test_each_of_four_activations_that_share_a_draw_is_dropped_alone():
    torch.manual_seed(0)
    zeros = (sl.nn.Dropout(0.3)(torch.ones(100_000, 4)) == 0).double()
    assert zeros.mean(0).tolist() == pytest.approx([0.3] * 4, abs=0.01)
    assert torch.corrcoef(zeros.t()).sub(torch.eye(4)).abs().max() < 0.02


def split_mix(seed, count):
    """SplitMix64 as its authors give it (Steele, Lea and Flood, 2014)."""
    mask = 2**64 - 1
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield z ^ (z >> 31)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 4095, 4097, 9003])
def test_dropout_draws_by_splitmix64_from_a_seed_of_torch_s_generator(count):
    assert next(split_mix(0, 1)) == 0xE220A8397B1DCDAF  # as published
    torch.manual_seed(5)
    seed = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
    numbers = [n >> 16 * k & 0xFFFF for n in split_mix(seed, count // 4 + 1) for k in range(4)]
    expected = torch.tensor([n < round(0.7 * 2**16) for n in numbers[:count]])
    torch.manual_seed(5)
    assert torch.equal(sl.nn.Dropout(0.3)(torch.ones(count)) != 0, expected)


def test_no_bit_of_a_dropout_depends_on_the_number_of_threads():
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(5)
            found.append(sl.nn.Dropout(0.3)(torch.ones(700, 1001)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dropout_of_other_types_keeps_as_many(dtype):
    torch.manual_seed(0)
    y = sl.nn.Dropout(0.3)(torch.ones(10**5, dtype=dtype))
    assert float((y != 0).double().mean()) == pytest.approx(0.7, abs=0.01)
    assert y.dtype is dtype


def test_dropout_follows_the_seed_and_takes_any_shape():
    dropout = sl.nn.Dropout(0.5)
    for shape in ((0,), (), (1,), (3, 5, 7)):
        torch.manual_seed(3)
        first = dropout(torch.ones(shape))
        torch.manual_seed(3)
        assert torch.equal(first, dropout(torch.ones(shape)))
        assert first.shape == shape
    with pytest.raises(ValueError, match=r"not 1\.5"):
        sl.nn.Dropout(1.5)
