"""Times: what is counted, what is thrown away, and what a ratio is."""

import time

import numpy as np
import pytest
import torch
from torch import nn

import sparselib as sl
from sparselib import timing


def test_quantiles_of_rounds():
    assert timing.quantiles(np.arange(1.0, 12.0)) == (6.0, 3.0, 9.0, 11)


def test_a_round_in_which_another_program_ran_is_thrown_away():
    busy = np.full((10, 2), 1.98)
    busy[3, 1], busy[7, 0] = 1.1, 1.5
    assert np.flatnonzero(~timing.undisturbed(busy)).tolist() == [3, 7]


def test_a_call_that_waits_by_nature_is_not_disturbed():
    assert timing.undisturbed(np.full((10, 1), 0.3)).all()


def test_rounds_are_kept_if_hardly_any_is_quiet():
    assert timing.undisturbed(np.diag([2.0] * 6) + 0.1).all()


def test_each_call_follows_itself_in_each_round_and_the_order_alternates():
    order = []
    calls = {name: lambda name=name: (order.append(name), time.sleep(0.003)) for name in "ab"}
    times = timing.measure(calls, rounds=4)
    assert all(row.min() >= 3 for row in times.values())
    assert "".join(order[-16:]) == "bbaaaabbbbaaaabb"


def test_short_calls_are_repeated_and_counted_once():
    counts = {"n": 0}

    def short():
        counts["n"] += 1

    short_timing = timing.milliseconds(short, rounds=5)
    assert counts["n"] > 100
    assert 0 < short_timing.low <= short_timing.median <= short_timing.high < 1


def test_a_ratio_is_the_speedup():
    calls = {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.005)}
    ratios = timing.ratios(calls, "slow", rounds=5)
    assert ratios["slow"].median == 1
    assert ratios["fast"].median > 1


def model(*between, width=30):
    torch.manual_seed(0)
    modules = [sl.CSRLinear(20, width, sparsity=0.5)]
    for module in between:
        modules += [module, sl.CSRLinear(width, width, sparsity=0.5)]
    return nn.Sequential(*modules)


def told(explanation):
    """What each layer was computed by, with how many others, and why not faster."""
    return [
        (passage.kernel, passage.together, "; ".join(passage.reasons)) for passage in explanation
    ]


JOINS = "sparselib.fuse joins it with its neighbors"
NORM = "with a gradient no kernel does the LayerNorm between it and another"
BATCH = "the BatchNorm1d between it and another needs the whole batch"
FEW = (
    "with the {} between it and another 20 samples are too few to be carried through all layers at "
    "once"
)
SOFT = "no kernel does the Softplus between it and another"


def test_the_way_of_each_layer_is_told_and_why_none_is_faster():
    x = torch.randn(200, 20)
    network = model(nn.ReLU(), nn.GELU())
    assert told(timing.explain(network, x)) == [("cpu: spmm", 1, JOINS)] * 3
    sl.fuse(network)
    trained = ("cpu: outward, and inward with the gradients", 3, "")
    assert told(timing.explain(network, x)) == [trained] * 3
    assert told(timing.explain(network, x[:20])) == [
        *[("cpu: spmm with ReLU, and gradients at once", 2, "")] * 2,
        ("cpu: spmm", 1, FEW.format("GELU")),
    ]
    with torch.inference_mode():
        assert told(timing.explain(network, x)) == [("cpu: network", 3, "")] * 3
        assert told(timing.explain(network, x[:1])) == [("cpu: few_through", 3, "")] * 3
        assert told(timing.explain(network, x[:20])) == [("cpu: few_through", 3, "")] * 3
        wide = sl.fuse(model(nn.ReLU(), nn.GELU(), width=200))
        few = told(timing.explain(wide, x[:20]))
        assert few[:2] == [("cpu: spmm with ReLU", 2, "")] * 2
        assert few[2][2] == FEW.format("GELU")
        large = sl.fuse(model(nn.ReLU(), nn.GELU(), width=3000))
        assert told(timing.explain(large, torch.randn(400, 20)))[2][2].endswith(
            "the weights are too many to be carried through all layers at once"
        )
        one_tile = told(timing.explain(large, torch.randn(64, 20)))
        assert " too " in one_tile[2][2]
        network[3] = nn.Softplus()
        assert told(timing.explain(network, x)) == [("cpu: network", 2, "")] * 2 + [
            ("cpu: spmm", 1, SOFT)
        ]
        network[3] = nn.GELU()
    with torch.autocast("cpu"):
        assert {why for _, _, why in told(timing.explain(network, x))} == {
            "autocast is on, so that the product is an operator of its own"
        }
    with sl.ops.backend("reference"):
        assert told(timing.explain(network, x))[0] == (
            "reference: spmm",
            1,
            "the backend 'reference' was chosen",
        )
    doubles = told(timing.explain(network.double(), x.double()))
    assert doubles[0] == ("reference: spmm", 1, "there are no kernels for torch.float64 on cpu")


