"""Evolution equals its masked dense definition step for step, and loses nothing on the way."""

import copy
import gc
import os
import pickle
import subprocess
import sys
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparselib as sl
from sparselib.evolution import Plan, Strategy, drop, engine, grow

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}
RULES = [sl.SET, sl.GradientGrowth, sl.RigL]


def network(seed=0, sizes=(20, 16, 12, 5), sparsity=0.7, dtype=torch.float64):
    torch.manual_seed(seed)
    return sl.MLP(*sizes, layer=sl.CSRLinear, sparsity=sparsity, dtype=dtype)


def batch(seed, samples=8, features=20, classes=5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, features, dtype=torch.float64, generator=generator)
    return x, torch.randint(classes, (samples,), generator=generator)


def train_step(model, optimizer, seed):
    x, y = batch(seed)
    optimizer.zero_grad()
    sl.sigmoid_squared_error(model(x), y).backward()
    optimizer.step()


class MaskedOracle:
    """Ertl's training with dense weights and masks, written from the paper, sharing no code.

    Weights, masks and optimizer state are dense; evolution is a stable sort over the dense
    gradient. The optimizer runs on the dense weights with masked gradients.
    """

    def __init__(self, model, make_optimizer, fraction):
        self.weights = [
            nn.Parameter(layer.to_dense().weight.detach().clone()) for layer in model.layers
        ]
        self.biases = [nn.Parameter(layer.bias.detach().clone()) for layer in model.layers]
        self.masks = [layer.csr.mask() for layer in model.layers]
        self.optimizer = make_optimizer(
            [p for pair in zip(self.weights, self.biases) for p in pair]
        )
        self.thresholds, self.fraction = [0.01] * len(self.weights), fraction

    def step(self, seed):
        x, y = batch(seed)
        self.inputs, self.outputs = [], []
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = x if index == 0 else x.relu()
            self.inputs.append(x)
            x = x @ weight.t() + bias
            x.retain_grad()
            self.outputs.append(x)
        self.optimizer.zero_grad()
        error = (x.sigmoid() - nn.functional.one_hot(y, x.shape[1])) ** 2
        (error.sum() / (2 * len(x))).backward()
        for weight, mask in zip(self.weights, self.masks):
            weight.grad *= mask
        self.optimizer.step()

    @torch.no_grad()
    def evolve(self, lr):
        for index, (weight, mask) in enumerate(zip(self.weights, self.masks)):
            small = mask & (weight.abs() <= self.thresholds[index])
            target = self.fraction * int(mask.sum())
            self.thresholds[index] *= 1.1 if int(small.sum()) < target else 1 / 1.1
            if int(small.sum()) > 2 * target:
                score = weight.abs().masked_fill(~mask, float("inf")).flatten()
                least = torch.sort(score, stable=True).indices[: round(target)]
                small = torch.zeros_like(mask.flatten()).index_fill(0, least, True).view(mask.shape)
            count, kept = int(small.sum()), mask & ~small
            costs, inputs = self.outputs[index].grad, self.inputs[index]
            rows = torch.sort(costs.abs().sum(0), descending=True, stable=True).indices
            k = max(1, round(count**0.5))
            while int((~kept)[rows[:k]].sum()) < count:
                k += 1
            open_rows = torch.zeros(len(rows), dtype=torch.bool)
            open_rows[rows[:k]] = True
            gradient = costs.t() @ inputs
            score = gradient.abs().masked_fill(kept | ~open_rows[:, None], -1).flatten()
            chosen = torch.sort(score, descending=True, stable=True).indices[:count]
            grown = torch.zeros_like(mask.flatten()).index_fill(0, chosen, True).view(mask.shape)
            weight.copy_(torch.where(grown, -lr * gradient, weight * kept))
            for tensor in self.optimizer.state[weight].values():
                if tensor is not None and tensor.shape == weight.shape:
                    tensor.mul_(kept & ~grown)
            self.masks[index] = kept | grown


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop"])
def test_training_equals_masked_dense_training_step_for_step(name):
    model = network()
    oracle = MaskedOracle(model, OPTIMIZERS[name], fraction=0.2)
    optimizer = OPTIMIZERS[name](model.parameters())
    evolution = sl.GradientGrowth(model, optimizer, fraction=0.2)
    for step in range(100):
        train_step(model, optimizer, step)
        oracle.step(step)
        if step % 10 == 9:
            evolution.step()
            oracle.evolve(optimizer.param_groups[0]["lr"])
        for layer, weight, mask in zip(model.layers, oracle.weights, oracle.masks):
            assert torch.equal(layer.csr.mask(), mask)
            assert (layer.to_dense().weight - weight * mask).abs().max() < 1e-10


