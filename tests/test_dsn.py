"""The three networks of the apnea paper: parameters, operations, evolution."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import sparselib as sl

BOTTLENECKS, NORMS, HEAD = 3 * 47 * 141, 4 * 2 * 141 + 4, 2 * 141


def counted(model, shape):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(shape))
    return counter.get_total_flops()


def test_the_dense_network_has_the_621955_parameters_of_table_1():
    assert sl.cost.parameters(sl.DSN(sparsity=0.0)) == 621_955


def test_the_sparse_network_has_the_41173_of_table_1_and_140_in_layer_1():
    model = sl.DSN(sparsity=0.95)
    kernels = [layer.values.numel() for layer in sl.nn.sparse_layers(model).values()]
    assert kernels == [140, 6626, 6626, 6626]
    assert sl.cost.parameters(model) - kernels[0] == 41_173
    assert sl.cost.parameters(model) == 41_313
    assert sl.cost.parameters(model, "dense") == 621_955


def test_without_bounds_every_filter_reaches_every_tap():
    within, without = sl.DSN(4, 2, 9, 0.5), sl.DSN(4, 2, 9, 2 / 3, bounded=False)
    for near, far in zip(*(sl.nn.sparse_layers(m).values() for m in (within, without))):
        assert near.reach.unique().tolist() == [3, 6, 9]
        assert far.reach.unique().tolist() == [9]
        assert near.values.numel() == far.values.numel()  # a half of two thirds, a third of all


@pytest.mark.parametrize(
    ("taps", "sparsity", "parameters", "operations"),
    [
        (6, 0.8, 37_306, 430.7),
        (30, 0.8, 101_383, 1199.7),
        (48, 0.8, 149_429, 1776.2),
        (30, 0.6, 181_471, 2160.7),
        (30, 0.98, 29_297, 334.6),
    ],
)
def test_costs_are_linear_in_kernel_size_and_sparsity(taps, sparsity, parameters, operations):
    model = sl.DSN(kernel_size=taps, sparsity=sparsity)
    assert sl.cost.parameters(model) == parameters
    weights = parameters - NORMS - HEAD
    assert sl.cost.flops(model, (1, 600)) == 600 * weights + 50 * HEAD
    at_6000 = 2 * (6000 * weights + 50 * HEAD) / 1e6
    assert at_6000 == pytest.approx(operations, abs=0.05)


def test_the_os_cnn_has_the_235741_parameters_of_table_1():
    model = sl.OSCNN()
    assert sl.cost.parameters(model) == 235_741
    weights = [sum(c[1].weight.numel() for c in layer.convs) for layer in model.layers]
    assert weights == [964, 216_900, 16_875]
    assert sl.cost.flops(sl.OSCNN(length=600), (1, 600)) == 600 * sum(weights) + 100


def test_kernels_of_the_os_cnn_are_one_and_the_primes_up_to_a_quarter_of_the_length():
    assert sl.models.oscnn.prime_kernel_sizes(6000)[-4:] == [73, 79, 83, 89]
    assert sl.models.oscnn.prime_kernel_sizes(50) == [1, 2, 3, 5, 7, 11]
    assert sum(sl.models.oscnn.prime_kernel_sizes(6000)) == 964


def test_the_residual_network_is_the_adaptation_its_docstring_counts():
    model = sl.ECGResNet()
    assert sl.cost.parameters(model) == 648_156
    assert sl.cost.flops(model, (1, 6000)) / 1e6 == pytest.approx(250.1, abs=0.05)
    with pytest.raises(ValueError, match="40 points are too few for 4 blocks"):
        sl.ECGResNet(40)


def test_operations_of_dense_networks_are_those_of_torchs_counter():
    for model in (sl.DSN(sparsity=0.0, channels=8), sl.OSCNN(300), sl.ECGResNet(300)):
        ours = sl.cost.flops(model, (2, 300), unit="flop")
        assert ours == counted(model, (2, 300)) == 2 * sl.cost.flops(model, (2, 300), count="dense")


def test_the_dense_twin_of_a_sparse_network_costs_what_the_dense_network_does():
    sparse, dense = sl.DSN(sparsity=0.95), sl.DSN(sparsity=0.0)
    cost = sl.cost.flops(dense, (1, 600))
    assert cost == sl.cost.flops(sparse, (1, 600), count="dense")
    assert cost == 600 * (621_955 - NORMS - HEAD) + 50 * HEAD


def test_one_layer_less_costs_a_third_less_as_section_6_2_says():
    for sparsity, left in ((0.0, 0.669), (0.95, 0.668)):
        four, three = (
            sl.cost.flops(sl.DSN(layers=layers, sparsity=sparsity), (1, 600)) for layers in (4, 3)
        )
        assert three / four == pytest.approx(left, abs=5e-4)


def test_the_table_names_every_layer_that_costs_anything():
    model = sl.DSN(layers=2, channels=5, kernel_size=6, sparsity=0.5)
    table = sl.cost.flops_of_layers(model, (1, 100))
    first, second = (layer.values.numel() for layer in sl.nn.sparse_layers(model).values())
    assert table == {
        "blocks.0.0": first * 100,
        "blocks.1.0": 5 * 15 * 100,
        "blocks.1.1": second * 100,
        "head.0": 15 * 2 * 50,
    }
    bare = nn.Module()
    bare.weight = nn.Parameter(torch.ones(3, 4))
    bare.forward = lambda x: x @ bare.weight
    assert sl.cost.flops_of_layers(bare, (2, 3)) == {"": 24}


@pytest.mark.parametrize("maker", [sl.DSN, lambda: sl.DSN(sparsity=0.0), lambda: sl.OSCNN(200)])
def test_signals_of_one_channel_may_come_without_it(maker):
    model = maker().eval()
    x = torch.randn(2, 200)
    assert torch.equal(model(x), model(x[:, None]))


@pytest.mark.parametrize("dilation", [1, 2])
def test_the_dense_network_is_the_sparse_one_with_every_connection(dilation):
    dense = sl.DSN(4, 2, 6, sparsity=0.0, groups=1, dilation=dilation).double().eval()
    sparse = sl.DSN(4, 2, 6, sparsity=1e-9, groups=1, dilation=dilation).double().eval()
    for ours, theirs in zip(sparse.parameters(), dense.parameters(), strict=True):
        ours.data.copy_(theirs.view_as(ours))
    x = torch.randn(2, 60, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), dense(x), rtol=1e-10, atol=1e-10)


def test_the_share_falls_as_the_program_s_does_over_40_epochs():
    model = sl.DSN(3, 2, 6, sparsity=0.5)
    evolution = sl.DST(model, torch.optim.Adam(model.parameters()), epochs=40)
    rates = [evolution.rate(epoch) for epoch in range(5, 41, 5)]
    assert rates == pytest.approx([0.47, 0.39, 0.275, 0.155, 0.058, 0.006, 0.001, 0.001], abs=2e-3)


@pytest.mark.parametrize("grow", [sl.grow.random, sl.grow.full_gradient_at_zero])
def test_every_group_keeps_its_count_and_its_region(grow):
    model = sl.DSN(4, 2, 9, sparsity=0.7)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    evolution = sl.DST(model, optimizer, epochs=10, every=2, grow=grow)
    layers = sl.nn.sparse_layers(model)

    def groups():
        return {n: (m.positions // m.shape[1] // 4).bincount().tolist() for n, m in layers.items()}

    before = groups()
    for epoch in range(1, 9):
        model(torch.randn(3, 40)).square().mean().backward()
        optimizer.step()
        expected = {
            name: sum(math.ceil(evolution.rate(epoch) * count) for count in counts)
            for name, counts in before.items()
        }
        assert evolution.step() == ({} if epoch % 2 else expected)
        assert groups() == before
        for layer in layers.values():
            reach = layer.reach[layer.positions // layer.shape[1]]
            assert bool((layer.positions % 9 < reach).all())


def test_a_restored_evolution_goes_on_as_the_saved_one():
    ends = []
    for interrupted in (False, True):
        torch.manual_seed(1)
        model = sl.DSN(4, 2, 6, sparsity=0.6)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        evolution = sl.DST(model, optimizer, epochs=8, every=1)
        evolution.step()
        if interrupted:
            state, evolution = evolution.state_dict(), sl.DST(model, optimizer, 8, every=1)
            evolution.load_state_dict(state)
        evolution.step()
        ends.append([layer.positions for layer in sl.nn.sparse_layers(model).values()])
    assert all(torch.equal(*pair) for pair in zip(*ends))
    with pytest.raises(ValueError, match=r"belongs to a DST with .*'epochs': 8.*, this one has"):
        sl.DST(model, optimizer, 9, every=1).load_state_dict(evolution.state_dict())


@pytest.mark.slow
def test_it_learns_to_tell_a_fast_wave_from_a_slow_one():
    time = torch.linspace(0, 1, 60)
    y = torch.arange(128) % 2
    x = torch.sin(2 * torch.pi * (3 + 6 * y[:, None]) * (time + torch.rand(128, 1)))
    samples = sl.datasets.Samples(x + 0.3 * torch.randn(128, 60), y)
    data = sl.datasets.Split(samples, samples, samples, classes=2, name="waves", note="two waves")
    model = sl.DSN(6, 3, 9, sparsity=0.8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    evolution = sl.DST(model, optimizer, epochs=10, every=2)
    options = {"batch_size": 16, "after_epoch": evolution.step, "progress": False}
    assert sl.fit(model, data, optimizer, 10, **options)["accuracy"][-1] > 0.95


def test_impossible_numbers_are_refused():
    model = sl.DSN(3, 2, 6, sparsity=0.5)
    optimizer = torch.optim.Adam(model.parameters())
    possible = {"epochs": 10, "every": 1, "last": 0.0, "fraction": 1.0}
    sl.DST(model, optimizer, **possible)
    impossible = [("epochs", 0), ("every", 0), ("last", -0.1), ("last", 1.1), ("fraction", 1.5)]
    for name, wrong in impossible:
        with pytest.raises(ValueError, match="every from 1 and 0 <= last <= fraction <= 1, not"):
            sl.DST(model, optimizer, **possible | {name: wrong})
    with pytest.raises(ValueError, match="at least one layer, not 0"):
        sl.DSN(layers=0)
    assert len(sl.nn.sparse_layers(sl.DSN(layers=1))) == 1


def test_the_dense_twin_refuses_what_it_would_ignore():
    sl.DSN(3, 2, 6, sparsity=0.0, padding=sl.nn.replicate_right, dilation=2)
    for options in ({"padding": sl.nn.centered_zeros}, {"topology": sl.topology.first_taps}):
        with pytest.raises(ValueError, match="a dense DSN"):
            sl.DSN(3, 2, 6, sparsity=0.0, **options)


def scores_and_gradients(model, x):
    model.zero_grad()
    scores = model(x)
    scores.square().sum().backward()
    return [scores.detach(), *(p.grad.clone() for p in model.parameters())]


def transforms(model, x):
    """Count the Fourier transforms of a pass."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        model(x)
    return sum(event.count for event in profiled.key_averages() if event.key == "aten::fft_rfft")


