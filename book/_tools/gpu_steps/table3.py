"""Step 2: Table 3 of Ertl on this GPU, against every baseline that there is.

Medians of 50 rounds of CUDA events. Calls follow each other, so L2 holds what the last one left
there; recorded inference is also measured with L2 flushed before each call.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

import sparselib as sl
from gpu_steps.record import Call, Record, can_run_triton, captured, precision

SPARSITIES = (0.9, 0.97, 0.99, 0.95, 0.8, 0.5)  # those of the paper first
SIDE = 32  # of the blocks of the block-sparse baseline
# largest speedup over a dense network in float32 that the bandwidth of L1, or the launches, allow,
# calculated for an H200 at 1.755 GHz: "cap" beside what is measured
CAPS = {
    "inference 512": {0.9: 3.1, 0.97: 10.4, 0.99: 31.0},
    "training 256": {0.9: 1.7, 0.97: 1.7, 0.99: 1.7},
}
INFERENCE = ("inference 512", [512, 512, 512, 512, 512, 10], 10_000)
TRAINING = [
    ("training 256", [256, 256, 256, 10], 512),
    ("training 784-1024", [784, 1024, 1024, 10], 512),
]
TINY_INFERENCE = ("inference 512", [32, 32, 10], 33)
TINY_TRAINING = [("training 256", [12, 12, 10], 20)]


def run(record: Record) -> None:
    """Measure our inference and training with their dense twins, then those of others."""
    sparsities = (0.9,) if record.rehearse else SPARSITIES
    inference(record, *(TINY_INFERENCE if record.rehearse else INFERENCE), sparsities)
    cases = TINY_TRAINING if record.rehearse else TRAINING
    for case in cases:
        training(record, *case, sparsities)
    if can_run_triton(record):
        from gpu_steps.kernels import as_compiled
        from sparselib.ops.backends import gpu

        as_compiled(record, gpu.network_kernel)
    inference_of_others(record, *(TINY_INFERENCE if record.rehearse else INFERENCE), sparsities)
    for case in cases:
        training_of_others(record, *case, sparsities)


def network(record: Record, sizes: Sequence[int], sparsity: float | None = None) -> nn.Module:
    """Build the network with seed 0, sparse if a sparsity is given."""
    torch.manual_seed(0)
    options = {} if sparsity is None else {"layer": sl.CSRLinear, "sparsity": sparsity}
    return sl.MLP(*sizes, **options).to(record.device)


def both(record: Record, case: str, variant: str, call: Call, **more) -> float | None:
    """Measure a forward pass as Python calls it and recorded; return the latter's milliseconds."""
    found = None
    with record.tried(case, variant, **more), torch.no_grad():
        record.time(case, variant + ", eager", call, **more)
        recorded = captured(call)
        found = record.time(case, variant + ", graph", recorded, **more)
        record.time_flushed(case, variant + ", graph", recorded, **more)
    return found


def speedup(record: Record, case: str, variant: str, dense, sparse, sparsity: float) -> None:
    """Write how many times as fast a recorded sparse call is, and what is calculated at most."""
    if not dense or not sparse:
        return
    more = {"sparsity": sparsity, "note": "over dense float32, both recorded"}
    record.row(case, variant, "speedup", dense / sparse, "", **more)
    if cap := CAPS.get(case, {}).get(sparsity):
        more["note"] = "calculated for an H200"
        record.row(case, variant, "cap of the speedup", cap, "", **more)


def inference(
    record: Record, case: str, sizes: Sequence[int], batch: int, sparsities: Sequence[float]
) -> None:
    """Measure the forward pass of a batch, layer by layer and as one operation."""
    x = torch.randn(batch, sizes[0], device=record.device)
    dense = None
    for name in ("fp32", "tf32", "bf16"):
        model = network(record, sizes).eval()
        kind = torch.bfloat16 if name == "bf16" else torch.float32
        with precision(name):
            call = bound(model.to(kind), x.to(kind))
            found = both(record, case, f"dense {name}", call, sparsity=0.0)
        dense = found if name == "fp32" else dense
    for sparsity in sparsities:
        model = network(record, sizes, sparsity).eval()
        calls = {
            "sparse": bound(model, x),
            "sparse, layer by layer": lambda model=model: one_by_one(model, x),
        }
        halves = "sparse, bf16 activations"
        if can_run_triton(record):
            calls[halves] = bound(model, x.bfloat16())
        else:
            record.absent(case, halves, "Triton cannot interpret here", sparsity=sparsity)
        for variant, call in calls.items():
            found = both(record, case, variant, call, sparsity=sparsity)
            speedup(record, case, variant, dense, found, sparsity)


