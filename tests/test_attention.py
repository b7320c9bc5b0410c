"""Sparse attention: the numbers of torch's with masked weights, in torch's own modules."""

import copy
import io
import warnings

import pytest
import torch
from apart import run_compiling, run_plain
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sparselib as sl
from sparselib.nn import SparseMultiheadAttention, sparse_layers

WIDTH = 8
HEADS = 4
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj"]
flags = st.booleans()


def pair(sparsity=0.5, heads=HEADS, **options):
    """Return a sparse attention, and torch's with the same weights."""
    whole = nn.MultiheadAttention(WIDTH, heads, dtype=torch.float64, **options)
    for parameter in whole.parameters():
        nn.init.normal_(parameter)
    sparse = SparseMultiheadAttention.from_dense(whole, sparsity)
    return sparse, sparse.to_dense()


def masks(kind, shape):
    """Return no mask, one of numbers, or one of truth values that leaves the first key."""
    if kind == "none":
        return None
    if kind == "float":
        return torch.randn(shape, dtype=torch.float64)
    hidden = torch.rand(shape) > 0.6
    hidden[..., 0] = False
    return hidden


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(
    options=st.fixed_dictionaries(
        {"bias": flags, "add_bias_kv": flags, "add_zero_attn": flags, "batch_first": flags}
    ),
    sizes=st.sampled_from([(None, None), (5, 7), (8, 6), (5, None)]),
    lengths=st.sampled_from([(3, 3), (3, 5), (4, 1)]),
    is_batched=flags,
    padding=st.sampled_from(["none", "bool", "float"]),
    mask=st.sampled_from(["none", "bool", "float", "bool of heads", "float of heads"]),
    how=st.fixed_dictionaries({"need_weights": flags, "average_attn_weights": flags}),
    seed=st.integers(0, 99),
)
def test_outputs_weights_and_gradients_are_torch_s(
    options, sizes, lengths, is_batched, padding, mask, how, seed
):
    torch.manual_seed(seed)
    sparse, dense = pair(kdim=sizes[0], vdim=sizes[1], **options)
    samples = 2 if is_batched else 1
    targets, sources = lengths

    def sequence(length, size):
        shape = (length, size)
        if is_batched:
            shape = (2, length, size) if options["batch_first"] else (length, 2, size)
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    inputs = [sequence(targets, WIDTH)]
    inputs += [sequence(sources, size or WIDTH) for size in sizes]
    first = (samples * HEADS,) if "heads" in mask else ()
    how["attn_mask"] = masks(mask.split()[0], (*first, targets, sources))
    how["key_padding_mask"] = masks(padding, (samples, sources) if is_batched else (sources,))
    results = []
    for module in (sparse, dense):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # masks of two kinds
            outputs, weights = module(*inputs, **how)
        gradients = torch.autograd.grad(outputs.square().sum(), inputs, retain_graph=True)
        outputs.square().sum().backward(inputs=list(module.parameters()))
        results.append([outputs, *gradients, *([] if weights is None else [weights])])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    assert len(results[0]) == 4 + how["need_weights"]
    for layer, weight, bias in zip(sparse.projections.values(), *gradients_of(dense)):
        ours = weight.flatten()[layer.positions]
        torch.testing.assert_close(layer.values.grad, ours, rtol=1e-10, atol=1e-10)
        if bias is not None:
            torch.testing.assert_close(layer.bias.grad, bias, rtol=1e-10, atol=1e-10)


def gradients_of(dense):
    """Return the gradients of torch's four weights, and of its biases."""
    if dense.in_proj_weight is None:
        weights = [getattr(dense, f"{name}_weight").grad for name in PROJECTIONS[:3]]
    else:
        weights = [*dense.in_proj_weight.grad.chunk(3)]
    weights.append(dense.out_proj.weight.grad)
    if dense.in_proj_bias is None:
        return weights, [None] * 4
    return weights, [*dense.in_proj_bias.grad.chunk(3), dense.out_proj.bias.grad]


