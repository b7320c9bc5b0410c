"""Train one model in several gloo processes with different data, and compare what they have.

Run by `test_ranks` in a process of its own: ``python together.py PROCESSES STEPS PORT``. One line
per rule: its name, and whether topologies, parameters and optimizer state are equal everywhere.
"""

import sys
import warnings

import torch
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import sparselib as sl

RULES = {
    "SET": sl.SET,
    "RigL": sl.RigL,
    "GradientGrowth": sl.GradientGrowth,
    "LiSET": sl.LiSET,
    "resident SET": sl.resident.SET,
    "resident RigL": sl.resident.RigL,
    "resident GradientGrowth": sl.resident.GradientGrowth,
    "DST": lambda model, optimizer, _: sl.DST(model, optimizer, 100, every=1),
}


def batch(rank, step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(16, 20, dtype=torch.float64, generator=generator)
    return x.to(dtype), torch.randint(6, (16,), generator=generator)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return sl.MLP(20, 16, 6, layer=sl.CSRLinear, sparsity=0.8, dtype=dtype)


def is_equal_everywhere(tensors):
    flat = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    everybody = [torch.empty_like(flat) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everybody, flat)
    return all(torch.equal(flat, other) for other in everybody)


def evolve(name, rank, steps):
    """Train and evolve by one rule; clip, as that reads the gradients of all parameters."""
    model = network()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), 0.01)
    evolution = RULES[name](model, optimizer, 0.3)
    for step in range(steps):
        x, y = batch(rank, step)
        optimizer.zero_grad()
        with wrapped.no_sync():
            cross_entropy(wrapped(x), y).backward()
        cross_entropy(wrapped(x * 0.5), y).backward()
        everything = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(everything, 1.0)
        optimizer.step()
        evolution.step()
    positions = [layer.positions for layer in model.layers]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = [optimizer.state[p] for p in parameters]
    memory = [t for state in states for t in state.values() if isinstance(t, torch.Tensor)]
    return [is_equal_everywhere(tensors) for tensors in (positions, parameters, memory)]


def matches_one_process(rank, count):
    """Several processes evolve as one does that sees all their data."""
    models = []
    for is_split in (True, False):
        model = network(torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        rules = sl.drop.magnitude, sl.grow.gradient_of_costliest
        group = None if is_split else "alone"
        evolution = sl.Evolution(model, optimizer, *rules, process_group=group)
        call = DistributedDataParallel(model) if is_split else model
        for step in range(10):
            ranks = [rank] if is_split else range(count)
            parts = [batch(each, step, torch.float64) for each in ranks]
            x, y = (torch.cat(tensors) for tensors in zip(*parts))
            optimizer.zero_grad()
            cross_entropy(call(x), y).backward()
            optimizer.step()
            evolution.step()
        models.append(model)
    for one, other in zip(models[0].layers, models[1].layers):
        assert torch.equal(one.positions, other.positions)
        assert (one.values - other.values).abs().max() < 1e-10
    return True


def refuses_models_that_differ(rank):
    """Other connections, whose positions have one sum; another number; weights in other order."""
    torch.manual_seed(rank)
    others = sl.CSRLinear(20, 10, sparsity=0.8)
    torch.manual_seed(0)
    more = sl.CSRLinear(20, 10, sparsity=0.8 if rank else 0.7)
    turned = sl.CSRLinear(20, 10, sparsity=0.8)
    if rank:
        turned.values.data.copy_(turned.values.data.flip(0))
    found = [is_refused_and_evolves_alone(model) for model in (others, more, turned)]
    return all(found)  # every process asks for each, or one would wait for another


def is_refused_and_evolves_alone(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    try:
        sl.SET(model, optimizer).step()
    except ValueError as error:
        is_refused = "differs from process to process" in str(error)
        return is_refused and sl.SET(model, optimizer, process_group="alone").step()[""] > 0
    return False


def refuses_shards():
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (distributed.get_world_size(),)))
    try:
        sl.RigL(model, torch.optim.SGD(model.parameters(), 0.1))
    except ValueError as error:
        return "sharded (FSDP)" in str(error)
    return False


def work(rank, count, steps, port):
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message=".*the gradient")
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=count)
    for name in RULES:
        found = evolve(name, rank, steps)
        if rank == 0:
            print(name, *found, sep=",", flush=True)
    found = matches_one_process(rank, count)
    found = [found, refuses_models_that_differ(rank), refuses_shards()]
    if rank == 0:
        print("one process, own models, shards", *found, sep=",", flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    number, evolutions, free_port = map(int, sys.argv[1:])
    # where it can be forked, as nothing has computed here yet, and torch is loaded once, with the
    # compiler that the first optimizer loads
    torch.optim.SGD([torch.zeros(1)], 0.1)
    given = (number, evolutions, free_port)
    method = "fork" if sys.platform == "linux" else "spawn"
    multiprocessing.start_processes(work, given, number, start_method=method)
