"""Models of the package transformers become sparse, train, evolve, and come back from a file."""

import copy
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import sparselib as sl

# it is loaded where it is needed, and not by each process that collects the tests
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed"),
]

WIDTH = 32
WORDS = 50


def tokens(samples=2, length=12):
    return torch.randint(0, WORDS, (samples, length))


def gpt2():
    import transformers

    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=32, n_embd=WIDTH, n_layer=2, n_head=4, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config), {"input_ids": tokens()}, 8, ()


def bert():
    import transformers

    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config), {"input_ids": tokens()}, 14, ()


def llama():
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), {"input_ids": tokens()}, 15, ()


def vit():
    import transformers

    config = transformers.ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        image_size=16, patch_size=8,
    )  # fmt: skip
    images = torch.randn(2, 3, 16, 16)
    return transformers.ViTForImageClassification(config), {"pixel_values": images}, 13, ()


def t5():
    import transformers

    config = transformers.T5Config(
        vocab_size=WORDS, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    given = {"input_ids": tokens(), "decoder_input_ids": tokens(length=5)}
    # its feed-forward block looks at the type of wo.weight
    skip = [lambda name, _: name.endswith(".wo")]
    return transformers.T5ForConditionalGeneration(config), given, 28, skip


def whisper():
    import transformers

    config = transformers.WhisperConfig(
        vocab_size=WORDS, d_model=WIDTH, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=20, max_target_positions=20,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    sound = torch.randn(2, 8, 40)
    given = {"input_features": sound, "decoder_input_ids": tokens(length=5)}
    return transformers.WhisperForConditionalGeneration(config), given, 32, ()


def mamba():
    import transformers

    config = transformers.MambaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, state_size=4, num_hidden_layers=2
    )
    # its fused block is given these weights
    skip = [lambda name, _: name.endswith(("x_proj", "dt_proj", "out_proj"))]
    return transformers.MambaForCausalLM(config), {"input_ids": tokens()}, 2, skip


def resnet():
    import transformers

    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    images = torch.randn(2, 3, 32, 32)
    return transformers.ResNetForImageClassification(config), {"pixel_values": images}, 1, ()


def mobilenet():
    import transformers

    config = transformers.MobileNetV2Config(depth_multiplier=0.25, image_size=32)
    images = torch.randn(2, 3, 32, 32)
    return transformers.MobileNetV2ForImageClassification(config), {"pixel_values": images}, 1, ()


ARCHITECTURES = [gpt2, bert, llama, vit, t5, whisper, mamba, resnet, mobilenet]


def loss_of(model, given):
    scores = model(**given).logits.float()
    return scores.logsumexp(-1).mean() - scores[..., 0].mean()


@pytest.mark.parametrize("make", ARCHITECTURES)
def test_a_model_is_converted_trained_evolved_and_loaded(make, tmp_path):
    torch.manual_seed(0)
    model, given, layers, skip = make()
    dense = copy.deepcopy(model)
    sl.sparsify(model, 0.75, skip=skip)
    assert len(sl.nn.sparse_layers(model)) == layers
    optimizer = torch.optim.AdamW(sl.parameter_groups(model, lr=1e-3))
    rules = [
        sl.SET(model, optimizer),
        sl.RigL(model, optimizer),
        sl.GradientGrowth(model, optimizer),
        sl.Evolution(model, optimizer, sl.drop.magnitude, sl.grow.full_gradient),
    ]
    first = loss_of(model, given).item()
    replaced = 0
    for step in range(20):
        optimizer.zero_grad()
        loss_of(model, given).backward()
        optimizer.step()
        if step % 5 == 4:
            replaced += sum(rules[step // 5].step().values())
    assert replaced > 0
    assert loss_of(model, given).item() < first
    model.eval()
    expected = model(**given).logits
    file = tmp_path / "model.safetensors"
    sl.checkpoint.save(file, model=model)
    twin = sl.sparsify(dense, 0.75, skip=skip, fresh=True).eval()
    sl.checkpoint.load(file, model=twin)
    assert torch.equal(twin(**given).logits, expected)


def test_gpt2_keeps_its_tie_and_says_so():
    model, *_ = gpt2()
    plan = sl.Conversion(model, 0.75)
    reasons = {entry.name: entry.reason for entry in plan.entries if entry.reason}
    assert reasons == {"lm_head": "its weight is also transformer.wte.weight, which stays dense"}
    plan.apply()
    assert model.lm_head.weight is model.transformer.wte.weight
    layer = model.transformer.h[0].attn.c_attn
    assert layer.shape == (3 * WIDTH, WIDTH)


def test_a_layer_with_a_transposed_weight_gives_what_it_gave():
    import transformers

    torch.manual_seed(0)
    dense = transformers.pytorch_utils.Conv1D(7, 5)
    nn.init.normal_(dense.bias)
    sparse = sl.sparsify(copy.deepcopy(dense), 0.0)
    x = torch.randn(3, 5)
    torch.testing.assert_close(sparse(x), dense(x))


def test_a_trainer_evolves_by_a_callback(tmp_path):
    import transformers

    class Evolve(transformers.TrainerCallback):
        """What a user writes: an evolution between the optimizer's step and the gradient's end."""

        def __init__(self, evolution, every):
            self.evolution = evolution
            self.every = every

        def on_optimizer_step(self, args, state, control, **_):
            """Evolve every few steps."""
            if (state.global_step + 1) % self.every == 0:
                self.evolution.step()

    torch.manual_seed(0)
    model, *_ = gpt2()
    sl.sparsify(model, 0.75)
    optimizer = torch.optim.AdamW(sl.parameter_groups(model, lr=1e-3))
    evolution = sl.RigL(model, optimizer)
    before = [layer.positions for layer in sl.nn.sparse_layers(model).values()]
    words = tokens(16)
    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=6, per_device_train_batch_size=4, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(
        model,
        settings,
        train_dataset=[{"input_ids": row, "labels": row} for row in words],
        optimizers=(optimizer, None),
        callbacks=[Evolve(evolution, 3)],
    )
    trainer.train()
    assert evolution.steps == 2
    after = [layer.positions for layer in sl.nn.sparse_layers(model).values()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after))
