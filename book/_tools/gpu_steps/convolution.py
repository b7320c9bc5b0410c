"""Step 6: the network of the chapter on sleep apnea, and how long its Table 1 would take."""

import torch
from torch import Tensor, nn
from torch.nn import functional

import sparselib as sl
from gpu_steps.record import Record, can_run_triton, captured, precision

CASE = "DSN, 47 filters per group, 16 x 6,000"
# the paper's setting: one of ten splits trains 40 epochs on nine tenths of some 13,000 minutes
STEPS_OF_A_RUN = 40 * 11_700 // 16
SPLITS = 10
VARIANTS = (("dense fp32", 0.0), ("dense tf32", 0.0), ("sparse", 0.95), ("sparse", 0.8))


def run(record: Record) -> None:
    """Measure training steps, forward passes, one layer's products, and two dimensions."""
    channels, layers, taps, shape = 47, 4, 30, (16, 1, 6000)
    if record.rehearse:
        channels, layers, taps, shape = 3, 2, 6, (2, 1, 40)
    x = torch.randn(*shape, device=record.device)
    y = torch.randint(2, shape[:1], device=record.device)
    dense: dict[str, float] = {}
    for variant, sparsity in VARIANTS:
        with (
            precision(variant.rpartition(" ")[2]),
            record.tried(CASE, variant, sparsity=sparsity),
        ):
            torch.manual_seed(0)
            model = sl.DSN(channels, layers, taps, sparsity, pooled=5 if record.rehearse else 50)
            model.to(record.device)
            times = {"training step": step(record, variant, model, x, y, sparsity)}
            times["forward"] = forward(record, variant, model, x, sparsity)
            if variant == "dense fp32":
                dense = times
            if variant == "sparse":
                for name in times.keys() & dense.keys():
                    ratio = dense[name] / times[name]
                    note = "over dense float32, both recorded"
                    more = {"sparsity": sparsity, "note": note}
                    record.row(CASE, f"{variant}, {name}", "speedup", ratio, "", **more)
    single(record)
    two_dimensions(record)
    if can_run_triton(record):
        from gpu_steps.kernels import as_compiled
        from sparselib.ops.backends import gpu_conv

        as_compiled(record, gpu_conv.convolve_kernel, gpu_conv.correlate_kernel)


def step(
    record: Record, variant: str, model: nn.Module, x: Tensor, y: Tensor, sparsity: float
) -> float:
    """Measure a training step recorded and eager, and write what Table 1 would take."""
    capturable = not record.rehearse
    optimizer = torch.optim.Adam(model.parameters(), 3e-4, capturable=capturable)
    recorded = sl.graphs.training(model, optimizer, functional.cross_entropy, x, y)
    more = {"sparsity": sparsity}
    name = f"{variant}, training step"
    found = record.time(CASE, name + ", graph", lambda: recorded(x, y), **more)
    eager = lambda: sl.training.step(model, optimizer, x, y, functional.cross_entropy)  # noqa: E731
    record.time(CASE, name + ", eager", eager, **more)
    hours = found * STEPS_OF_A_RUN * SPLITS / 3.6e6
    note = f"calculated: {SPLITS} splits of {STEPS_OF_A_RUN:,} steps each, without evolution"
    record.row(CASE, variant, "Table 1's line", hours, "h", note=note, **more)
    return found


def forward(record: Record, variant: str, model: nn.Module, x: Tensor, sparsity: float) -> float:
    """Measure the recorded forward pass."""
    model.eval()
    with torch.no_grad():
        call = captured(lambda: model(x))
        return record.time(CASE, f"{variant}, forward, graph", call, sparsity=sparsity)


def single(record: Record) -> None:
    """Measure one layer of 47 channels to 141 filters, forward and with backward."""
    channels, filters, taps, shape = 47, 141, 30, (16, 47, 6000)
    if record.rehearse:
        channels, filters, taps, shape = 3, 4, 5, (2, 3, 40)
    case = f"{channels} channels to {filters} filters of {taps} taps"
    x = torch.randn(*shape, device=record.device, requires_grad=True)
    for variant, sparsity in (("dense fp32", 0.0), ("sparse", 0.8), ("sparse", 0.95)):
        with precision("fp32"), record.tried(case, variant, sparsity=sparsity):
            sizes = channels, filters, taps
            layer = sl.SparseConv1d(*sizes, sparsity=sparsity) if sparsity else nn.Conv1d(*sizes)
            layer.to(record.device)
            with torch.no_grad():
                call = captured(lambda: layer(x))  # noqa: B023
                record.time(case, f"{variant}, forward, graph", call, sparsity=sparsity)

            def both(layer: nn.Module = layer) -> None:
                output = layer(x)
                slopes = torch.ones_like(output)
                torch.autograd.grad(output, [x, *layer.parameters()], slopes)

            record.time(case, f"{variant}, forward and backward, eager", both, sparsity=sparsity)


def two_dimensions(record: Record) -> None:
    """Measure a layer of ResNet-18's shape, if the library has such a layer."""
    case = "64 channels to 128 filters of 3 x 3, 32 x 56 x 56"
    layers = {"dense fp32": nn.Conv2d}
    if "SparseConv2d" not in vars(sl.nn):
        record.absent(case, "SparseConv2d", "the library has no such layer yet")
        return
    layers["sparse"] = vars(sl.nn)["SparseConv2d"]
    shape = (1, 64, 6, 6) if record.rehearse else (32, 64, 56, 56)
    x = torch.randn(*shape, device=record.device)
    for variant, make in layers.items():
        with precision("fp32"), record.tried(case, variant, sparsity=0.9), torch.no_grad():
            options = {"sparsity": 0.9} if variant == "sparse" else {}
            layer = make(64, 128, 3, padding=1, **options).to(record.device)
            call = captured(lambda: layer(x))  # noqa: B023
            record.time(case, f"{variant}, forward, graph", call, sparsity=0.9)
