"""From anybody's model to a sparse one: what is converted, what is not and why, and ties."""

import copy

import pytest
import torch
from torch import nn

import sparselib as sl
from sparselib.distribution import erdos_renyi_kernel, global_magnitude, uniform


class Tied(nn.Module):
    """A language model in six lines, whose output reads the table of embeddings."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(100, 16)
        self.up = nn.Linear(16, 64)
        self.down = nn.Linear(64, 16)
        self.head = nn.Linear(16, 100, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.down(self.up(self.table(tokens)).relu()))


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_weight_tied_to_an_embedding_stays_tied_and_is_told():
    model = Tied()
    before = count(model)
    plan = sl.Conversion(model, 0.75)
    assert count(model) == before
    assert "its weight is also table.weight, which stays dense" in str(plan)
    assert sl.sparsify(model, 0.75) is model
    assert model.head.weight is model.table.weight
    assert count(model) == before - 2 * 3 * 16 * 64 // 4
    with pytest.raises(ValueError, match=r"'head', but its weight is also table[.]weight"):
        sl.sparsify(Tied(), {"head": 0.5})


def test_layers_that_share_a_weight_share_their_connections_and_train_as_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Linear(12, 12))
    model[2].weight = model[0].weight
    model[3].bias = model[0].bias
    dense = copy.deepcopy(model)
    sl.sparsify(model, 0.5)
    assert model[0].values is model[2].values
    assert model[0].csr is model[2].csr
    assert model[3].bias is model[0].bias
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    evolution = sl.SET(model, optimizer, 0.3)
    x = torch.randn(5, 12)
    model(x).square().sum().backward()
    optimizer.step()
    assert list(evolution.step()) == ["0", "3"]
    assert torch.equal(model[0].positions, model[2].positions)
    again = sl.densify(model)
    assert again[0].weight is again[2].weight
    assert count(again) == count(dense)
    with pytest.raises(ValueError, match="untie them first"):
        sl.sparsify(again, {"0": 0.5, "3": 0.5})


def test_a_chain_of_ties_to_a_skipped_layer_stays_dense():
    model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)])
    model[1].weight = model[0].weight
    plan = sl.Conversion(model, 0.5, skip=["1"])
    reasons = {entry.name: entry.reason for entry in plan.entries}
    assert reasons["1"] == "you skip it"
    assert reasons["0"] == "its weight is also 1.weight, which stays dense"
    assert reasons["2"] == reasons["3"] == ""


def test_the_report_names_each_layer_its_numbers_and_the_reason():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(20, 10),
            "lazy": nn.LazyLinear(4),
            "image": nn.Conv2d(3, 4, 3),
            "volume": nn.Conv3d(1, 1, 1),
            "signal": nn.Conv1d(3, 4, 3),
            "recurrent": nn.LSTM(5, 6),
            "attention": nn.MultiheadAttention(8, 2),
            "hooked": nn.Linear(4, 4),
            "norm": nn.LayerNorm(4),
        }
    )
    model["hooked"].register_forward_hook(lambda *_: None)
    plan = sl.Conversion(model, 0.9)
    reasons = {entry.name: entry.reason for entry in plan.entries}
    assert reasons == {
        "linear": "",
        "lazy": "its sizes are not known before its first call",
        "image": "convolutions=True converts it",
        "volume": "there is no sparse layer for this convolution",
        "signal": "convolutions=True converts it",
        "recurrent": "there is no sparse layer that computes the same",
        "attention.q_proj": "",
        "attention.k_proj": "",
        "attention.v_proj": "",
        "attention.out_proj": "",
        "hooked": "hooks of yours would be lost; register them after the conversion",
    }
    text = str(plan).splitlines()
    assert text[0].split() == ["layer", "kind", "weights", "kept", "sparsity"]
    assert text[1].split() == ["linear", "Linear", "200", "20", "90.0%"]
    assert text[-1] == "881 weights become 469"
    with pytest.raises(ValueError, match=r"'' \(LSTM\): there is no sparse layer that computes"):
        sl.sparsify(nn.LSTM(3, 4), 0.5)


def test_adapters_of_peft_and_the_layers_under_them_stay_as_they_are():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    inner = nn.ModuleDict({"up": nn.Linear(8, 16), "down": nn.Linear(16, 8)})
    inner["attention"] = nn.MultiheadAttention(8, 2)
    config = peft.LoraConfig(r=2, target_modules=["up", "attention"])
    model = peft.get_peft_model(inner, config)
    plan = sl.Conversion(model, 0.5)
    kept = {entry.name for entry in plan.entries if entry.reason}
    assert all("peft" in entry.reason for entry in plan.entries if entry.reason)
    adapted = [f"base_model.model.{name}" for name in ("up", "attention")]
    assert {name for name in kept if not name.startswith(tuple(adapted))} == set()
    plan.apply()
    assert list(sl.nn.sparse_layers(model)) == ["base_model.model.down"]
    x = torch.randn(3, 8)
    up = model.base_model.model["up"]
    nn.init.normal_(up.lora_B["default"].weight)
    before = up(x)
    model.merge_adapter()
    torch.testing.assert_close(up(x), before)


def test_peft_refuses_a_sparse_layer_by_name_and_passes_over_it_otherwise():
    peft = pytest.importorskip("peft")
    model = nn.ModuleDict({"up": nn.Linear(8, 16), "down": nn.Linear(16, 8)})
    sl.sparsify(model, 0.5, skip=["down"])
    with pytest.raises(ValueError, match=r"CSRLinear[\s\S]* is not supported"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["up"]))
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
    assert type(adapted.base_model.model["up"]) is sl.CSRLinear
    assert adapted.base_model.model["down"].base_layer.weight.shape == (8, 16)


def test_a_bias_that_is_tied_to_something_dense_stays_tied_and_is_told():
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)])
    model[0].bias = model[2].bias
    reasons = [entry.reason for entry in sl.Conversion(model, 0.5).entries]
    assert reasons == ["its bias is also 2.bias, which stays dense", ""]
    sl.sparsify(model, 0.5)
    assert model[0].bias is model[2].bias


def test_a_lazy_layer_is_converted_after_its_first_call():
    model = nn.Sequential(nn.LazyLinear(8))
    model(torch.randn(2, 5))
    assert isinstance(sl.sparsify(model, 0.5)[0], sl.CSRLinear)


def model_of_three():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 200), nn.Linear(200, 200), nn.Linear(200, 5))


def test_what_is_skipped_by_name_container_type_and_function():
    def converted(**arguments):
        model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.Linear(8, 4))
        return list(sl.nn.sparse_layers(sl.sparsify(model, 0.5, **arguments)))

    assert converted(skip=["0.1"]) == ["0.0", "1"]
    assert converted(skip=["0"]) == ["1"]
    assert converted(skip=[lambda name, layer: layer.out_features < 8]) == ["0.0", "0.1"]
    with pytest.raises(ValueError, match=r"'0.0' \(Linear\): you skip it"):
        converted(skip=[nn.Linear])
    with pytest.raises(ValueError, match=r"skip names \['01'\]"):
        converted(skip=["01"])


def test_a_sparsity_for_each_name_and_for_what_is_inside():
    model = nn.Sequential(model_of_three(), nn.Linear(5, 100))
    sl.sparsify(model, {"0": 0.9, "0.1": 0.5})
    shares = {name: layer.sparsity for name, layer in sl.nn.sparse_layers(model).items()}
    assert shares == pytest.approx({"0.0": 0.9, "0.1": 0.5, "0.2": 0.9})
    with pytest.raises(ValueError, match="names 'nobody', where nothing can be converted"):
        sl.sparsify(model_of_three(), {"nobody": 0.5})


def test_densities_of_erk_are_those_of_the_equation():
    weights = [torch.empty(200, 8), torch.empty(200, 200), torch.empty(5, 200, 3)]
    shares = erdos_renyi_kernel(weights, 0.9)
    densities = [1 - share for share in shares]
    ratio = (200 + 8) / (200 * 8) / (400 / 200**2)
    assert densities[0] / densities[1] == pytest.approx(ratio)
    assert densities[2] / densities[1] == pytest.approx(208 / 3000 / (400 / 200**2))
    kept = sum(d * w.numel() for d, w in zip(densities, weights))
    assert kept == pytest.approx(0.1 * sum(w.numel() for w in weights))


def test_erk_leaves_dense_what_would_be_more_than_full_and_others_share_the_rest():
    model = model_of_three()
    before = count(model)
    plan = sl.Conversion(model, 0.5, distribution=erdos_renyi_kernel)
    reasons = [entry.reason for entry in plan.entries]
    assert reasons == ["the distribution leaves it full", "", "the distribution leaves it full"]
    plan.apply()
    kept = sum(entry.after for entry in plan.entries)
    assert kept == pytest.approx(0.5 * (before - 405), abs=1)
    assert count(model) == kept + 405


def test_global_magnitude_keeps_the_largest_of_the_model():
    model = model_of_three()
    with torch.no_grad():
        model[1].weight *= 0.5
    every = torch.cat([layer.weight.flatten() for layer in model]).abs()
    threshold = every.sort(descending=True).values[round(0.1 * every.numel()) - 1]
    sparse = sl.sparsify(copy.deepcopy(model), 0.9, distribution=global_magnitude)
    for layer, dense in zip(sparse, model):
        expected = (dense.weight.abs() >= threshold).flatten().nonzero().flatten()
        assert torch.equal(layer.positions, expected)


@pytest.mark.parametrize("distribution", [uniform, erdos_renyi_kernel, global_magnitude])
def test_an_impossible_sparsity_is_refused_before_anything_is_changed(distribution):
    model = model_of_three()
    before = copy.deepcopy(model.state_dict())
    for sparsity, why in [
        (1.0, "must lie in"),
        (-0.1, "must lie in"),
        (0.99999, "without a weight"),
    ]:
        with pytest.raises(ValueError, match=why):
            sl.sparsify(model, sparsity, distribution=distribution)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_model_without_memory_gets_a_topology_and_no_weights():
    with torch.device("meta"):
        model = model_of_three()
    with pytest.raises(ValueError, match="device meta"):
        sl.sparsify(model, 0.9)
    sl.sparsify(model, 0.9, fresh=True)
    assert all(layer.values.is_meta for layer in model)
    twin = sl.sparsify(model_of_three(), 0.9, fresh=True)
    model.load_state_dict(twin.state_dict(), assign=True)
    x = torch.randn(3, 8)
    torch.testing.assert_close(model(x), twin(x))


def test_what_was_frozen_stays_frozen():
    model = model_of_three()
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    sl.sparsify(model, 0.9)
    assert not model[0].values.requires_grad
    assert model[0].bias.requires_grad
    assert not model[1].bias.requires_grad


def test_who_reads_a_weight_is_told_what_there_is():
    layer = sl.CSRLinear(4, 4, sparsity=0.5)
    assert not hasattr(layer, "weight")
    with pytest.raises(AttributeError, match=r"has no dense `weight`.*skip="):
        print(layer.weight)


def test_a_topology_without_fresh_weights_is_refused():
    with pytest.raises(ValueError, match=r"topology would draw .* fresh=True"):
        sl.sparsify(nn.Linear(4, 4), 0.5, topology=sl.topology.erdos_renyi)
