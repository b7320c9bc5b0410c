"""Corrupt the operands of every operator, and print what becomes of each call.

Run in a process of its own by `test_ops_gate`, so that a crash is seen there. A call has to end in
a sentence, or in the numbers of the dense matrix. The name of a call is printed before it is made.
"""

import random
import resource
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import sparselib as sl
from sparselib import ops
from sparselib.ops.fused import sequence

REFUSALS = (ValueError, TypeError, RuntimeError)
ROWS, COLUMNS, BATCH, CHANNELS, TAPS, TIME = 7, 12, 17, 3, 4, 20
HUGE = (-1, 0, 2**31 - 1, 2**31, 2**32 + 5, 2**63 - 1, -(2**31))
KINDS = ("float64", "float16", "bfloat16", "int32", "int64", "uint8", "bool", "complex64")


class Subclass(torch.Tensor):
    """A tensor that somebody else derived."""


def spread(t):
    """The same numbers, each at twice the distance from the next."""
    wide = t.new_zeros(2 * t.numel())
    wide[::2] = t.flatten()
    return wide[::2].view(t.shape) if t.ndim == 1 else wide.view(*t.shape, 2)[..., 0]


def emptied(t):
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def inference(t):
    with torch.inference_mode():
        return t.clone()


def negated(t):
    return torch._neg_view(-t)


# what may happen to any tensor, by name
CORRUPTIONS = {kind: lambda t, kind=kind: t.to(getattr(torch, kind)) for kind in KINDS}
CORRUPTIONS |= {
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "meta": lambda t: t.to("meta"),
    "none": lambda t: t[:0],
    "one short": lambda t: t[:-1],
    "one feature short": lambda t: t[..., :-1],
    "twice": lambda t: torch.cat([t, t]),
    "twice the features": lambda t: torch.cat([t, t], -1),
    "a dimension more": lambda t: t[None],
    "flat": lambda t: t.flatten(),
    "a number": lambda t: t.flatten()[0],
    "turned": lambda t: t.transpose(0, -1),
    "turned in memory": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "spread": spread,
    "expanded": lambda t: t[:1].expand(t.shape),
    "backwards": lambda t: t.flip(0),
    "nan": lambda t: torch.full_like(t, torch.nan),
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape),
    "memory taken away": emptied,
    "sparse": lambda t: t.to_sparse(),
    "mkldnn": lambda t: t.to_mkldnn(),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
    "pending sign": negated,
    "imaginary part": lambda t: torch.complex(t, t).conj().imag,
    "inference": inference,
    "subclass": lambda t: t.clone().as_subclass(Subclass),
    "parameter": lambda t: nn.Parameter(t.clone()),
    "view with a gradient": lambda t: t.clone().requires_grad_().view_as(t),
    "not a tensor": lambda t: t.tolist(),
    "missing": lambda t: None,
}


def written(t):
    """Write an index out of range where torch does not count versions."""
    t.numpy()[-1] = 10**8
    return t


def exchanged(t):
    t.data = torch.full_like(t, 10**8)
    return t


INDEX_CORRUPTIONS = {
    "far": lambda t: t + 10**8,
    "far back": lambda t: t - 10**8,
    "largest": lambda t: torch.full_like(t, 2**31 - 1),
    "smallest": lambda t: torch.full_like(t, -(2**31)),
    "one more": lambda t: t + 1,
    "shuffled": lambda t: t[torch.randperm(len(t))],
    "zero": lambda t: torch.zeros_like(t),
    "written by numpy": written,
    "exchanged": exchanged,
    "filled through data": lambda t: (t.data.fill_(10**8), t)[1],
    "float": lambda t: t.float() + 0.7,
}


def dense(indices, values, columns):
    """The matrix of a pattern, in float64."""
    crow, col = (index.long() for index in indices[:2])
    rows = torch.repeat_interleave(torch.arange(len(crow) - 1), crow.diff())
    weight = torch.zeros(len(crow) - 1, columns, dtype=torch.float64)
    return weight.index_put((rows, col), values.double())


def at(weight, indices):
    """Entries of a matrix at a pattern."""
    crow, col = (index.long() for index in indices[:2])
    rows = torch.repeat_interleave(torch.arange(len(crow) - 1), crow.diff())
    return weight[rows, col]


def exact_network(layers, x):
    x = x.double()
    for csr, values, bias, relu in layers:
        x = functional.linear(x, csr.to_dense(values.double()))
        x = x if bias is None else x + bias.double()
        x = x.relu() if relu else x
    return x


def exact_gradients(values, csr, dy, x, further=True, relu=False):
    dy, x = dy.double(), x.double()
    dx = dy @ csr.to_dense(values.double())
    dx = dx.masked_fill(x <= 0, 0.0) if relu else dx
    pair = (dy.t() @ x).flatten()[csr.positions], dy.sum(0)
    return (*pair, dx) if further else pair