@pytest.mark.parametrize("needs", [True, False])
def test_dropout_is_torch_s_in_training_and_absent_in_evaluation(needs):
    sparse, dense = pair(dropout=0.5)
    x = torch.randn(5, 3, WIDTH, dtype=torch.float64)
    results = []
    for module in (sparse, dense):
        torch.manual_seed(0)
        results.append(module(x, x, x, need_weights=needs)[0])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    evaluated = sparse.eval()(x, x, x, need_weights=needs)[0]
    assert torch.equal(evaluated, sparse(x, x, x, need_weights=needs)[0])
    assert not torch.allclose(evaluated, results[0])
    torch.testing.assert_close(evaluated, dense.eval()(x, x, x)[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("needs", [True, False])
@pytest.mark.parametrize("is_padded", [True, False])
def test_a_causal_hint_means_what_it_means_to_torch(needs, is_padded):
    sparse, dense = pair(batch_first=True)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=x.dtype)
    how = {"attn_mask": mask, "is_causal": True, "need_weights": needs}
    how["key_padding_mask"] = torch.zeros(2, 5, dtype=x.dtype) if is_padded else None
    results = [module(x, x, x, **how) for module in (sparse, dense)]
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    unhinted = sparse(x, x, x, attn_mask=mask)[0]
    torch.testing.assert_close(results[0][0], unhinted, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"is_causal is a hint .* pass attn_mask"):
        sparse(x, x, x, is_causal=True)


@pytest.mark.slow
def test_torch_s_own_inputs_of_its_attentions_give_the_same():
    """In a process of its own: the module that holds them forbids global flags in every other."""
    program = """
import copy, torch, sparselib as sl
from torch import nn
from torch.testing._internal.common_modules import module_db
how = {"device": "cpu", "dtype": torch.float64, "requires_grad": False}
every = {nn.MultiheadAttention: 1, nn.TransformerEncoderLayer: 3, nn.TransformerDecoderLayer: 7}
for kind, step in every.items():
    (info,) = (entry for entry in module_db if entry.module_cls is kind)
    for training in (True, False):
        inputs = info.module_inputs_func(info, **how, training=training)
        for given in inputs[::step]:
            built, called = given.constructor_input, given.forward_input
            torch.manual_seed(0)
            layer = sl.sparsify(kind(*built.args, **built.kwargs).double(), 0.5)
            dense = sl.densify(copy.deepcopy(layer)).train(training)
            results = []
            for module in (layer.train(training), dense):
                torch.manual_seed(1)
                results.append(module(*called.args, **called.kwargs))
            torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    print(kind.__name__, len(inputs) > 1)
"""
    kinds = ["MultiheadAttention", "TransformerEncoderLayer", "TransformerDecoderLayer"]
    assert run_plain(program) == [f"{kind} True" for kind in kinds]


def encoder(layers=2, **options):
    block = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 16, dropout=0.0, batch_first=True, dtype=torch.float64, **options
    )
    return nn.TransformerEncoder(block, layers)


@pytest.mark.parametrize("skip", [(), ["layers.0"], ["layers.1"], [nn.MultiheadAttention]])
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_an_encoder_declines_the_inference_that_reads_dense_weights(skip, around):
    """Also in part sparse, and with padding at the end, where torch makes nested tensors of it."""
    model = encoder().eval()
    assert model.use_nested_tensor
    sl.sparsify(model, 0.5, skip=skip)
    assert not model.use_nested_tensor
    dense = sl.densify(copy.deepcopy(model))
    assert dense.use_nested_tensor
    assert [layer.activation_relu_or_gelu for layer in dense.layers] == [1, 1]
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [2]])
    with around():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-8, atol=1e-8)
        y = model(x, src_key_padding_mask=padding)
        expected = dense(x, src_key_padding_mask=padding)
    torch.testing.assert_close(y[~padding], expected[~padding], rtol=1e-8, atol=1e-8)


