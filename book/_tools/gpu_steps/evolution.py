"""Step 4: what a step of evolution costs on the device, memory, and a layer of 200,000 squared."""

import gc

import torch
from torch import nn

import sparselib as sl
from gpu_steps.record import Record
from sparselib.evolution import resident

SPARSITY = 0.97
RULES = ("GradientGrowth", "SET", "RigL")
SIZES = {"512-512": [512, 512, 512, 10], "4096-4096": [4096, 4096, 10]}
TINY = {"512-512": [64, 8, 8]}


def run(record: Record) -> None:
    """Measure a step by device and host, then memory, the large layer, and a step on the CPU."""
    compared(record, "on the device", resident, record.device)
    compared(record, "by the host", sl, record.device)
    memory(record)
    large(record)
    compared(record, "on the CPU", sl, torch.device("cpu"))  # it may have to compile for long


def compared(record: Record, place: str, rules, device: torch.device) -> None:
    """Measure each algorithm at each size."""
    for case, sizes in (TINY if record.rehearse else SIZES).items():
        for rule in RULES[:1] if record.rehearse and rules is sl else RULES:
            with record.tried(case, f"{rule} {place}", sparsity=SPARSITY):
                steps(record, case, f"{rule} {place}", getattr(rules, rule), sizes, device)


def steps(record: Record, case: str, variant: str, rule, sizes: list[int], device) -> None:
    """Measure a step of training with one of evolution, and one of training alone."""
    torch.manual_seed(0)
    model = sl.MLP(*sizes, layer=sl.CSRLinear, sparsity=SPARSITY).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    evolution = rule(model, optimizer, 0.1)
    x = torch.randn(4 if record.rehearse else 512, sizes[0], device=device)
    y = torch.randint(sizes[-1], (len(x),), device=device)
    seconds = []
    for _ in range(2 if record.rehearse else 12):  # the first loads libraries
        sl.training.step(model, optimizer, x, y, sl.sigmoid_squared_error)
        seconds.append(timed(evolution.step, device))
    median = sorted(seconds[1:])[len(seconds[1:]) // 2]
    more = {"sparsity": SPARSITY, "rounds": len(seconds) - 1, "note": "all layers, by the clock"}
    record.row(case, variant, "time of a step of evolution", 1000 * median, "ms", **more)


def timed(call, device: torch.device) -> float:
    """Return the seconds of a call, with what it started on the device."""
    import time

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


def memory(record: Record) -> None:
    """Measure what a layer and its gradients take, sparse against dense, at 99 %."""
    side = 32 if record.rehearse else 4096
    case = f"{side} x {side}"
    counted = {
        "without the transposed pattern": lambda: sl.CSRLinear(
            side, side, sparsity=0.99, cache_transpose=False
        ),
        "with it": lambda: sl.CSRLinear(side, side, sparsity=0.99),
        "dense": lambda: nn.Linear(side, side),
    }
    found = {}
    for variant, make in counted.items():
        more = {"sparsity": 0.0 if variant == "dense" else 0.99}
        if variant != "dense":
            ratio = sl.cost.compression(make(), transposed=variant == "with it")
            record.row(case, variant, "dense over sparse, counted", ratio, "", **more)
        if not record.on_device_only(case, f"memory {variant}", **more):
            continue
        with record.tried(case, f"memory {variant}", **more):
            found[variant] = allocated(make, side, record.device)
            record.row(case, f"memory {variant}", "size", found[variant] / 2**20, "MiB", **more)
            if variant == "dense":
                for other in set(found) - {"dense"}:
                    ratio = found["dense"] / found[other]
                    record.row(case, other, "dense over sparse, measured", ratio, "", sparsity=0.99)


def allocated(make, side: int, device: torch.device) -> int:
    """Return the bytes of a layer with its gradients, after a backward pass is over."""
    # the first products of a process, forward and backward, take memory that they keep for others
    nn.Linear(8, 8, device=device)(torch.ones(8, 8, device=device)).sum().backward()
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    layer = make().to(device)
    layer(torch.ones(8, side, device=device, requires_grad=True)).sum().backward()
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated() - before


def large(record: Record) -> None:
    """Train a layer of 200,000 neurons by as many: dense it would take 149 GiB."""
    side, fan_in = (24, 4) if record.rehearse else (200_000, 20)
    case = f"{side} x {side}, {fan_in} weights a neuron"
    sparsity = 1 - fan_in / side
    with record.tried(case, "training"):
        layer = sl.CSRLinear(side, side, sparsity=sparsity).to(record.device)
        optimizer = torch.optim.Adam(layer.parameters(), 0.01)
        x = torch.randn(16 if record.rehearse else 64, side, device=record.device)
        target = torch.randn_like(x)

        def step() -> torch.Tensor:
            return sl.training.step(layer, optimizer, x, target, nn.functional.mse_loss)

        before = step().item()
        record.time(case, "a training step", step, sparsity=sparsity)
        after = step().item()
        if not after < before:
            raise ValueError(f"the loss went from {before} to {after}")
        record.row(case, "training", "loss", after, "", note=f"before: {before:.6g}")
        if not record.rehearse:
            peak = torch.cuda.max_memory_allocated() / 2**20
            record.row(case, "training", "peak of memory", peak, "MiB", sparsity=sparsity)
