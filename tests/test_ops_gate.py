"""Nothing that does not fit reaches a kernel: it is refused in a sentence, or computed rightly."""

import copy
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparselib as sl
from sparselib import ops
from sparselib.ops import operands
from sparselib.ops.fused import sequence

ROWS, COLUMNS, BATCH = 32, 64, 17


def parts():
    """Return pattern, values, bias and input of a layer."""
    layer = sl.CSRLinear(COLUMNS, ROWS, sparsity=0.8)
    return layer.csr, layer.values.detach(), torch.randn(ROWS), torch.randn(BATCH, COLUMNS)


def plain(function):
    """Return a function without the checks of annotations that tests wrap around it."""
    return inspect.unwrap(function)


def exact(csr, values, x, bias):
    return sl.masked_product(csr, values.double(), x.double(), bias.double())


@pytest.mark.slow
def test_three_thousand_corruptions_end_in_a_sentence_or_in_the_right_numbers():
    """In a process of its own, so that a crash would be seen."""
    program = str(Path(__file__).with_name("corruptions.py"))
    answer = subprocess.run([sys.executable, program, "3000", "0"], capture_output=True, text=True)
    lines = answer.stdout.splitlines()
    assert answer.returncode == 0, (lines[-1:], answer.stderr[-2000:])
    outcomes = [line.split(": ")[-1] for line in lines]
    assert len(outcomes) == 3000
    assert [line for line in lines if ": WRONG" in line] == []
    assert set(outcomes) == {"right", "refused"}
    # neither all refused nor all let pass: the calls are what they should be
    assert 300 < outcomes.count("right") < 1500


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32, torch.complex64])
@pytest.mark.parametrize("product", ["spmm", "network", "conv1d", "sequence"])
def test_a_bias_of_another_type_is_refused(product, dtype):
    csr, values, bias, x = parts()
    bias = bias.to(dtype)
    signals = torch.randn(2, 4, 20)
    calls = {
        "spmm": lambda: plain(ops.spmm)(csr, values, x, bias),
        "network": lambda: plain(ops.network)([ops.Layer(csr, values, bias)], x),
        "conv1d": lambda: plain(ops.conv1d)(csr, values, signals, bias),
        "sequence": lambda: sequence([csr], [values, bias], x, [[]]),
    }
    with pytest.raises(ValueError, match=f"the bias is {dtype}"):
        calls[product]()


@pytest.mark.parametrize("fused", [True, False])
def test_a_layer_whose_bias_changed_its_type_is_refused(fused):
    model = sl.MLP(COLUMNS, 128, 10, layer=sl.CSRLinear, sparsity=0.9).eval()
    x = torch.randn(200 if fused else 3, COLUMNS)
    model.layers[1].bias.data = model.layers[1].bias.data.double() + 0.5
    with torch.no_grad(), pytest.raises(ValueError, match=r"the bias is torch\.float64 on cpu"):
        model(x)
    with pytest.raises(ValueError, match=r"the bias is torch\.float64 on cpu"):
        model(x)


