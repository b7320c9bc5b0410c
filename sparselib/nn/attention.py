"""Multi-head attention whose projections are sparse."""

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparselib.nn._options import Initialize, KeptOptions, LinearOptions
from sparselib.nn.linear import CSRLinear

INPUTS = ("q_proj", "k_proj", "v_proj")
OUTPUT = "out_proj"
Projection = CSRLinear | nn.Linear
Maybe = Tensor | None
_DENSE = ("in_proj_weight", *(f"{name}_weight" for name in INPUTS))


@final
class SparseMultiheadAttention(nn.Module):
    r"""Multi-head attention (Vaswani et al., 2017) whose four projections are `CSRLinear` layers.

    .. math:: y = W_O \, [h_1; \dots; h_H] + b_O, \qquad
        h_i = \mathrm{softmax}\left(q_i k_i^T / \sqrt{d}\right) v_i

    Drop-in for ``nn.MultiheadAttention``, whose arguments come first, in its order and with its
    meaning, in the constructor and in the call. Queries, keys and values have a projection each,
    also where torch packs the three matrices into one, so that each evolves with a count of its
    own. A projection may also be an ``nn.Linear``, as where `sparsify` leaves it dense.

    Parameters
    ----------
    embed_dim : int
        Size of queries and outputs.
    num_heads : int
        Number of heads, among which `embed_dim` is divided.
    dropout : float
        Probability that an attention weight is dropped in training.
    bias : bool
        Learn additive biases of the projections, zero at initialization.
    add_bias_kv : bool
        Learn one more key and value, which every query sees.
    add_zero_attn : bool
        Add a key and a value of zeros.
    kdim, vdim : int, optional
        Sizes of keys and values; `embed_dim` by default.
    batch_first : bool
        Whether batched tensors are (batch, length, size) instead of (length, batch, size).
    device, dtype
        As for ``nn.MultiheadAttention``.
    sparsity : float
        Share of absent weights of each projection, in [0, 1).
    **options
        Passed on to the four `CSRLinear`. By default weights are drawn such that the projections
        vary as those of ``nn.MultiheadAttention``.

    Attributes
    ----------
    q_proj, k_proj, v_proj, out_proj : CSRLinear or nn.Linear
        The projections.
    bias_k, bias_v : nn.Parameter of shape (1, 1, embed_dim), or None
        The additional key and value.

    Raises
    ------
    ValueError
        If a size or the sparsity is impossible, or inputs and masks do not fit together.
    """

    # what fused inference of torch's encoder asks for, which reads dense weights
    in_proj_bias = None
    _qkv_same_embed_dim = False
    q_proj: Projection
    k_proj: Projection
    v_proj: Projection
    out_proj: Projection
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        sparsity: float | int = 0.9,
        **options: Unpack[LinearOptions],
    ) -> None:
        super().__init__()
        if embed_dim <= 0 or num_heads <= 0 or embed_dim % num_heads:
            raise ValueError(
                f"embed_dim={embed_dim} cannot be divided among num_heads={num_heads}"
            )
        like = nn.MultiheadAttention(
            embed_dim,
            num_heads,
            dropout,
            bias,
            False,
            add_zero_attn,
            kdim,
            vdim,
            batch_first,
            device="meta",
            dtype=dtype,
        )
        self._describe(like)
        for name, linear in projections_of(like).items():
            given = options
            if name in INPUTS:
                given = {"init": initialization_of(like), **options}
            layer = CSRLinear(
                linear.in_features,
                linear.out_features,
                bias,
                device,
                dtype,
                sparsity=sparsity,
                **given,
            )
            self.add_module(name, layer)
        for name in ("bias_k", "bias_v"):
            token = None
            if add_bias_kv:
                empty = torch.empty(1, 1, embed_dim, device=device, dtype=dtype)
                token = nn.Parameter(nn.init.xavier_normal_(empty))
            self.register_parameter(name, token)

    def _describe(self, like: nn.MultiheadAttention) -> None:
        """Take sizes and settings of an attention."""
        self.embed_dim: int = like.embed_dim
        self.kdim: int = like.kdim
        self.vdim: int = like.vdim
        self.num_heads: int = like.num_heads
        self.head_dim: int = like.head_dim
        self.dropout: float = like.dropout
        self.batch_first: bool = like.batch_first
        self.add_zero_attn: bool = like.add_zero_attn

    def __getattr__(self, name: str) -> Any:
        """Say what there is instead of dense weights; else as ``nn.Module``."""
        if name in _DENSE:
            raise AttributeError(
                f"a SparseMultiheadAttention has no dense `{name}`, but the layers "
                f"{', '.join(INPUTS)} and {OUTPUT}; where a model reads weights itself, leave the "
                f"attention dense: sl.sparsify(model, ..., skip=[its name])"
            )
        return super().__getattr__(name)

    @classmethod
    def from_dense(
        cls,
        dense: nn.MultiheadAttention,
        sparsity: float | None = None,
        **options: Unpack[KeptOptions],
    ) -> "SparseMultiheadAttention":
        """Build from a dense attention, keeping the largest weights of each projection.

        Without `sparsity`, exactly the nonzero weights are kept.

        Raises
        ------
        ValueError
            If it is no ``nn.MultiheadAttention``, or the sparsity is outside [0, 1).
        """
        if not isinstance(dense, nn.MultiheadAttention):
            raise ValueError(
                f"a SparseMultiheadAttention computes what an nn.MultiheadAttention does, not a "
                f"{type(dense).__name__}"
            )
        layer = assembled(
            dense,
            {
                name: CSRLinear.from_dense(linear, sparsity, **options)
                for name, linear in projections_of(dense).items()
            },
        )
        layer.bias_k = copy.deepcopy(layer.bias_k)
        layer.bias_v = copy.deepcopy(layer.bias_v)
        return layer

    def to_dense(self) -> nn.MultiheadAttention:
        """Return the ``nn.MultiheadAttention`` with the same outputs."""
        twin = packed(
            self,
            {
                name: layer.to_dense()
                if isinstance(layer, CSRLinear)
                else copy.deepcopy(layer)
                for name, layer in self.projections.items()
            },
        )
        twin.bias_k = copy.deepcopy(self.bias_k)
        twin.bias_v = copy.deepcopy(self.bias_v)
        return twin

    @property
    def projections(self) -> dict[str, Projection]:
        """The four layers by name."""
        layers = (self.q_proj, self.k_proj, self.v_proj, self.out_proj)
        return dict(zip((*INPUTS, OUTPUT), layers))

    @property
    def is_packed(self) -> bool:
        """Whether torch keeps the matrices of queries, keys and values in one."""
        return self.kdim == self.embed_dim == self.vdim

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Maybe = None,
        need_weights: bool = True,
        attn_mask: Maybe = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Maybe]:
        """Return outputs and, if they are needed, attention weights.

        Parameters
        ----------
        query : Tensor, shape (L, N, embed_dim), (N, L, embed_dim) or (L, embed_dim)
            N samples of L queries, by `batch_first`, or one sample.
        key, value : Tensor, shape (S, N, kdim) and (S, N, vdim), or likewise
            Keys and values.
        key_padding_mask : Tensor, shape (N, S) or (S,), optional
            True at keys that nobody sees, or numbers to add.
        need_weights : bool
            Return the attention weights; without them the fused attention of torch is used.
        attn_mask : Tensor, shape (L, S) or (N num_heads, L, S), optional
            True where a query does not see a key, or numbers to add.
        average_attn_weights : bool
            Average the weights over heads: (N, L, S) instead of (N, num_heads, L, S).
        is_causal : bool
            The hint that `attn_mask` is the causal mask.
        """
        _refuse_nested(query, key, value)
        is_batched = _is_batched(query, key, value)
        if is_causal and attn_mask is None:
            raise ValueError(
                "is_causal is a hint that attn_mask is causal; pass attn_mask, too, such as "
                "nn.Transformer.generate_square_subsequent_mask(length)"
            )
        if not is_batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        q = self._batch_first(self.q_proj(query))
        k = self._batch_first(self.k_proj(key))
        v = self._batch_first(self.v_proj(value))
        _check_fit(q, k, v)
        mask = self._mask(key_padding_mask, attn_mask, query.dtype, q, k)
        is_hint = is_causal and key_padding_mask is None and not need_weights
        attend = self._weighted if need_weights else self._fused
        heads, weights = attend(
            self._heads(q),
            self._heads(self._extended(k, self.bias_k)),
            self._heads(self._extended(v, self.bias_v)),
            None if is_hint else mask,
            is_hint,
        )
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not is_batched:
            outputs = self.out_proj(heads.squeeze(0).transpose(0, 1).flatten(1))
            return outputs, None if weights is None else weights.squeeze(0)
        order = (0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)
        return self.out_proj(heads.permute(order).flatten(2)), weights

    def _batch_first(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _heads(self, x: Tensor) -> Tensor:
        """Split (N, length, embed_dim) into (N, num_heads, length, head_dim)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _extended(self, x: Tensor, token: Maybe) -> Tensor:
        """Add what every query sees to keys or values (N, S, embed_dim)."""
        if token is not None:
            x = torch.cat([x, token.expand(len(x), 1, -1)], dim=1)
        return functional.pad(x, (0, 0, 0, 1)) if self.add_zero_attn else x

    def _mask(
        self,
        padding: Maybe,
        attn_mask: Maybe,
        dtype: torch.dtype,
        q: Tensor,
        k: Tensor,
    ) -> Maybe:
        """Return both masks as one of numbers, (N or 1, num_heads or 1, L or 1, keys)."""
        padding = functional._canonical_mask(
            padding,
            "key_padding_mask",
            functional._none_or_dtype(attn_mask),
            "attn_mask",
            dtype,
        )
        mask = functional._canonical_mask(
            attn_mask, "attn_mask", None, "", dtype, False
        )
        batch, targets, _ = q.shape
        sources = k.shape[1]
        if mask is not None:
            every = (batch * self.num_heads, targets, sources)
            if mask.shape not in (every, every[1:]):
                raise ValueError(
                    f"attn_mask has the shape {tuple(mask.shape)}; {targets} queries of {sources} "
                    f"keys need {every[1:]}, or {every} for {batch} samples and "
                    f"{self.num_heads} heads"
                )
            if mask.ndim == 3:
                mask = mask.unflatten(0, (batch, self.num_heads))
            else:
                mask = mask[None, None]
        if padding is not None:
            if padding.shape != (batch, sources):
                raise ValueError(
                    f"key_padding_mask has the shape {tuple(padding.shape)}; {batch} samples of "
                    f"{sources} keys need {(batch, sources)}"
                )
            padding = padding[:, None, None]
            mask = padding if mask is None else mask + padding
        added = (self.bias_k is not None) + self.add_zero_attn
        return mask if mask is None else functional.pad(mask, (0, added))

    def _fused(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Maybe, is_causal: bool
    ) -> tuple[Tensor, None]:
        share = self.dropout if self.training else 0.0
        heads = functional.scaled_dot_product_attention(
            q, k, v, mask, share, is_causal
        )
        return heads, None

    def _weighted(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Maybe, _: bool
    ) -> tuple[Tensor, Tensor]:
        scores = (q / math.sqrt(self.head_dim)) @ k.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(dim=-1)
        weights = functional.dropout(weights, self.dropout, self.training)
        return weights @ v, weights

    def extra_repr(self) -> str:
        """Sizes, and what differs from the defaults."""
        text = f"{self.embed_dim}, {self.num_heads}"
        if self.dropout:
            text += f", dropout={self.dropout}"
        if self.batch_first:
            text += ", batch_first=True"
        return text


def projections_of(attention: nn.MultiheadAttention) -> dict[str, nn.Linear]:
    """Return the four projections as layers, by name; their numbers remain where they are.

    Parts of what torch packs are parameters of their own; all else is the attention's own.
    """
    if attention.in_proj_weight is None:
        weights: list[Tensor] = [
            *(attention.q_proj_weight, attention.k_proj_weight),
            attention.v_proj_weight,
        ]
    else:
        weights = [*_parts(attention.in_proj_weight)]
    biases: list[nn.Parameter | None] = [None] * 3
    if attention.in_proj_bias is not None:
        biases = [*_parts(attention.in_proj_bias)]
    weights.append(attention.out_proj.weight)
    biases.append(attention.out_proj.bias)
    layers = map(_linear, weights, biases)
    found = dict(zip((*INPUTS, OUTPUT), layers, strict=True))
    return {name: one.train(attention.training) for name, one in found.items()}


def _parts(parameter: Tensor) -> list[nn.Parameter]:
    """Cut what torch packs."""
    return [
        nn.Parameter(part, parameter.requires_grad)
        for part in parameter.detach().chunk(3)
    ]


def _linear(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias is not None, device="meta")
    linear.weight = weight
    if bias is not None:
        linear.bias = bias
    return linear


def initialization_of(attention: nn.MultiheadAttention) -> Initialize:
    """Return what draws weights of the variance that the attention's input projections have.

    Torch draws them uniformly (Glorot and Bengio, 2010), three at once where it packs them.
    """
    is_packed = attention.in_proj_weight is not None
    return partial(_glorot_, rows=attention.embed_dim * (3 if is_packed else 1))


@torch.no_grad()
def _glorot_(
    values: Tensor,
    shape: tuple[int, int],
    generator: torch.Generator | None = None,
    *,
    rows: int,
) -> Tensor:
    density = values.numel() / max(shape[0] * shape[1], 1)
    bound = math.sqrt(6 / (rows + shape[1]) / max(density, 1e-12))
    return values.uniform_(-bound, bound, generator=generator)


def assembled(
    attention: nn.MultiheadAttention, projections: Mapping[str, nn.Module]
) -> SparseMultiheadAttention:
    """Return an attention with other projections; all else remains the attention's own.

    A projection that is not passed is dense, and has numbers of its own where torch packs them.
    """
    made = SparseMultiheadAttention.__new__(SparseMultiheadAttention)
    nn.Module.__init__(made)
    made._describe(attention)
    for name, linear in projections_of(attention).items():
        layer = projections.get(name)
        if layer is None and name in INPUTS:
            layer = _apart(linear, attention.in_proj_weight is not None)
        made.add_module(name, layer or linear)
    for name in ("bias_k", "bias_v"):
        made.register_parameter(name, attention._parameters.get(name))
    made.training = attention.training
    return made


def _apart(linear: nn.Linear, is_packed: bool) -> nn.Linear:
    """Give a part of what torch packs memory of its own."""
    if is_packed:
        linear.weight = copy.deepcopy(linear.weight)
    linear.bias = copy.deepcopy(linear.bias)
    return linear


def packed(
    attention: SparseMultiheadAttention, projections: Mapping[str, nn.Linear]
) -> nn.MultiheadAttention:
    """Return torch's attention with dense projections; what it does not pack remains the same."""
    layers = [projections[name] for name in INPUTS]
    weights = [layer.weight for layer in layers]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    output = projections[OUTPUT]
    made = nn.MultiheadAttention(
        attention.embed_dim,
        attention.num_heads,
        attention.dropout,
        bool(biases),
        False,
        attention.add_zero_attn,
        attention.kdim,
        attention.vdim,
        attention.batch_first,
        device="meta",
        dtype=output.weight.dtype,
    )
    if attention.is_packed:
        made.in_proj_weight = _whole(weights)
    else:
        for name, weight in zip(INPUTS, weights):
            setattr(made, f"{name}_weight", weight)
    if biases:
        made.in_proj_bias = _whole(biases)
    made.out_proj.weight = output.weight
    made.out_proj.bias = output.bias
    made.bias_k = attention.bias_k
    made.bias_v = attention.bias_v
    return made.train(attention.training)


def _whole(parts: Sequence[Tensor]) -> nn.Parameter:
    """Pack what torch keeps in one."""
    numbers = torch.cat([part.detach() for part in parts])
    return nn.Parameter(numbers, any(part.requires_grad for part in parts))


def _refuse_nested(*tensors: Tensor) -> None:
    if any(tensor.is_nested for tensor in tensors):
        raise ValueError(
            "a SparseMultiheadAttention reads no nested tensor; pass a padded one with "
            "key_padding_mask, and build an nn.TransformerEncoder with enable_nested_tensor=False"
        )


def _is_batched(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether there are several samples.

    Raises
    ------
    ValueError
        If the tensors have other numbers of dimensions than one or several samples have.
    """
    dimensions = [query.ndim, key.ndim, value.ndim]
    if dimensions not in ([2] * 3, [3] * 3):
        raise ValueError(
            f"query, key and value have {dimensions} dimensions; all have 3, or 2 for one sample"
        )
    return query.ndim == 3


def _check_fit(q: Tensor, k: Tensor, v: Tensor) -> None:
    """See that projections (N, length, embed_dim) are of as many samples, keys and values."""
    if k.shape != v.shape or len(q) != len(k):
        raise ValueError(
            f"there are {k.shape[1]} keys of {len(k)} samples, {v.shape[1]} values of {len(v)}, "
            f"and queries of {len(q)}; each key has a value, and all have as many samples"
        )
