"""LiSET: sparse evolutionary training that grows where linear skip layers find features (Radu)."""

import weakref
from collections.abc import Mapping
from typing import Unpack, final

import torch
from torch import Tensor, nn

from sparselib._types import ParameterGroup, SavedState, StateDict
from sparselib.evolution import drop as drops
from sparselib.evolution import grow as grows
from sparselib.evolution._options import EvolutionOptions
from sparselib.evolution.algorithms import check_definition
from sparselib.evolution.engine import Evolution, Replaced, unwrapped
from sparselib.evolution.plans import Plan, check_grown, group_of
from sparselib.evolution.skips import LinearSkips
from sparselib.evolution.strategies import DropThenGrow, Strategy
from sparselib.nn.linear import CSRLinear
from sparselib.nn.sparse_layer import SparseLayer
from sparselib.ranking import contains, places


class LiSET:
    r"""SET that grows where linear skip layers find features (Radu, Algorithm 1).

    Skip layers lead from the input of each sparse layer to the output, in training only. A step
    drops connections as SET does, draws new ones in proportion to
    :math:`\tilde w = \sigma(w / \max w + \gamma)`, where :math:`w_j` is the L1 norm of what the
    skip layer makes of feature j, and draws the skip layers anew, uniformly in
    :math:`\pm 0.01 / \sqrt{N_{out}}` as the author's program does. Used as an `Evolution` is.

    Parameters
    ----------
    model : nn.Module
        Returns scores of shape (batch, classes). Every sparse layer that lacks a connection
        takes part.
    optimizer : torch.optim.Optimizer
        Receives the skip layers, in the group of the first sparse layer's values: a scheduler that
        was built before goes on as it was, and the skip layers follow its learning rate. So does
        clipping of all that the optimizer holds. They are no parameters of the model.
    fraction : float
        Share of the connections to replace in each step (the paper's zeta).
    gamma : float
        The larger, the more random; see `feature_weights`.
    definition : {"text", "tables", "code", "code-as-run"}
        The paper; the paper but for the largest :math:`u \tilde w` instead of Eq. 2, as in the
        author's program, which agrees with its tables; or that program, where gamma stands
        elsewhere too, skip layers begin as ``nn.Linear`` does, and biases of theirs are never
        drawn anew. ``"code-as-run"`` is what it does when run: it forgets the new topology, so
        that a new weight survives only where there was a connection at initialization.
    skip_dropout : float
        Probability that a skip layer rests for a batch.
    skips : sequence of str, optional
        Names of the layers with skip layers; the others grow at random. All by default.
    outputs : int, optional
        Number of scores; by default the `out_features` of the model's last layer that has them.
    seed : int
        Of the skip layers and of the evolution.
    **options
        Passed on to `Evolution`.

    Attributes
    ----------
    skips : LinearSkips
        The skip layers.
    evolution : Evolution
        What changes the topology.

    Raises
    ------
    ValueError
        If `definition` or a name in `skips` is unknown, and as `Evolution` and `LinearSkips`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        fraction: float = 0.3,
        gamma: float = 0.0,
        *,
        definition: str = "text",
        skip_dropout: float = 0.5,
        skips: list[str] | tuple[str, ...] | None = None,
        outputs: int | None = None,
        seed: int = 0,
        **options: Unpack[EvolutionOptions],
    ) -> None:
        check_definition(definition, "text", "tables", "code", "code-as-run")
        self.gamma = gamma
        self.definition = definition
        self._is_program = definition in ("code", "code-as-run")
        if definition == "code-as-run":
            strategy: Strategy = FirstMask(self._grow)
        else:
            strategy = DropThenGrow(drops.set_fractions, self._grow)
        model = unwrapped(model)
        self.evolution = Evolution(
            model,
            optimizer,
            fraction=fraction,
            seed=seed,
            strategy=strategy,
            **options,
        )
        layers = _chosen(self.evolution.layers, skips)
        self._names: dict[SparseLayer, str] = {
            layer: name for name, layer in layers.items()
        }
        self.skips = LinearSkips(
            model, layers, outputs or _out_features(model), skip_dropout, seed
        )
        self.skips.process_group = self.evolution.process_group
        name, first = next(iter(self.evolution.layers.items()))
        group = group_of(first.values, optimizer, name)
        _join(list(self.skips.named_parameters()), optimizer, group)
        weakref.finalize(self, self.skips.remove)
        if not self._is_program:
            self._reset()

    def step(self) -> Replaced:
        """Evolve every layer once; return how many connections each replaced."""
        counts = self.evolution.step()
        self._reset()
        return counts

    def feature_weights(self, name: str) -> Tensor:
        r"""Return :math:`\tilde w` for the inputs of a layer, see the function of that name."""
        place = "inside" if self._is_program else "outside"
        return feature_weights(self.skips.importance(name), self.gamma, place)

    def state_dict(self) -> StateDict:
        """Return what the next step depends on besides model and optimizer."""
        return {
            "evolution": self.evolution.state_dict(),
            "skips": self.skips.state_dict(),
            "definition": self.definition,
            "gamma": self.gamma,
        }

    def load_state_dict(self, state_dict: SavedState) -> None:
        """Take over what `state_dict` returned.

        Raises
        ------
        ValueError
            If it belongs to another definition, gamma or skip layers, and as `Evolution`; nothing
            is changed then.
        """
        for key in ("definition", "gamma"):
            own = getattr(self, key)
            if state_dict.get(key, own) != own:
                raise ValueError(
                    f"the state belongs to a LiSET with {key} {state_dict[key]!r}, this one has "
                    f"{own!r}; build it as the other was built"
                )
        self.skips.check_state_dict(state_dict["skips"])
        self.evolution.load_state_dict(state_dict["evolution"])
        self.skips.load_state_dict(state_dict["skips"])

    def _reset(self) -> None:
        bounds = [0.01 * layer.shape[0] ** -0.5 for layer in self._names]
        self.skips.reset(bounds, biases=not self._is_program)

    @grows.without_gradient
    def _grow(
        self, layer: SparseLayer, count: int, context: grows.Context
    ) -> grows.Grown:
        if layer not in self._names:
            return grows.random_uniform(layer, count, context)
        weights = self.feature_weights(self._names[layer])
        rule = (
            grows.linear_features
            if self.definition == "text"
            else grows.likeliest_features
        )
        return rule(layer, count, context, weights)


@final
class FirstMask(Strategy):
    """What the author's program does when run: a new weight survives where one was at first.

    Parameters
    ----------
    grow : callable
        The grow rule.
    """

    def __init__(self, grow: grows.Grow) -> None:
        self._grow = grow
        self.needs_gradient = grows.needs_gradient(grow)
        self.rules = {
            "drop": "set_fractions",
            "grow": "likeliest_features",
            "within": "first mask",
        }

    def plan(
        self,
        layer: SparseLayer,
        fraction: float,
        state: drops.State,
        context: grows.Context,
        regrow: bool,
    ) -> Plan:
        """Drop as SET does, and let come back what is chosen among the connections."""
        positions = context.occupied
        values = layer.values.detach().clone()
        leaving = drops.set_fractions(values, fraction)
        stays = torch.ones_like(values, dtype=torch.bool)
        stays[leaving] = False
        free = context._replace(occupied=positions[stays])
        grown, new = self._grow(layer, leaving.numel(), free)
        check_grown(layer, grown, new, leaving.numel(), free)
        survives = contains(positions, grown)
        values[leaving] = 0
        values[places(positions, grown[survives])] = new[survives]
        return Plan(
            positions,
            values,
            torch.arange(values.numel(), device=values.device),
        )


def feature_weights(
    importance: Tensor, gamma: float, place: str = "outside"
) -> Tensor:
    r"""Return :math:`\tilde w = \sigma(w / \max w + \gamma)` (Radu, Algorithm 1).

    The ratio of two of them is what Eq. 2 grows by. It tends to 1 as gamma grows, which is SET,
    and to the ratio of :math:`\exp(w / \max w)`, at most e, as gamma falls. With
    ``place="inside"`` it is the program's :math:`\sigma(\gamma w / \max w)`, which is SET at
    gamma = 0 and prefers the least important features below.
    """
    scaled = importance.double() / importance.max().clamp(
        min=torch.finfo(importance.dtype).tiny
    )
    return torch.sigmoid(
        scaled + gamma if place == "outside" else scaled * gamma
    )


def _chosen(
    layers: Mapping[str, SparseLayer], names: list[str] | tuple[str, ...] | None
) -> dict[str, CSRLinear]:
    unknown = set(names or ()) - set(layers)
    if unknown:
        raise ValueError(
            f"no sparse layer is called {sorted(unknown)}; there are {sorted(layers)}"
        )
    chosen = set(layers if names is None else names)
    linear = {
        name: layer
        for name, layer in layers.items()
        if name in chosen and isinstance(layer, CSRLinear)
    }
    if others := chosen - set(linear):
        raise ValueError(
            f"skip layers go round linear layers, and {sorted(others)} are none; name those that "
            f"have one in skips=, the others grow at random"
        )
    return linear


def _join(
    named: list[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    group: ParameterGroup,
) -> None:
    """Put parameters into a group that is there, so that schedulers find as many groups as before.

    Adagrad makes its memory when it is built, so it is made here.
    """
    group["params"].extend(parameter for _, parameter in named)
    if "param_names" in group:
        group["param_names"].extend(f"skips.{name}" for name, _ in named)
    if "initial_accumulator_value" in group:
        for _, parameter in named:
            optimizer.state[parameter] = {
                "step": torch.zeros(
                    (), device=parameter.device if group.get("fused") else "cpu"
                ),
                "sum": torch.full_like(
                    parameter.detach(), group["initial_accumulator_value"]
                ),
            }


def _out_features(model: nn.Module) -> int:
    linear = (nn.Linear, CSRLinear)
    sizes = [m.out_features for m in model.modules() if isinstance(m, linear)]
    return sizes[-1]