def test_an_encoder_is_built_of_a_sparse_layer():
    block = sl.sparsify(encoder(1), 0.5).layers[0]
    with pytest.warns(UserWarning, match="enable_nested_tensor is True, but"):
        model = nn.TransformerEncoder(block, 2).eval()
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [2]])
    with torch.no_grad():
        assert model(x, src_key_padding_mask=padding).shape == x.shape


def test_a_nested_tensor_is_refused_with_the_way_out():
    program = """
import torch, sparselib as sl
layer = sl.nn.SparseMultiheadAttention(8, 2, batch_first=True)
x = torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(3, 8)])
try:
    layer(x, x, x)
except ValueError as error:
    print(error)
"""
    (sentence,) = run_plain(program)
    assert "reads no nested tensor" in sentence
    assert "enable_nested_tensor=False" in sentence


RULES = [sl.SET, sl.RigL, sl.GradientGrowth, sl.LiSET]


@pytest.mark.parametrize("rule", RULES)
def test_rules_evolve_an_encoder_layer_and_its_twin_stays_equal(rule):
    torch.manual_seed(0)
    model = encoder(1).layers[0]
    sl.sparsify(model, 0.6)
    layers = sparse_layers(model)
    with torch.no_grad():
        for layer in layers.values():
            layer.values[::4] *= 1e-3  # below the threshold of GradientGrowth
    assert [name for name in layers if "attn" in name] == [f"self_attn.{p}" for p in PROJECTIONS]
    counts = {name: layer.values.numel() for name, layer in layers.items()}
    before = {name: layer.positions.clone() for name, layer in layers.items()}
    optimizer = torch.optim.Adam(sl.parameter_groups(model, lr=1e-3))
    evolution = rule(model, optimizer)
    x = torch.randn(4, 6, WIDTH, dtype=torch.float64)
    replaced = dict.fromkeys(layers, 0)
    for _ in range(20):
        optimizer.zero_grad()
        model(x)[..., 0].square().sum().backward()
        optimizer.step()
        for name, count in evolution.step().items():
            replaced[name] += count
    assert min(replaced.values()) > 0
    assert {name: layer.values.numel() for name, layer in layers.items()} == counts
    assert not any(torch.equal(layers[name].positions, before[name]) for name in layers)
    dense = sl.densify(copy.deepcopy(model.eval()))  # LiSET adds its skip layers in training
    torch.testing.assert_close(model(x), dense(x), rtol=1e-10, atol=1e-10)


def test_growth_sees_the_dense_gradient_of_each_projection():
    """The connections that RigL grows are those where torch's gradient is largest."""
    torch.manual_seed(0)
    sparse, dense = pair()
    model = nn.ModuleDict({"attention": sparse})
    x = torch.randn(5, 2, WIDTH, dtype=torch.float64)
    evolution = sl.RigL(model, torch.optim.SGD(model.parameters(), 0.0), fraction=0.25)
    for module in (sparse, dense):
        module(x, x, x)[0].square().sum().backward()
    before = [layer.positions.clone() for layer in sparse.projections.values()]
    evolution.step()
    weights, _ = gradients_of(dense)
    for old, layer, gradient in zip(before, sparse.projections.values(), weights):
        grown = layer.positions[~torch.isin(layer.positions, old)]
        absent = gradient.abs().flatten()
        absent[old] = -1
        assert set(grown.tolist()) == set(absent.topk(len(grown)).indices.tolist())


