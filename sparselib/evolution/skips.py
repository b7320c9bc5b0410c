"""The skip layers of LiSET: linear shortcuts from the sparse layers' inputs to the output."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class LinearSkips(nn.Module):
    """Dense layers from the input of some layers straight to the output (Radu, Section 3).

    Nothing in the model changes: hooks read what each of the layers reads, and add what the skip
    layers make of it to what the model returns, while it is in training mode. In evaluation mode
    and in the model's ``state_dict`` there is the main network alone.

    Parameters
    ----------
    model : nn.Module
        Returns a tensor of shape (batch, outputs).
    layers : dict of str to nn.Module
        The layers of the model to go round, each with `in_features`.
    outputs : int
        Features that the model returns.
    dropout : float
        Probability that a skip layer rests for a batch. Nothing is rescaled.
    seed : int
        Of the weights, at first by the law of ``nn.Linear``, and of the coins that decide who
        rests.

    Raises
    ------
    ValueError
        If there is no layer, or `dropout` is no probability.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, Any],
        outputs: int,
        dropout: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not layers or not 0 <= dropout <= 1:
            raise ValueError(
                f"skip layers need a layer to go round and a dropout in [0, 1], not the layers "
                f"{sorted(layers)} and dropout={dropout}"
            )
        like = next(model.parameters())
        self.names, self.dropout = list(layers), dropout
        self.layers: Any = nn.ModuleList(
            nn.utils.skip_init(
                nn.Linear, layer.in_features, outputs, device=like.device, dtype=like.dtype
            )
            for layer in layers.values()
        )
        self._generator = torch.Generator().manual_seed(seed)
        self.reset([layer.in_features**-0.5 for layer in layers.values()])
        self._sum: Tensor | None = None
        pairs = zip(self.layers, layers.values())
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            *(layer.register_forward_pre_hook(partial(self._read, skip)) for skip, layer in pairs),
            model.register_forward_hook(self._end),
        ]

    def importance(self, name: str) -> Tensor:
        r"""Return :math:`w_j = \|\hat W_j\|_1` for each input of the layer `name` (Algorithm 1)."""
        return self.layers[self.names.index(name)].weight.detach().abs().sum(0)

    @torch.no_grad()
    def reset(self, bounds: Sequence[float], biases: bool = True) -> None:
        """Draw all weights, and all `biases`, anew: uniformly between -bound and bound of each."""
        for layer, bound in zip(self.layers, bounds, strict=True):
            for parameter in layer.parameters() if biases else (layer.weight,):
                uniform = torch.rand(parameter.shape, generator=self._generator)
                parameter.copy_((2 * uniform - 1) * bound)

    def get_extra_state(self) -> Tensor:
        """Return the state of the coins; part of ``state_dict``."""
        return self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Take the coins' state over."""
        self._generator.set_state(state)

    def remove(self) -> None:
        """Take the hooks away from the model."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, model: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._sum = None

    def _read(self, skip: nn.Module, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if layer.training and torch.rand((), generator=self._generator) >= self.dropout:
            y = skip(args[0])
            self._sum = y if self._sum is None else self._sum + y

    def _end(self, model: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        total, self._sum = self._sum, None
        return output if total is None else output + total
