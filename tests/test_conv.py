"""SparseConv1d is nn.Conv1d at its connections, and no evolution leaves a filter's region."""

import ast
import copy
from functools import partial

import pytest
import torch
from apart import run_compiling
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional

import sparselib as sl
from sparselib import topology
from sparselib.nn import centered_zeros, replicate_right

PADDINGS = [replicate_right, centered_zeros]


def layer_of(channels=3, filters=9, taps=6, sparsity=0.7, **options):
    reach = topology.kernel_regions(filters, taps) if taps >= 3 else None
    options = {"reach": reach, "dtype": torch.float64, "padding": replicate_right, **options}
    return sl.SparseConv1d(channels, filters, taps, sparsity=sparsity, **options)


def masked(layer, values, bias, x):
    weight = layer.csr.to_dense(values).view(layer.shape[0], -1, layer.kernel_size)
    if layer.padding is centered_zeros:
        return functional.conv1d(x, weight, bias, padding="same", dilation=layer.dilation)
    ahead = (layer.kernel_size - 1) * layer.dilation
    padded = functional.pad(x, (0, ahead), mode="replicate")
    return functional.conv1d(padded, weight, bias, dilation=layer.dilation)


@given(
    st.integers(1, 4),
    st.integers(1, 10),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.5, 0.95]),
    st.sampled_from(PADDINGS),
    st.integers(1, 3),
    st.sampled_from([torch.float32, torch.float64]),
)
@example(3, 9, 6, 30, 2, 0.5, replicate_right, 2, torch.float64)
@example(3, 9, 6, 30, 2, 0.5, centered_zeros, 3, torch.float64)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_outputs_and_gradients_equal_the_masked_dense_ones(
    channels, filters, taps, time, batch, sparsity, padding, dilation, dtype
):
    torch.manual_seed(0)
    options = {"padding": padding, "dilation": dilation, "dtype": dtype}
    layer = layer_of(channels, filters, taps, sparsity, **options)
    layer.bias.data.normal_()
    x = torch.randn(batch, channels, time, dtype=dtype, requires_grad=True)
    y = layer(x)
    assert y.shape == (batch, filters, time)
    exact = [t.detach().double().requires_grad_() for t in (layer.values, layer.bias, x)]
    right = masked(layer, *exact)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    close(y.double(), right)
    dy = torch.randn(y.shape, dtype=torch.float64)
    found = torch.autograd.grad(y, (layer.values, layer.bias, x), dy.to(dtype))
    for ours, theirs in zip(found, torch.autograd.grad(right, exact, dy)):
        close(ours.double(), theirs)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dilation", [1, 2])
def test_gradients_are_those_of_differences(padding, dilation):
    layer = layer_of(2, 3, 4, 0.4, padding=padding, dilation=dilation)
    x = torch.randn(2, 2, 7, dtype=torch.float64, requires_grad=True)
    run = partial(torch.func.functional_call, layer)
    torch.autograd.gradcheck(
        lambda values, bias, x: run({"values": values, "bias": bias}, x),
        (layer.values, layer.bias, x),
    )


@pytest.mark.slow
@pytest.mark.xdist_group("compiler")
def test_compiles_without_a_graph_break():
    program = """
import torch, sparselib as sl
for padding in (sl.nn.replicate_right, sl.nn.centered_zeros):
    layer = sl.SparseConv1d(3, 5, 4, sparsity=0.6, dilation=2, padding=padding)
    x = torch.randn(2, 3, 20, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for run in (layer, compiled):
        run(x).relu().sum().backward()
        print(torch.cat([x.grad.flatten(), *(p.grad for p in layer.parameters())]).tolist())
        layer.zero_grad(), x.grad.zero_()
"""
    found = [ast.literal_eval(line) for line in run_compiling(program)]
    for eager, compiled in zip(found[::2], found[1::2], strict=True):
        assert compiled == pytest.approx(eager, abs=1e-5)


def test_a_dilated_kernel_is_one_with_zeros_between_its_taps():
    plain = layer_of(taps=6, reach=None)
    options = {"padding": replicate_right, "dtype": torch.float64}
    wide = sl.SparseConv1d(3, 9, 16, topology=lambda *_: spread(plain, 3), **options)
    wide.load_state_dict({**wide.state_dict(), "values": plain.values})
    apart = layer_of(taps=6, reach=None, dilation=3)
    apart.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 40, dtype=torch.float64)
    torch.testing.assert_close(apart(x), wide(x), rtol=1e-12, atol=1e-12)


