"""Kernels of the report itself: probes of bandwidth, and a block-sparse product as a baseline."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction

from gpu_steps.record import Record


@triton.jit
def gather_kernel(index, x, y, N, COUNT: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr):
    """Sum `COUNT` rows of x [rows, N] that the index names, `BLOCK` columns per program."""
    group = tl.program_id(0)
    o_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(0, COUNT, UNROLL):
        for i in tl.static_range(UNROLL):  # so many reads are under way at once
            c = tl.load(index + group * COUNT + k + i).to(tl.int64)
            total += tl.load(x + c * N + o_n)
    tl.store(y + group.to(tl.int64) * N + o_n, total)


def gather(index: Tensor, x: Tensor, y: Tensor, block: int = 256) -> Tensor:
    """Read the rows ``index`` [groups, count] of x [rows, N] and sum those of each group into y."""
    groups, count = index.shape
    grid = groups, x.shape[1] // block
    size = {"COUNT": count, "UNROLL": 4, "BLOCK": block}
    gather_kernel[grid](index, x, y, x.shape[1], **size, num_warps=2)
    return y


@triton.jit
def blocks_kernel(
    crow, col, values, bias, x, y, N,
    SIDE: tl.constexpr, BLOCK: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """y[rows of a block, n] = act(bias + sum over its blocks of block @ x[columns of it, n])."""
    row = tl.program_id(0)
    o_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    o_m = tl.arange(0, SIDE)
    m_n = o_n < N
    sums = tl.zeros((SIDE, BLOCK), tl.float32)
    for j in range(tl.load(crow + row), tl.load(crow + row + 1)):
        c = tl.load(col + j) * SIDE
        w = tl.load(values + j * SIDE * SIDE + o_m[:, None] * SIDE + o_m[None, :])
        p_x = x + (c + o_m)[:, None] * N + o_n[None, :]
        sums += tl.dot(w, tl.load(p_x, mask=m_n[None, :], other=0.0))
    sums += tl.load(bias + row * SIDE + o_m)[:, None]
    if RELU:
        sums = tl.maximum(sums, 0.0)
    p_y = y + (row * SIDE + o_m)[:, None] * N + o_n[None, :]
    tl.store(p_y, sums.to(y.dtype.element_ty), mask=m_n[None, :])


class Blocks:
    """A random matrix of square blocks, and its product with feature-major activations.

    Parameters
    ----------
    rows, columns : int
        Multiples of `side`.
    sparsity : float
        Share of absent blocks; each row of blocks keeps at least one.
    side : int
        Rows and columns of a block.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        sparsity: float,
        side: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        across = columns // side
        kept = max(1, round(across * (1 - sparsity)))
        picked = [torch.randperm(across)[:kept].sort().values for _ in range(rows // side)]
        self.side = side
        self.crow = torch.arange(0, len(picked) * kept + 1, kept, dtype=torch.int32, device=device)
        self.col = torch.cat(picked).to(torch.int32).to(device)
        scale = (kept * side) ** -0.5
        values = torch.randn(len(self.col), side, side, device=device) * scale
        self.values = values.to(dtype)
        self.bias = torch.randn(rows, device=device)

    def dense(self) -> Tensor:
        """Return the matrix with its zeros."""
        rows = len(self.crow) - 1
        columns = int(self.col.max()) + 1
        made = self.values.new_zeros(rows, columns, self.side, self.side)
        row = torch.arange(rows, device=made.device).repeat_interleave(self.crow.diff())
        made[row, self.col.long()] = self.values
        return made.transpose(1, 2).reshape(rows * self.side, columns * self.side)

    def __call__(self, x: Tensor, relu: bool, block: int = 64) -> Tensor:
        """Return act(W x + b) for x (columns, samples)."""
        y = x.new_empty(len(self.bias), x.shape[1])
        grid = len(self.crow) - 1, triton.cdiv(x.shape[1], block)
        blocks_kernel[grid](
            self.crow, self.col, self.values, self.bias, x, y, x.shape[1],
            SIDE=self.side, BLOCK=block, RELU=relu, num_warps=4,
        )  # fmt: skip
        return y


class Processor(NamedTuple):
    """What the programs on one streaming multiprocessor share."""

    registers: int
    threads: int
    shared: int
    programs: int = 32

    def occupancy(self, registers: int, warps: int, shared: int) -> float:
        """Return the share of its threads that programs of so many registers and bytes occupy."""
        # registers are given out to a warp by 256; each program takes a kibibyte for the system
        of_warp = -(-registers * 32 // 256) * 256
        room = [
            self.registers // (of_warp * warps),
            self.threads // (32 * warps),
            self.shared // (shared + 1024),
            self.programs,
        ]
        return min(room) * 32 * warps / self.threads


def processor(device: torch.device) -> Processor:
    """Return what a device has for the programs on one of its multiprocessors."""
    found = torch.cuda.get_device_properties(device)
    return Processor(
        found.regs_per_multiprocessor,
        found.max_threads_per_multi_processor,
        found.shared_memory_per_multiprocessor,
    )


def compiled(kernel: JITFunction) -> Iterator[CompiledKernel]:
    """Return what was compiled of a kernel in this process."""
    for in_memory, *_ in kernel.device_caches.values():
        yield from in_memory.values()


def as_compiled(record: Record, *kernels: JITFunction) -> None:
    """Write registers, spills and the share of warps that fit, of every kernel that ran here."""
    names = [kernel.fn.__name__ for kernel in kernels]
    if not record.on_device_only("compiled", ", ".join(names)):
        return
    for name, kernel in zip(names, kernels):
        with record.tried("compiled", name):
            own = processor(record.device)
            for number, made in enumerate(compiled(kernel)):
                variant = f"{name} {number}"
                warps, shared = made.metadata.num_warps, made.metadata.shared
                share = own.occupancy(made.n_regs, warps, shared)
                note = f"registers {made.n_regs}, warps {warps}, bytes of shared memory {shared}"
                record.row("compiled", variant, "occupancy", share, "", note=note)
                record.row("compiled", variant, "spills", made.n_spills, "", note=note)
