"""The sparse convolution of images: torch's own, with few weights."""

from functools import partial

import pytest
import torch
from apart import run_compiling, run_plain
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

import sparselib as sl

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
SETTINGS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (3, 1), "padding": (3, 2), "dilation": (2, 1), "bias": False},
    {"groups": 3, "padding": "same"},
    {"stride": 2, "groups": 3, "padding": 1, "padding_mode": "reflect"},
    {"padding": (0, 2), "padding_mode": "circular"},
    {"stride": (1, 2), "padding": (4, 0), "padding_mode": "replicate"},
    {"padding": "valid", "dilation": (1, 3)},
]


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("kernel", [1, (3, 2), 5])
def test_outputs_and_gradients_are_those_of_torch(kernel, options):
    dense = nn.Conv2d(6, 9, kernel, **options).double()
    layer = sl.SparseConv2d.from_dense(dense, 0.5)
    twin = layer.to_dense()
    assert str(twin) == str(dense)
    x = torch.randn(2, 6, 15, 17, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        y, right = layer(x), twin(x)
        close(y, right)
        assert y.is_contiguous()
        dy = torch.randn_like(y)
        dx, dvalues = torch.autograd.grad(y, (x, layer.values), dy)
        theirs = torch.autograd.grad(right, (x, twin.weight), dy)
        close(dx, theirs[0])
        close(dvalues, theirs[1].flatten()[layer.positions])
        rows = torch.tensor([0, 4, 8])
        close(layer.gradient(x.detach(), dy[:, rows], rows), theirs[1].flatten(1)[rows])
        layer.rewire(torch.arange(layer.csr.nnz), layer.values.detach().clone())
        twin = layer.to_dense()


@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 3}])
def test_an_image_as_large_as_the_kernel_gives_one_point(options):
    layer = sl.SparseConv2d(6, 9, (3, 2), dilation=2, **options, sparsity=0.5, dtype=torch.float64)
    x = torch.randn(2, 6, 5, 3, dtype=torch.float64)
    y = layer(x)
    assert y.shape == (2, 9, 1, 1)
    close(y, layer.to_dense()(x))
    with pytest.raises(ValueError, match=r"\(5, 2\) points .* are fewer than"):
        layer(x[..., :2])


SIZES = st.integers(1, 4)
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_kernels_convolve_as_the_definition_does(data):
    """Float32, whole numbers, so that every sum is exact in any order."""
    draw = data.draw
    torch.manual_seed(0)
    channels, filters, batch = draw(SIZES), draw(SIZES), draw(st.integers(0, 3))
    kernel, dilation, stride = draw(PAIRS), draw(PAIRS), draw(PAIRS)
    padding = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    least = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
    height, width = (n + draw(st.integers(0, 20)) for n in least)
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    layer = sl.SparseConv2d(channels, filters, kernel, **how, sparsity=draw(st.floats(0, 0.95)))
    with torch.no_grad():
        layer.values.copy_(torch.randint(-3, 4, layer.values.shape))
        layer.bias.copy_(torch.randint(-3, 4, layer.bias.shape))
    x = torch.randint(-3, 4, (batch, channels, height, width)).float().requires_grad_()
    twin = layer.to_dense()
    y, right = layer(x), twin(x)
    assert torch.equal(y, right)
    dy = torch.randint_like(y, -3, 4)
    ours = torch.autograd.grad(y, (x, layer.values, layer.bias), dy)
    dx, dweight, dbias = torch.autograd.grad(right, (x, twin.weight, twin.bias), dy)
    assert torch.equal(ours[0], dx)
    assert torch.equal(ours[1], dweight.flatten()[layer.positions])
    assert torch.equal(ours[2], dbias)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"padding": (1, 2)}, {"stride": 2, "dilation": (1, 2), "padding": 1}]
)
def test_gradients_are_those_of_differences_twice(options):
    layer = sl.SparseConv2d(2, 3, (2, 3), sparsity=0.4, dtype=torch.float64, **options)
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    parts = (x, layer.values, layer.bias)

    def call(x, values, bias):
        named = {"values": values, "bias": bias}
        return torch.func.functional_call(layer, named, (x,))

    assert gradcheck(call, parts)
    assert gradgradcheck(call, parts)