def test_what_stands_between_layers_is_named():
    x = torch.randn(200, 20)
    network = sl.fuse(model(nn.ReLU(), nn.Identity()))
    why = {
        "relu": "a hook wants to see what the ReLU does",
        "layer": "a hook wants to see what the CSRLinear does",
    }
    for name, module in ("relu", network[1]), ("layer", network[0]):
        handle = module.register_forward_hook(lambda *told: None)
        assert told(timing.explain(network, x))[0] == ("cpu: spmm", 1, why[name])
        handle.remove()
    dropped = sl.fuse(nn.Sequential(network[0], nn.ReLU(), nn.Dropout(), network[2]))
    assert told(timing.explain(dropped, x))[0][1:] == (2, "")
    assert told(timing.explain(dropped, x[:20]))[0][2] == FEW.format("Dropout")
    works = "the Dropout between it and another works in training"
    with torch.no_grad():
        assert told(timing.explain(dropped, x))[0][2] == works
    assert told(timing.explain(dropped.eval(), x))[0][1:] == (2, "")
    dropped = sl.fuse(nn.Sequential(network[0], nn.Dropout(), nn.ReLU(), network[2]))
    assert told(timing.explain(dropped, x))[0][2] == works
    width = network[0].out_features
    normed = sl.fuse(nn.Sequential(network[0], nn.LayerNorm(width), network[2]))
    assert told(timing.explain(normed, x))[0][1:] == (2, "")
    assert told(timing.explain(normed, x[:20]))[0][2] == FEW.format("LayerNorm")
    normed = sl.fuse(nn.Sequential(network[0], nn.SiLU(), nn.LayerNorm(width), network[2]))
    assert told(timing.explain(normed, x))[0][2].endswith(NORM)
    norm = nn.BatchNorm1d(width)
    normed = nn.Sequential(network[0], norm, nn.GELU(), nn.ReLU(), network[2])
    kernel = "sparselib.fuse has a kernel for the BatchNorm1d behind it"
    assert told(timing.explain(normed, x))[0][2] == kernel
    assert told(timing.explain(normed.eval(), x))[0][2] != kernel  # none in evaluation
    normed = nn.Sequential(network[0], norm, nn.ReLU(), network[2]).train()
    assert told(timing.explain(normed, x))[0][2] == JOINS
    normed = sl.fuse(normed)
    assert told(timing.explain(normed, x))[0][1:] == (2, "")
    assert told(timing.explain(normed, x[:20]))[0][2] == FEW.format("BatchNorm1d")
    with torch.no_grad():
        assert told(timing.explain(normed, x))[0][2] == BATCH
        assert told(timing.explain(normed.eval(), x))[0][1:] == (2, "")
    assert told(timing.explain(normed, x))[0][2] == NORM.replace("LayerNorm", "BatchNorm1d")
    gelu = sl.fuse(nn.Sequential(network[0], nn.GELU(), network[2]))
    evolution = sl.GradientGrowth(gelu, torch.optim.SGD(gelu.parameters(), 0.1))
    assert told(timing.explain(gelu, x))[0][2].startswith(
        "an evolution by gradient wants to see what it reads"
    )
    del evolution
    assert told(timing.explain(nn.Sequential(network[0], network[2]), x))[0][2] == (
        "there is nothing between it and another"
    )


def test_an_explanation_is_a_table_of_every_sparse_layer():
    network = model(nn.ReLU())
    network.unused = sl.SparseConv1d(2, 3, 5, sparsity=0.5)
    network.forward = lambda x: network[2](network[0](x))
    printed = repr(timing.explain(network, torch.randn(200, 20))).splitlines()
    assert printed[0].split() == ["layer", "kernel", "layers", "at", "once", "why", "not", "faster"]
    assert printed[1].split()[0] == "0"
    assert printed[3] == (
        "unused  none       0               no sparse product read its connections in this pass"
    )
    signals = nn.Sequential(sl.SparseConv1d(2, 3, 5, sparsity=0.5))
    assert told(timing.explain(signals, torch.randn(2, 2, 50))) == [("cpu: spmm of taps", 1, "")]
    with pytest.raises(ValueError, match="Linear has no sparse layer to explain"):
        timing.explain(nn.Linear(2, 2), torch.randn(1, 2))