def test_functional_call_with_another_type_is_refused():
    layer = sl.CSRLinear(COLUMNS, ROWS, sparsity=0.8)
    x = torch.randn(BATCH, COLUMNS)
    for name, tensor in (("bias", torch.ones(ROWS)), ("values", layer.values.detach())):
        with pytest.raises(ValueError, match=r"torch\.float64"):
            torch.func.functional_call(layer, {name: tensor.double()}, (x,))
    ones = torch.func.functional_call(layer, {"bias": torch.ones(ROWS)}, (x,))
    torch.testing.assert_close(ones, layer(x) + 1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v, dy, x: (v, dy[:, :3], x), r"needs an output gradient \(batch, 32\)"),
        (lambda v, dy, x: (v, dy, x[:, :4]), r"an input \(batch, 64\), not \(17, 32\) and \(17, 4"),
        (lambda v, dy, x: (v, dy, x[:4]), "has 17 rows but the input 4"),
        (lambda v, dy, x: (v[:2], dy, x), r"connections need as many values, not \(2,\)"),
        (lambda v, dy, x: (v, dy.double(), x), r"the output gradient is torch\.float64"),
        (lambda v, dy, x: (v, dy.to("meta"), x), "the output gradient is on meta"),
        (lambda v, dy, x: (v, dy.to_sparse(), x), "must be a dense tensor"),
    ],
)
def test_gradients_of_what_does_not_fit_are_refused(change, sentence):
    csr, values, _, x = parts()
    operands_ = change(values, torch.randn(BATCH, ROWS), x)
    values, dy, x = operands_
    for further in (True, False):
        with pytest.raises(ValueError, match=sentence):
            plain(ops.gradients)(values, csr, dy, x, further)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda layers, x: (layers, x[:, :8].contiguous()), "reads 64 features, but gets 8"),
        (lambda layers, x: (layers[::-1], torch.randn(17, 32)), "layer 1 of a network reads 64"),
        (lambda layers, x: ([layers[0]._replace(values=layers[0].values[:3])], x), r"not \(3,\)"),
        (lambda layers, x: (layers, x.double()), r"input is torch\.float64 but the values"),
        (lambda layers, x: ([], x), "at least one layer"),
        (lambda layers, x: (layers, x[0]), r"a batch \(samples, features\), not \(64,\)"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(change, sentence):
    csr, values, bias, x = parts()
    narrow = sl.CSRLinear(ROWS, 10, sparsity=0.5)
    layers = [ops.Layer(csr, values, bias, True), ops.Layer(narrow.csr, narrow.values.detach())]
    with pytest.raises(ValueError, match=sentence):
        plain(ops.network)(*change(layers, x))


def test_arrays_in_place_of_a_pattern_are_refused():
    csr, values, _, x = parts()
    layer = (*csr.indices(), values, None, False)
    with pytest.raises(TypeError, match=r"must be \(csr, values, bias, relu\), not \('Tensor'"):
        plain(ops.products.check_network)([layer], x)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_every_floating_point_type_is_computed(dtype):
    csr, values, bias, x = parts()
    narrow = sl.CSRLinear(ROWS, 10, sparsity=0.5)
    tolerance = 1e-4 if dtype.itemsize > 2 else 0.1
    cast = [tensor.to(dtype) for tensor in (values, bias, narrow.values.detach())]
    layers = [ops.Layer(csr, *cast[:2], True), ops.Layer(narrow.csr, cast[2])]
    y = ops.network(layers, x.to(dtype))
    hidden = exact(csr, values, x, bias).relu()
    right = sl.masked_product(narrow.csr, narrow.values.double(), hidden)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), right, rtol=tolerance, atol=tolerance)
    y = sequence([csr, narrow.csr], [*cast, None], x.to(dtype), [[], []])
    torch.testing.assert_close(y.double(), right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_models_of_every_type_train_as_their_dense_twins(dtype):
    model = sl.MLP(20, 30, 10, layer=sl.CSRLinear, sparsity=0.8)
    x, dy = torch.randn(50, 20), torch.randn(50, 10)
    twin = copy.deepcopy(model).double()
    for layer in twin.layers:
        layer.product = sl.masked_product
    tolerance = 1e-10 if dtype == torch.float64 else 0.1
    model.to(dtype)(x.to(dtype)).backward(dy.to(dtype))
    twin.load_state_dict(model.state_dict())
    twin(x.to(dtype).double()).backward(dy.to(dtype).double())
    for ours, theirs in zip(model.parameters(), twin.parameters()):
        assert ours.grad.dtype == dtype
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance)


def spoil_data(tensor):
    tensor.data.fill_(10**8)


def spoil_by_numpy(tensor):
    tensor.numpy()[-1] = -1


def spoil_in_place(tensor):
    tensor[0] = 10**8


def exchange(tensor):
    tensor.data = torch.full_like(tensor, 10**8)


SPOILS = [spoil_data, spoil_by_numpy, spoil_in_place, exchange]


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("spoil", SPOILS, ids=lambda f: f.__name__)
def test_arrays_that_changed_after_they_were_verified_are_verified_again(spoil, place):
    csr, values, _, _ = parts()
    dy = torch.randn(BATCH, ROWS)
    indices = [t.clone() for t in (*csr.indices(), *csr.transposed_indices())]
    right = dy @ csr.to_dense(values)
    for _ in range(2):
        dx = torch.ops.sparselib.spmm_t(values, dy, COLUMNS, indices)
        torch.testing.assert_close(dx, right, rtol=1e-4, atol=1e-4)
    spoil(indices[place])
    with pytest.raises(ValueError, match=r"crow_indices|col_indices|permutation"):
        torch.ops.sparselib.spmm_t(values, dy, COLUMNS, indices)


@pytest.mark.parametrize("place", [2, 3, 4])
def test_arrays_that_became_longer_are_verified_again(place):
    csr, values, _, _ = parts()
    dy = torch.randn(BATCH, ROWS)
    indices = [t.clone() for t in (*csr.indices(), *csr.transposed_indices())]
    torch.ops.sparselib.spmm_t(values, dy, COLUMNS, indices)
    indices[place].data = torch.cat([indices[place], indices[place][-1:]])
    with pytest.raises(ValueError, match="is not that of the pattern"):
        torch.ops.sparselib.spmm_t(values, dy, COLUMNS, indices)


def test_an_input_that_is_not_dense_is_refused_by_the_operators():
    csr, values, _, x = parts()
    with pytest.raises(ValueError, match=r"the input must be a dense tensor.*sparse_coo"):
        torch.ops.sparselib.spmm(values, x.to_sparse(), COLUMNS, csr.indices())


def test_arrays_that_became_another_pattern_are_followed():
    csr, values, _, x = parts()
    indices = [t.clone() for t in csr.indices()]
    torch.ops.sparselib.spmm(values, x, COLUMNS, indices)
    other = sl.CSRLinear(COLUMNS, ROWS, sparsity=0.8).csr
    indices[0].numpy()[:] = other.indices()[0].numpy()
    indices[1].numpy()[:] = other.indices()[1].numpy()
    y = torch.ops.sparselib.spmm(values, x, COLUMNS, indices)
    torch.testing.assert_close(y, x @ other.to_dense(values).t(), rtol=1e-4, atol=1e-4)