def inference_of_others(
    record: Record, case: str, sizes: Sequence[int], batch: int, sparsities: Sequence[float]
) -> None:
    """Measure the rivals' forward passes; they come last, for what they do to CUDA is theirs."""
    x = torch.randn(batch, sizes[0], device=record.device)
    for sparsity in sparsities:
        block_sparse(record, case, network(record, sizes, sparsity).eval(), x, sparsity)
    semi_structured(record, case, sizes, x)
    for sparsity in sparsities:
        cusparse(record, case, network(record, sizes, sparsity).eval(), x, sparsity)


def bound(model: nn.Module, x: Tensor) -> Call:
    """Return the call of the model with x."""
    return lambda: model(x)


def one_by_one(model: nn.Module, x: Tensor) -> Tensor:
    """Call the layers of an MLP as an ``nn.Sequential`` would."""
    *hidden, last = model.layers
    for layer in hidden:
        x = functional.relu(layer(x))
    return last(x)


def cusparse(record: Record, case: str, model: nn.Module, x: Tensor, sparsity: float) -> None:
    """Measure the same weights in torch's CSR format, whose products are cuSPARSE's."""
    features = x.t().contiguous()
    with record.tried(case, "torch CSR", sparsity=sparsity):
        weights = [torch_csr(layer) for layer in model.layers]
        with torch.no_grad():
            close(features_first(weights, features).t(), model(x))
        call = lambda: features_first(weights, features)  # noqa: E731
        both(record, case, "torch CSR", call, sparsity=sparsity)


def block_sparse(record: Record, case: str, model: nn.Module, x: Tensor, sparsity: float) -> None:
    """Measure a network of the same shapes and sparsity whose weights are absent by blocks."""
    features = x.t().contiguous()
    for kind, name in ((torch.float32, "tf32"), (torch.bfloat16, "bf16")):
        variant = f"blocks of {SIDE}, {name}"
        if not can_run_triton(record):
            record.absent(case, variant, "Triton cannot interpret here", sparsity=sparsity)
            continue
        with record.tried(case, variant, sparsity=sparsity):
            layers = blocks(model, sparsity, kind, record.device)
            both(record, case, variant, chain(layers, features.to(kind)), sparsity=sparsity)


