"""Growth sees the gradient that the optimizer uses, in every kind of training loop.

The oracle has dense weights and masks, and follows RigL and Ertl's growth from their definitions.
"""

import contextlib
import copy
import gc
import warnings
from pathlib import Path

import pytest
import torch
from apart import run_compiling
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import sparselib as sl
from sparselib.evolution import _gathering

LR = 0.1
FRACTION = 0.3
MICRO = 3
GROWING = {"rigl": sl.grow.full_gradient_at_zero, "costliest": sl.grow.gradient_of_costliest}


class Net(nn.Module):
    """Three layers, of which the middle one is used twice."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        options = {"sparsity": 0.7, "dtype": dtype}
        self.first = sl.CSRLinear(12, 16, **options)
        self.middle = sl.CSRLinear(16, 16, **options)
        self.last = sl.CSRLinear(16, 5, **options)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        x = torch.tanh(self.middle(x))
        return self.last(torch.tanh(self.middle(x)))


class Oracle:
    """Dense weights that hold zeros where there is no connection; their gradients are whole."""

    def __init__(self, model):
        layers = [model.first, model.middle, model.last]
        self.weights = [layer.to_dense().weight.detach().double().clone() for layer in layers]
        self.biases = [layer.bias.detach().double().clone() for layer in layers]
        self.masks = [layer.csr.mask() for layer in layers]

    def gradients(self, batches):
        """Sum over all batches; costs summed by neuron over batches, samples and uses."""
        tensors = [t.requires_grad_() for t in (*self.weights, *self.biases)]
        weights, biases = tensors[:3], tensors[3:]
        costs = [torch.zeros(len(weight), dtype=torch.float64) for weight in weights]
        total = 0.0
        for x, y in batches:
            written = []
            for index in (0, 1, 1, 2):
                x = torch.tanh(x) if written else x
                x = x @ weights[index].t() + biases[index]
                written.append(x)
            loss = cross_entropy(x, y)
            for index, cost in zip(
                (0, 1, 1, 2), torch.autograd.grad(loss, written, retain_graph=True)
            ):
                costs[index] += cost.abs().sum(0)
            total = total + loss
        found = torch.autograd.grad(total, tensors)
        for tensor in tensors:
            tensor.requires_grad_(False)
        return list(found[:3]), list(found[3:]), costs

    def train(self, batches, shorten=lambda norm: 1.0):
        gradients, biases, costs = self.gradients(batches)
        masked = [g * m for g, m in zip(gradients, self.masks)]
        norm = sum(float(g.square().sum()) for g in (*masked, *biases)) ** 0.5
        factor = shorten(norm)
        for weight, gradient in zip(self.weights, masked):
            weight -= LR * factor * gradient
        for bias, gradient in zip(self.biases, biases):
            bias -= LR * factor * gradient
        self.seen = [factor * g for g in gradients], costs

    def evolve(self, rule):
        for index, (weight, mask) in enumerate(zip(self.weights, self.masks)):
            gradient, costs = self.seen[0][index], self.seen[1][index]
            count = round(FRACTION * int(mask.sum()))
            size = weight.abs().masked_fill(~mask, torch.inf).flatten()
            leaving = torch.sort(size, stable=True).indices[:count]
            kept = mask.flatten().index_fill(0, leaving, False).view(mask.shape)
            is_open = torch.ones(len(mask), dtype=torch.bool)
            if rule == "costliest":
                order = torch.sort(costs, descending=True, stable=True).indices
                k = max(1, round(count**0.5))
                while int((~kept)[order[:k]].sum()) < count:
                    k += 1
                is_open = torch.zeros_like(is_open).index_fill(0, order[:k], True)
            score = gradient.abs().masked_fill(kept | ~is_open[:, None], -1).flatten()
            chosen = torch.sort(score, descending=True, stable=True).indices[:count]
            grown = torch.zeros_like(mask).flatten().index_fill(0, chosen, True).view(mask.shape)
            start = -LR * gradient if rule == "costliest" else torch.zeros_like(gradient)
            weight.copy_(torch.where(grown, start, weight * kept))
            self.masks[index] = kept | grown


def batches_of(step, dtype=torch.float64, count=MICRO):
    generator = torch.Generator().manual_seed(step)
    return [
        (
            torch.randn(8, 12, dtype=torch.float64, generator=generator).to(dtype),
            torch.randint(5, (8,), generator=generator),
        )
        for _ in range(count)
    ]


def micro_batches(model, optimizer, batches):
    optimizer.zero_grad()
    for x, y in batches:
        cross_entropy(model(x), y).backward()
    optimizer.step()


def cleared_in_place(model, optimizer, batches):
    optimizer.zero_grad(set_to_none=False)
    for x, y in batches:
        cross_entropy(model(x), y).backward()
    optimizer.step()


def cleared_at_the_end(model, optimizer, batches):
    micro_batches(model, optimizer, batches)
    optimizer.zero_grad()


def one_loss(model, optimizer, batches):
    optimizer.zero_grad()
    sum(cross_entropy(model(x), y) for x, y in batches).backward()
    optimizer.step()


def scaled_by_scaler(model, optimizer, batches):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer.zero_grad()
    for x, y in batches:
        scaler.scale(cross_entropy(model(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def scaled_by_hand(model, optimizer, batches):
    optimizer.zero_grad()
    for x, y in batches:
        (1024 * cross_entropy(model(x), y)).backward()
    for parameter in model.parameters():
        parameter.grad /= 1024
    optimizer.step()


def clipped(model, optimizer, batches):
    optimizer.zero_grad()
    for x, y in batches:
        cross_entropy(model(x), y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    optimizer.step()


def checkpointed(model, optimizer, batches):
    optimizer.zero_grad()
    for x, y in batches:
        cross_entropy(checkpoint(model, x, use_reentrant=False), y).backward()
    optimizer.step()


def checkpointed_reentrant(model, optimizer, batches):
    optimizer.zero_grad()
    for x, y in batches:
        outputs = checkpoint(model, x.requires_grad_(), use_reentrant=True)
        cross_entropy(outputs, y).backward()
    optimizer.step()


def with_a_saliency_map(model, optimizer, batches):
    """What does not reach the values' gradients does not count."""
    optimizer.zero_grad()
    for x, y in batches:
        cross_entropy(model(x), y).backward()
        seen = x.clone().requires_grad_()
        torch.autograd.grad(model(seen).square().sum(), seen, create_graph=True)
    optimizer.step()