@pytest.mark.parametrize("rule", RULES)
def test_the_masked_product_evolves_alike(rule):
    models = [network(), network()]
    for layer in models[1].layers:
        layer.product = sl.masked_product
    histories = []
    for model in models:
        optimizer = OPTIMIZERS["momentum"](model.parameters())
        evolution = rule(model, optimizer, 0.2)
        for step in range(50):
            train_step(model, optimizer, step)
            if step % 10 == 9:
                evolution.step()
        histories.append([layer.positions for layer in model.layers])
    assert all(map(torch.equal, *histories))
    for one, two in zip(models[0].layers, models[1].layers):
        assert (one.values - two.values).abs().max() < 1e-10


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES)
def test_optimizer_state_follows_survivors_bit_for_bit_and_is_zero_for_the_new(name, rule):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    evolution = rule(model, optimizer, 0.2, regrow=False)
    for step in range(10):
        train_step(model, optimizer, step)
        before = [_by_position(layer, optimizer) for layer in model.layers]
        replaced = evolution.step()
        for layer, old, count in zip(model.layers, before, replaced.values()):
            new = _by_position(layer, optimizer)
            assert len(new.keys() - old.keys()) == count
            for position, state in new.items():
                expected = old[position][1:] if position in old else [0.0] * (len(state) - 1)
                assert state[1:] == expected
                assert position not in old or state[0] == old[position][0]