def test_a_mapping_and_a_skip_name_attentions_and_their_projections():
    model = encoder()
    first = "layers.0.self_attn"
    dense = copy.deepcopy(model)
    sl.sparsify(model, {first: 0.75, f"{first}.q_proj": 0.5, "layers.1.linear1": 0.5})
    shares = {name: layer.sparsity for name, layer in sparse_layers(model).items()}
    ours = dict(zip(PROJECTIONS, [0.5, 0.75, 0.75, 0.75]))
    assert shares == {f"{first}.{n}": s for n, s in ours.items()} | {"layers.1.linear1": 0.5}
    assert type(model.layers[1].self_attn) is nn.MultiheadAttention
    with pytest.raises(ValueError, match="nothing can be converted"):
        sl.sparsify(copy.deepcopy(dense), {f"{first}.in_proj": 0.5})
    skip = [f"{first}.out_proj", lambda name, _: name.endswith("v_proj"), "layers.1"]
    part = sl.sparsify(copy.deepcopy(dense), 0.5, skip=skip)
    attention = part.layers[0].self_attn
    kinds = [type(layer) for layer in attention.projections.values()]
    assert kinds == [sl.CSRLinear, sl.CSRLinear, nn.Linear, nn.Linear]
    assert torch.equal(attention.v_proj.weight, dense.layers[0].self_attn.in_proj_weight[16:])
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    expected = part(x)
    again = sl.densify(part)
    assert type(again.layers[0].self_attn) is nn.MultiheadAttention
    torch.testing.assert_close(again(x), expected, rtol=1e-10, atol=1e-10)
    plan = sl.Conversion(dense, 0.5, skip=[nn.MultiheadAttention])
    reasons = {entry.name: entry.reason for entry in plan.entries}
    assert {reasons[f"{first}.{name}"] for name in PROJECTIONS} == {"you skip it"}
    assert reasons["layers.0.linear1"] == ""


def test_the_report_and_the_distribution_see_four_matrices():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(WIDTH, HEADS, kdim=5, vdim=7)})
    with torch.no_grad():
        model["attention"].k_proj_weight *= 0.5
    plan = sl.Conversion(model, 0.5, distribution=sl.distribution.global_magnitude)
    kinds = {entry.name: (entry.kind, entry.before) for entry in plan.entries}
    sizes = dict(zip(PROJECTIONS, [64, 40, 56, 64]))
    assert kinds == {f"attention.{n}": ("MultiheadAttention", size) for n, size in sizes.items()}
    shares = {entry.name: entry.sparsity for entry in plan.entries}
    assert shares["attention.k_proj"] > 0.5 > shares["attention.q_proj"]
    plan.apply()
    kept = sum(layer.values.numel() for layer in sparse_layers(model).values())
    assert kept == sum(entry.after for entry in plan.entries)


def reasons_of(model):
    plan = sl.Conversion(nn.ModuleList([nn.Linear(4, 4), model]), 0.5)
    return {entry.name[2:]: entry.reason for entry in plan.entries if entry.name[0] == "1"}


class Derived(nn.MultiheadAttention):
    pass


def test_what_cannot_be_taken_apart_stays_dense_and_is_told():
    kept = "the attention reads its weight itself"
    derived = reasons_of(nn.ModuleDict({"a": Derived(WIDTH, HEADS)}))
    assert derived == {
        "a": "it is derived from a layer, and may read the weight itself",
        "a.out_proj": kept,
    }
    hooked = nn.MultiheadAttention(WIDTH, HEADS)
    hooked.register_forward_hook(lambda *_: None)
    assert "hooks of yours" in reasons_of(nn.ModuleDict({"a": hooked}))["a"]
    inside = nn.MultiheadAttention(WIDTH, HEADS)
    inside.out_proj.register_forward_hook(lambda *_: None)
    assert "hooks of yours" in reasons_of(nn.ModuleDict({"a": inside}))["a"]
    replaced = nn.MultiheadAttention(WIDTH, HEADS)
    replaced.out_proj = sl.CSRLinear(WIDTH, WIDTH, sparsity=0.5)
    assert reasons_of(nn.ModuleDict({"a": replaced})) == {"a": "its out_proj is a CSRLinear"}
    plain = Derived(WIDTH, HEADS)
    plain.out_proj = nn.Linear(WIDTH, WIDTH)
    assert reasons_of(nn.ModuleDict({"a": plain}))["a.out_proj"] == kept
    shared = nn.MultiheadAttention(WIDTH, HEADS)
    both = reasons_of(nn.ModuleDict({"a": shared, "b": shared.out_proj}))
    assert both["a"] == "its out_proj is also used by another module"


