"""The three products equal their dense definitions, with every gradient of every order."""

import ast

import pytest
import torch
from apart import run_compiling
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from sparselib import CSR, ops, topology


def make(rows, columns, sparsity, batch, cached=True, seed=0):
    torch.manual_seed(seed)
    csr = CSR.from_positions(
        topology.erdos_renyi(rows, columns, sparsity), (rows, columns), cache_transpose=cached
    )
    values, x, y = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in (csr.nnz, (batch, columns), (batch, rows))
    )
    return csr, values, x, y


shapes = st.tuples(
    st.integers(1, 17),
    st.integers(1, 17),
    st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    st.integers(0, 5),
    st.booleans(),
    st.integers(0, 99),
)


@given(shapes)
def test_products_and_gradients_equal_the_dense_ones(case):
    csr, values, x, y = make(*case)
    dense = csr.to_dense(values)
    for ours, theirs in (
        (ops.spmm(csr, values, x), x @ dense.t()),
        (ops.spmm_t(csr, values, y), y @ dense),
        (ops.sddmm(csr, y, x), (y.t() @ x).flatten()[csr.positions]),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        weight = torch.randn_like(ours)
        for mine, dense_gradient in zip(
            torch.autograd.grad(ours, (values, x, y), weight, allow_unused=True, retain_graph=True),
            torch.autograd.grad(
                theirs, (values, x, y), weight, allow_unused=True, retain_graph=True
            ),
        ):
            assert (mine is None) == (dense_gradient is None)
            if mine is not None:
                torch.testing.assert_close(mine, dense_gradient, rtol=1e-10, atol=1e-10)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_gradcheck_on_random_structures_with_empty_rows(seed):
    csr, values, x, _ = make(5, 4, 0.75, 3, seed=seed)
    assert gradcheck(lambda v, x: ops.spmm(csr, v, x), (values, x))


@pytest.mark.parametrize("cached", [True, False])
def test_the_products_are_closed_under_differentiation(cached):
    csr, values, x, y = make(5, 7, 0.6, 3, cached)
    assert gradgradcheck(lambda v, x: ops.spmm(csr, v, x), (values, x))
    assert gradgradcheck(lambda v, y: ops.spmm_t(csr, v, y), (values, y))
    assert gradgradcheck(lambda y, x: ops.sddmm(csr, y, x), (y, x))


@pytest.mark.slow
@pytest.mark.xdist_group("compiler")
def test_the_operators_are_registered_as_torch_demands():
    program = """
import torch, sparselib as sl
for sparsity in (0.6, 0.999):
    csr = sl.CSRLinear(7, 5, sparsity=sparsity).csr
    values, x, y = (
        torch.randn(shape, requires_grad=True) for shape in (csr.nnz, (3, 7), (3, 5))
    )
    indices = [*csr.indices(), *csr.transposed_indices()]
    for operator, arguments in (
        (torch.ops.sparselib.spmm.default, (values, x, 7, indices)),
        (torch.ops.sparselib.spmm_t.default, (values, y, 7, indices)),
        (torch.ops.sparselib.sddmm.default, (y, x, indices)),
    ):
        print(*torch.library.opcheck(operator, arguments).values())
"""
    assert run_compiling(program) == ["SUCCESS SUCCESS SUCCESS SUCCESS"] * 6


@pytest.mark.parametrize(
    "model",
    ["sl.CSRLinear(7, 5, sparsity=0.6)", "sl.MLP(7, 9, 5, layer=sl.CSRLinear, sparsity=0.6)"],
)
@pytest.mark.slow
@pytest.mark.xdist_group("compiler")
def test_compiles_without_a_graph_break(model):
    program = f"""
import torch, sparselib as sl
model = {model}
x = torch.randn(3, 7, requires_grad=True)
compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
for run in (model, compiled):
    run(x).relu().sum().backward()
    print(torch.cat([x.grad.flatten(), *(p.grad for p in model.parameters())]).tolist())
    model.zero_grad(), x.grad.zero_()
"""
    eager, compiled = map(ast.literal_eval, run_compiling(program))
    assert compiled == pytest.approx(eager, abs=1e-6)


def test_any_leading_dimensions_and_strides_are_taken():
    csr, values, x, _ = make(5, 6, 0.5, 12)
    dense = csr.to_dense(values)
    for batch in (x[0], x.view(3, 4, 6), x[::2], x.t().contiguous().t(), x[:1].expand(4, 6)):
        torch.testing.assert_close(ops.spmm(csr, values, batch), batch @ dense.t())


def test_autocast_multiplies_in_float32_and_keeps_gradients_in_the_parameters_type():
    csr, values, x, _ = make(5, 6, 0.5, 3)
    values, x = values.detach().float().requires_grad_(), x.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.spmm(csr, values, x)
    y.sum().backward()
    assert y.dtype == values.grad.dtype == torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_reach_what_the_dense_product_lets_them_reach(bad):
    csr, values, x, y = make(6, 6, 0.5, 4)
    x, y, values = x.detach().clone(), y.detach().clone(), values.detach()
    x[1, 2], y[2, 3] = bad, bad
    connected = csr.mask()[:, 2]
    assert torch.equal(~torch.isfinite(ops.spmm(csr, values, x))[1], connected)
    gradient = (y.t() @ x).flatten()[csr.positions]
    torch.testing.assert_close(ops.sddmm(csr, y, x), gradient, equal_nan=True)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda c, v, x, y: ops.spmm(c, v, y),
            r"last dimension of 7; the input has shape \(3, 5\)",
        ),
        (lambda c, v, x, y: ops.spmm_t(c, v, x), r"last dimension of 5"),
        (lambda c, v, x, y: ops.spmm(c, v[1:], x), r"14 connections need as many values"),
        (lambda c, v, x, y: ops.spmm(c, v, x.float()), "float32 but the values are torch.float64"),
        (lambda c, v, x, y: ops.sddmm(c, y[1:], x), "2 rows of output gradient but 3 of input"),
        (lambda c, v, x, y: ops.spmm(c, v.to("meta"), x), "needs one device"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(call, sentence):
    csr, values, x, y = make(5, 7, 0.6, 3)
    with pytest.raises(ValueError, match=sentence):
        call(csr, values, x, y)
