"""In the time that is left: every tile for the shapes of Table 3, printed and not adopted."""

from itertools import product
from unittest import mock

import torch

import sparselib as sl
from gpu_steps.record import Record, can_run_triton, captured

# rows, columns, samples
SHAPES = [(512, 512, 10_000), (256, 256, 512), (1024, 784, 512), (4096, 4096, 2048)]
SPARSITIES = (0.97, 0.9, 0.99)
MORE = [(128, 32, 8), (64, 128, 16), (32, 128, 8), (16, 128, 4)]


def run(record: Record) -> None:
    """Time the product of each shape with each tile; name the fastest, and what is chosen now."""
    if not can_run_triton(record):
        record.absent("tiles", "product", "Triton cannot interpret here")
        return
    from sparselib.ops.backends import gpu

    tiles = [*gpu.TILES, *MORE]
    sparsities = SPARSITIES
    shapes = SHAPES
    if record.rehearse:
        tiles, sparsities, shapes = tiles[-2:], SPARSITIES[:1], [(16, 12, 32)]
    for (rows, columns, samples), sparsity in product(shapes, sparsities):
        case = f"{rows} x {columns}, batch {samples}"
        layer = sl.CSRLinear(columns, rows, sparsity=sparsity).to(record.device)
        x = torch.randn(columns, samples, device=record.device).t()
        arguments = layer.values.detach(), *layer.csr.indices(), x
        chosen = gpu.tile(rows, samples)
        found = {}
        for shape in tiles:
            name = "x".join(map(str, shape))
            with (
                mock.patch.object(gpu, "tile", return_value=shape),
                record.tried(case, name, sparsity=sparsity),
            ):
                call = captured(lambda: gpu.spmm(*arguments))  # noqa: B023
                found[shape] = record.time(case, name, call, sparsity=sparsity)
        if chosen in found:
            best = min(found, key=found.__getitem__)
            gain = found[chosen] / found[best]
            note = f"by {best} over {chosen}, which is chosen now"
            record.row(case, "fastest tile", "gain", gain, "", sparsity=sparsity, note=note)
