"""Channels cut out: what the gates predicted is what the smaller network does and costs."""

import copy
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparselib as sl
from sparselib import checkpoint, models, pruning, saliency
from sparselib.datasets import Split
from sparselib.models import mobilenet
from sparselib.nn import Channels
from sparselib.saliency import Selector


def shaken(model: nn.Module) -> nn.Module:
    """Give normalizations statistics of their own, so that shifts matter."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    return model.eval()


NETWORKS = {
    "basic": (lambda: models.ResNet((2, 2, 2), (8, 16, 32), inputs=1), (1, 32, 32)),
    "projected": (lambda: models.ResNet((1, 2), (8, 16), shortcut="project"), (3, 16, 16)),
    "bottleneck": (
        lambda: models.ResNet((1, 1), (8, 16), bottleneck=True, shortcut="project"),
        (3, 16, 16),
    ),
    "signals": (lambda: models.ResNet((1, 1), (8, 16), inputs=1, dimensions=1), (1, 64)),
    "mobilenet": (lambda: models.MobileNetV2(10), (3, 32, 32)),
    "ecg": (lambda: models.ECGResNet(300, 8, 3), (1, 300)),
    "dsn": (lambda: models.DSN(4, 3, 6, sparsity=0.0), (1, 100)),
}


@cache
def some_counts() -> pruning.Operations:
    return pruning.operations(models.ResNet((1, 2, 1), (8, 16, 32), inputs=1), (1, 32, 32))


def possible(share: float) -> float:
    """Share of the operations between the least that can be left and all."""
    least = some_counts().least() / some_counts().full()
    return min(1.0, least + share * (1 - least))


@pytest.fixture
def short_mobilenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of block of a MobileNet, though not as many: exporters take a second for each."""
    blocks = {32: 2}  # of which the second has a residual
    stages = [(expansion, width, blocks.get(width, 1)) for expansion, width, _ in mobilenet.STAGES]
    monkeypatch.setattr(mobilenet, "STAGES", stages)