def _by_position(layer, optimizer):
    """Weight, gradient and optimizer state of each connection, by its flat position."""
    tensors = [layer.values, layer.values.grad, *optimizer.state[layer.values].values()]
    columns = [t.tolist() for t in tensors if t is not None and t.shape == layer.values.shape]
    return {p: list(row) for p, *row in zip(layer.positions.tolist(), *columns)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.slow
def test_the_count_is_invariant_over_hundreds_of_evolutions(rule):
    model = network(sizes=(20, 12, 5), sparsity=0.8)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    evolution = rule(model, optimizer, 0.3, repair=True)
    counts = [layer.csr.nnz for layer in model.layers]
    addresses = [layer.values.data_ptr() for layer in model.layers]
    for step in range(400):
        train_step(model, optimizer, step)
        evolution.step()
    assert [layer.positions.unique().numel() for layer in model.layers] == counts
    assert [layer.values.data_ptr() for layer in model.layers] == addresses
    for layer in model.layers:
        sl.csr.check(layer.csr.crow_indices, layer.csr.col_indices, layer.shape)


@given(st.integers(0, 10**6), st.sampled_from([0.8, 0.9, 0.95]), st.sampled_from([sl.SET, sl.RigL]))
@pytest.mark.slow
def test_repair_leaves_no_weight_lost(seed, sparsity, rule):
    model = network(seed, sizes=(30, 20, 20, 20, 5), sparsity=sparsity)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    evolution = rule(model, optimizer, 0.3, seed=seed, repair=True)
    train = batch(seed, features=30)
    nn.functional.cross_entropy(model(train[0]), train[1]).backward()
    evolution.step()
    assert sl.cost.lost(model) == 0


def grown_unfed(grow, repair, steps=10):
    """Count the connections that grew out of a neuron without inputs."""
    model = network(sizes=(20, 20, 20, 5), sparsity=0.95)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    evolution = sl.Evolution(model, optimizer, sl.drop.set_fractions, grow, 0.3, repair=repair)
    count = 0
    for step in range(steps):
        train_step(model, optimizer, step)
        before = [(layer.positions, layer.csr.fan_in() > 0) for layer in model.layers]
        evolution.step()
        for layer, (_, fed), (old, _) in zip(model.layers[1:], before, before[1:]):
            new = layer.positions[~torch.isin(layer.positions, old)]
            count += int((~fed[new % layer.shape[1]]).sum())
    return count


@pytest.mark.parametrize("repair", [False, True])
def test_growth_at_random_reads_neurons_without_inputs_unless_told_not_to(repair):
    assert grown_unfed(sl.grow.random, repair) > 0
    assert grown_unfed(sl.grow.random_from_fed, repair) == 0


def test_growth_from_fed_neurons_has_no_form_on_the_device():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(ValueError, match="random_from_fed has no device-resident form"):
        sl.Evolution(
            model, optimizer, sl.drop.magnitude, sl.grow.random_from_fed, device_resident=True
        )


def test_without_repair_weights_are_lost_as_in_figure_11():
    model = network(sizes=(30, 20, 20, 20, 5), sparsity=0.95)
    assert sl.cost.lost(model) > 0


def test_what_left_may_come_back_only_if_allowed():
    for regrow in (True, False):
        model = network(sparsity=0.5)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        evolution = sl.RigL(model, optimizer, 0.3, regrow=regrow)
        back = 0
        for step in range(20):
            train_step(model, optimizer, step)
            before = [set(layer.positions.tolist()) for layer in model.layers]
            counts = evolution.step().values()
            after = [set(layer.positions.tolist()) for layer in model.layers]
            back += sum(n - len(b - a) for a, b, n in zip(before, after, counts))
        assert (back > 0) == regrow


@pytest.mark.parametrize("rule", RULES)
def test_a_layer_without_room_is_left_alone(rule):
    torch.manual_seed(0)
    options = {"layer": sl.CSRLinear, "dtype": torch.float64}
    model = sl.MLP(20, 16, 5, sparsity=[0.7, 0.0], **options)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    evolution = rule(model, optimizer, 0.2)
    train_step(model, optimizer, 0)
    full = model.layers[1].values.detach().clone()
    assert list(evolution.step()) == ["layers.0"]
    assert torch.equal(model.layers[1].values, full)
    model = sl.MLP(20, 5, sparsity=0.0, **options)
    with pytest.raises(ValueError, match="has room to grow"):
        rule(model, OPTIMIZERS["sgd"](model.parameters()))


def test_a_frozen_layer_stays_as_it_is():
    model = sl.MLP(20, 30, 30, 4, layer=sl.CSRLinear, sparsity=0.8)
    first = model.layers[0].requires_grad_(False)
    before = first.positions.clone()
    trained = [p for p in model.parameters() if p.requires_grad]
    evolution = sl.SET(model, torch.optim.SGD(trained, 0.1), fraction=0.5)
    assert list(evolution.step()) == ["layers.1", "layers.2"]
    assert torch.equal(first.positions, before)


def test_same_seed_same_topology_other_seed_another():
    def run(seed):
        model = network()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        evolution = sl.SET(model, optimizer, seed=seed)
        for step in range(3):
            train_step(model, optimizer, step)
            evolution.step()
        return torch.cat([layer.positions for layer in model.layers])

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.slow
def test_the_seed_of_a_layer_does_not_hang_on_the_hash_seed_of_the_process():
    program = (
        "from sparselib.evolution.engine import _generator as g\n"
        "print(g(0, 'a', 3).initial_seed(), hash('a'))"
    )
    salted = os.environ | {"PYTHONHASHSEED": "1"}
    seed, salt = subprocess.check_output([sys.executable, "-c", program], env=salted).split()
    assert int(salt) != hash("a")
    assert int(seed) == engine._generator(0, "a", 3).initial_seed()


def test_an_impossible_step_changes_no_layer():
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    evolution = sl.GradientGrowth(model, optimizer, 0.2)
    train_step(model, optimizer, 0)
    model.layers[0].values.data[3] = float("nan")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"layer 'layers.0': 1 of \d+ weights are not finite"):
        evolution.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], equal_nan=True, rtol=0, atol=0)
    assert evolution.steps == 0