def test_arrays_of_sixty_four_bits_are_the_same_pattern():
    csr, values, _, x = parts()
    indices = [t.long() for t in csr.indices()]
    y = torch.ops.sparselib.spmm(values, x, COLUMNS, indices)
    torch.testing.assert_close(y, ops.spmm(csr, values, x))


def test_a_pattern_is_trusted_for_its_own_shape_only():
    csr, values, _, _ = parts()
    narrow = torch.randn(BATCH, 3)
    ops.sddmm(csr, torch.randn(BATCH, ROWS), torch.randn(BATCH, COLUMNS))
    indices = operands.operator_indices(csr)
    with pytest.raises(ValueError, match=r"columns run 0\.\.2"):
        torch.ops.sparselib.spmm(values, narrow, 3, indices)
    with pytest.raises(ValueError, match=r"needs a batch \(samples, 64\), not \(17, 3\)"):
        torch.ops.sparselib.spmm(values, narrow, COLUMNS, indices)


def test_arrays_of_nobody_are_verified_once_for_each_shape():
    csr, values, _, _ = parts()
    indices = [array.clone() for array in operands.operator_indices(csr)]
    first = operands.verified(indices, (ROWS, COLUMNS))
    assert operands.verified(indices, (ROWS, COLUMNS)) is first
    with pytest.raises(ValueError, match=r"columns run 0\.\.2"):
        torch.ops.sparselib.spmm(values, torch.randn(BATCH, 3), 3, indices)


def test_the_transposed_pattern_must_be_that_of_the_pattern():
    csr, values, _, _ = parts()
    other = sl.CSRLinear(COLUMNS, ROWS, sparsity=0.8).csr
    indices = [*csr.indices(), *other.transposed_indices()]
    with pytest.raises(ValueError, match="is not that of the pattern"):
        torch.ops.sparselib.spmm_t(values, torch.randn(BATCH, ROWS), COLUMNS, indices)
    indices = operands.operator_indices(csr)
    far = indices[4] + 10**6
    with pytest.raises(ValueError, match="permutation is not that of the pattern"):
        torch.ops.sparselib.spmm_t(values, torch.randn(BATCH, ROWS), COLUMNS, [*indices[:4], far])


@pytest.mark.parametrize("further", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_memory_that_was_exchanged_before_the_backward_pass_is_refused(layers, further):
    sizes = [COLUMNS, 30, 10][: layers + 1]
    model = sl.MLP(*sizes, layer=sl.CSRLinear, sparsity=0.8)
    x = torch.randn(BATCH, COLUMNS, requires_grad=further)
    loss = model(x).sum()
    layer = model.layers[0]
    before = layer.values.data
    layer.values.data = before[:3].clone()
    with pytest.raises((ValueError, RuntimeError)):
        loss.backward()


@pytest.mark.parametrize("padding", [(-1, 0), (0, -3), (-(2**40), 2**40)])
def test_a_negative_padding_is_refused(padding):
    csr, values, _, _ = parts()
    with pytest.raises(ValueError, match="with a padding of"):
        ops.conv1d(csr, values, torch.randn(2, 4, 20), None, padding)


@pytest.mark.parametrize("dilation", [2**31, 2**62, 10**30])
def test_a_huge_dilation_is_refused(dilation):
    csr, values, _, _ = parts()
    with pytest.raises(ValueError, match=f"with a dilation of {dilation} extends"):
        ops.conv1d(csr, values, torch.randn(2, 4, 20), None, (0, 0), dilation)
    with pytest.raises(ValueError, match="int32 indices cannot reach"):
        ops.conv1d(csr, values, torch.randn(2, 4, 20), None, (0, 16 * dilation), dilation)


def test_signs_and_zeros_that_are_not_in_memory_are_seen():
    csr, values, bias, x = parts()
    right = exact(csr, values, x, bias)
    for place in range(3):
        given = [values, x, bias]
        given[place] = torch._neg_view(-given[place])
        y = ops.spmm(csr, *given)
        torch.testing.assert_close(y.double(), right, rtol=1e-4, atol=1e-4)
    zeros = torch._efficientzerotensor(x.shape)
    torch.testing.assert_close(ops.spmm(csr, values, zeros, bias), bias.expand(BATCH, ROWS))
    assert not ops.spmm(csr, torch._efficientzerotensor(values.shape), x).any()


def test_memory_that_was_freed_is_refused():
    csr, values, bias, x = parts()
    for place in range(3):
        given = [values, x, bias]
        given[place] = given[place].clone()
        given[place].untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="has no memory"):
            ops.spmm(csr, *given)


def test_what_is_on_no_device_computes_shapes():
    layer = sl.CSRLinear(COLUMNS, ROWS, sparsity=0.8).to("meta")
    y = layer(torch.randn(BATCH, COLUMNS, device="meta"))
    assert y.is_meta
    assert y.shape == (BATCH, ROWS)