def test_a_packed_weight_that_is_tied_stays_dense():
    first, second = nn.MultiheadAttention(WIDTH, HEADS), nn.MultiheadAttention(WIDTH, HEADS)
    second.in_proj_weight = first.in_proj_weight
    model = nn.ModuleDict({"a": first, "b": second, "c": nn.Linear(WIDTH, 3 * WIDTH)})
    model["c"].bias = first.in_proj_bias
    reasons = reasons_of(model)
    assert reasons["a"] == "its in_proj_weight is also 1.b.in_proj_weight"
    assert reasons["b"] == "its in_proj_weight is also 1.a.in_proj_weight"
    assert reasons["c"] == "its bias is also 1.a.in_proj_bias, which stays dense"


def test_a_layer_used_twice_and_weights_that_two_outputs_share_stay_one():
    shared = nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.float64)
    other = nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.float64)
    other.out_proj.weight = shared.out_proj.weight
    other.out_proj.bias = shared.out_proj.bias
    model = sl.sparsify(nn.ModuleList([shared, shared, other]), 0.5)
    assert model[0] is model[1]
    assert model[0].out_proj.values is model[2].out_proj.values
    assert model[0].out_proj.bias is model[2].out_proj.bias
    dense = sl.densify(model)
    assert dense[0] is dense[1]
    assert dense[0].out_proj.weight is dense[2].out_proj.weight
    assert dense[0].out_proj.bias is dense[2].out_proj.bias


def test_frozen_numbers_and_added_keys_remain_what_they_were():
    attention = nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True)
    attention.in_proj_weight.requires_grad_(False)
    model = nn.ModuleList([attention])
    token = attention.bias_k
    sl.sparsify(model, 0.5)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    biases = {f"0.{name}.bias" for name in PROJECTIONS}
    assert trained == biases | {"0.out_proj.values", "0.bias_k", "0.bias_v"}
    assert model[0].bias_k is token
    twin = SparseMultiheadAttention.from_dense(attention)
    assert twin.bias_k is not token
    sl.densify(model)
    assert model[0].bias_k is token
    assert not model[0].in_proj_weight.requires_grad
    assert model[0].in_proj_bias.requires_grad


def test_what_torch_cannot_pack_is_refused_before_anything_changes():
    model = nn.ModuleDict({"a": SparseMultiheadAttention(WIDTH, HEADS, sparsity=0.5)})
    model["a"].q_proj.values.requires_grad_(False)
    with pytest.raises(ValueError, match="projections of 'a' are frozen and others are not"):
        sl.densify(model)
    model["b"] = SparseMultiheadAttention(WIDTH, HEADS, sparsity=0.5)
    model["b"].q_proj = model["a"].q_proj
    with pytest.raises(ValueError, match="projections of 'a' are shared with another layer"):
        sl.densify(model)
    assert len(sparse_layers(model)) == 7


