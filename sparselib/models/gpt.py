"""A decoder of characters or other tokens: GPT with layers of one's choice."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sparselib.modes import in_evaluation
from sparselib.nn import SparseLayer, chain

# (in_features, out_features, bias=...) -> a layer
Maker = Callable[..., nn.Module]


class GPT(nn.Module):
    r"""Predicts the next token from those before it (Radford and others, 2019).

    Token and position embeddings, blocks of causal self-attention and a feed-forward network with
    GELU, each behind a normalization and beside a shortcut, and a linear layer with one output per
    token. Without biases in the layers, as in nanoGPT (Karpathy, 2022).

    Weights start as in GPT-2: normal with :math:`\sigma = 0.02`, in the layers that end a branch
    :math:`0.02 / \sqrt{2 L}` for L blocks. In sparse layers :math:`\sigma` is larger by
    :math:`1 / \sqrt\rho` at the density :math:`\rho`, so that outputs vary as much.

    Parameters
    ----------
    tokens : int
        Size of the vocabulary.
    context : int
        The most tokens that it reads at once.
    width : int
        Features of a token between the blocks.
    blocks, heads : int
        Number of blocks, and of attention heads in each; `heads` divides `width`.
    hidden : int, optional
        Width of the feed-forward networks; four times `width` by default.
    feed_forward, attention : callable
        ``(in_features, out_features, bias=False) -> nn.Module`` makes their layers: ``nn.Linear``,
        or ``partial(CSRLinear, sparsity=0.9)``.
    dropout : float
        Probability that an entry is set to zero in training.

    Raises
    ------
    ValueError
        If a size is impossible or `heads` does not divide `width`.
    """

    def __init__(
        self,
        tokens: int,
        context: int,
        width: int = 384,
        blocks: int = 6,
        heads: int = 6,
        hidden: int | None = None,
        *,
        feed_forward: Maker = nn.Linear,
        attention: Maker = nn.Linear,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = 4 * width if hidden is None else hidden
        sizes = (tokens, context, width, blocks, heads, hidden)
        if min(sizes) < 1 or width % heads:
            raise ValueError(
                f"a GPT has sizes from 1 and a width that its heads divide, not tokens, context, "
                f"width, blocks, heads, hidden = {sizes}"
            )
        self.context = context
        self.token = nn.Embedding(tokens, width)
        self.position = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                Attention(width, heads, attention, dropout),
                FeedForward(width, hidden, feed_forward, dropout),
                width,
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens, bias=False)
        self._initialize()

    def forward(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length tokens"]:
        """Return the logits of the token after each.

        Raises
        ------
        ValueError
            If there are more than `context` tokens.
        """
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(
                f"this GPT reads {self.context} tokens at once, not {length}"
            )
        places = torch.arange(length, device=tokens.device)
        x = self.dropout(self.token(tokens) + self.position(places))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    @torch.no_grad()
    def generate(
        self,
        tokens: Int[Tensor, "batch length"],
        count: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch longer"]:
        r"""Draw `count` tokens, one after the other, and return them behind those given.

        Each is drawn from :math:`softmax(z / T)` of its logits z at the temperature T; at 0 the
        likeliest is taken. Of more tokens than the context only the last are read.

        Raises
        ------
        ValueError
            If there is no token to go on from, or the temperature is negative.
        """
        if tokens.shape[1] == 0 or temperature < 0:
            raise ValueError(
                f"generation starts from at least one token at a temperature from 0, not from "
                f"{tokens.shape[1]} tokens at {temperature}"
            )
        with in_evaluation(self):
            for _ in range(count):
                logits = self(tokens[:, -self.context :])[:, -1]
                following = _choose(logits, temperature, generator)
                tokens = torch.cat([tokens, following], 1)
        return tokens

    @torch.no_grad()
    def _initialize(self) -> None:
        branches = (Attention, FeedForward)
        parts = [part for part in self.modules() if isinstance(part, branches)]
        ends = {part.output for part in parts}
        for module in self.modules():
            scale = 0.02
            if module in ends:
                scale /= math.sqrt(len(parts))
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, scale)
            elif isinstance(module, SparseLayer):
                density = 1 - module.sparsity
                module.values.normal_(0.0, scale / math.sqrt(density))


class Block(nn.Module):
    """Attention and feed-forward network, each behind a normalization and beside a shortcut."""

    def __init__(
        self, attention: "Attention", feed_forward: "FeedForward", width: int
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = attention
        self.norm_feed_forward = nn.LayerNorm(width)
        self.feed_forward = feed_forward

    def forward(
        self, x: Float[Tensor, "batch length width"]
    ) -> Float[Tensor, "batch length width"]:
        """Return x + attention, and to that sum the feed-forward network's outputs."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.feed_forward(self.norm_feed_forward(x))


class Attention(nn.Module):
    """Causal self-attention of several heads (Vaswani and others, 2017)."""

    def __init__(
        self, width: int, heads: int, layer: Maker, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.input = layer(width, 3 * width, bias=False)
        self.output = layer(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch length width"]
    ) -> Float[Tensor, "batch length width"]:
        """Let each token gather from itself and those before it."""
        parts = self.input(x).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        gathered = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        joined = gathered.transpose(1, 2).flatten(2)
        return self.dropout(self.output(joined))


class FeedForward(nn.Module):
    """Two layers with GELU between them, for each token alone."""

    def __init__(
        self, width: int, hidden: int, layer: Maker, dropout: float
    ) -> None:
        super().__init__()
        self.input = layer(width, hidden, bias=False)
        self.activation = nn.GELU()
        self.output = layer(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch length width"]
    ) -> Float[Tensor, "batch length width"]:
        """Return the second layer's outputs."""
        layers = [self.input, self.output]
        return self.dropout(chain(layers, self.activation, x))


def _choose(
    logits: Float[Tensor, "batch tokens"],
    temperature: float,
    generator: torch.Generator | None,
) -> Int[Tensor, "batch 1"]:
    if temperature == 0:
        return logits.argmax(1, keepdim=True)
    chances = (logits / temperature).softmax(1)
    return torch.multinomial(chances, 1, generator=generator)