def spread(layer, dilation):
    """Positions of a layer's weights in kernels with room between the taps."""
    taps = (layer.kernel_size - 1) * dilation + 1
    kernel, tap = layer.positions // layer.kernel_size, layer.positions % layer.kernel_size
    return kernel * taps + tap * dilation


def test_nothing_of_the_size_of_the_kernels_is_stored():
    layer = sl.SparseConv1d(47, 141, 30, sparsity=0.95)
    tensors = [*layer.parameters(), *layer.buffers()]
    assert max(tensor.numel() for tensor in tensors) < 47 * 141 * 30 // 15
    assert sum(layer.csr.nbytes) + layer.reach.nbytes < 47 * 141 * 30


def test_state_dict_carries_values_topology_and_reach():
    first, second = layer_of(), layer_of()
    names = {"values", "bias", "csr.crow_indices", "csr.col_indices", "reach"}
    assert set(first.state_dict()) == names
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 11, dtype=torch.float64, requires_grad=True)
    assert torch.equal(first(x), second(x))
    slopes = [torch.autograd.grad(layer(x).sum(), x)[0] for layer in (first, second)]
    assert torch.equal(*slopes)


def test_a_dilation_is_shown_where_there_is_one():
    assert "3, 9, 6, padding=replicate_right, bias=True" in repr(layer_of())
    assert "3, 9, 6, dilation=2, bias=True" in repr(layer_of(dilation=2, padding=0))


def test_a_generator_fixes_topology_and_weights():
    seeds = (torch.Generator().manual_seed(3) for _ in range(2))
    first, second = (layer_of(generator=seed) for seed in seeds)
    assert torch.equal(first.positions, second.positions)
    assert torch.equal(first.values, second.values)


def test_three_groups_of_47_filters_reach_10_20_and_30_taps_as_in_the_program():
    reach = topology.kernel_regions(141, 30)
    assert [reach[group].unique().tolist() for group in reach.new_tensor(range(141)).chunk(3)] == [
        [10],
        [20],
        [30],
    ]
    assert topology.kernel_regions(141, 40).unique().tolist() == [13, 26, 39]
    assert topology.kernel_regions(10, 9).tolist() == [3] * 4 + [6] * 4 + [9] * 2