def test_gradients_of_the_kernels_can_be_differentiated_again():
    torch.manual_seed(0)
    layer = sl.SparseConv2d(3, 4, 3, padding=1, sparsity=0.5)
    twin = layer.to_dense()
    x = torch.randn(2, 3, 8, 7, requires_grad=True)
    found = []
    for model, weight in ((layer, layer.values), (twin, twin.weight)):
        (dx,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), (weight, x)))
    torch.testing.assert_close(found[0][0], found[1][0].flatten()[layer.positions])
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.slow
def test_torch_s_own_inputs_of_the_dense_layers_give_the_same():
    """In a process of its own: the module that holds them forbids global flags in every other."""
    program = """
import torch, sparselib as sl
from torch import nn
from torch.testing._internal.common_modules import module_db
how = {"device": "cpu", "dtype": torch.float64, "requires_grad": False, "training": True}
for kind in (nn.Linear, nn.Conv1d, nn.Conv2d):
    (info,) = (entry for entry in module_db if entry.module_cls is kind)
    inputs = info.module_inputs_func(info, **how)
    for given in inputs:
        built, called = given.constructor_input, given.forward_input
        dense = kind(*built.args, **built.kwargs).double()
        layer = sl.sparsify(dense, 1e-9, convolutions=True)
        y, right = (module(*called.args, **called.kwargs) for module in (layer, dense))
        torch.testing.assert_close(y, right, rtol=1e-10, atol=1e-10)
    print(type(layer).__name__, len(inputs) >= 3)
"""
    kinds = ["CSRLinear", "SparseConv1d", "SparseConv2d"]
    assert run_plain(program) == [f"{kind} True" for kind in kinds]


def test_channels_may_come_last_and_then_leave_last():
    layer = sl.SparseConv2d(3, 4, 3, 2, 1, sparsity=0.5)
    x = torch.randn(2, 3, 8, 7)
    last = x.contiguous(memory_format=torch.channels_last)
    y = layer(last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, layer(x))
    assert layer(x).is_contiguous()


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding_mode": "circular"}])
def test_an_empty_batch_and_a_single_image(options):
    layer = sl.SparseConv2d(3, 4, 3, padding=1, sparsity=0.5, **options)
    x = torch.randn(2, 3, 8, 7)
    assert layer(x[:0]).shape == layer.to_dense()(x[:0]).shape
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    assert layer(x[:0].requires_grad_()).sum().backward() is None


def test_pointwise_convolutions_read_the_images_where_they_lie():
    layer = sl.SparseConv2d(6, 4, 1, sparsity=0.5)
    x = torch.randn(2, 6, 5, 7)
    pixels = sl.CSRLinear(6, 4, sparsity=0.5, topology=lambda *_: layer.positions)
    with torch.no_grad():
        pixels.values.copy_(layer.values)
    torch.testing.assert_close(layer(x).movedim(1, 3), pixels(x.movedim(1, 3)))


@pytest.mark.parametrize(
    "evolution", [sl.SET, sl.GradientGrowth, sl.RigL, partial(sl.Evolution, drop=None, grow=None)]
)
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "groups": 2}])
def test_every_rule_evolves_images_kernels_as_their_dense_twin_says(evolution, options):
    torch.manual_seed(0)
    layer = sl.SparseConv2d(4, 6, 3, sparsity=0.7, **options)
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(8, 4, 6, 6)
    model(x)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    if isinstance(evolution, partial):
        rules = {"drop": sl.drop.magnitude, "grow": sl.grow.full_gradient}
        made = sl.Evolution(model, optimizer, *rules.values(), fraction=0.2)
    else:
        made = evolution(model, optimizer)
    before = layer.positions.clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        made.step()
        torch.testing.assert_close(layer(x), layer.to_dense()(x))
    assert not torch.equal(layer.positions, before)
    assert len(layer.positions) == len(before)


def test_growth_by_gradient_finds_the_largest_slopes_of_the_dense_kernels():
    torch.manual_seed(0)
    layer = sl.SparseConv2d(3, 5, 3, 2, 1, sparsity=0.6, bias=False)
    x = torch.randn(4, 3, 9, 8)
    dense = layer.to_dense()
    dense(x).square().sum().backward()
    slopes = dense.weight.grad.flatten(1)
    y = layer(x)
    torch.testing.assert_close(layer.gradient(x, 2 * y.detach()), slopes)


