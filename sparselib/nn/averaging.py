"""Averages of sparse models, which follow the connections."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparselib.nn.sparse_layer import SparseLayer, sparse_layers
from sparselib.ranking import places


@torch.no_grad()
def average(
    models: Sequence[nn.Module], weights: Sequence[float] | None = None
) -> nn.Module:
    r"""Return a model whose sparse matrices are the averages of those of some models.

    The average of matrices of different topologies has the connections of all of them: a
    connection that a model lacks is a zero there, so that a layer of the average has up to
    as many times the connections as there are models. Dense parameters and floating-point buffers
    are averaged number by number; other buffers are those of the last model.

    Parameters
    ----------
    models : sequence of nn.Module
        Copies of one architecture, such as checkpoints of one run.
    weights : sequence of float, optional
        One per model; divided by their sum. Equal by default.

    Raises
    ------
    ValueError
        If there is no model, the weights are not one per model with a positive sum, or the models
        have different layers or shapes.
    """
    shares = _shares(models, weights)
    result = copy.deepcopy(models[-1])
    layers = [sparse_layers(model) for model in models]
    _check_alike(models, layers)
    for name, layer in sparse_layers(result).items():
        columns = [found[name] for found in layers]
        every = torch.cat([column.positions for column in columns]).unique()
        total = torch.zeros(
            len(every), dtype=torch.float64, device=layer.values.device
        )
        for share, column in zip(shares, columns):
            place = places(every, column.positions)
            total.index_add_(0, place, share * column.values.double())
        layer.rewire(every, total.to(layer.values.dtype))
    sparse = {f"{name}.values" if name else "values" for name in layers[-1]}
    states = [_numbers(model) for model in models]
    for name, number in _numbers(result).items():
        if name not in sparse and number.is_floating_point():
            parts = (
                share * state[name].double()
                for share, state in zip(shares, states)
            )
            number.copy_(
                sum(parts, start=torch.zeros_like(number, dtype=torch.float64))
            )
    return result


class Averaged(nn.Module):
    r"""An exponential moving average of a model whose topology evolves.

    .. math:: \bar w \leftarrow \beta \bar w + (1 - \beta) w

    for every connection that the model had at the last `update` and has now. A connection that has
    grown since starts at its own weight; one that has been dropped is forgotten. So the average
    always has the newest topology and as many connections as the model. Dense parameters are
    averaged likewise; buffers are copied. ``torch.optim.swa_utils.AveragedModel`` would average
    weights of different connections, and is refused.

    Parameters
    ----------
    model : nn.Module
        Is copied.
    decay : float
        :math:`\beta` in [0, 1).

    Attributes
    ----------
    module : nn.Module
        The average, which `forward` calls.

    Raises
    ------
    ValueError
        If `decay` is outside [0, 1), or `update` is given another architecture.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(
                f"the decay of an average lies in [0, 1), not {decay}"
            )
        self.decay = decay
        self.module = copy.deepcopy(model).requires_grad_(False)

    def forward(self, *args: object, **kwargs: object) -> object:
        """Return what the average makes of an input."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take a step toward the model, and its topology."""
        own = sparse_layers(self.module)
        theirs = sparse_layers(model)
        _check_alike([self.module, model], [own, theirs])
        for name, layer in theirs.items():
            _follow(own[name], layer, self.decay)
        sparse = {f"{name}.values" if name else "values" for name in own}
        parameters = {name for name, _ in model.named_parameters()} - sparse
        state = _numbers(model)
        for name, number in _numbers(self.module).items():
            if name in parameters:
                number.lerp_(state[name].to(number), 1 - self.decay)
            elif name not in sparse:
                number.copy_(state[name])


def _follow(own: SparseLayer, layer: SparseLayer, decay: float) -> None:
    positions = layer.positions.to(own.csr.device)
    values = layer.values.detach().to(own.values)
    before = own.positions
    place = places(before, positions).clamp(max=max(len(before) - 1, 0))
    if len(before):
        old = own.values[place]
        survives = before[place] == positions
        values = torch.where(survives, old.lerp(values, 1 - decay), values)
    own.rewire(positions, values)


def _numbers(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without the fingerprints of topologies."""
    found = {name: p.detach() for name, p in model.named_parameters()}
    ours = {
        f"{name}.csr.topology_id".lstrip(".") for name in sparse_layers(model)
    }
    return found | {
        name: b for name, b in model.named_buffers() if name not in ours
    }


def _shares(
    models: Sequence[nn.Module], weights: Sequence[float] | None
) -> list[float]:
    shares = (
        [1.0] * len(models)
        if weights is None
        else [float(weight) for weight in weights]
    )
    if not models or len(shares) != len(models) or not sum(shares) > 0:
        raise ValueError(
            f"an average needs models and one weight each, with a positive sum, not "
            f"{len(models)} models and the weights {weights}"
        )
    return [share / sum(shares) for share in shares]


def _check_alike(
    models: Sequence[nn.Module], layers: Sequence[dict[str, SparseLayer]]
) -> None:
    facts = []
    for model, found in zip(models, layers):
        shapes = {name: layer.shape for name, layer in found.items()}
        values = {f"{name}.values".lstrip(".") for name in found}
        numbers = _numbers(model).items()
        facts.append(
            (shapes, {k: tuple(n.shape) for k, n in numbers if k not in values})
        )
    if any(fact != facts[0] for fact in facts):
        raise ValueError(
            "models with different layers or shapes have no average"
        )