def test_a_second_step_without_a_batch_between_is_refused():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    evolution = sl.GradientGrowth(model, optimizer, 0.5)
    train_step(model, optimizer, 0)
    evolution.step()
    with pytest.raises(ValueError, match="needs one forward and one backward pass"):
        evolution.step()


def test_an_optimizer_of_other_parameters_is_refused():
    with pytest.raises(ValueError, match=r"does not hold the values of layer 'layers.0'"):
        sl.SET(network(), torch.optim.SGD(network().parameters(), lr=0.1))


def test_state_that_cannot_follow_is_refused():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    evolution = sl.SET(model, optimizer)
    optimizer.state[model.layers[1].values]["factor"] = torch.zeros(7)
    before = model.layers[1].positions
    with pytest.raises(ValueError, match=r"state 'factor' of shape \(7,\) cannot follow"):
        evolution.step()
    assert torch.equal(model.layers[1].positions, before)


def test_a_model_without_sparse_layers_and_an_impossible_fraction_are_refused():
    dense = sl.MLP(4, 3, 2)
    with pytest.raises(ValueError, match="MLP has no sparse layer"):
        sl.SET(dense, torch.optim.SGD(dense.parameters(), lr=0.1))
    model = network()
    with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\], not 30.0"):
        sl.SET(model, OPTIMIZERS["sgd"](model.parameters()), fraction=30.0)
    assert set(sl.SET(model, OPTIMIZERS["sgd"](model.parameters()), 0.0).step().values()) == {0}


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (lambda layer, n, c: grow.random(layer, n - 1, c), "where 5 connections were dropped"),
        (lambda layer, n, c: (c.occupied[:n], layer.values[:n] * 0), "or one that is taken"),
        (
            lambda layer, n, c: (grow.random(layer, n, c)[0], layer.values[:n] * float("inf")),
            "weights that are not finite",
        ),
    ],
)
def test_a_wrong_rule_of_the_user_is_caught(rule, sentence):
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    evolution = sl.Evolution(model, optimizer, drop.magnitude, rule)
    with pytest.raises(ValueError, match=f"layer 'layers.2': .*{sentence}"):
        evolution.step()


def test_state_dict_resumes_exactly():
    def start():
        model = network()
        optimizer = OPTIMIZERS["adam"](model.parameters())
        return model, optimizer, sl.GradientGrowth(model, optimizer, 0.2)

    def run(parts, steps):
        for step in steps:
            train_step(parts[0], parts[1], step)
            parts[2].step()

    whole, first, second = start(), start(), start()
    run(whole, range(10))
    run(first, range(5))
    saved = pickle.dumps([part.state_dict() for part in first])
    for part, state in zip(second, pickle.loads(saved)):
        part.load_state_dict(state)
    run(second, range(5, 10))
    for one, two in zip(whole[0].state_dict().values(), second[0].state_dict().values()):
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match="the state belongs to the layers"):
        second[2].load_state_dict({"steps": 1, "state": {"other": {}}})


def test_a_watched_model_can_be_copied_and_pickled_and_is_released():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    evolution = sl.RigL(model, optimizer)
    train_step(model, optimizer, 0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(batch(1)[0]), model(batch(1)[0]))
        assert list(twin.layers[0].watches) == []
        assert not twin.layers[0]._forward_hooks
    assert len(list(model.layers[0].watches)) == 1
    del evolution
    gc.collect()
    assert list(model.layers[0].watches) == []


def test_every_layer_and_step_draws_from_a_generator_of_its_own():
    keys = [(0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0)]
    assert len({sl.evolution.engine._generator(*key).initial_seed() for key in keys}) == 4