@pytest.mark.parametrize("length", [150, 300, 721])
def test_the_os_cnn_by_transforms_is_the_os_cnn_by_convolutions(length):
    torch.manual_seed(0)
    model = sl.OSCNN(length, largest=67).double()
    x = torch.randn(3, length, dtype=torch.float64)
    by_transforms = scores_and_gradients(model, x)
    for layer in model.layers:
        layer.convs[0][1].register_forward_hook(lambda *_: None)
    by_convolutions = scores_and_gradients(model, x)
    for ours, theirs in zip(by_transforms, by_convolutions, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_os_cnn_shows_its_convolutions_to_whoever_looks():
    model = sl.OSCNN(300).eval()
    x = torch.randn(2, 300)
    assert transforms(model, x) == 4
    assert transforms(sl.OSCNN(300, largest=31).eval(), x) == 0
    with torch.autocast("cpu"):
        assert transforms(model, x) == 0
    assert transforms(model.bfloat16(), x.bfloat16()) == 0
    seen = []
    model.float().layers[1].convs[3][1].register_forward_hook(lambda *_: seen.append(1))
    assert transforms(model, x) == 2
    assert seen == [1]
    compiled = torch.export.export(sl.OSCNN(300).eval(), (x,))
    assert "fft" not in str(compiled.graph)


@given(
    taps=st.integers(1, 40),
    time=st.integers(1, 300),
    behind=st.integers(0, 39),
    shape=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_correlation_by_transforms_is_that_of_torchs_convolution(taps, time, behind, shape):
    behind = min(behind, taps - 1)
    batch, inputs, filters = shape
    x = torch.randn(batch, inputs, time, dtype=torch.float64)
    kernels = torch.randn(filters, inputs, taps, dtype=torch.float64)
    padded = functional.pad(x, (behind, taps - 1 - behind))
    sums = sl.models.oscnn.correlated(x, kernels, behind)
    torch.testing.assert_close(sums, functional.conv1d(padded, kernels), rtol=1e-10, atol=1e-10)
