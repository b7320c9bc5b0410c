"""The sparse convolution against torch's dense one in float64."""

import pytest
import torch
from apart import run_compiling
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import sparselib as sl
from sparselib.ops.conv import conv1d

# channels, filters, taps, time: around the widths of a register and of a row of the result
CASES = [(1, 4, 3, 20), (3, 5, 1, 300), (5, 7, 4, 257), (4, 2, 30, 700), (2, 3, 5, 5)]


def problem(channels, filters, taps, time, batch=3, sparsity=0.6):
    torch.manual_seed(0)
    layer = sl.CSRLinear(channels * taps, filters, sparsity=sparsity)
    x = torch.randn(batch, channels, time)
    return layer.csr, layer.values.detach(), torch.randn(filters), x


def exact(csr, values, x, bias, padding, dilation=1):
    weight = csr.to_dense(values.double()).view(csr.shape[0], x.shape[1], -1)
    padded = torch.nn.functional.pad(x.double(), padding)
    bias = None if bias is None else bias.double()
    return torch.nn.functional.conv1d(padded, weight, bias, dilation=dilation)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("how", ["none", "same", "more"])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_outputs_and_gradients_equal_the_dense_ones(case, threads, how, dilation):
    taps, last = case[2], (case[2] - 1) * dilation
    none = (0, max(0, last + 1 - case[3]))  # no more than the shortest signal needs
    padding = {"none": none, "same": (last // 2, last - last // 2), "more": (last + taps + 2, 1)}[
        how
    ]
    csr, *given = problem(*case)
    values, bias, x = (tensor.requires_grad_() for tensor in given)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = conv1d(csr, values, x, bias, padding, dilation)
        dy = torch.randn(y.shape)
        found = torch.autograd.grad(y, (values, bias, x), dy)
    finally:
        torch.set_num_threads(before)
    right = exact(csr, values, x, bias, padding, dilation)
    torch.testing.assert_close(y.double(), right, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(right, (values, bias, x), dy.double())
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_whole_numbers_come_out_exactly(dilation):
    csr, *given = problem(5, 7, 4, 257)
    whole = [torch.randint_like(tensor, -4, 5) for tensor in given]
    values, bias, x = (tensor.requires_grad_() for tensor in whole)
    y = conv1d(csr, values, x, bias, (dilation, 2 * dilation), dilation)
    right = exact(csr, values, x, bias, (dilation, 2 * dilation), dilation)
    assert torch.equal(y.double(), right)
    dy = torch.randint_like(y, -4, 5)
    found = torch.autograd.grad(y, (values, bias, x), dy)
    assert all(map(torch.equal, found, torch.autograd.grad(right, (values, bias, x), dy.double())))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(0, 90), st.data())
def test_any_pattern_with_empty_and_full_filters(channels, filters, taps, more, data):
    cells = st.lists(st.integers(0, filters * channels * taps - 1), unique=True, max_size=40)
    positions = torch.tensor(sorted(data.draw(cells)), dtype=torch.int64)
    csr = sl.CSR.from_positions(positions, (filters, channels * taps))
    values = torch.randn(csr.nnz, requires_grad=True)
    x = torch.randn(2, channels, taps + more, requires_grad=True)
    y = conv1d(csr, values, x)
    right = exact(csr, values, x, None, (0, 0))
    torch.testing.assert_close(y.double(), right, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(y.sum(), (values, x))
    wanted = torch.autograd.grad(right.sum(), (values, x))
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_second_derivatives_equal_the_dense_ones():
    csr, values, bias, x = (t.double() if torch.is_tensor(t) else t for t in problem(2, 3, 4, 12))
    inputs = tuple(tensor.requires_grad_() for tensor in (values, x, bias))
    how = (1, 2), 2
    single = tuple(tensor.detach().float().requires_grad_() for tensor in inputs)
    found = []
    for tensors, function in ((single, conv1d), (inputs, exact)):
        slopes = torch.autograd.grad(
            function(csr, *tensors, *how).pow(2).sum(), tensors[1], create_graph=True
        )[0]
        found.append(torch.autograd.grad(slopes.pow(2).sum(), tensors[0])[0])
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("how", [((0, 0), 1), ((1, 3), 2), ((9, 0), 1)])
def test_the_products_are_closed_under_differentiation(cached, how):
    torch.manual_seed(0)
    csr = sl.CSRLinear(2 * 3, 4, sparsity=0.5, cache_transpose=cached).csr
    shapes = ((csr.nnz,), (2, 2, 7), (4,))
    inputs = tuple(torch.randn(shape).double().requires_grad_() for shape in shapes)
    assert gradcheck(lambda *a: conv1d(csr, *a, *how), inputs)
    assert gradgradcheck(lambda *a: conv1d(csr, *a, *how), inputs)


@pytest.mark.slow
@pytest.mark.xdist_group("compiler")
def test_the_operators_are_registered_as_torch_demands():
    program = """
import torch, sparselib as sl
import sparselib.ops.conv
layer = sl.SparseConv1d(2, 5, 3, sparsity=0.6)
indices = [*layer.csr.indices(), *layer.csr.transposed_indices()]
for kind in (torch.float32, torch.float64):
    values, x, dy = (
        torch.randn(shape, dtype=kind, requires_grad=True)
        for shape in (layer.csr.nnz, (4, 2, 9), (4, 5, 8))
    )
    sizes = [2, 3, 1, 2, 2, 3, 0]
    rows = [2, 3, 3, 2, 2, 1, 3]  # three rows of one tap
    for operator, arguments in (
        (torch.ops.sparselib.conv1d.default, (values, x, sizes, indices)),
        (torch.ops.sparselib.conv1d_t.default, (values, dy, 9, sizes, indices)),
        (torch.ops.sparselib.conv1d_weight.default, (dy, x, sizes, indices)),
        (torch.ops.sparselib.conv1d_t.default, (values, dy, 9, rows, indices)),
    ):
        print(*torch.library.opcheck(operator, arguments).values())
"""
    assert run_compiling(program) == ["SUCCESS SUCCESS SUCCESS SUCCESS"] * 8


def test_taps_that_lie_on_each_other_are_refused_by_every_operator():
    layer = sl.SparseConv1d(2, 5, 3, sparsity=0.6)
    indices = [*layer.csr.indices(), *layer.csr.transposed_indices()]
    values, x, dy = torch.randn(layer.csr.nnz), torch.randn(4, 2, 9), torch.randn(4, 5, 12)
    sizes = [2, 3, 1, 2, 0, 3, 0]
    for call in (
        lambda: torch.ops.sparselib.conv1d(values, x, sizes, indices),
        lambda: torch.ops.sparselib.conv1d_t(values, dy, 9, sizes, indices),
        lambda: torch.ops.sparselib.conv1d_weight(dy, x, sizes, indices),
    ):
        with pytest.raises(ValueError, match=r"a dilation is the distance of two taps.*not 0"):
            call()


@pytest.mark.slow
@pytest.mark.xdist_group("compiler")
def test_compiled_layers_stay_sparse():
    program = """
import torch, sparselib as sl
layer, x = sl.SparseConv1d(3, 5, 4, sparsity=0.6), torch.randn(2, 3, 20, requires_grad=True)
def seen(module, inputs):
    called = [node.target for node in module.graph.nodes if not isinstance(node.target, type)]
    print(*(target for target in called if "conv" in str(target)))
    return module
torch.compile(layer, fullgraph=True, backend=seen)(x)
"""
    assert run_compiling(program) == ["sparselib.conv1d.default"]


def test_autocast_computes_in_single_precision():
    csr, values, bias, x = problem(3, 5, 4, 40)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv1d(csr, values, x.bfloat16(), bias)
    right = exact(csr, values, x.bfloat16(), bias, (0, 0))
    torch.testing.assert_close(y.double(), right, rtol=1e-5, atol=1e-5)


def test_nan_reaches_the_points_that_read_it_and_no_others():
    csr, values, bias, x = problem(2, 3, 4, 300, sparsity=0.0)
    x[1, 0, 150] = torch.nan
    y = conv1d(csr, values, x, bias)
    assert torch.equal(y.isnan(), exact(csr, values, x, bias, (0, 0)).isnan())


def test_a_sum_over_time_has_one_order_whatever_the_threads():
    csr, values, bias, x = problem(5, 7, 4, 1000)
    found = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        leaf = values.clone().requires_grad_()
        conv1d(csr, leaf, x, bias).pow(2).sum().backward()
        torch.set_num_threads(before)
        found.append(leaf.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v, b, x: (v, x.repeat(1, 3, 1), b), r"whose channels divide 12; .*\(3, 9, 20\)"),
        (lambda v, b, x: (v, x[:, :, :2], b), r"2 points with a padding of \(0, 0\) are fewer"),
        (
            lambda v, b, x: (v, x, b, (0, 0), 7),
            "the 22 that a kernel of 4 taps with a dilation of 7",
        ),
        (lambda v, b, x: (v, x[:1, :, :1].expand(1, 3, 2**30), b), "reach 1073741827 points of 5"),
        (
            lambda v, b, x: (v.to("meta"), x, b),
            "a convolution needs one device; the input is on cpu",
        ),
        (lambda v, b, x: (v, x, b, (0, 0), 0), "distance of two taps, at least 1, not 0"),
        (lambda v, b, x: (v[1:], x, b), r"24 connections need as many values, not \(23,\)"),
        (lambda v, b, x: (v, x, b[1:]), r"5 filters need as many biases, not \(4,\)"),
        (lambda v, b, x: (v, x.half(), b), "the input is torch.float16 but the values"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(change, sentence):
    csr, values, bias, x = problem(3, 5, 4, 20)
    csr = sl.CSR.from_positions(csr.positions, csr.shape)
    with pytest.raises(ValueError, match=sentence):
        conv1d(csr, *change(values, bias, x))