def in_evaluation_mode(model, optimizer, batches):
    model.eval()
    micro_batches(model, optimizer, batches)


def evolved_before_the_step(model, optimizer, batches):
    optimizer.zero_grad()
    for x, y in batches:
        cross_entropy(model(x), y).backward()


class Compiled:
    """A loop over a model that is compiled once, before its first step."""

    def __init__(self):
        self.call = None

    def __call__(self, model, optimizer, batches):
        if self.call is None:
            self.call = torch.compile(model, backend="aot_eager")
        micro_batches(self.call, optimizer, batches)


LOOPS = [
    micro_batches,
    cleared_in_place,
    cleared_at_the_end,
    one_loss,
    scaled_by_scaler,
    scaled_by_hand,
    clipped,
    checkpointed,
    checkpointed_reentrant,
    with_a_saliency_map,
    in_evaluation_mode,
]


def compare(model, oracle, tolerance):
    for layer, weight, mask in zip(
        (model.first, model.middle, model.last), oracle.weights, oracle.masks
    ):
        assert torch.equal(layer.csr.mask(), mask)
        assert (layer.to_dense().weight - weight).abs().max() < tolerance


def follows_the_definition(loop, rule, resident, steps):
    torch.manual_seed(0)
    model = Net()
    oracle = Oracle(model)
    optimizer = torch.optim.SGD(model.parameters(), LR)
    evolution = sl.Evolution(
        model, optimizer, sl.drop.magnitude, GROWING[rule], FRACTION, device_resident=resident
    )
    shorten = (lambda norm: min(1.0, 0.05 / (norm + 1e-6))) if loop is clipped else lambda _: 1.0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*the gradient")
        for step in range(steps):
            loop(model, optimizer, batches_of(step))
            oracle.train(batches_of(step), shorten)
            if step % 2 == 0:
                evolution.step()
                oracle.evolve(rule)
            compare(model, oracle, 1e-10)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("rule", GROWING)
@pytest.mark.parametrize("loop", LOOPS)
def test_every_loop_grows_what_the_dense_definition_grows(loop, rule, resident):
    follows_the_definition(loop, rule, resident, steps=10)


