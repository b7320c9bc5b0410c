"""The skip layers of LiSET: linear shortcuts from the sparse layers' inputs to the output."""

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sparselib.evolution._ranks import Group, Ranks
from sparselib.nn.linear import CSRLinear


class LinearSkips(nn.Module):
    """Dense layers from the input of some layers straight to the output (Radu, Section 3).

    Nothing in the model changes: hooks read what each of the layers reads, and add what the skip
    layers make of it to what the model returns, while it is in training mode. In evaluation mode
    and in the model's ``state_dict`` there is the main network alone. Where several processes train
    the model, the gradients of the skip layers are averaged as soon as they are there, because no
    wrapper of the model knows them; clipping and unscaling see the average.

    Parameters
    ----------
    model : nn.Module
        Returns a tensor of shape (batch, outputs).
    layers : dict of str to nn.Linear or CSRLinear
        The layers of the model to go round.
    outputs : int
        Features that the model returns.
    dropout : float
        Probability that a skip layer rests for a batch. Nothing is rescaled.
    seed : int
        Of the weights, initially distributed as in ``nn.Linear``, and of the random choice of the
        layers that rest.

    Raises
    ------
    ValueError
        If there is no layer, or `dropout` is no probability.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Linear | CSRLinear],
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
        self.names = list(layers)
        self.dropout = dropout
        self.layers = nn.ModuleList(
            nn.utils.skip_init(
                nn.Linear,
                layer.in_features,
                outputs,
                device=like.device,
                dtype=like.dtype,
            )
            for layer in layers.values()
        )
        self._generator = torch.Generator().manual_seed(seed)
        self.reset([layer.in_features**-0.5 for layer in layers.values()])
        self.process_group: Group = None
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(
                _averaging(weakref.ref(self))
            )
        self._sum: Tensor | None = None
        pairs = zip(self.layers, layers.values())
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            *(
                layer.register_forward_pre_hook(partial(self._read, skip))
                for skip, layer in pairs
            ),
            model.register_forward_hook(self._end),
        ]
        _forget_compiled_code()

    def each(self) -> list[nn.Linear]:
        """Return the skip layers, one for each layer that they go round."""
        return [skip for skip in self.layers if isinstance(skip, nn.Linear)]

    def importance(self, name: str) -> Tensor:
        r"""Return :math:`w_j = \|\hat W_j\|_1` for each input of the layer `name` (Algorithm 1)."""
        skip = self.each()[self.names.index(name)]
        return skip.weight.detach().abs().sum(0)

    @torch.no_grad()
    def reset(self, bounds: Sequence[float], biases: bool = True) -> None:
        """Draw all weights, and all `biases`, anew: uniformly between -bound and bound of each."""
        for layer, bound in zip(self.each(), bounds, strict=True):
            for parameter in layer.parameters() if biases else (layer.weight,):
                uniform = torch.rand(parameter.shape, generator=self._generator)
                parameter.copy_((2 * uniform - 1) * bound)

    def get_extra_state(self) -> Tensor:
        """Return the state of the random generator; part of ``state_dict``."""
        return self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Load the state of the random generator."""
        self._generator.set_state(state)

    def check_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Refuse a state of other skip layers; nothing is changed.

        Raises
        ------
        ValueError
            With a sentence that names the first difference.
        """
        own = self.state_dict()
        if own.keys() != state_dict.keys():
            raise ValueError(
                f"the state has the skip parameters {sorted(state_dict)}, this LiSET {sorted(own)}"
            )
        for name, tensor in own.items():
            if state_dict[name].shape != tensor.shape:
                raise ValueError(
                    f"the state's skip parameter {name!r} has shape "
                    f"{tuple(state_dict[name].shape)}, this LiSET's {tuple(tensor.shape)}"
                )

    def remove(self) -> None:
        """Take the hooks away from the model."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, model: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._sum = None

    def _read(
        self, skip: nn.Module, layer: nn.Module, args: tuple[Tensor, ...]
    ) -> None:
        if (
            layer.training
            and torch.rand((), generator=self._generator) >= self.dropout
        ):
            y = skip(args[0])
            self._sum = y if self._sum is None else self._sum + y

    def _end(
        self, model: nn.Module, args: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        total = self._sum
        self._sum = None
        return output if total is None else output + total


def _averaging(skips: "weakref.ref[LinearSkips]") -> Callable[[Tensor], None]:
    """Return a hook that averages a gradient over the processes before anybody reads it.

    A gradient that was averaged before is the same everywhere, so that averaging what several
    backward passes have summed is right too.
    """

    def average(parameter: Tensor) -> None:
        own = skips()
        if own is not None and parameter.grad is not None:
            ranks = Ranks(own.process_group)
            if ranks.count > 1:
                parameter.grad.copy_(ranks.average(parameter.grad))

    return average


def _forget_compiled_code() -> None:
    """Have `torch.compile` trace anew: code compiled before does not look for later hooks."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