@pytest.mark.parametrize("law", [topology.scattered, topology.first_taps])
@pytest.mark.parametrize(
    ("channels", "taps", "sparsity", "counts"),
    [
        (1, 30, 0.95, [23, 47, 70]),
        (47, 30, 0.95, [1104, 2209, 3313]),
        (47, 30, 0.8, [4418, 8836, 13254]),
        (47, 6, 0.8, [883, 1767, 2650]),
    ],
)
def test_connections_of_a_group_are_those_of_the_program(law, channels, taps, sparsity, counts):
    region = topology.Region(topology.kernel_regions(141, taps), taps, channels * taps)
    positions = law(region, sparsity)
    sl.CSR.from_positions(positions, (141, channels * taps))
    assert torch.bincount(positions // (channels * taps) // 47).tolist() == counts
    assert bool((positions % taps < region.reach[positions // region.columns]).all())


def test_kernels_sorted_at_initialization_are_one_or_two_taps_wide():
    region = topology.Region(topology.kernel_regions(141, 30), 30, 47 * 30)
    taps = topology.first_taps(region, 0.95) % 30
    assert torch.bincount(taps).tolist() == [1104 + 2209 + 2209, 1104]


def regions(reach, channels):
    """Kernels of 4 taps of a signal, and of 2 x 2 and 1 x 4 of an image, of the same reaches."""
    yield topology.Region(torch.tensor(reach), 4, 4 * channels)
    for kernel in ((2, 2), (1, 4)):
        yield topology.Region.outward(torch.tensor(reach), kernel, channels)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(1, 3), st.data())
def test_numbers_and_positions_of_a_region_are_inverse(reach, channels, data):
    chosen = data.draw(st.sets(st.integers(0, len(reach) - 1), min_size=1))
    rows = torch.tensor(sorted(chosen))
    for region in regions(reach, channels):
        cells = region.mask(rows).flatten().nonzero().flatten()
        numbers = torch.arange(int(region.room[rows].sum()))
        assert torch.equal(region.number(cells, rows), numbers)
        positions = region.position(numbers, rows)
        kernel = rows[cells // region.columns] * region.columns
        assert torch.equal(positions, kernel + cells % region.columns)
        region.check(positions)


RULES = [
    sl.grow.random,
    sl.grow.gradient_of_costliest,
    sl.grow.full_gradient,
    partial(sl.grow.likeliest_features, importance=torch.rand(18)),
]


@given(st.sampled_from(RULES), st.integers(0, 1000), st.sampled_from([0.3, 0.8]), st.booleans())
@pytest.mark.slow
def test_evolution_never_leaves_a_region(grow, seed, sparsity, regrow):
    torch.manual_seed(seed)
    layer = layer_of(sparsity=sparsity, dtype=torch.float32)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    fraction = 0.2 if sparsity < 0.5 else 0.6
    options = {"seed": seed, "regrow": regrow}
    evolution = sl.Evolution(layer, optimizer, sl.drop.magnitude, grow, fraction, **options)
    before = layer.values.numel()
    for _ in range(3):
        layer(torch.randn(2, 3, 20)).square().mean().backward()
        optimizer.step()
        evolution.step()
        row = layer.positions // layer.shape[1]
        assert bool((layer.positions % layer.kernel_size < layer.reach[row]).all())
        assert layer.values.numel() == before


def test_one_signal_may_come_without_a_batch():
    layer, x = sl.nn.SparseConv1d(3, 4, 5, padding=2, sparsity=0.5), torch.randn(1, 3, 20)
    assert torch.equal(layer(x[0]), layer(x)[0])
    grown = []
    for signals in (x, x[0]):
        twin = copy.deepcopy(layer)
        evolution = sl.RigL(twin, torch.optim.SGD(twin.parameters(), 0.1))
        twin(signals).square().sum().backward()
        evolution.step()
        grown.append(twin.positions)
    assert torch.equal(*grown)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_gradient_of_another_topology_is_refused(kind):
    layer = sl.nn.SparseConv1d(3, 4, 5, sparsity=0.5, dtype=kind)
    y = layer(torch.randn(2, 3, 20, dtype=kind))
    layer.csr.rewire(torch.arange(layer.csr.nnz))
    with pytest.raises(RuntimeError, match=r"topology changed|modified by an inplace"):
        y.sum().backward()


@pytest.mark.parametrize("dilation", [1, 3])
def test_growth_by_gradient_finds_the_largest_slopes_of_the_dense_kernels(dilation):
    layer = layer_of(bias=False, dilation=dilation)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    evolution = sl.RigL(layer, optimizer, fraction=0.2, regrow=False)
    x = torch.randn(4, 3, 25, dtype=torch.float64)
    layer(x).pow(2).sum().backward()
    dense = layer.csr.to_dense(layer.values.detach()).view(9, 3, 6).requires_grad_()
    padded = functional.pad(x, (0, 5 * dilation), mode="replicate")
    functional.conv1d(padded, dense, dilation=dilation).pow(2).sum().backward()
    slopes = torch.where(
        layer.region.mask(torch.arange(9)) & ~layer.csr.mask(), dense.grad.flatten(1).abs(), 0
    )
    before = set(layer.positions.tolist())
    count = evolution.step()[""]
    came = sorted(set(layer.positions.tolist()) - before)
    assert came == slopes.flatten().topk(count).indices.sort().values.tolist()


def test_what_is_not_possible_is_refused_in_a_sentence():
    layer = layer_of(taps=6, filters=9)
    with pytest.raises(ValueError, match="tap 5 of filter 0, which may use only the first 2 taps"):
        layer.rewire(layer.positions.index_fill(0, torch.tensor([0]), 5), layer.values)
    with pytest.raises(ValueError, match="of 3 channels cannot read an input of shape"):
        layer(torch.randn(2, 4, 10, dtype=torch.float64))
    with pytest.raises(ValueError, match="reach needs a number from 1 to 6"):
        sl.SparseConv1d(1, 2, 6, reach=torch.tensor([3, 7]))
    with pytest.raises(ValueError, match=r"dilation must be at least 1, not \(1, 2, 6, 0\)"):
        sl.SparseConv1d(1, 2, 6, dilation=0)
    with pytest.raises(ValueError, match="sparsity must lie in"):
        sl.SparseConv1d(1, 2, 6, sparsity=1.0)
    with pytest.raises(ValueError, match="a kernel of 2 has too few"):
        topology.kernel_regions(9, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="has a region, which evolution on the device cannot"):
        sl.resident.SET(layer, optimizer).step()
    features = partial(sl.grow.linear_features, importance=torch.ones(18))
    with pytest.raises(ValueError, match="cannot keep to a region"):
        sl.Evolution(layer, optimizer, sl.drop.magnitude, features).step()


@pytest.mark.parametrize(
    ("taps", "padding", "dilation"),
    [(5, 2, 1), (1, 0, 1), (4, "same", 1), (5, 4, 2), (4, "same", 3)],
)
def test_a_convolution_becomes_sparse_and_keeps_its_largest_weights(taps, padding, dilation):
    dense = torch.nn.Conv1d(3, 6, taps, padding=padding, dilation=dilation).double()
    x = torch.randn(2, 3, 40, dtype=torch.float64)
    whole = sl.SparseConv1d.from_dense(dense)
    torch.testing.assert_close(whole(x), dense(x), rtol=1e-12, atol=1e-12)
    half = sl.SparseConv1d.from_dense(dense, 0.5)
    weight = dense.weight.detach()
    large = weight.abs() >= weight.abs().flatten().sort().values[weight.numel() // 2]
    dense.weight.data *= large
    assert half.values.numel() == weight.numel() // 2
    torch.testing.assert_close(half(x), dense(x), rtol=1e-12, atol=1e-12)
    fresh = sl.sparsify(dense, 0.5, convolutions=True, fresh=True)
    assert fresh(x).shape == dense(x).shape
    assert fresh.padding == padding
    assert fresh.dilation == dilation


SETTINGS = [
    {"stride": 2},
    {"stride": 3, "padding": 3, "dilation": 2, "bias": False},
    {"groups": 3, "padding": "same"},
    {"stride": 2, "groups": 3, "padding": 1, "padding_mode": "reflect"},
    {"padding": 2, "padding_mode": "circular"},
    {"stride": 2, "padding": 4, "padding_mode": "replicate"},
    {"padding": "valid", "dilation": 3},
]


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("taps", [1, 4, 5])
def test_stride_groups_and_padding_mean_what_they_mean_in_torch(taps, options):
    dense = torch.nn.Conv1d(6, 9, taps, **options).double()
    layer = sl.SparseConv1d.from_dense(dense, 0.5)
    twin = layer.to_dense()
    x = torch.randn(2, 6, 23, dtype=torch.float64, requires_grad=True)
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    for _ in range(2):
        y, right = layer(x), twin(x)
        close(y, right)
        dy = torch.randn_like(y)
        dx, dvalues = torch.autograd.grad(y, (x, layer.values), dy)
        theirs = torch.autograd.grad(right, (x, twin.weight), dy)
        close(dx, theirs[0])
        close(dvalues, theirs[1].flatten()[layer.positions])
        rows = torch.tensor([0, 4, 8])
        close(layer.gradient(x.detach(), dy[:, rows], rows), theirs[1].flatten(1)[rows])
        layer.rewire(torch.arange(layer.csr.nnz), layer.values.detach().clone())
        twin = layer.to_dense()
    built = sl.SparseConv1d(6, 9, taps, sparsity=0.5, dtype=torch.float64, **options)
    built.load_state_dict(layer.state_dict())
    assert torch.equal(built(x), layer(x))
    layer.rewire(torch.arange(7), torch.ones(7, dtype=torch.float64))
    close(layer(x), layer.to_dense()(x))


def test_the_arguments_are_those_of_a_dense_convolution_in_its_order():
    given = (6, 9, 4, 2, 1, 1, 3, False, "reflect")
    layer, dense = sl.SparseConv1d(*given), torch.nn.Conv1d(*given)
    assert str(layer.to_dense()) == str(dense)
    with pytest.raises(ValueError, match="bias is True or False, not 0"):
        sl.SparseConv1d(1, 2, 3, 1, 0, 1, 1, 0.9)
    with pytest.raises(ValueError, match="4 groups must divide"):
        sl.SparseConv1d(6, 8, 3, groups=4)
    with pytest.raises(ValueError, match="keeps the length, which a stride does not"):
        sl.SparseConv1d(6, 8, 3, 2, "same")
    with pytest.raises(ValueError, match="needs rows="):
        layer.gradient(torch.randn(2, 6, 20), torch.randn(2, 3, 10))