def test_a_residual_network_converts_trains_and_comes_back():
    torch.manual_seed(0)
    model = sl.models.resnet20()
    before = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    plan = sl.Conversion(model, 0.9, convolutions=True)
    assert not any(entry.reason for entry in plan.entries)
    sl.sparsify(model, 0.9, convolutions=True)
    layers = [m for m in model.modules() if isinstance(m, sl.SparseConv2d)]
    assert sum(len(layer.values) for layer in layers) == pytest.approx(before / 10, rel=0.01)
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    right = model.eval()(x)
    torch.testing.assert_close(sl.densify(model)(x), right, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_kernel_too_large_to_be_dense_trains():
    """20,000 channels to as many filters of 3 x 3 would take 14.4 GB; 10,000 weights do not."""
    program = """
import resource, torch, sparselib as sl
layer = sl.SparseConv2d(20_000, 20_000, 3, padding=1, sparsity=1 - 1e4 / 3.6e9)
x = torch.randn(1, 20_000, 4, 4, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layer(x).square().sum().backward()
print(len(layer.values), layer.values.grad.abs().sum().item() > 0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000)
"""
    assert run_plain(program) == ["10000 True", "True"]


@pytest.mark.slow
@pytest.mark.xdist_group("compiler")
def test_a_compiled_layer_stays_sparse_for_images_of_any_size():
    program = """
import torch, sparselib as sl
layer = sl.SparseConv2d(3, 5, 3, sparsity=0.6)
strided = sl.SparseConv2d(5, 2, 3, 2, 1, sparsity=0.5)
model = torch.nn.Sequential(layer, torch.nn.ReLU(), strided)
def seen(module, inputs):
    called = [node.target for node in module.graph.nodes if not isinstance(node.target, type)]
    print(*(target for target in called if "conv" in str(target)))
    return module
fast = torch.compile(model, fullgraph=True, backend=seen)
for size in (9, 12):
    x = torch.randn(2, 3, size, size)
    assert torch.allclose(fast(x), model(x), atol=1e-5)
"""
    both = "sparselib.conv1d.default sparselib.conv1d.default"
    assert set(run_compiling(program)) == {both}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: sl.SparseConv2d(3, 4, 3, padding=-1), "padding is a number of points, one of"),
        (lambda: sl.SparseConv2d(3, 4, 3, padding="sane"), "'same' or 'valid', not 'sane'"),
        (lambda: sl.SparseConv2d(3, 4, 3, 2, "same"), "which a stride does not"),
        (lambda: sl.SparseConv2d(3, 4, 0), r"must be at least 1, not \(3, 4, \(0, 0\)"),
        (lambda: sl.SparseConv2d(3, 4, 3, groups=2), "2 groups must divide the 3 channels"),
        (lambda: sl.SparseConv2d(3, 4, 3, 1, 0, 1, 1, 0.9), "bias is True or False, not 0.9"),
        (lambda: sl.SparseConv2d(3, 4, 3)(torch.randn(2, 2, 9, 9)), "of 3 channels cannot read"),
        (lambda: sl.SparseConv2d(3, 4, 3)(torch.randn(2, 3, 9, 2)), "9 x 2 with margins of"),
        (lambda: sl.SparseConv2d(3, 4, 3, 2)(torch.randn(2, 3, 9, 2)), r"\(9, 2\) points with"),
        (lambda: sl.SparseConv2d.from_dense(nn.Conv1d(3, 4, 3)), "what an nn.Conv2d does, not a"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.slow
def test_arguments_of_other_types_are_refused_too():
    """What the type checks of the test run would refuse before."""
    program = """
import torch, sparselib as sl
images = torch.randn(1, 3, 9, 9)
for call in (
    lambda: sl.SparseConv2d(3, 4, (3, 3, 3)),
    lambda: sl.SparseConv2d(3, 4, 3.0),
    lambda: sl.SparseConv2d(3, 4, 3, padding_mode="mirror"),
    lambda: sl.SparseConv2d(3, 4, 3, padding=None),
    lambda: sl.SparseConv2d(3, 4, 3)(images.long()),
    lambda: sl.SparseConv2d(3, 4, 3)(images.to_sparse()),
):
    try:
        call()
    except (ValueError, TypeError) as error:
        print(error)
"""
    words = ("two for rows and columns, not (3, 3, 3)", "(3.0, 3.0)", "padding_mode is one of")
    words += ("not None", "int64", "sparse")
    for line, word in zip(run_plain(program), words, strict=True):
        assert word in line


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kernel_size": (2, 2)}, r"channels times 4 are 27; the input has shape \(2, 3, 5, 5\)"),
        ({"margins": (0, -1, 0, 0)}, "margins are at least 0 and dilations at least 1"),
        ({"dilation": (1, 0)}, "margins are at least 0 and dilations at least 1"),
        ({"dilation": (3, 1)}, "smaller than a kernel of 3 x 3 with a dilation"),
        ({"bias": torch.ones(2)}, "4 filters need as many biases"),
        ({"x": torch.randn(2, 3, 5, 5, dtype=torch.float64)}, "the input is torch.float64"),
    ],
)
def test_the_operator_refuses_what_does_not_fit(change, sentence):
    csr = sl.CSRLinear(27, 4, sparsity=0.5).csr
    x = torch.randn(2, 3, 5, 5)
    how = {"x": x, "bias": None, "kernel_size": (3, 3)} | change
    with pytest.raises(ValueError, match=sentence):
        sl.ops.conv2d(csr, torch.ones(csr.nnz), **how)