def exact_conv(weight, x, before, after, dilation, across=TAPS, down=0):
    weight = weight.view(len(weight), x.shape[1], -1)
    x = functional.pad(x.double(), (before, after))
    rows = weight.split(across, 2)
    length = x.shape[2] - (len(rows) - 1) * down - (across - 1) * dilation
    parts = [functional.conv1d(x, row, dilation=dilation) for row in rows]
    return sum(part[..., n * down :][..., :length] for n, part in enumerate(parts))


def exact_images(weight, x, dilation, bias):
    weight = weight.view(ROWS, CHANNELS, TAPS, 1)
    bias = bias if bias is None else bias.double()
    return functional.conv2d(functional.pad(x.double(), (0, 1, 1, 2)), weight, bias, 1, 0, dilation)


def conv_gradients(weight, dy, x, *sizes):
    weight, x = weight.requires_grad_(), x.double().requires_grad_()
    y = exact_conv(weight, x, *sizes)
    return torch.autograd.grad(y, (weight, x), dy.double())


def problems():
    """Every operator: name, call, oracle and operands."""
    torch.manual_seed(0)
    csr = sl.CSRLinear(COLUMNS, ROWS, sparsity=0.5).csr
    narrow = sl.CSRLinear(ROWS, 5, sparsity=0.4).csr
    values, bias = torch.randn(csr.nnz), torch.randn(ROWS)
    more, dy = torch.randn(narrow.nnz), torch.randn(BATCH, ROWS)
    x, signals = torch.randn(BATCH, COLUMNS), torch.randn(2, CHANNELS, TIME)
    out = torch.randn(2, ROWS, TIME)
    pattern = [*csr.indices()]
    indices = [*pattern, *csr.transposed_indices()]
    sizes = [CHANNELS, TAPS, 1, 2, 1, TAPS, 0]

    def matrix(values):
        return csr.to_dense(values.double())

    def layers(values, bias, more):
        return [(csr, values, bias, True), (narrow, more, None, False)]

    def fused(values, bias, more, x):
        return sequence([csr, narrow], [values, bias, more, None], x, [[], []])

    def trained(values, bias, x):
        y = ops.spmm(csr, values, x, bias)
        if bias is None:
            raise ValueError("there is no bias to differentiate with respect to")
        leaves = [t.detach().requires_grad_() for t in (values, bias, x)]
        y = ops.spmm(csr, leaves[0], leaves[2], leaves[1])
        return torch.autograd.grad(y.sum(), leaves)

    def exact_training(values, bias, x):
        ones = x.new_ones(*x.shape[:-1], ROWS).double()
        dvalues = (ones.reshape(-1, ROWS).t() @ x.double().reshape(-1, COLUMNS)).flatten()
        return dvalues[csr.positions], ones.reshape(-1, ROWS).sum(0), ones @ matrix(values)

    def plain(operator):
        return getattr(torch.ops.sparselib, operator)

    def conv(values, x, padding=(1, 2), dilation=1, bias=None):
        return ops.conv1d(csr, values, x, bias, padding, dilation)

    def exact(values, x, padding=(1, 2), dilation=1, bias=None):
        y = exact_conv(matrix(values), x, *padding, dilation)
        return y if bias is None else y + bias.double()[:, None]

    conv_operands = [values, signals, (1, 2), 1, bias]
    return [
        ("spmm", lambda v, x, b: ops.spmm(csr, v, x, b),
         lambda v, x, b: x.double() @ matrix(v).t() + (0 if b is None else b.double()),
         [values, x, bias]),
        ("spmm_t", lambda v, y: ops.spmm_t(csr, v, y), lambda v, y: y.double() @ matrix(v),
         [values, dy]),
        ("sddmm", lambda dy, x: ops.sddmm(csr, dy, x),
         lambda dy, x: (dy.double().reshape(-1, ROWS).t() @ x.double().reshape(-1, COLUMNS))
         .flatten()[csr.positions], [dy, x]),
        ("backward", trained, exact_training, [values, bias, x]),
        ("network", lambda v, b, m, x: ops.network([ops.Layer(*one) for one in layers(v, b, m)], x),
         lambda v, b, m, x: exact_network(layers(v, b, m), x), [values, bias, more, x]),
        ("sequence", fused, lambda v, b, m, x: exact_network(layers(v, b, m), x),
         [values, bias, more, x]),
        ("gradients", lambda v, dy, x: ops.gradients(v, csr, dy, x),
         lambda v, dy, x: exact_gradients(v, csr, dy, x), [values, dy, x]),
        ("gradients of values", lambda v, dy, x: ops.gradients(v, csr, dy, x, False)[:2],
         lambda v, dy, x: exact_gradients(v, csr, dy, x, False), [values, dy, x]),
        ("conv1d", conv, exact, conv_operands),
        ("conv2d",
         lambda v, x, d, b: ops.conv2d(csr, v, x, b, (TAPS, 1), (1, 2, 0, 1), d),
         lambda v, x, d, b: exact_images(matrix(v), x, d, b),
         [values, signals.view(2, CHANNELS, 2, -1), (1, 1), bias]),
        ("operator spmm", plain("spmm"),
         lambda v, x, c, i: x.double() @ dense(i, v, c).t(), [values, x, COLUMNS, pattern]),
        ("operator spmm_t", plain("spmm_t"),
         lambda v, y, c, i: y.double() @ dense(i, v, c), [values, dy, COLUMNS, indices]),
        ("operator spmm_t alone", plain("spmm_t"),
         lambda v, y, c, i: y.double() @ dense(i, v, c), [values, dy, COLUMNS, pattern]),
        ("operator sddmm", plain("sddmm"),
         lambda dy, x, i: at(dy.double().t() @ x.double(), i), [dy, x, indices]),
        ("operator conv1d", plain("conv1d"),
         lambda v, x, s, i: exact_conv(dense(i, v, s[0] * s[1]), x, *s[2:]),
         [values, signals, sizes, pattern]),
        ("operator conv1d_t", plain("conv1d_t"),
         lambda v, dy, t, s, i: conv_gradients(
             dense(i, v, s[0] * s[1]), dy, dy.new_zeros(len(dy), s[0], t), *s[2:])[1],
         [values, out, TIME, sizes, indices]),
        ("operator conv1d_weight", plain("conv1d_weight"),
         lambda dy, x, s, i: at(conv_gradients(
             dense(i, torch.ones(len(i[1])), s[0] * s[1]), dy, x, *s[2:])[0], i),
         [dy_of(out), signals, sizes, indices]),
    ]  # fmt: skip