@pytest.mark.parametrize(("rule", "fraction"), [(sl.GradientGrowth, 0.1), (sl.SET, 0.3)])
def test_the_papers_own_fractions_are_the_defaults(rule, fraction):
    model = network()
    assert rule(model, OPTIMIZERS["sgd"](model.parameters())).fraction == fraction


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("fraction", {"fraction": 0.1}),
        ("seed", {"seed": 3}),
        ("rules", {"drop": drop.set_fractions}),
    ],
)
def test_the_state_of_another_evolution_is_refused_whole(key, other):
    def build(**options):
        model = network()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        rules = {"drop": drop.magnitude, "grow": grow.random}
        return sl.Evolution(model, optimizer, **(rules | options))

    theirs, ours = build(**other), build()
    theirs.step()
    with pytest.raises(ValueError, match=f"belongs to an evolution with {key} .*, this one has"):
        ours.load_state_dict(theirs.state_dict())
    assert ours.steps == 0
    same = build()
    same.fraction = 0.05  # a schedule of the user's
    same.step()
    ours.load_state_dict(same.state_dict())
    assert (ours.steps, ours.fraction) == (1, 0.05)


def test_a_state_without_rules_is_loaded_with_a_warning_and_a_damaged_one_refused():
    model = network()
    evolution = sl.SET(model, OPTIMIZERS["sgd"](model.parameters()))
    with pytest.warns(UserWarning, match="does not name its rules"):
        evolution.load_state_dict({"steps": 4, "state": {"layers.0": {"threshold": 0.5}}})
    assert evolution.steps == 4
    assert evolution.state["layers.0"] == {"threshold": 0.5}
    whole = evolution.state_dict()
    for damage in ({"steps": -1}, {"steps": "many"}, {"state": 3}, {"fraction_now": 7}):
        with pytest.raises(ValueError, match=r"steps|dictionary|fraction"):
            evolution.load_state_dict(whole | damage)
    assert evolution.steps == 4


def test_what_is_trained_is_read_when_the_topology_changes():
    model = network()
    optimizer = torch.optim.SGD([{"params": model.layers[0].parameters(), "lr": 0.1}])
    model.layers[1].requires_grad_(False)
    model.layers[2].requires_grad_(False)
    evolution = sl.SET(model, optimizer)
    assert list(evolution.step()) == ["layers.0"]
    model.layers[0].requires_grad_(False)
    assert list(evolution.step()) == []
    model.layers[1].requires_grad_(True)
    with pytest.raises(ValueError, match=r"does not hold the values of layer 'layers.1'"):
        evolution.step()
    optimizer.add_param_group({"params": model.layers[1].parameters()})
    assert list(evolution.step()) == ["layers.1"]


def test_the_learning_rate_is_that_of_the_step():
    seen = []

    def rule(layer, count, context):
        seen.append(context.lr)
        return grow.random(layer, count, context)

    model = network(sizes=(20, 5))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    evolution = sl.Evolution(model, optimizer, drop.magnitude, rule)
    train_step(model, optimizer, 0)
    evolution.step()
    optimizer.param_groups[0]["lr"] = 0.01
    train_step(model, optimizer, 1)
    evolution.step()
    assert seen == [0.1, 0.01]


