"""What is passed on by name is what there is: an option that comes or goes is not forgotten."""

import inspect
from collections.abc import Callable

import sparselib as sl
from sparselib import pruning, training
from sparselib.evolution import _options as evolving
from sparselib.nn import ChannelGate
from sparselib.nn import _options as layers
from sparselib.pruning import gates


def names(function: Callable[..., object]) -> set[str]:
    """Parameters that can be given by name only."""
    parameters = inspect.signature(function).parameters.values()
    return {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}


def test_options_of_evolutions() -> None:
    options = names(sl.Evolution) - {"strategy"}
    assert set(evolving.RuleOptions.__annotations__) == options
    assert set(evolving.SeededOptions.__annotations__) == options - {"device_resident"}
    assert set(evolving.EvolutionOptions.__annotations__) == options - {"device_resident", "seed"}
    besides = names(sl.SET) | options - {"device_resident"}
    assert set(evolving.SETOptions.__annotations__) == besides


def test_options_of_layers() -> None:
    options = names(sl.CSRLinear) | names(sl.SparseConv1d) | names(sl.SparseConv2d)
    assert set(layers.LayerOptions.__annotations__) == options - {"sparsity"}
    assert set(layers.KeptOptions.__annotations__) == options - {
        *("sparsity", "topology", "init", "reach"),
    }
    given = {"in_channels", "out_channels", "kernel_size", "groups", "bias", "sparsity"}
    everything = set(inspect.signature(sl.SparseConv1d).parameters)
    assert set(layers.ConvolutionOptions.__annotations__) == everything - given


def test_options_of_training() -> None:
    options = names(sl.fit) - {"loss", "seed"}
    assert set(training.FitOptions.__annotations__) == options
    assert set(training.LoopOptions.__annotations__) == options - {"batch_size"}
    assert set(gates.GateOptions.__annotations__) == names(ChannelGate)
    decided = names(pruning.prune) - {"lr", "epochs", "groups", "gates"} | {"counts"}
    besides = names(pruning.train_gates) | options
    assert set(gates.GateTrainingOptions.__annotations__) == besides - decided