@given(st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_rings_of_a_kernel_are_squares_around_its_middle(kernel):
    middle = [(size - 1) // 2 for size in kernel]
    rings = max(size // 2 for size in kernel) + 1
    reach = sl.topology.kernel_regions(rings, kernel, rings)
    region = sl.topology.Region.outward(reach, kernel, 1)
    for ring, open_ in enumerate(region.mask(torch.arange(rings)).view(rings, *kernel)):
        rows, columns = (slice(max(at - ring, 0), at + ring + 1) for at in middle)
        square = torch.zeros(kernel, dtype=torch.bool)
        square[rows, columns] = True
        assert torch.equal(open_, square)


def test_three_groups_of_filters_see_one_nine_and_twenty_five_points():
    assert sl.topology.kernel_regions(7, (5, 5)).tolist() == [1, 1, 1, 9, 9, 9, 25]
    assert sl.topology.kernel_regions(4, (4, 5), 1).tolist() == [20] * 4
    with pytest.raises(ValueError, match=r"one ring of taps each; a kernel of .3, 3. has"):
        sl.topology.kernel_regions(9, (3, 3), 3)


def of_regions(sparsity=0.5, **options):
    """Nine filters of 5 x 5, of which three each see 1, 9 and 25 points."""
    reach = sl.topology.kernel_regions(9, (5, 5))
    return sl.SparseConv2d(6, 9, 5, padding=2, sparsity=sparsity, reach=reach, **options)


def beyond(layer):
    """How many connections lie outside of their filter's square."""
    rows = layer.csr.rows
    row, column = (layer.positions % 25) // 5, layer.positions % 5
    ring = torch.maximum((row - 2).abs(), (column - 2).abs())
    return int((ring > rows // 3).sum())


def test_connections_of_each_group_of_images_kernels_have_their_share():
    layer = of_regions(0.8)
    assert layer.cells == 3 * 6 * (1 + 9 + 25)
    assert torch.bincount(layer.csr.rows // 3).tolist() == [3, 32, 90]
    assert beyond(layer) == 0
    first = of_regions(0.8, topology=sl.topology.first_taps)
    assert torch.bincount(first.positions % 25, minlength=25)[12] == 3 + 18 + 18
    assert beyond(first) == 0


@pytest.mark.parametrize("options", [{}, {"stride": 2, "groups": 3}])
def test_kernels_with_regions_convolve_as_torch_s_do(options):
    reach = sl.topology.kernel_regions(9, (5, 5))
    layer = sl.SparseConv2d(6, 9, 5, sparsity=0.5, reach=reach, **options)
    x = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


@pytest.mark.parametrize(
    "grow", [sl.grow.random, sl.grow.gradient_of_costliest, sl.grow.full_gradient]
)
@pytest.mark.parametrize("regrow", [True, False])
def test_evolution_never_leaves_the_squares(grow, regrow):
    torch.manual_seed(0)
    layer = of_regions()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    options = {"seed": 0, "regrow": regrow}
    evolution = sl.Evolution(layer, optimizer, sl.drop.magnitude, grow, 0.4, **options)
    before = layer.values.numel()
    for _ in range(3):
        start = layer.positions.clone()
        layer(torch.randn(2, 6, 7, 7)).square().mean().backward()
        optimizer.step()
        evolution.step()
        assert layer.values.numel() == before
        assert not torch.equal(layer.positions, start)
        assert beyond(layer) == 0


def test_dynamic_sparse_training_keeps_the_budget_of_each_square():
    torch.manual_seed(0)
    layer = of_regions()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    evolution = sl.DST(layer, optimizer, epochs=5, every=1)
    counts = torch.bincount(layer.csr.rows // 3)
    layer(torch.randn(2, 6, 7, 7)).square().mean().backward()
    optimizer.step()
    evolution.step()
    assert torch.equal(torch.bincount(layer.csr.rows // 3), counts)
    assert beyond(layer) == 0


def test_a_state_dict_holds_the_reach_of_a_layer_that_has_one():
    layer = of_regions()
    state = layer.state_dict()
    other = of_regions(generator=torch.Generator().manual_seed(1))
    other.load_state_dict(state)
    assert torch.equal(other.positions, layer.positions)
    with torch.device("meta"):
        later = of_regions()
    later.to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(later.region.reach, layer.region.reach)
    assert "reach" not in sl.SparseConv2d(6, 9, 5).state_dict()
    whole = sl.SparseConv2d(6, 9, 5, sparsity=1 - layer.csr.nnz / 1350)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*reach"):
        whole.load_state_dict(state)
    positions = whole.state_dict()
    with pytest.raises(RuntimeError, match=r"which may use only taps \[12\]"):
        layer.load_state_dict({**positions, "reach": state["reach"]})
    assert torch.equal(layer.positions, other.positions)


@pytest.mark.parametrize("reach", [[25] * 8, [0] + [25] * 8, [26] * 9])
def test_a_reach_of_no_kernel_is_refused(reach):
    with pytest.raises(ValueError, match="a number from 1 to 25 for each of 9 filters, not"):
        sl.SparseConv2d(6, 9, 5, reach=torch.tensor(reach))


@st.composite
def convolutions(draw):
    """Draw a sparse convolution of images of any size, and what it reads."""
    channels = draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
    size = [max(1, e - 2 * p) + draw(st.integers(0, 17)) for e, p in zip(extent, padding)]
    layer = sl.SparseConv2d(
        channels, draw(st.integers(1, 5)), kernel, padding=padding, dilation=dilation, sparsity=0.4
    )
    return layer, torch.randn(draw(st.integers(1, 9)), channels, *size)


@given(convolutions())
def test_images_of_any_size_in_any_number_are_convolved_as_by_torch(drawn):
    layer, x = drawn
    ours = x.clone().requires_grad_()
    dense = layer.to_dense().double()
    theirs = x.double().requires_grad_()
    y = layer(ours)
    right = dense(theirs)
    dy = torch.randn_like(y)
    y.backward(dy)
    right.backward(dy.double())
    torch.testing.assert_close(y.double(), right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5)
    at = layer.positions
    for found, wanted in (
        (layer.values.grad, dense.weight.grad.flatten()[at]),
        (layer.bias.grad, dense.bias.grad),
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3, 7, 40])
def test_no_sum_of_images_depends_on_the_number_of_threads(size):
    layer = sl.SparseConv2d(3, 7, 3, padding=1, sparsity=0.5)
    x = torch.randn(37, 3, size, size, requires_grad=True)
    dy = torch.randn(37, 7, size, size)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        y = layer(x)
        found = torch.autograd.grad(y, (x, layer.values, layer.bias), dy)
        results.append((y.detach(), *found))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("size", [3, 40])
def test_an_infinity_reaches_only_the_weights_that_read_it(size):
    layer = sl.SparseConv2d(2, 3, 3, padding=1, sparsity=0.0)
    x = torch.randn(4, 2, size, size)
    x[1, 0, 1, 0] = torch.inf  # no tap that lies to the right of the middle reads it
    dy = torch.rand(4, 3, size, size) + 1
    layer(x).backward(dy)
    dense = layer.to_dense().double()
    dense(x.double()).backward(dy.double())
    wanted = dense.weight.grad.flatten()
    found = layer.values.grad.double()
    assert 0 < wanted.isfinite().sum() < len(wanted)
    assert torch.equal(found.isfinite(), wanted.isfinite())
    is_finite = wanted.isfinite()
    torch.testing.assert_close(found[is_finite], wanted[is_finite], rtol=1e-4, atol=1e-4)