def test_a_model_without_memory_is_converted_and_loaded():
    with torch.device("meta"):
        model = encoder()
    with pytest.raises(ValueError, match="device meta"):
        sl.sparsify(model, 0.5)
    sl.sparsify(model, 0.5, fresh=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    twin = sl.sparsify(encoder(), 0.5, fresh=True)
    model.load_state_dict(twin.state_dict(), assign=True)
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(model(x), twin(x))


@pytest.mark.parametrize("sizes", [{}, {"kdim": 100, "vdim": 300}])
def test_new_weights_vary_as_torch_s(sizes):
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(200, HEADS, **sizes)
    sparse = SparseMultiheadAttention(200, HEADS, **sizes, sparsity=0.75)
    model = nn.ModuleList([copy.deepcopy(dense)])
    converted = sl.sparsify(model, 0.75, fresh=True)[0]
    if sizes:
        weights = [dense.q_proj_weight, dense.k_proj_weight, dense.v_proj_weight]
    else:
        weights = [*dense.in_proj_weight.chunk(3)]
    for name, weight in zip(PROJECTIONS, [*weights, dense.out_proj.weight]):
        for attention in (sparse, converted):
            layer = attention.get_submodule(name)
            assert layer.sparsity == pytest.approx(0.75, abs=1e-3)
            assert layer.values.detach().std().item() == pytest.approx(
                2 * weight.std().item(), rel=0.03
            )
            assert not layer.bias.any()


def test_inputs_that_do_not_fit_are_refused():
    layer = SparseMultiheadAttention(WIDTH, HEADS, kdim=5, sparsity=0.5, batch_first=True)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 4, 5), torch.randn(2, 4, 8)
    with pytest.raises(ValueError, match=r"\[3, 2, 3\] dimensions"):
        layer(query, key[0], value)
    with pytest.raises(ValueError, match="4 keys of 1 samples, 4 values of 2"):
        layer(query, key[:1], value)
    with pytest.raises(ValueError, match="3 keys of 2 samples, 4 values of 2"):
        layer(query, key[:, :3], value)
    with pytest.raises(ValueError, match=r"attn_mask has the shape \(4, 3\)"):
        layer(query, key, value, attn_mask=torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"key_padding_mask has the shape \(2, 3\)"):
        layer(query, key, value, key_padding_mask=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="embed_dim=8 cannot be divided among num_heads=3"):
        SparseMultiheadAttention(8, 3)
    with pytest.raises(ValueError, match=r"computes what an nn.MultiheadAttention does"):
        SparseMultiheadAttention.from_dense(nn.LSTM(4, 4))


def test_who_reads_its_weights_is_told_what_there_is():
    layer = SparseMultiheadAttention(WIDTH, HEADS)
    assert not hasattr(layer, "in_proj_weight")
    with pytest.raises(AttributeError, match=r"no dense `q_proj_weight`.*skip="):
        print(layer.q_proj_weight)


def test_a_whole_model_of_torch_trains_and_comes_back_from_a_file(tmp_path):
    torch.manual_seed(0)
    model = nn.Transformer(WIDTH, HEADS, 1, 1, 16, dropout=0.0, batch_first=True)
    dense = copy.deepcopy(model)
    sl.sparsify(model, 0.5)
    assert len(sparse_layers(model)) == 3 * 4 + 2 * 2
    optimizer = torch.optim.AdamW(sl.parameter_groups(model, lr=1e-2))
    source, target = torch.randn(4, 6, WIDTH), torch.randn(4, 5, WIDTH)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(source, target).sub(target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    sl.checkpoint.save(tmp_path / "model.pt", model=model)
    twin = sl.sparsify(dense, 0.5, fresh=True).eval()
    sl.checkpoint.load(tmp_path / "model.pt", model=twin)
    torch.testing.assert_close(twin(source, target), model.eval()(source, target))
    file = io.BytesIO()
    torch.save(model, file)
    again = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert torch.equal(again(source, target), model(source, target))


@pytest.mark.slow
@pytest.mark.xdist_group("compiler")
def test_a_compiled_and_an_exported_encoder_layer_give_the_same():
    program = """
import torch, sparselib as sl
from torch import nn
model = sl.sparsify(nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), 0.5)
x = torch.randn(2, 5, 16, requires_grad=True)
compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
slopes = [torch.autograd.grad(one(x)[..., 0].sum(), x)[0] for one in (compiled, model)]
torch.testing.assert_close(*slopes)
exported = torch.export.export(model.eval(), (x,), strict=False).module()
torch.testing.assert_close(exported(x), model(x))
print("equal")
"""
    assert run_compiling(program) == ["equal"]
