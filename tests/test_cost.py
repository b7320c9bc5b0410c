"""The paper's memory arithmetic, in bytes that are really allocated, and operations by formula."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import sparselib as sl


def test_a_512_layer_at_99_percent_is_56_times_smaller_as_in_figure_7():
    layer = sl.CSRLinear(512, 512, sparsity=0.99)
    assert sl.cost.compression(layer) == pytest.approx(55.9, abs=0.05)
    assert sl.cost.compression(layer, transposed=True) == pytest.approx(34.7, abs=0.05)


def test_memory_breaks_even_at_33_4_percent():
    assert sl.cost.compression(sl.CSRLinear(512, 512, sparsity=0.333)) < 1
    assert sl.cost.compression(sl.CSRLinear(512, 512, sparsity=0.335)) > 1


def test_compression_is_the_closed_form_of_its_docstring():
    inputs, outputs = 300, 100
    layer = sl.CSRLinear(inputs, outputs, sparsity=0.9)
    nnz = layer.csr.nnz
    sparse = 12 * nnz + 4 * (outputs + 1) + 8 * outputs
    assert sl.cost.compression(layer) == 8 * (inputs + 1) * outputs / sparse


def test_weights_are_lost_into_neurons_that_no_connection_leaves():
    first = sl.CSRLinear(3, 4, topology=lambda *_: torch.tensor([0, 1, 3, 5, 6, 10]))
    second = sl.CSRLinear(4, 2, topology=lambda *_: torch.tensor([0, 4, 7]))
    model = nn.Sequential(first, nn.ReLU(), second)
    assert sl.cost.lost(model) == 3  # two into the second neuron and one into the third
    assert sl.cost.lost(nn.Sequential(first, sl.CSRLinear(5, 2, sparsity=0.9))) == 0  # no chain
    assert sl.cost.lost(nn.Linear(3, 4)) == 0


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("cached", [True, False])
def test_the_report_agrees_with_what_the_allocator_gave(sparsity, cached):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        layer = sl.CSRLinear(512, 512, sparsity=sparsity, cache_transpose=cached)
        layer(torch.ones(1, 512)).sum().backward()
    # the allocator's own records, which torch 2.6 may count for two operators
    records = profiled.profiler.kineto_results.events()
    allocated = sum(record.nbytes() for record in records if record.name() == "[memory]")
    assert allocated == pytest.approx(sum(sl.cost.memory(layer).values()), rel=0.02)


def test_parameters_count_at_the_nonzeros_or_as_dense():
    model = sl.MLP(784, 300, 10, layer=sl.CSRLinear, sparsity=0.9)
    assert sl.cost.parameters(model) == 23_520 + 300 + 300 + 10
    dense = sl.MLP(784, 300, 10)
    assert sl.cost.parameters(model, "dense") == sl.cost.parameters(dense) == 238_510
    assert sl.cost.memory(model, "dense") == sl.cost.memory(dense)


def test_operations_are_counted_at_the_nonzeros():
    model = sl.MLP(784, 300, 10, layer=sl.CSRLinear, sparsity=0.9)
    dense = sl.MLP(784, 300, 10, layer=nn.Linear)
    assert sl.cost.flops(model, (5, 784)) == 5 * (23_520 + 300)
    assert sl.cost.flops(model, (5, 784), count="dense") == 5 * (784 * 300 + 3000)
    assert sl.cost.flops(dense, (5, 784)) == 5 * (784 * 300 + 3000)
    assert sl.cost.flops(model, (5, 784), unit="flop") == 10 * (23_520 + 300)


def test_attention_is_counted_as_torch_counts_it():
    block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    model, shape = nn.TransformerEncoder(block, 2).train(), (3, 7, 32)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(shape))
    assert sl.cost.flops(model.eval(), shape, unit="flop") == counter.get_total_flops()
    dense = sl.cost.flops(model, shape)
    sl.sparsify(model, 0.8)
    assert sl.cost.flops(model, shape, count="dense") == dense
    # of 2 048 weights 410 are left in each of four layers, of 1 024 in each of eight projections
    # 205; they see 21 vectors
    saved = 4 * (2048 - 410) + 8 * (1024 - 205)
    assert sl.cost.flops(model, shape) == dense - 21 * saved


def test_a_model_of_tokens_is_counted_by_shape_or_example():
    """An embedding looks up and multiplies nothing; the layer behind it has 80 connections."""
    model = nn.Sequential(
        nn.Embedding(20, 8), nn.Flatten(), sl.CSRLinear(40, 4, sparsity=0.5), nn.Linear(4, 3)
    )
    assert sl.cost.flops(model, (6, 5)) == 6 * (80 + 12)
    assert sl.cost.flops(model, torch.zeros(6, 5, dtype=torch.int64)) == 6 * (80 + 12)
    assert sl.cost.flops(model.double(), (6, 5), count="dense") == 6 * (160 + 12)
    assert sl.cost.flops_of_layers(model, (1, 5)) == {"2": 80, "3": 12}


class Pair(nn.Module):
    """Reads tokens and numbers, by position or by name."""

    def __init__(self):
        super().__init__()
        self.numeric = nn.Linear(3, 8)
        self.embed = nn.Embedding(20, 8)
        self.sparse = sl.CSRLinear(8, 4, sparsity=0.5)

    def forward(self, tokens, numbers):
        return self.sparse(self.embed(tokens).mean(1) + self.numeric(numbers))


def test_a_model_of_several_inputs_is_counted_with_an_example():
    model, tokens, numbers = Pair(), torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 3)
    expected = {"numeric": 2 * 24, "sparse": 2 * 16}
    assert sl.cost.flops_of_layers(model, (tokens, numbers)) == expected
    assert sl.cost.flops_of_layers(model, {"numbers": numbers, "tokens": tokens}) == expected


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_cannot_be_counted_is_refused(kind):
    with pytest.raises(ValueError, match="cannot be counted"):
        sl.cost.flops(kind(4, 8), (5, 1, 4))


def counted(call):
    """What torch counts while something is called."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_torch_counts_the_products_of_sparse_layers_as_we_do():
    """They are kernels, which a counter would not see, so that there they are operators."""
    model = sl.MLP(20, 30, 10, layer=sl.CSRLinear, sparsity=0.5)
    x = torch.randn(100, 20)
    forward = sl.cost.flops(model, (100, 20), unit="flop")
    last = 2 * 100 * model.layers[1].csr.nnz
    with torch.no_grad():
        assert counted(lambda: model(x)) == forward
    # with the gradients of all values, and of what the last layer reads
    assert counted(lambda: model(x).sum().backward()) == 2 * forward + last
    network = sl.DSN(sparsity=0.9, channels=8)
    with torch.no_grad():
        found = counted(lambda: network(torch.randn(4, 1, 300)))
    assert found == sl.cost.flops(network, (4, 1, 300), unit="flop")


def test_a_counter_changes_no_step_of_training():
    data = sl.datasets.digits()
    ends = []
    for context in contextlib.nullcontext(), FlopCounterMode(display=False):
        torch.manual_seed(0)
        model = sl.MLP(64, 20, 10, layer=sl.CSRLinear, sparsity=0.5)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        with context:
            history = sl.fit(model, data, optimizer, 1, progress=False)
            told = sl.descent.obstacle(model, data.train.x, data.train.y)
        ends.append(history["loss"][-1])
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)
    assert told
    assert context.get_total_flops() > 0


def test_the_count_of_a_convolution_of_images_has_what_lies_between_its_rows():
    layer = sl.SparseConv2d(8, 16, 3, padding=1, sparsity=0.8)
    with torch.no_grad():
        found = counted(lambda: layer(torch.randn(2, 8, 9, 9)))
    row = 1 + 9 + 1
    assert found == 2 * 2 * layer.csr.nnz * (8 * row + 9)
