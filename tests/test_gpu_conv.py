"""What needs a CUDA device: the convolution's kernels as they run, and graphs of them."""

import copy
from functools import partial

import pytest
import torch
from test_gpu import HALVES, close, plain_step
from test_gpu import poisoned as poisoned
from torch.nn import functional

import sparselib as sl
from sparselib import cuda_graphs as graphs
from sparselib.ops import conv, dispatch
from sparselib.ops.backends import Sizes, stretches

pytestmark = pytest.mark.gpu

# channels, filters, taps, time: of the network's layers, of a short signal, of tails
SIGNALS = [(1, 141, 30, 700), (47, 141, 30, 1500), (3, 10, 5, 40), (5, 47, 1, 257)]


def pattern(channels, filters, taps, density=0.1):
    """Draw a pattern with an empty filter, a full one and an unread channel."""
    mask = torch.rand(filters, channels, taps) < density
    mask[:, channels // 3] = False
    mask[filters // 4] = False
    mask[filters // 2] = True
    csr = sl.CSR.from_dense(mask.view(filters, -1).float()).cuda()
    return csr, torch.randn(csr.nnz, device="cuda")


def dense(csr, values, x, bias, padding, dilation):
    weight = csr.to_dense(values).view(csr.shape[0], x.shape[1], -1)
    return functional.conv1d(functional.pad(x, padding), weight, bias, dilation=dilation)


def gradients(function, dy, *tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("kind", [torch.float32, *HALVES])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("sizes", SIGNALS)
def test_outputs_and_gradients_equal_the_dense_ones_in_float64(
    sizes, dilation, kind, batch, poisoned
):
    channels, filters, taps, time = sizes
    csr, values = pattern(channels, filters, taps)
    bias = torch.randn(filters, device="cuda")
    x = torch.randn(batch, channels, time, device="cuda").to(kind)
    assert dispatch.module(x).__name__ == "sparselib.ops.backends.gpu"
    last = (taps - 1) * dilation
    how = (last // 2, last - last // 2), dilation
    dy = torch.randn(batch, filters, time, device="cuda").to(kind)
    ours = gradients(lambda v, b, x: conv.conv1d(csr, v, x, b, *how), dy, values, bias, x)
    doubles = [tensor.double() for tensor in (dy, values, bias, x)]
    exact = gradients(lambda v, b, x: dense(csr, v, x, b, *how), *doubles)
    assert [tensor.dtype for tensor in ours] == [kind, torch.float32, torch.float32, kind]
    for one, other in zip(ours, exact):
        tolerance = HALVES[kind] if one.dtype != torch.float32 else 1e-5
        close(one, other, tolerance * max(1, other.abs().max().item()))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_what_the_dense_kernels_let_it_reach(bad):
    from sparselib.ops.backends import gpu_conv

    csr, values = pattern(3, 9, 4)
    x, dy = torch.randn(2, 3, 76, device="cuda"), torch.randn(2, 9, 70, device="cuda")
    x[0, 2, 75], x[1, 0, 0] = bad, bad
    places = stretches.places(csr.indices()[1], Sizes(3, 4, 0, 0, 2, 4, 0), 76)
    y = gpu_conv.convolve(values, csr.indices()[0], places, x, 70)
    read = dense(csr, torch.ones_like(values), (~x.isfinite()).float(), None, (0, 0), 2) > 0.5
    assert torch.equal(~y.isfinite(), read)
    dvalues, dbias = gpu_conv.correlate(csr.indices()[0], places, dy, x)
    seen = x.unfold(2, 70, 1)[:, csr.indices()[1] // 4, csr.indices()[1] % 4 * 2]
    exact = (dy[:, csr.rows] * seen).sum((0, 2))
    assert torch.equal(dvalues.isfinite(), exact.isfinite())
    assert dbias.isfinite().all()


def test_more_samples_than_a_grid_has_rows():
    csr, values = pattern(2, 5, 3, 0.5)
    x, dy = torch.randn(70_000, 2, 9, device="cuda"), torch.randn(70_000, 5, 7, device="cuda")
    ours = gradients(lambda v, x: conv.conv1d(csr, v, x), dy, values, x)
    doubles = [tensor.double() for tensor in (dy, values, x)]
    exact = gradients(lambda v, x: dense(csr, v, x, None, (0, 0), 1), *doubles)
    for one, other in zip(ours, exact):
        close(one, other, 1e-5 * max(1, other.abs().max().item()))


def test_offsets_beyond_two_to_the_thirty_first():
    # the last sample of the input lies 2.4e9 elements from the first
    csr = sl.CSR.from_positions(torch.tensor([0, 3]), (2, 2)).cuda()
    values = torch.tensor([2.0, 3.0], device="cuda", requires_grad=True)
    x = torch.zeros(40_000, 2, 30_000, device="cuda", dtype=torch.bfloat16)
    x[0], x[-1] = 1, 4
    y = conv.conv1d(csr, values, x)
    assert y[[0, 1, -1]].float().mean(2).tolist() == [[2.0, 3.0], [0.0, 0.0], [8.0, 12.0]]
    y.backward(torch.ones((), device="cuda", dtype=torch.bfloat16).expand_as(y))
    assert values.grad.tolist() == [5.0 * 30_000] * 2


@pytest.mark.parametrize("padding", [sl.nn.replicate_right, sl.nn.centered_zeros])
def test_a_network_and_its_gradients_equal_those_in_float64(padding):
    model = sl.DSN(8, 3, 9, sparsity=0.7, padding=padding, dilation=2).cuda()
    twin, x = copy.deepcopy(model).double(), torch.randn(4, 1, 500, device="cuda")
    found = []
    for network, signals in ((model, x), (twin, x.double())):
        network(signals).square().sum().backward()
        found.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*found):
        close(one, other, 1e-3 * max(1, other.abs().max().item()))


def test_the_same_numbers_come_every_time():
    layer = sl.SparseConv1d(47, 141, 30, sparsity=0.95).cuda()
    x = torch.randn(16, 47, 3000, device="cuda")
    runs = []
    for _ in range(3):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        slopes = torch.autograd.grad(y.square().sum(), [leaf, layer.values, layer.bias])
        runs.append([y.detach(), *slopes[1:]])
    assert all(all(map(torch.equal, runs[0], other)) for other in runs[1:])


def score(y, labels):
    return functional.cross_entropy(y.mean(2), labels)


def test_evolution_between_replays_is_evolution_between_steps():
    models, steps, evolutions = [], [], []
    x, labels = torch.randn(8, 3, 300, device="cuda"), torch.randint(9, (8,), device="cuda")
    for is_recorded in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Sequential(sl.SparseConv1d(3, 9, 6, sparsity=0.7)).cuda()
        optimizer = torch.optim.Adam(model.parameters(), 0.01, capturable=True)
        parts = model, optimizer, score
        call = graphs.training(*parts, x, labels) if is_recorded else partial(plain_step, *parts)
        models.append(model), steps.append(call)
        evolutions.append(sl.SET(model, optimizer, 0.2, seed=0))
    for turn in range(12):
        x, labels = torch.randn(8, 3, 300, device="cuda"), torch.randint(9, (8,), device="cuda")
        close(*(step(x, labels) for step in steps), 1e-5)
        if turn % 4 == 3:
            for evolution in evolutions:
                evolution.step()
            assert torch.equal(*(model[0].positions for model in models))
