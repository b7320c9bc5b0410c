"""How the kernel of a dropout's random numbers is called."""

import torch
from torch import Tensor

from sparselib.ops.backends.cpu_arguments import Noise, bits_of
from sparselib.ops.backends.cpu_launch import kernels_of, launch


def draw(y: Tensor, kept: int) -> Tensor:
    """Fill y, in the order of its memory, with 2^16 / kept with probability kept / 2^16, else 0.

    It is float32, and has no gaps in memory. What is drawn follows torch's generator, and no bit
    of it depends on the number of threads.
    """
    seed = torch.empty((), dtype=torch.int64, device="cpu")
    seed.random_(-(2**63), None)
    count = y.numel()
    block = Noise(
        numbers=count,
        seed=int(seed),
        kept=kept,
        scale=bits_of(2**16 / max(kept, 1)),
        y=y.data_ptr(),
    )
    launch(kernels_of("cpu_noise_kernels").noise, block, count)
    return y