def grows_alike_when_compiled():
    """Compiled before and after the evolution was built, layers alone and in a network.

    Layers that are compiled after it follow the definition, by `Compiled`.
    """
    orders = ("eager", "compiled first", "evolution first")
    networks = {
        Net: orders[:2],
        lambda: sl.MLP(12, 16, 5, layer=sl.CSRLinear, sparsity=0.7).double(): orders,
    }
    for make, tried in networks.items():
        found = []
        for order in tried:
            torch._dynamo.reset()
            torch.manual_seed(0)
            model = make()
            optimizer = torch.optim.SGD(model.parameters(), LR)
            call = model if order == "eager" else torch.compile(model, backend="aot_eager")
            if order != "compiled first":
                evolution = sl.RigL(model, optimizer, FRACTION)
            micro_batches(call, optimizer, batches_of(0))
            if order == "compiled first":
                evolution = sl.RigL(call, optimizer, FRACTION)
            for step in range(1, 4):
                micro_batches(call, optimizer, batches_of(step))
                evolution.step()
            assert not any("_orig_mod" in name for name in evolution.layers)
            found.append(torch.cat([layer.positions for layer in evolution.layers.values()]))
        assert all(torch.equal(found[0], other) for other in found[1:])


def compiles_in_one_graph_without_an_evolution():
    """An evolution that has ended, and one of which a copy has no part, leave nothing behind."""
    model = Net()
    evolution = sl.RigL(model, torch.optim.SGD(model.parameters(), LR))
    x = batches_of(0)[0][0]
    model(x).sum().backward()
    alone = copy.deepcopy(model)
    del evolution
    gc.collect()
    for each in (model, alone):
        torch._dynamo.reset()
        torch.compile(each, backend="aot_eager", fullgraph=True)(x).sum().backward()


@pytest.mark.slow
@pytest.mark.xdist_group("compiler")
def test_compiled_code_grows_alike():
    here = str(Path(__file__).parent)
    program = (
        f"import sys; sys.path.insert(0, {here!r}); import test_gathering as t;"
        "t.follows_the_definition(t.Compiled(), 'costliest', False, 3);"
        "t.grows_alike_when_compiled(); t.compiles_in_one_graph_without_an_evolution()"
    )
    run_compiling(program)


def test_a_copied_trio_and_a_resumed_one_follow_the_definition():
    torch.manual_seed(0)
    model = Net()
    oracle = Oracle(model)
    optimizer = torch.optim.SGD(model.parameters(), LR)
    evolution = sl.RigL(model, optimizer, FRACTION)
    for step in range(9):
        micro_batches(model, optimizer, batches_of(step))
        oracle.train(batches_of(step))
        if step == 3:
            model, optimizer, evolution = copy.deepcopy((model, optimizer, evolution))
        evolution.step()
        oracle.evolve("rigl")
        if step == 6:
            states = [part.state_dict() for part in (model, optimizer, evolution)]
            model = Net()
            optimizer = torch.optim.SGD(model.parameters(), LR)
            evolution = sl.RigL(model, optimizer, FRACTION)
            for part, state in zip((model, optimizer, evolution), states):
                part.load_state_dict(state)
        compare(model, oracle, 1e-10)


def test_an_evolution_between_backward_and_step_sees_what_is_there():
    torch.manual_seed(0)
    model = Net()
    oracle = Oracle(model)
    optimizer = torch.optim.SGD(model.parameters(), LR)
    evolution = sl.RigL(model, optimizer, FRACTION)
    evolved_before_the_step(model, optimizer, batches_of(0))
    oracle.seen = oracle.gradients(batches_of(0))[::2]
    evolution.step()
    oracle.evolve("rigl")
    compare(model, oracle, 1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_in_front_of_a_sparse_layer(dtype):
    """The type of the values is the type of the gradient; the wrong scale is found out."""
    torch.manual_seed(0)
    grown = []
    for is_cast in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), sl.CSRLinear(32, 16, sparsity=0.7))
        optimizer = torch.optim.SGD(model.parameters(), LR)
        evolution = sl.Evolution(
            model, optimizer, sl.drop.magnitude, sl.grow.gradient_of_costliest, FRACTION
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        x, y = batches_of(0, torch.float32, 1)[0]
        with torch.autocast("cpu", dtype) if is_cast else contextlib.nullcontext():
            outputs = model(x)
        scaler.scale(cross_entropy(outputs.float(), y)).backward()
        scaler.step(optimizer)
        old = model[2].positions.clone()
        evolution.step()
        is_new = ~torch.isin(model[2].positions, old)
        grown.append((model[2].positions, model[2].values.detach()[is_new].abs().max()))
    assert torch.isin(grown[0][0], grown[1][0]).double().mean() > 0.9
    assert float(grown[1][1]) == pytest.approx(float(grown[0][1]), rel=0.05)


def test_fused_and_single_layers_grow_alike():
    found = []
    for observed in (False, True):
        torch.manual_seed(0)
        model = sl.MLP(12, 32, 32, 5, layer=sl.CSRLinear, sparsity=0.7)
        if observed:
            model.layers[1].register_forward_hook(lambda *_: None)
        optimizer = torch.optim.SGD(model.parameters(), LR)
        evolution = sl.RigL(model, optimizer, FRACTION)
        for step in range(6):
            for x, y in batches_of(step, torch.float32):
                cross_entropy(model(x), y).backward(create_graph=step == 4)
            optimizer.step()
            optimizer.zero_grad()
            evolution.step()
        found.append(torch.cat([layer.positions for layer in model.layers]))
    assert torch.equal(*found)


def test_a_gradient_cleared_in_place_before_the_evolution_is_refused():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), LR)
    evolution = sl.RigL(model, optimizer, FRACTION)
    micro_batches(model, optimizer, batches_of(0))
    optimizer.zero_grad(set_to_none=False)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="layer 'first': the gradient was set to zero in place"):
        evolution.step()
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