@pytest.mark.parametrize("shares_pattern", [True, False])
def test_layers_that_share_their_values_evolve_once(shares_pattern):
    torch.manual_seed(0)
    first = sl.CSRLinear(8, 8, sparsity=0.6, dtype=torch.float64)
    second = copy.deepcopy(first)
    if shares_pattern:
        second.csr = first.csr
    second.values = first.values
    model = nn.Sequential(first, nn.Tanh(), second)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    evolution = sl.RigL(model, optimizer)
    for _ in range(3):
        x = torch.randn(16, 8, dtype=torch.float64)
        optimizer.zero_grad()
        weight = first.to_dense().weight.detach().requires_grad_()
        hidden = torch.tanh(x @ weight.t() + first.bias.detach())
        (hidden @ weight.t() + second.bias.detach()).square().sum().backward()
        model(x).square().sum().backward()
        optimizer.step()
        values, old = first.values.detach().clone(), first.positions.clone()
        assert list(evolution.step()) == ["0"]
        leaving = drop.magnitude(values, 0.3)
        kept = torch.ones(old.numel(), dtype=torch.bool).index_fill(0, leaving, False)
        score = weight.grad.flatten().abs().index_fill(0, old[kept], -1)
        chosen = score.topk(len(leaving)).indices
        assert torch.equal(first.positions, torch.cat([old[kept], chosen]).sort().values)
        assert torch.equal(first.positions, second.positions)
    other = sl.CSRLinear(8, 8, sparsity=0.6, dtype=torch.float64)
    other.values = first.values
    model.append(other)
    with pytest.raises(ValueError, match="'0' and '3' share their values but not their conn"):
        sl.RigL(model, optimizer)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (lambda v, f, s: v[:3], "returned a 1-D tensor of torch.float64"),
        (lambda v, f, s: torch.tensor([0, 0]), "returned a connection twice"),
        (lambda v, f, s: torch.tensor([-1]), "returned indices from -1 to -1"),
        (lambda v, f, s: v.abs() < 9, "returned a 1-D tensor of torch.bool"),
    ],
)
def test_a_wrong_drop_rule_of_the_user_is_caught(rule, sentence):
    model = network()
    evolution = sl.Evolution(model, OPTIMIZERS["sgd"](model.parameters()), rule, grow.random)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"layer 'layers.2': the drop rule {sentence}"):
        evolution.step()
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p, v: (p.double(), v), "positions of torch.float64"),
        (lambda p, v: (p - 10_000, v), "positions from -"),
        (lambda p, v: (p, v.long()), "values of torch.int64"),
    ],
)
def test_nonsense_from_a_grow_rule_is_refused_before_anything_changes(change, sentence):
    model = network()
    rule = lambda layer, n, c: change(*grow.random(layer, n, c))  # noqa: E731
    evolution = sl.Evolution(
        model, OPTIMIZERS["sgd"](model.parameters()), drop.magnitude, grow.without_gradient(rule)
    )
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"layer 'layers.2': the grow rule returned {sentence}"):
        evolution.step()
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


@pytest.mark.parametrize("is_first", [True, False])
def test_lbfgs_is_refused_in_every_order_of_parameters(is_first):
    model = network()
    parameters = list(model.parameters())
    order = parameters if is_first else parameters[::-1]
    with pytest.raises(ValueError, match="LBFGS remembers directions over all parameters"):
        sl.SET(model, torch.optim.LBFGS(order))


def test_a_new_connection_begins_where_its_optimizer_begins():
    for make, key, start in (
        (lambda p: torch.optim.Rprop(p, lr=0.02), "step_size", 0.02),
        (lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.5), "sum", 0.5),
    ):
        model = network(sizes=(20, 5))
        optimizer = make(model.parameters())
        evolution = sl.SET(model, optimizer, regrow=False)
        for step in range(3):
            train_step(model, optimizer, step)
        layer = model.layers[0]
        old = layer.positions.clone()
        evolution.step()
        is_new = ~torch.isin(layer.positions, old)
        assert is_new.any()
        assert (optimizer.state[layer.values][key][is_new] == start).all()


def test_rules_or_a_strategy_but_not_both():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    strategy = sl.evolution.strategies.DropThenGrow(drop.magnitude, grow.random)
    for wrong in (
        {},
        {"drop": drop.magnitude},
        {"drop": drop.magnitude, "grow": grow.random, "strategy": strategy},
        {"strategy": strategy, "device_resident": True},
    ):
        with pytest.raises(ValueError, match="needs drop= and grow=, both of them, or strategy="):
            sl.Evolution(model, optimizer, **wrong)
    assert set(sl.Evolution(model, optimizer, strategy=strategy).step()) == {
        "layers.0",
        "layers.1",
        "layers.2",
    }


