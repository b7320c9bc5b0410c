"""The decoder: what it may see, how it starts, and what it generates."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

import sparselib as sl

SPARSE = partial(sl.CSRLinear, sparsity=0.8)


def small(**options):
    torch.manual_seed(0)
    return sl.models.GPT(11, 8, width=24, blocks=2, heads=3, **options)


@pytest.mark.parametrize("layer", [nn.Linear, SPARSE], ids=["dense", "sparse"])
def test_a_token_changes_nothing_before_it(layer):
    model = small(feed_forward=layer, attention=layer)
    for parameter in model.parameters():
        nn.init.normal_(parameter.data, std=0.5)
    tokens = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(1))
    logits = model(tokens)
    for place in range(8):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % 11
        changed = model(other)
        assert torch.allclose(changed[:, :place], logits[:, :place], atol=1e-6)
        assert not torch.allclose(changed[:, place], logits[:, place], atol=1e-3)


def test_a_sparse_decoder_computes_what_its_dense_twin_does():
    model = small(feed_forward=SPARSE, attention=SPARSE).double()
    assert len(sl.nn.sparse_layers(model)) == 8
    tokens = torch.randint(11, (3, 8))
    logits = model(tokens)
    sl.densify(model)
    assert len(sl.nn.sparse_layers(model)) == 0
    torch.testing.assert_close(model(tokens), logits, rtol=0, atol=1e-10)


def test_attention_is_that_of_the_equation():
    torch.manual_seed(0)
    attention = sl.models.gpt.Attention(6, 2, nn.Linear, 0.0)
    x = torch.randn(1, 5, 6)
    query, key, value = attention.input(x)[0].split(6, 1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        scores = query[:, head] @ key[:, head].t() / 3**0.5
        scores.masked_fill_(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(1) @ value[:, head])
    expected = attention.output(torch.cat(heads, 1))
    torch.testing.assert_close(attention(x)[0], expected)


def test_layers_start_with_equal_output_variance_whatever_their_density():
    torch.manual_seed(0)
    makers = [nn.Linear, partial(sl.CSRLinear, sparsity=0.9)]
    x = torch.randn(4000, 384)
    for sigma, name in ((0.02, "input"), (0.02 / 8**0.5, "output")):
        for make in makers:
            model = sl.models.GPT(9, 4, 384, 4, 6, 384, feed_forward=make, attention=make)
            layer = getattr(model.blocks[1].feed_forward, name)
            assert layer(x).std().item() == pytest.approx(sigma * 384**0.5, rel=0.02)
            own = getattr(model.blocks[0].attention, name)
            assert own(x).std().item() == pytest.approx(sigma * 384**0.5, rel=0.02)


def test_the_loss_at_initialization_is_that_of_chance():
    model = small()
    tokens = torch.randint(11, (64, 8))
    loss = functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(torch.tensor(11.0).log().item(), abs=0.05)


@pytest.mark.slow
def test_training_a_sparse_decoder_learns_a_text_by_heart():
    text = sl.datasets.text.Text.from_string("to be or not to be, " * 20, 8, "own", "")
    torch.manual_seed(0)
    size = len(text.characters)
    model = sl.models.GPT(size, 8, 24, 1, 3, feed_forward=SPARSE, attention=SPARSE)
    optimizer = torch.optim.AdamW(sl.parameter_groups(model, lr=3e-3))

    def loss(model, batch):
        return functional.cross_entropy(model(batch.x).flatten(0, 1), batch.y.flatten())

    data = text.drawn(2000)
    history = sl.fit(
        model, data, optimizer, 2, batch_size=8, loss=loss, measure=lambda *_: {}, progress=False
    )
    assert history["loss"][-1] < 0.3
    start = text.encode("to be or")[None]
    assert text.decode(model.generate(start, 12, temperature=0)[0]) == "to be or not to be, "


def test_generation_draws_by_the_predicted_chances():
    model = small()
    model.head.weight.data.normal_(std=0.5)
    start = torch.tensor([[3, 4]])
    chances = model(start)[0, -1].div(0.7).softmax(0)
    draw = torch.Generator().manual_seed(0)
    found = model.generate(start.expand(20_000, 2), 1, temperature=0.7, generator=draw)[:, 2]
    shares = found.bincount(minlength=11) / 20_000
    assert (shares - chances).abs().max() < 0.015
    one = model.generate(start, 20, generator=torch.Generator().manual_seed(1))
    assert one.shape == (1, 22)
    assert torch.equal(one, model.generate(start, 20, generator=torch.Generator().manual_seed(1)))
    assert model.training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sl.models.GPT(11, 8, 25, 1, 3), r"heads divide, not .* \(11, 8, 25, 1, 3, 100\)"),
        (lambda: sl.models.GPT(11, 0, 24, 1, 3), "sizes from 1"),
        (lambda: small()(torch.zeros(1, 9).long()), "reads 8 tokens at once, not 9"),
        (lambda: small().generate(torch.zeros(1, 0).long(), 1), "not from 0 tokens at 1.0"),
        (lambda: small().generate(torch.zeros(1, 1).long(), 1, temperature=-1.0), "tokens at -1.0"),
    ],
)
def test_impossible_sizes_and_inputs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
