"""The GPU's kernels of the convolution in Triton's interpreter, beside `interpreted`."""

import copy
from functools import partial

import pytest
import torch
from interpreted import HALVES, close
from interpreted import poison as poison
from torch.nn import functional

import sparselib as sl
from sparselib.nn import centered_zeros, replicate_right
from sparselib.ops import conv, dispatch, images
from sparselib.ops.backends import Sizes, gpu, gpu_conv, reference, stretches

# channels, filters, taps, time: shorter than a tile, as long, with a tail; one of everything
SIGNALS = [(3, 9, 4, 30), (2, 17, 3, 66), (3, 10, 5, 150), (1, 1, 1, 1)]


def pattern(channels, filters, taps):
    """Draw a pattern with an empty filter, a full one and an unread channel."""
    mask = torch.rand(filters, channels, taps) < 0.3
    mask[:, channels // 3] = False
    mask[filters // 4] = False
    mask[filters // 2] = True
    csr = sl.CSR.from_dense(mask.view(filters, -1).float())
    return csr, torch.randn(csr.nnz)


def dense(csr, values, x, bias, padding, dilation):
    weight = csr.to_dense(values).view(csr.shape[0], x.shape[1], -1)
    return functional.conv1d(functional.pad(x, padding), weight, bias, dilation=dilation)


def gradients(function, values, bias, x, dy):
    leaves = [tensor.clone().requires_grad_() for tensor in (values, bias, x)]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def both(sizes, batch, padding, dilation, kind=torch.float32, draw=torch.randn):
    """Return outputs and gradients, ours and those of the dense kernels in float64."""
    channels, filters, taps, time = sizes
    csr, values = pattern(channels, filters, taps)
    values, bias, x = draw(csr.nnz), draw(filters), draw(batch, channels, time).to(kind)
    length = time + sum(padding) - (taps - 1) * dilation
    dy = draw(batch, filters, length).to(kind)
    ours = gradients(
        lambda v, b, x: conv.conv1d(csr, v, x, b, padding, dilation), values, bias, x, dy
    )
    doubles = [tensor.double() for tensor in (values, bias, x, dy)]
    run = partial(dense, padding=padding, dilation=dilation)
    return ours, gradients(lambda v, b, x: run(csr, v, x, b), *doubles)


def same(taps, dilation):
    last = (taps - 1) * dilation
    return last // 2, last - last // 2


def whole(*shape):
    """Draw small whole numbers, whose sums are exact in float32."""
    return torch.randint(-4, 5, shape).float()


def test_the_kernels_are_chosen_and_interpreted():
    assert dispatch.module(torch.zeros(1, 1, 1)) is gpu
    assert dispatch.module(torch.zeros(1, 1, 1).double()) is reference


@pytest.mark.parametrize(("batch", "dilation"), [(1, 1), (3, 2), (1, 3)])
@pytest.mark.parametrize("sizes", SIGNALS)
def test_outputs_and_gradients_are_exactly_the_dense_ones(sizes, dilation, batch):
    ours, exact = both(sizes, batch, same(sizes[2], dilation), dilation, draw=whole)
    assert all(torch.equal(one.double(), other) for one, other in zip(ours, exact))


@pytest.mark.parametrize("shape", gpu_conv.TILES)
def test_every_tile_gives_the_convolution(shape, monkeypatch):
    monkeypatch.setattr(gpu_conv, "tile", lambda *_: shape)
    for time in (32 * shape[1] - 1, 32 * shape[1], 32 * shape[1] + 5):
        ours, exact = both((2, 7, 3, time), 2, (0, 2), 1)
        for one, other in zip(ours, exact):
            close(one, other, 1e-4)


@pytest.mark.parametrize("programs", [0, 10**9])
@pytest.mark.parametrize("padding", [(0, 0), (9, 1)])
def test_samples_are_split_among_programs_or_not(programs, padding, monkeypatch):
    monkeypatch.setattr(gpu_conv, "PROGRAMS", programs)
    ours, exact = both((3, 10, 4, 40), 5, padding, 2)
    for one, other in zip(ours, exact):
        close(one, other, 1e-4)


@pytest.mark.parametrize("kind", HALVES)
def test_signals_of_sixteen_bits_are_summed_in_float32(kind):
    ours, exact = both((3, 9, 4, 70), 2, (1, 2), 1, kind)
    assert [tensor.dtype for tensor in ours] == [kind, torch.float32, torch.float32, kind]
    for one, other in zip(ours, exact):
        tolerance = HALVES[kind] if one.dtype == kind else 1e-4
        close(one, other, tolerance * max(1, other.abs().max().item()))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_what_the_dense_kernels_let_it_reach(bad):
    csr, values = pattern(3, 9, 4)
    x, dy = torch.randn(2, 3, 76), torch.randn(2, 9, 70)
    # the last stretch of a signal ends in the next channel, and the last channel's in the next x
    x[0, 2, 75], x[1, 0, 0] = bad, bad
    places = stretches.places(csr.indices()[1], Sizes(3, 4, 0, 0, 2, 4, 0), 76)
    y = gpu_conv.convolve(values, csr.indices()[0], places, x, 70)
    read = dense(csr, torch.ones_like(values), (~x.isfinite()).float(), None, (0, 0), 2) > 0
    assert torch.equal(~y.isfinite(), read)
    dvalues, dbias = gpu_conv.correlate(csr.indices()[0], places, dy, x)
    rows = csr.rows
    windows = x.unfold(2, 70, 1)
    seen = windows[:, csr.indices()[1] // 4, csr.indices()[1] % 4 * 2]
    exact = (dy[:, rows] * seen).sum((0, 2))
    assert torch.equal(dvalues.isfinite(), exact.isfinite())
    assert dbias.isfinite().all()


def test_nothing_is_left_unwritten_where_there_is_nothing():
    csr = sl.CSR.from_dense(torch.zeros(3, 4))
    indices, none = csr.indices(), torch.zeros(0)
    bias = torch.tensor([1.0, 2.0, 3.0])
    y = gpu_conv.convolve(none, *indices, torch.ones(2, 4, 9), 9, bias)
    assert torch.equal(y, bias[:, None].expand(2, 3, 9))
    dvalues, dbias = gpu_conv.correlate(*indices, torch.ones(2, 3, 9), torch.ones(2, 4, 9))
    assert (dvalues.shape, dbias.tolist()) == ((0,), [18.0] * 3)
    assert gpu_conv.convolve(none, *indices, torch.ones(0, 4, 9), 9).shape == (0, 3, 9)
    csr, _ = pattern(3, 9, 4)
    nobody = torch.ones(0, 9, 6), torch.ones(0, 3, 9)
    for sums in gpu_conv.correlate(*csr.indices(), *nobody):
        assert not sums.any()


@pytest.mark.parametrize("padding", [replicate_right, centered_zeros])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("cached", [True, False])
def test_a_layer_and_its_gradients_equal_the_definition(padding, dilation, cached):
    reach = sl.topology.kernel_regions(9, 6)
    options = {"padding": padding, "dilation": dilation, "cache_transpose": cached}
    layer = sl.SparseConv1d(3, 9, 6, sparsity=0.7, reach=reach, **options)
    torch.nn.init.normal_(layer.bias)
    twin, x = copy.deepcopy(layer).double(), torch.randn(2, 3, 70)
    results = []
    for module, inputs in ((layer, x.clone()), (twin, x.double())):
        y = module(inputs.requires_grad_())
        y.sin().sum().backward()
        results.append([y.detach(), inputs.grad, module.values.grad, module.bias.grad])
    for one, other in zip(*results):
        close(one, other, 1e-4)


def test_second_derivatives():
    csr, values = pattern(2, 5, 3)
    x = torch.randn(2, 2, 12)

    def second(values, x):
        values, x = values.clone().requires_grad_(), x.clone().requires_grad_()
        y = conv.conv1d(csr, values, x, None, (1, 1), 2)
        (slope,) = torch.autograd.grad(y.float().sin().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.float().square().sum(), [values, x])

    exact = second(values.double(), x.double())
    for one, other in zip(second(values, x), exact):
        close(one, other, 1e-3)
    for one, other in zip(second(values, x.bfloat16()), exact):
        close(one, other, 0.05 * max(1, other.abs().max().item()))


def test_training_and_evolution_take_the_steps_of_the_definition():
    histories = []
    for name in ("interpret", "reference"):
        torch.manual_seed(0)
        model = sl.DSN(3, 2, 6, sparsity=0.6)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        evolution = sl.RigL(model, optimizer, 0.2)
        x, labels = torch.randn(3, 1, 70), torch.randint(2, (3,))
        with sl.ops.backend(name):
            for _ in range(2):
                sl.training.step(model, optimizer, x, labels, functional.cross_entropy)
                evolution.step()
        histories.append([m for m in model.modules() if isinstance(m, sl.SparseConv1d)])
    for one, other in zip(*histories):
        assert torch.equal(one.positions, other.positions)
        close(one.values.detach(), other.values.detach(), 1e-4)


@pytest.mark.parametrize(
    ("kernel", "margins", "dilation"),
    [
        ((3, 3), (1, 1, 1, 1), (1, 1)),
        ((2, 3), (0, 2, 1, 0), (2, 1)),
        ((1, 1), (0, 0, 0, 0), (1, 1)),
        ((3, 1), (1, 1, 0, 0), (1, 1)),
    ],
)
def test_images_are_laid_row_by_row_and_cut(kernel, margins, dilation):
    csr, _ = pattern(2, 5, kernel[0] * kernel[1])
    values, bias, x = whole(csr.nnz), whole(5), whole(2, 2, 5, 4)
    above, below, left, right = margins

    def exact(values, bias, x):
        weight = csr.to_dense(values).view(5, 2, *kernel)
        padded = functional.pad(x, (left, right, above, below))
        return functional.conv2d(padded, weight, bias, dilation=dilation)

    def ours(values, bias, x):
        return images.conv2d(csr, values, x, bias, kernel, margins, dilation)

    dy = whole(*exact(values, bias, x).shape)
    found = gradients(ours, values, bias, x, dy)
    doubles = [tensor.double() for tensor in (values, bias, x, dy)]
    wanted = gradients(exact, *doubles)
    assert all(torch.equal(one.double(), other) for one, other in zip(found, wanted))
