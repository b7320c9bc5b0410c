"""Many corrupt state dicts and rewires, in a process of its own: none may crash it.

Each ends in a sentence and leaves the layer as it was, or it is accepted and the layer computes
what its dense twin does. Prints how many were refused and accepted.
"""

import random
import sys
import warnings
from collections import Counter

import torch

import sparselib as sl

DTYPES = [torch.int8, torch.int64, torch.float32, torch.float64, torch.bool, torch.complex64]
SIZES = [-(2**31), -1, 0, 1, 2**31 - 1, 2**31, 2**40, float("nan"), float("inf")]


def layers():
    """Yield what makes layers of both kinds, and inputs for them."""
    yield lambda: sl.CSRLinear(24, 10, sparsity=0.7), torch.randn(3, 24)
    yield lambda: sl.CSRLinear(5, 4, False, sparsity=0.0), torch.randn(3, 5)
    yield lambda: sl.CSRLinear(6, 5, sparsity=0.99), torch.randn(3, 6)
    reach = torch.tensor([2, 4, 4, 2])
    yield (
        lambda: sl.SparseConv1d(2, 4, 4, padding=2, sparsity=0.5, reach=reach),
        torch.randn(2, 2, 9),
    )
    yield lambda: sl.SparseConv1d(4, 6, 3, 2, 1, 1, 2, sparsity=0.5), torch.randn(2, 4, 9)
    yield lambda: sl.SparseConv2d(2, 4, (2, 3), 1, (0, 2), sparsity=0.5), torch.randn(2, 2, 5, 4)


def spoiled(tensor, draw):
    """Return one of many tensors that may not do in the place of another."""
    tensor, kind = tensor.clone(), draw.randrange(12)
    place = draw.randrange(max(tensor.numel(), 1))
    if kind == 0 and tensor.numel():
        value = draw.choice(SIZES)
        tensor = tensor.double() if tensor.is_floating_point() else tensor.long()
        finite = value if tensor.is_floating_point() or value == value else 7
        tensor[place] = finite if abs(finite) < 2**62 or tensor.is_floating_point() else 2**62
        return tensor
    makers = [
        lambda: tensor[: draw.randrange(tensor.numel() + 1)],
        lambda: torch.cat([tensor, tensor[:1]]),
        lambda: tensor.to(draw.choice(DTYPES)),
        lambda: tensor.flip(0),
        lambda: tensor[torch.randperm(tensor.numel())],
        lambda: tensor[None],
        lambda: torch.zeros_like(tensor),
        lambda: tensor + draw.choice([-4, -1, 1, 10**8]),
        lambda: torch.stack([tensor, tensor], 1)[:, 0],
        lambda: draw.choice([None, tensor.tolist(), 3, "values", tensor.to("meta")]),
        lambda: torch.empty(0, dtype=tensor.dtype),
    ]
    return makers[(kind or 1) - 1]()


def corrupt(fitting, another, draw):
    """Spoil, leave out, add or exchange some entries of a state dict that fits the layer.

    It is that of another layer, so that an entry that was loaded alone shows.
    """
    state = {name: tensor.clone() for name, tensor in fitting.items()}
    for name in draw.sample(sorted(state), draw.randrange(1, len(state) + 1)):
        action = draw.randrange(5)
        if action == 0:
            del state[name]
        elif action == 1 and name in another:
            state[name] = another[name]
        else:
            state[name] = spoiled(state[name], draw)
    if draw.random() < 0.1:
        state[draw.choice(["weight", "csr.permutation", "bias"])] = torch.zeros(3)
    return state


def attack(layer, fitting, another, draw):
    """Do one thing that may be impossible."""
    if draw.random() < 0.7:
        options = {"strict": draw.random() < 0.5, "assign": draw.random() < 0.5}
        layer.load_state_dict(corrupt(fitting, another, draw), **options)
        return
    positions, values = layer.positions, layer.values.detach().clone()
    if draw.random() < 0.8:
        positions = spoiled(positions, draw)
    if draw.random() < 0.3:
        values = spoiled(values, draw)
    layer.rewire(positions, values)


def is_right(layer, x):
    """Whether the layer computes what its dense twin does, or refuses what nobody can compute."""
    x = x.to(layer.values.dtype)
    y, right = layer(x), layer.to_dense()(x)
    return torch.allclose(y, right, rtol=1e-3, atol=1e-3, equal_nan=True) or not bool(
        torch.isfinite(layer.values).all() and (layer.bias is None or layer.bias.isfinite().all())
    )


def same(one, other):
    """Whether two state dicts hold the same."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def main(count):
    """Attack `count` times and print what became of it."""
    warnings.filterwarnings("error", message=".*non-contiguous")
    torch.set_num_threads(1)  # a second one only waits, at these sizes
    draw = random.Random(0)
    found = Counter()
    torch.manual_seed(0)
    kinds = list(layers())
    states = [[make().state_dict() for _ in range(3)] for make, _ in kinds]
    for number in range(count):
        make, x = kinds[number % len(kinds)]
        fitting = draw.choice(states[number % len(kinds)])
        another = draw.choice(draw.choice(states))
        with sl.ops.backend("auto" if number % 10 < 5 else "reference"):
            layer = make()
            before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
            sentence = ""
            try:
                attack(layer, fitting, another, draw)
            except (ValueError, RuntimeError) as error:
                sentence = str(error)
            found["refused" if sentence else "accepted"] += 1
            if sentence:
                assert len(sentence.split()) > 4, sentence
                assert same(layer.state_dict(), before), sentence
            assert is_right(layer, x), number
    print(found["refused"], found["accepted"])


if __name__ == "__main__":
    main(int(sys.argv[1]))