def some_structure(model: nn.Module, shape: tuple, flops: float = 0.5, seed: int = 0) -> list:
    counts = pruning.operations(model, shape)
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(n, generator=generator) for n in counts.sizes]
    return pruning.structure(scores, counts, flops)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_cut_is_what_was_gated(name: str) -> None:
    make, shape = NETWORKS[name]
    model = shaken(make())
    keep = some_structure(model, shape)
    small, gates = pruning.cut(model, keep), pruning.Gates(model)
    gates.set(keep)
    x = torch.randn(3, *shape)
    with torch.no_grad(), gates.inside(model):
        gated = model(x)
    assert torch.allclose(small(x), gated, atol=1e-5)
    assert not torch.allclose(small(x), model(x), atol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("short_mobilenet")
@pytest.mark.parametrize("name", ["basic", "signals", "mobilenet"])
def test_a_cut_network_exports_and_says_the_same(name: str) -> None:
    make, shape = NETWORKS[name]
    model = shaken(make())
    small, x = pruning.cut(model, some_structure(model, shape)), torch.randn(2, *shape)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(small, (x,), dynamic_shapes=({0: batch},))
    more = torch.randn(5, *shape)
    assert torch.allclose(exported.module()(more), small(more), atol=1e-5)
    weights = sum(value.numel() for value in exported.state_dict.values())
    assert weights == sum(value.numel() for value in small.state_dict().values())
    assert weights < sum(value.numel() for value in model.state_dict().values())


@pytest.mark.slow
@pytest.mark.usefixtures("short_mobilenet")
@pytest.mark.parametrize("name", ["basic", "signals", "mobilenet"])
def test_a_cut_network_says_the_same_in_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    make, shape = NETWORKS[name]
    model = shaken(make())
    small, x = pruning.cut(model, some_structure(model, shape)), torch.randn(2, *shape)
    batch, file = torch.export.Dim("batch", min=1, max=64), tmp_path / "small.onnx"
    program = torch.onnx.export(small, (x,), dynamic_shapes=({0: batch},), verbose=False)
    program.save(file)
    session = onnxruntime.InferenceSession(file)
    more = torch.randn(5, *shape)
    (scores,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    assert torch.allclose(torch.from_numpy(scores), small(more), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_operations_are_those_of_the_cut_network(name: str) -> None:
    make, shape = NETWORKS[name]
    model = make()
    counts = pruning.operations(model, shape)
    assert counts.full() == sl.cost.flops(model, (1, *shape))
    for seed in range(3):
        keep = some_structure(model, shape, seed=seed)
        small = pruning.cut(model, keep)
        assert sl.cost.flops(small, (1, *shape)) == counts.count([int(k.sum()) for k in keep])
        assert sl.cost.parameters(small) < sl.cost.parameters(model)


@given(st.lists(st.integers(1, 8), min_size=4, max_size=4))
def test_differentiable_operations_are_the_counted_ones(widths: list[int]) -> None:
    as_tensors = [torch.tensor(float(width), requires_grad=True) for width in widths]
    total = some_counts().total(as_tensors)
    total.backward()
    assert float(total.detach()) == some_counts().count(widths)
    for group, width in enumerate(as_tensors):
        wider = [w + (g == group) for g, w in enumerate(widths)]
        assert float(width.grad) == some_counts().count(wider) - some_counts().count(widths)


def test_released_count_finds_half_of_a_resnet56_gone() -> None:
    model = models.resnet56()
    table = sl.cost.flops_of_layers(model, (1, 3, 32, 32))
    size = {"layer1": 1024, "layer2": 256, "layer3": 64}
    width = {"layer1": 16, "layer2": 32, "layer3": 64}
    both = {k: v + 3 * width[k[:6]] * size[k[:6]] for k, v in table.items() if "layer" in k}
    first = sum(v for k, v in both.items() if k.endswith("conv1"))
    assert first / sum(both.values()) == pytest.approx(0.4907, abs=5e-5)


def test_open_gates_change_no_bit() -> None:
    model = shaken(models.ResNet((1, 1), (8, 16)))
    x, gates = torch.randn(2, 3, 16, 16), pruning.Gates(model)
    with torch.no_grad():
        plain = model(x)
        gates.set([torch.ones(8), torch.ones(16)])
        with gates.inside(model):
            assert torch.equal(model(x), plain)
        gates.set([torch.zeros(8), torch.ones(16)])
        assert torch.equal(model(x), plain)
    assert torch.equal(pruning.cut(model, [torch.ones(8) > 0, torch.ones(16) > 0])(x), plain)


@given(st.floats(0, 1), st.integers(0, 10**6))
def test_a_budget_is_kept_and_pays_for_no_further_channel(share: float, seed: int) -> None:
    flops = possible(share)
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randn(n, generator=generator) for n in some_counts().sizes]
    keep = pruning.structure(scores, some_counts(), flops)
    widths = [int(mask.sum()) for mask in keep]
    budget = flops * some_counts().full()
    assert min(widths) >= 1
    assert some_counts().count(widths) <= budget * (1 + 1e-12)
    for group, mask in enumerate(keep):
        if widths[group] < len(mask):
            wider = [w + (g == group) for g, w in enumerate(widths)]
            assert some_counts().count(wider) > budget
    assert all(bool(mask[score.argmax()]) for mask, score in zip(keep, scores))
    same = pruning.structure([(0.3 * s).exp() for s in scores], some_counts(), flops)
    assert all(torch.equal(a, b) for a, b in zip(keep, same))


@pytest.mark.parametrize("flops", [0.7, 0.5, 0.4])
def test_targets_of_resnet56_are_met_within_one_per_cent(flops: float) -> None:
    model = models.resnet56()
    keep = some_structure(model, (3, 32, 32), flops)
    spent = sl.cost.flops(pruning.cut(model, keep), (1, 3, 32, 32)) / 125_485_696
    assert flops - 0.01 <= spent <= flops


def test_ranks_give_every_layer_the_same_share() -> None:
    counts = pruning.operations(models.resnet20(), (3, 32, 32))
    scores = [torch.rand(n) * 10**g for g, n in enumerate(counts.sizes)]
    keep = pruning.structure(pruning.ranks(scores), counts, 0.5)
    shares = [float(mask.double().mean()) for mask in keep]
    assert max(shares) - min(shares) <= 1 / 8
    for mask, score in zip(keep, scores):
        assert float(score[mask].min()) > float(score[~mask].max())


def test_resource_loss_is_flat_up_to_the_target() -> None:
    spent = torch.tensor([0.3, 0.49, 0.8], dtype=torch.float64, requires_grad=True)
    losses = [pruning.resource(one, 0.5) for one in spent]
    assert [float(loss.detach()) for loss in losses[:2]] == [0, 0]
    assert float(losses[2].detach()) == pytest.approx(0.47000363)
    sum(losses).backward()
    assert spent.grad.tolist() == [0, 0, pytest.approx(1 / 0.8)]


def placed(count: int) -> Split:
    data, _ = sl.datasets.placed_digits(count, 64, 64)
    return data


def small() -> models.ResNet:
    return models.ResNet((1, 1, 1), (8, 16, 32), inputs=1, stem="half")


def test_pruning_gives_an_ordinary_smaller_network() -> None:
    data, model = placed(128), small()
    before = copy.deepcopy(model.state_dict())
    selector = Selector(model, (1, 32, 32), 10, blocks=1)
    cut = sl.prune(model.train(), data, explain=selector, flops=0.4, epochs=2, progress=False)
    assert cut.training
    assert type(cut) is type(model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert sl.cost.flops(cut, (1, 1, 32, 32)) <= 0.4 * sl.cost.flops(model, (1, 1, 32, 32))
    exported = torch.export.export(cut.eval(), (data.test.x[:2],)).module()
    assert torch.allclose(exported(data.test.x[:2]), cut(data.test.x[:2]), atol=1e-6)
    optimizer = torch.optim.SGD(cut.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    losses = sl.fit(cut, data, optimizer, 6, batch_size=32, progress=False)["loss"]
    assert losses[-1] < losses[0]
    follower = selector.of(cut)
    assert follower(data.test.x[:2]).shape == (2, 1, 32, 32)


def test_operations_are_counted_once_and_the_selector_is_checked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, model = placed(64), small()
    selector = Selector(model, (1, 32, 32), 10, blocks=1)
    calls = []
    count = sl.cost.flops_of_layers
    explains = Selector.explains

    def counted(*args):
        calls.append("operations")
        return count(*args)

    def checked(*args):
        calls.append("explains")
        return explains(*args)

    monkeypatch.setattr(sl.cost, "flops_of_layers", counted)
    monkeypatch.setattr(Selector, "explains", checked)
    sl.prune(model, data, explain=selector, epochs=1, progress=False)
    assert sorted(calls) == ["explains", "operations"]


def test_same_seed_same_network() -> None:
    data, model = placed(96), small()
    first, second = (
        sl.prune(model, data, epochs=2, progress=False, batch_size=32, seed=3) for _ in range(2)
    )
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("statistics", ["stored", "batch"])
def test_gates_learn_and_weights_do_not(statistics: str) -> None:
    data, model = placed(96), small()
    selector = Selector(model, (1, 32, 32), 10, blocks=1)
    states = [copy.deepcopy(m.state_dict()) for m in (model, selector)]
    gates = pruning.Gates(model)
    optimizer = torch.optim.Adam(gates.parameters(), 0.1)
    options = {"explain": selector, "statistics": statistics, "batch_size": 32, "progress": False}
    pruning.train_gates(gates, model, data, optimizer, 5, **options)
    assert all(bool(theta.any()) for theta in gates.scores())
    for module, state in zip((model, selector), states):
        assert all(torch.equal(v, module.state_dict()[k]) for k, v in state.items())
        assert all(p.grad is None for p in module.parameters())


@pytest.mark.slow
def test_operations_alone_close_gates() -> None:
    data, model = placed(96), small()
    gates = pruning.Gates(model)
    optimizer = torch.optim.Adam(gates.parameters(), 0.2)
    options = {"labels": False, "batch_size": 32, "progress": False}
    pruning.train_gates(gates, model, data, optimizer, 20, **options)
    counts = pruning.operations(model, (1, 32, 32))
    opened = [int((theta + 3 > 0).sum()) for theta in gates.scores()]
    assert counts.count(opened) < 0.7 * counts.full()


def gates_alone(model: nn.Module, data: Split, **options) -> float:
    """Share of the operations that gates leave by themselves, without a budget."""
    gates, counts = pruning.Gates(model), pruning.operations(model, (1, 32, 32))
    optimizer = torch.optim.Adam(gates.parameters(), 0.05)
    pruning.train_gates(gates, model, data, optimizer, 20, progress=False, **options)
    return counts.count([int((theta > -3).sum()) for theta in gates.scores()]) / counts.full()


@pytest.mark.slow
def test_gates_alone_reach_the_target_by_default_and_not_with_the_papers_weight(root: Path) -> None:
    data, _ = sl.datasets.placed_digits(500, 64, 64)
    model = small()
    checkpoint.restore(root / "data/stages/placed-digits/classifier.pt", model)
    assert gates_alone(model.eval(), data, batch_size=64) < 0.55
    assert gates_alone(model, data, batch_size=64, gamma_2=2.0) > 0.65


def test_bad_input_gets_a_sentence() -> None:
    data, model = placed(64), small()
    with pytest.raises(ValueError, match="are left with one channel in every group"):
        sl.prune(model, data, flops=0.01)
    with pytest.raises(ValueError, match="cannot be met"):
        sl.prune(model, data, flops=1.5)
    with pytest.raises(ValueError, match="trained for another classifier"):
        sl.prune(model, data, explain=Selector(small(), (1, 32, 32), 10, blocks=1))
    with pytest.raises(ValueError, match="has no method `prunable`"):
        sl.prune(nn.Sequential(nn.Conv2d(1, 4, 3)), data)
    with pytest.raises(ValueError, match="keeps 0 channels"):
        pruning.cut(model, [torch.zeros(8) > 0, torch.ones(16) > 0, torch.ones(32) > 0])
    with pytest.raises(ValueError, match="need as many masks, not 1"):
        pruning.cut(model, [torch.ones(8) > 0])
    counts = pruning.operations(model, (1, 32, 32))
    with pytest.raises(ValueError, match="do not fit groups"):
        pruning.structure([torch.ones(3)], counts, 0.5)
    with pytest.raises(ValueError, match="not finite"):
        pruning.structure([torch.full((n,), float("nan")) for n in counts.sizes], counts, 0.5)
    with pytest.raises(ValueError, match=r"blocks\.0\.0 has sparse kernels"):
        pruning.Gates(models.DSN(4, 2, 6, sparsity=0.5))
    with pytest.raises(ValueError, match="'stored' or of the 'batch'"):
        sl.prune(model, data, statistics="running")


def test_any_network_can_be_pruned_by_tracing() -> None:
    pytest.importorskip("torch_pruning")
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(16, 10)),
    )
    small = pruning.by_tracing(model, (3, 16, 16), 0.5)
    share = sl.cost.flops(small, (1, 3, 16, 16)) / sl.cost.flops(model, (1, 3, 16, 16))
    assert 0.3 < share <= 0.5
    assert small(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    residual = models.ResNet((1, 1), (16, 32), shortcut="project")
    small = pruning.by_tracing(residual, (3, 16, 16), 0.6)
    whole = sl.cost.flops(residual, (1, 3, 16, 16))
    assert sl.cost.flops(small, (1, 3, 16, 16)) <= 0.6 * whole
    with pytest.raises(ValueError, match="took channels out of this ResNet that it still needs"):
        pruning.by_tracing(models.ResNet((1, 1), (16, 32)), (3, 16, 16), 0.6)


def test_importances_of_torch_pruning_have_a_score_for_each_channel() -> None:
    pytest.importorskip("torch_pruning")
    model = models.ResNet((1, 1), (4, 8), shortcut="pad_both").eval()
    before = copy.deepcopy(model.state_dict())
    samples = sl.datasets.Samples(torch.randn(7, 3, 16, 16), torch.arange(7))
    first = model.layer1[0]
    written, read = first.conv1.weight, first.conv2.weight
    with torch.no_grad():  # what a normalization scales counts too
        norms = [written.square().sum((1, 2, 3)), first.bn1.weight.square()]
        norms.append(read.square().sum((0, 2, 3)))
    expected = torch.stack(norms).mean(0)
    found = pruning.group_norms(model, (3, 16, 16))
    torch.testing.assert_close(found[0], (expected / expected.mean()).detach())
    loss = nn.functional.cross_entropy(model(samples.x), samples.y)
    slopes = torch.autograd.grad(loss, (written, read))
    expected = (written * slopes[0]).abs().sum((1, 2, 3)).detach()
    expected += (read * slopes[1]).abs().sum((0, 2, 3)).detach()
    for batch_size in (3, 7):
        found = pruning.taylor(model, samples, batch_size=batch_size)
        torch.testing.assert_close(found[0], expected / expected.mean())
    assert [len(scores) for scores in found] == [4, 8]
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_gates_keep_the_class_activation_maps_that_they_are_asked_to() -> None:
    torch.manual_seed(0)
    model = models.ResNet((1, 1), (8, 16), 4, inputs=1, stem="half").eval()
    samples = sl.datasets.Samples(torch.randn(32, 1, 16, 16), torch.arange(32) % 4)
    data = sl.datasets.Split(samples, samples, samples, 4, "noise", "for a test")
    maps = saliency.ClassActivationMaps(model, (1, 16, 16))
    changed = {}
    for gamma_1 in (0.0, 100.0):
        gates = pruning.Gates(model)
        optimizer = torch.optim.Adam(gates.parameters(), 0.1)
        options = {"labels": False, "progress": False, "batch_size": 16, "gamma_1": gamma_1}
        pruning.train_gates(gates, model, data, optimizer, 30, explain=maps, **options)
        counts = pruning.operations(model, (1, 16, 16))
        small = pruning.cut(model, pruning.structure(gates.scores(), counts, 0.5))
        now = maps.of(small).numbers(samples.x, samples.y)
        changed[gamma_1] = float((now - maps.numbers(samples.x, samples.y)).square().mean())
    assert changed[100.0] < changed[0.0]


def test_without_torch_pruning_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ModuleNotFoundError, match="pip install torch-pruning"):
        pruning.by_tracing(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 8, 8))
    with pytest.raises(ModuleNotFoundError, match="pip install torch-pruning"):
        pruning.group_norms(models.ResNet((1, 1), (4, 8)), (3, 8, 8))
    with pytest.raises(ValueError, match="not 0"):
        pruning.by_tracing(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 8, 8), 0.0)