def test_values_of_which_a_process_holds_a_part_and_copies_are_refused():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(ValueError, match=r"nn.DataParallel computes with copies"):
        sl.SET(nn.DataParallel(model), optimizer)
    evolution = sl.SET(model, optimizer)
    model.layers[0].values = nn.Parameter(model.layers[0].values.detach()[:7])
    with pytest.raises(ValueError, match=r"layer 'layers.0' has 96 connections, but .* 7 numbers"):
        evolution.step()


def test_values_that_are_computed_from_other_parameters_are_refused():
    model = network()
    evolution = sl.SET(model, OPTIMIZERS["sgd"](model.parameters()))
    computed = model.layers[0].values.detach() * 2
    del model.layers[0].values
    model.layers[0].values = computed
    with pytest.raises(ValueError, match="parametrized cannot evolve"):
        evolution.step()


def test_a_hook_of_the_users_own_is_no_watch():
    class Recorder:
        keep = None

        def __call__(self, layer, args, output):
            self.keep = output.detach()

    model = network(dtype=torch.float32)
    recorder = Recorder()
    model.layers[0].register_forward_hook(recorder)
    model(torch.randn(4, 20)).sum().backward()
    assert recorder.keep.shape == (4, 16)


class Halve(Strategy):
    """Keep the larger half of the weights: one step of gradual magnitude pruning."""

    rules: ClassVar = {"drop": "half", "grow": "none"}
    needs_gradient = False

    def plan(self, layer, fraction, state, context, regrow):
        values = layer.values.detach()
        source = sl.drop.largest(values.abs(), values.numel() // 2)
        return Plan(layer.positions[source], values[source], source)


class Grow(Strategy):
    """Add as many connections as there are, at zero."""

    rules: ClassVar = {"drop": "none", "grow": "random"}
    needs_gradient = False

    def plan(self, layer, fraction, state, context, regrow):
        values = layer.values.detach()
        grown, fresh = sl.grow.random(layer, values.numel(), context)
        order = torch.cat([layer.positions, grown]).sort()
        old = torch.arange(values.numel())
        source = torch.cat([old, torch.full_like(grown, -1)])[order.indices]
        return Plan(order.values, torch.cat([values, fresh])[order.indices], source)


@pytest.mark.parametrize("strategy", [Halve, Grow])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adagrad])
def test_the_number_of_connections_may_change_and_the_state_follows(strategy, kind):
    torch.manual_seed(0)
    model = sl.MLP(16, 32, 8, layer=sl.CSRLinear, sparsity=0.8)
    optimizer = kind(model.parameters(), 0.01)
    evolution = sl.Evolution(model, optimizer, strategy=strategy())

    def train():
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().sum().backward()
        optimizer.step()

    def by_position(layer):
        state = optimizer.state[layer.values]
        name = "exp_avg_sq" if kind is torch.optim.Adam else "sum"
        rows = zip(layer.positions.tolist(), layer.values.tolist(), state[name].tolist())
        return {position: rest for position, *rest in rows}

    train()
    before = {name: by_position(layer) for name, layer in evolution.layers.items()}
    parameters = [layer.values for layer in evolution.layers.values()]
    evolution.step()
    for (name, layer), parameter in zip(evolution.layers.items(), parameters):
        after = by_position(layer)
        assert layer.values is parameter
        assert layer.csr.nnz == len(before[name]) * (2 if strategy is Grow else 0.5) // 1
        survivors = after.keys() & before[name].keys()
        assert all(after[position] == before[name][position] for position in survivors)
        assert all(after[position] == [0, 0] for position in after.keys() - survivors)
        assert len(survivors) == min(len(after), len(before[name]))
    train()
    dense = sl.densify(copy.deepcopy(model))
    x = torch.randn(4, 16)
    torch.testing.assert_close(model(x), dense(x))