def dy_of(out):
    return out.clone()


def corrupted(operand, generator):
    """Return what becomes of an operand, and the name of what happened to it."""
    if isinstance(operand, torch.Tensor):
        name = generator.choice([*CORRUPTIONS])
        return CORRUPTIONS[name](operand), name
    if isinstance(operand, int):
        number = generator.choice([*HUGE, operand + 1, operand - 1, 2.5, None])
        return number, f"{operand} becomes {number}"
    if isinstance(operand[0], int):
        place = generator.randrange(len(operand))
        number = generator.choice([*HUGE, operand[place] + 1, operand[place] - 1])
        changed = [*operand[:place], number, *operand[place + 1 :]]
        return type(operand)(changed), f"{place} becomes {number}"
    operand = [index.clone() for index in operand]
    if generator.random() < 0.1:
        count = generator.randrange(len(operand))
        return operand[:count], f"{count} arrays"
    place = generator.randrange(len(operand))
    kinds = INDEX_CORRUPTIONS | CORRUPTIONS
    name = generator.choice([*INDEX_CORRUPTIONS, *INDEX_CORRUPTIONS, *CORRUPTIONS])
    operand[place] = kinds[name](operand[place])
    return operand, f"array {place} {name}"


def plainly(operand):
    """Return what an oracle can compute with."""
    if not isinstance(operand, torch.Tensor):
        return [*map(plainly, operand)] if isinstance(operand, list) else operand
    operand = operand.detach()
    if operand.layout != torch.strided or operand.is_quantized:
        operand = operand.dequantize() if operand.is_quantized else operand.to_dense()
    return operand.as_subclass(torch.Tensor).resolve_neg().clone()


def is_right(ours, exact, operands):
    ours, exact = ((t,) if isinstance(t, torch.Tensor) else t for t in (ours, exact))
    flat = [t for o in operands for t in (o if isinstance(o, list) else [o])]
    coarse = any(isinstance(t, torch.Tensor) and t.dtype.itemsize < 4 for t in flat)
    tolerance = 0.1 if coarse else 1e-4
    for one, other in zip(ours, exact, strict=True):
        if one.shape != other.shape:
            return False
        one, other = one.detach().double(), other.double()
        # an absent weight times NaN is NaN for the dense matrix alone
        other = other.where(~(other.isnan() & (one == 0)), 0.0)
        if not torch.allclose(one, other, tolerance, tolerance, True):
            return False
    return True


def outcome(call, oracle, operands):
    try:
        ours = call(*operands)
    except REFUSALS as error:
        return "refused" if str(error) else "refused without a word"
    except Exception as error:
        return f"WRONG {type(error).__name__} {error}"
    if any(t.is_meta for t in (ours if isinstance(ours, tuple) else (ours,))):
        return "without numbers"
    plain = [*map(plainly, operands)]
    return "right" if is_right(ours, oracle(*plain), operands) else "WRONG"


def main(count, seed):
    # a matrix of 2**31 columns is one that memory refuses
    used = (
        int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        * resource.getpagesize()
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30),) * 2)
    generator = random.Random(seed)
    cases = problems()
    for name, call, oracle, operands in cases:
        assert outcome(call, oracle, operands) == "right", name
    for number in range(count):
        name, call, oracle, operands = cases[number % len(cases)]
        operands = [*operands]
        told = []
        for place in generator.sample(range(len(operands)), generator.choice((1, 1, 2))):
            try:
                operands[place], what = corrupted(operands[place], generator)
            except (*REFUSALS, IndexError):
                continue
            told.append(f"{place} {what}")
        print(name, told, end=": ", flush=True)
        print(outcome(call, oracle, operands), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
