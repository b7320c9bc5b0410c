"""Step 3: how close each product comes to what it reads can be read.

A nonzero needs four bytes of an activation for each sample. A probe reads rows in random order
as the products do, from what fits L1, L2 or neither; a product's share is the activations that
it gathers in a second over what the probe reads in a second.
"""

import torch
from torch import Tensor
from torch.nn import functional

import sparselib as sl
from gpu_steps.record import Call, Record, can_run_triton, precision
from sparselib.ops import dispatch

SHAPES = [(4096, 4096, 2048), (512, 512, 10_000)]  # rows, columns, samples
SPARSITIES = (0.9, 0.97, 0.99)
# rows and columns of what is read, groups of rows that are summed, and rows in a group
SETS = {
    "L1": (32, 256, 8448, 1024),
    "L2": (4096, 1024, 2112, 64),
    "HBM": (262_144, 4096, 2112, 64),
}
TINY_SETS = {"L1": (8, 256, 2, 4), "L2": (16, 256, 2, 4), "HBM": (32, 512, 2, 4)}


def run(record: Record) -> None:
    """Probe the memories, time the products, and tell how what ran was compiled."""
    rates = {}
    if can_run_triton(record):
        rates = probe(record)
    else:
        record.absent("bandwidth", "gather", "Triton cannot interpret here")
    copy(record)
    for shape in [(16, 12, 33)] if record.rehearse else SHAPES:
        products(record, *shape, rates)
    if can_run_triton(record):
        from gpu_steps.kernels import as_compiled, gather_kernel
        from sparselib.ops.backends import gpu

        as_compiled(record, gpu.spmm_kernel, gpu.sddmm_kernel, gather_kernel)


def probe(record: Record) -> dict[str, float]:
    """Return GB/s of reading random rows from each level."""
    from gpu_steps.kernels import gather

    rates = {}
    sets = TINY_SETS if record.rehearse else SETS
    for level, (rows, columns, groups, count) in sets.items():
        with record.tried("bandwidth", f"gather from {level}"):
            x = torch.ones(rows, columns, device=record.device)
            index = torch.randint(rows, (groups, count), device=record.device, dtype=torch.int32)
            y = x.new_empty(groups, columns)
            if not torch.equal(gather(index, x, y), torch.full_like(y, count)):
                raise ValueError("the probe does not add what it reads")
            call = lambda: gather(index, x, y)  # noqa: B023, E731
            time = record.time("bandwidth", f"gather from {level}", call)
            rates[level] = 4 * index.numel() * columns / time / 1e6
            size = 4 * x.numel() / 2**20
            note = f"working set {size:.4g} MiB"
            record.row("bandwidth", f"gather from {level}", "rate", rates[level], "GB/s", note=note)
    return rates


def copy(record: Record) -> None:
    """Measure what a copy reads and writes in a second."""
    with record.tried("bandwidth", "copy"):
        x = torch.ones(1000 if record.rehearse else 2**28, device=record.device)
        y = torch.empty_like(x)
        time = record.time("bandwidth", "copy", lambda: y.copy_(x))
        record.row("bandwidth", "copy", "rate", 8 * x.numel() / time / 1e6, "GB/s")


def products(
    record: Record, rows: int, columns: int, samples: int, rates: dict[str, float]
) -> None:
    """Measure the three products of a layer, and forward with backward, against dense."""
    case = f"{rows} x {columns}, batch {samples}"
    x = torch.randn(columns, samples, device=record.device).t()
    dy = torch.randn(rows, samples, device=record.device).t()
    dense(record, case, x, dy)
    for sparsity in (0.9,) if record.rehearse else SPARSITIES:
        layer = sl.CSRLinear(columns, rows, sparsity=sparsity).to(record.device)
        gathered = 4 * layer.values.numel() * samples
        for variant, call in three_products(layer, x, dy).items():
            with record.tried(case, variant, sparsity=sparsity):
                time = record.time(case, variant, call, sparsity=sparsity)
                rate = gathered / time / 1e6
                record.row(case, variant, "gathered", rate, "GB/s", sparsity=sparsity)
                for level, most in rates.items():
                    share = {"sparsity": sparsity, "note": "of what the probe reads"}
                    record.row(case, variant, f"share of {level}", rate / most, "", **share)
        with record.tried(case, "forward and backward", sparsity=sparsity):
            call = lambda: forward_and_backward(layer, x, dy)  # noqa: B023, E731
            record.time(case, "forward and backward", call, sparsity=sparsity)


def three_products(layer: sl.CSRLinear, x: Tensor, dy: Tensor) -> dict[str, Call]:
    """Return the calls of the backend's kernels, without autograd."""
    module = dispatch.module(x)
    values = layer.values.detach()
    crow, col = layer.csr.indices()
    turned, rows, permutation = layer.csr.transposed_indices()
    return {
        "output": lambda: module.spmm(values, crow, col, x),
        "input's gradient": lambda: module.spmm(values, turned, rows, dy, None, permutation),
        "weights' gradient": lambda: module.sddmm(crow, col, dy, x),
    }


def forward_and_backward(layer: torch.nn.Module, x: Tensor, dy: Tensor) -> None:
    """Compute the outputs and all three gradients."""
    leaf = x.detach().requires_grad_()
    torch.autograd.grad(layer(leaf), [leaf, *layer.parameters()], dy)


def dense(record: Record, case: str, x: Tensor, dy: Tensor) -> None:
    """Measure the dense layer forward, and with backward, on and off tensor cores."""
    for name in ("fp32", "tf32"):
        with precision(name), record.tried(case, f"dense {name}"):
            layer = torch.nn.Linear(x.shape[1], dy.shape[1], device=record.device)
            own, slopes = x.contiguous(), dy.contiguous()
            with torch.no_grad():
                call = lambda: functional.linear(own, layer.weight, layer.bias)  # noqa: B023, E731
                record.time(case, f"dense {name}, output", call, sparsity=0.0)
            call = lambda: forward_and_backward(layer, own, slopes)  # noqa: B023, E731
            record.time(case, f"dense {name}, forward and backward", call, sparsity=0.0)