def test_a_penalty_on_the_values_is_stated():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), LR)
    evolution = sl.RigL(model, optimizer, FRACTION)
    x, y = batches_of(0)[0]
    (cross_entropy(model(x), y) + model.first.values.abs().sum()).backward()
    with pytest.warns(UserWarning, match="is not a multiple of the one"):
        evolution.step()


def test_an_overflow_of_the_scaler_replaces_nothing_and_training_goes_on():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), LR)
    evolution = sl.RigL(model, optimizer, FRACTION)
    before = copy.deepcopy(model.state_dict())
    x, y = batches_of(0)[0]
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(cross_entropy(model(x), y) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    with pytest.warns(UserWarning, match="the gradient is not finite"):
        assert set(evolution.step().values()) == {0}
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
    micro_batches(model, optimizer, batches_of(1))
    assert min(evolution.step().values()) > 0


def test_rules_without_gradient_watch_nothing_and_a_pause_keeps_nothing():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), LR)
    sl.SET(model, optimizer)
    assert model.first.watches is None
    evolution = sl.RigL(model, optimizer, FRACTION)
    assert evolution.is_watching
    evolution.is_watching = False
    micro_batches(model, optimizer, batches_of(0))
    assert [watch.batches for watch in model.middle.watches] == [[]]
    with pytest.raises(ValueError, match="needs one forward and one backward pass"):
        evolution.step()
    evolution.is_watching = True
    micro_batches(model, optimizer, batches_of(1))
    assert [len(watch.batches) for watch in model.middle.watches] == [2 * MICRO]
    assert min(evolution.step().values()) > 0
    assert [watch.batches for watch in model.middle.watches] == [[]]


def test_a_convolution_reads_signals_of_several_lengths():
    torch.manual_seed(0)
    layer = sl.SparseConv1d(3, 4, 5, sparsity=0.7, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), LR)
    evolution = sl.RigL(layer, optimizer, FRACTION)
    weight = layer.csr.to_dense(layer.values.detach()).requires_grad_()
    signals = [torch.randn(2, 3, length, dtype=torch.float64) for length in (9, 14, 9)]
    signals.append(torch.randn(3, 7, dtype=torch.float64))  # one signal without a batch
    for x in signals:
        layer(x).square().sum().backward()
    for x in signals:
        padded = layer._padded(x[None] if x.ndim == 2 else x)
        y = nn.functional.conv1d(padded, weight.view(4, 3, 5), layer.bias.detach())
        y.square().sum().backward()
    old, values = layer.positions.clone(), layer.values.detach().clone()
    evolution.step()
    leaving = sl.drop.magnitude(values, FRACTION)
    kept = torch.ones(old.numel(), dtype=torch.bool).index_fill(0, leaving, False)
    score = weight.grad.flatten().abs().index_fill(0, old[kept], -1)
    expected = torch.cat([old[kept], score.topk(len(leaving)).indices]).sort().values
    assert torch.equal(layer.positions, expected)


def test_the_factor_brings_what_was_gathered_to_what_the_optimizer_saw():
    torch.manual_seed(0)
    layer = sl.CSRLinear(12, 16, sparsity=0.7, dtype=torch.float64)
    inputs, costs = (torch.randn(5, size, dtype=torch.float64) for size in (12, 16))
    context = sl.grow.Context(layer.positions, torch.arange(16), inputs, costs)
    gathered = (costs.t() @ inputs).flatten()[layer.positions]
    scale = _gathering.scale_of(layer, context, -3 * gathered)
    torch.testing.assert_close(scale.factor, torch.tensor(-3.0, dtype=torch.float64))
    torch.testing.assert_close(scale.cosine, torch.tensor(-1.0, dtype=torch.float64))
    torch.testing.assert_close(scale.used, 9 * scale.gathered)