SIGNALS = {
    "ecg": (lambda: models.ECGResNet(1000, 6, 3, 3), {"resize": True}),
    "dsn": (lambda: models.DSN(3, 2, 6, sparsity=0.0, classes=3), {}),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_network_of_the_apnea_paper_is_explained_pruned_and_cut(name: str) -> None:
    make, options = SIGNALS[name]
    data, _ = sl.datasets.placed_spells(48, 16, 16, seconds=10)
    model = make()
    selector = Selector(model, (1, 1000), 3, blocks=1, unit=1000 / 32, **options)
    optimizer = torch.optim.Adam(selector.decoder.parameters(), 1e-4)
    quiet = {"batch_size": 16, "progress": False}
    sl.saliency.train_selector(selector, make(), data, optimizer, 1, **quiet)
    masks = selector.eval()(data.test.x)
    assert masks.shape == (16, 1, 1000)
    assert torch.allclose(masks.amax(2), torch.ones(16, 1))
    cut = sl.prune(model.eval(), data, explain=selector, flops=0.4, lr=0.2, epochs=4, **quiet)
    spent = sl.cost.flops(cut, (1, 1000)) / sl.cost.flops(model, (1, 1000))
    assert 0.25 < spent <= 0.4
    assert selector.of(cut)(data.test.x).shape == (16, 1, 1000)


def test_connections_evolve_in_what_is_left_and_none_is_lost() -> None:
    model = models.ECGResNet(300, 8, 3, 3)
    keep = some_structure(model, (1, 300), 0.4)
    cut = pruning.cut(model, keep)
    whole = {name: value.clone() for name, value in cut.state_dict().items()}
    x, y = torch.randn(16, 1, 300), torch.arange(16) % 3
    before = cut(x).detach()
    same = sl.sparsify(copy.deepcopy(cut), 0.0, skip=["stem"], convolutions=True)
    assert torch.allclose(same(x), before, atol=1e-5)
    sparse = sl.sparsify(cut, 0.8, skip=["stem"], convolutions=True)
    layers = sl.nn.sparse_layers(sparse)
    assert len(layers) == 3 * 2 + 3
    counts = {name: layer.values.numel() for name, layer in layers.items()}
    for name, layer in layers.items():
        dense = whole[f"{name}.weight"].flatten()
        assert counts[name] == round(0.2 * dense.numel())
        assert torch.equal(layer.values.detach(), dense[layer.positions])
        assert float(layer.values.detach().abs().min()) >= float(
            dense.abs().sort(descending=True).values[counts[name] - 1]
        )
    optimizer = torch.optim.Adam(sparse.parameters(), 1e-3)
    evolution = sl.SET(sparse, optimizer, 0.3)
    born = {name: layer.positions.clone() for name, layer in layers.items()}
    for _ in range(3):
        sl.training.step(sparse, optimizer, x, y, nn.functional.cross_entropy)
        evolution.step()
    for name, layer in layers.items():
        assert len(layer.positions.unique()) == counts[name]
        assert not torch.equal(layer.positions, born[name])
    stem = sl.cost.parameters(model.stem)
    biases = sum(layer.bias.numel() for layer in layers.values())
    assert sl.cost.parameters(sparse) == stem + sum(counts.values()) + biases


class Heartbeat(nn.Module):
    """One residual block for signals whose length is halved, but not exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 6, 5)
        self.first, self.second = (nn.Conv1d(6, 6, 5, padding=2) for _ in range(2))
        self.pool, self.head = nn.MaxPool1d(5, 2), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.pool(torch.relu(x + self.second(torch.relu(self.first(x)))))
        return self.head(x.mean(2))


def test_a_network_of_ones_own_needs_names_only() -> None:
    model, x = Heartbeat().eval(), torch.randn(40, 1, 64)
    groups = [Channels(("first",), "second")]
    selector = Selector(model, (1, 64), 2, scales=("stem", "pool"), resize=True, blocks=1)
    assert selector(x).shape == x.shape
    gates = pruning.Gates(model, groups)
    counts = pruning.operations(model, (1, 64), groups)
    keep = pruning.structure([torch.arange(6.0)], counts, 0.7)
    small = pruning.cut(model, keep, groups)
    gates.set(keep)
    with torch.no_grad(), gates.inside(model):
        assert torch.allclose(model(x), small(x), atol=1e-6)
    assert 0 < int(keep[0].sum()) < 6
    with pytest.raises(ValueError, match="pass resize=True"):
        Selector(model, (1, 64), 2, scales=("stem", "pool"), blocks=1)