def torch_csr(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a layer's weights in torch's own CSR format, and its biases as a column."""
    crow, col = layer.csr.indices()
    values = layer.values.detach()
    return torch.sparse_csr_tensor(crow, col, values, layer.shape), layer.bias.detach()[:, None]


def features_first(weights: Sequence[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """Carry x (features, samples) through the layers by torch's sparse products."""
    for place, (weight, bias) in enumerate(weights):
        x = torch.sparse.mm(weight, x) + bias
        if place < len(weights) - 1:
            x = x.relu_()
    return x


def blocks(
    model: nn.Module, sparsity: float, kind: torch.dtype, device: torch.device
) -> list[Callable[[Tensor], Tensor]]:
    """Return block-sparse layers of the model's shapes; the last, of ten rows, is dense."""
    from gpu_steps.kernels import Blocks

    made: list[Callable[[Tensor], Tensor]] = []
    for layer in model.layers[:-1]:
        weights = Blocks(*layer.shape, sparsity, SIDE, kind, device)
        made.append(lambda x, weights=weights: weights(x, relu=True))
    last = model.layers[-1]
    dense = torch.randn(*last.shape, device=device).to(kind)
    return [*made, lambda x: dense @ x]


def chain(layers: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Call:
    """Return the call of one layer after the other."""

    def call() -> Tensor:
        y = x
        for layer in layers:
            y = layer(y)
        return y

    return call


def semi_structured(record: Record, case: str, sizes: Sequence[int], x: Tensor) -> None:
    """Measure two nonzeros in four on sparse tensor cores: 50 %, bfloat16; the last layer dense."""
    variant = "2:4, bf16"
    if not record.on_device_only(case, variant, sparsity=0.5):
        return
    with record.tried(case, variant, sparsity=0.5):
        weights = [two_in_four(*shape, record.device) for shape in pairwise(sizes[:-1])]
        last = torch.randn(sizes[-1], sizes[-2], device=record.device).bfloat16()
        packed = [torch.sparse.to_sparse_semi_structured(weight) for weight in weights]
        call = dense_chain([*packed, last], x.bfloat16())
        with torch.no_grad():
            close(call(), dense_chain([*weights, last], x.bfloat16())(), 2e-2)
        both(record, case, variant, call, sparsity=0.5)


def two_in_four(columns: int, rows: int, device: torch.device) -> Tensor:
    """Return random weights of which the last two of every four in a row are zero."""
    weight = torch.randn(rows, columns, device=device) * (2 / columns) ** 0.5
    weight.view(rows, -1, 4)[:, :, 2:] = 0
    return weight.bfloat16()


def dense_chain(weights: Sequence[Tensor], x: Tensor) -> Call:
    """Return the call of layers without biases, ReLU between them."""
    *hidden, last = (lambda y, weight=weight: functional.linear(y, weight) for weight in weights)
    return chain([*(lambda y, layer=layer: layer(y).relu_() for layer in hidden), last], x)


def training(
    record: Record, case: str, sizes: Sequence[int], batch: int, sparsities: Sequence[float]
) -> None:
    """Measure a training step with loss and update: recorded, and as Python calls it."""
    x = torch.randn(batch, sizes[0], device=record.device)
    y = torch.randint(sizes[-1], (batch,), device=record.device)
    dense = None
    for name in ("fp32", "tf32"):
        with precision(name):
            found = steps(record, case, f"dense {name}", network(record, sizes), x, y, 0.0)
        dense = found if name == "fp32" else dense
    with precision("fp32"):
        model = network(record, sizes).bfloat16()
        steps(record, case, "dense bf16", model, x.bfloat16(), y, 0.0)
    for sparsity in sparsities:
        model = network(record, sizes, sparsity)
        found = steps(record, case, "sparse", model, x, y, sparsity)
        speedup(record, case, "sparse", dense, found, sparsity)


def training_of_others(
    record: Record, case: str, sizes: Sequence[int], batch: int, sparsities: Sequence[float]
) -> None:
    """Measure training by torch's own CSR format."""
    x = torch.randn(batch, sizes[0], device=record.device)
    y = torch.randint(sizes[-1], (batch,), device=record.device)
    for sparsity in sparsities:
        torch_training(record, case, network(record, sizes, sparsity), x, y, sparsity)


def steps(
    record: Record,
    case: str,
    variant: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    sparsity: float,
) -> float | None:
    """Measure a model's training step; return the milliseconds of the recorded one."""
    found = None
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    parts = model, optimizer, sl.sigmoid_squared_error
    with record.tried(case, variant, sparsity=sparsity):
        call = sl.graphs.training(*parts, x, y)
        more = {"sparsity": sparsity}
        found = record.time(case, variant + ", graph", lambda: call(x, y), **more)
        eager = lambda: sl.training.step(model, optimizer, x, y, parts[2])  # noqa: E731
        record.time(case, variant + ", eager", eager, **more)
    return found


def torch_training(
    record: Record, case: str, model: nn.Module, x: Tensor, y: Tensor, sparsity: float
) -> None:
    """Measure forward and backward by torch's CSR products; there is no update in this."""
    variant = "torch CSR, without update"
    with record.tried(case, variant, sparsity=sparsity):
        features = x.t().contiguous()
        weights = [torch_csr(layer) for layer in model.layers]
        leaves = [weight.values().clone().requires_grad_() for weight, _ in weights]
        patterns = [(w.crow_indices(), w.col_indices(), w.shape, bias) for w, bias in weights]

        def call() -> None:
            own = [
                (torch.sparse_csr_tensor(crow, col, leaf, shape), bias)
                for leaf, (crow, col, shape, bias) in zip(leaves, patterns)
            ]
            error = sl.sigmoid_squared_error(features_first(own, features).t(), y)
            torch.autograd.grad(error, leaves)

        call()
        record.time(case, variant + ", eager", call, sparsity=sparsity)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-3) -> None:
    """Refuse to time a baseline that computes something else."""
    scale = theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * scale)
