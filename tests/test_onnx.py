"""``torch.onnx.export`` of sparse models: another runtime computes the same numbers."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import sparselib as sl

# all are loaded where they are needed, and not by each process that collects the tests
is_here = all(map(find_spec, ("onnx", "onnxscript", "onnxruntime")))
needs_onnx = pytest.mark.skipif(not is_here, reason="onnxscript or onnxruntime is not installed")


def network():
    return sl.MLP(20, 33, 10, layer=sl.CSRLinear, sparsity=0.8), torch.randn(3, 20)


def with_empty_rows():
    dense = nn.Linear(7, 5)
    with torch.no_grad():
        dense.weight[[0, 2, 4]] = 0
    return nn.Sequential(sl.CSRLinear.from_dense(dense)), torch.randn(2, 3, 7)


def convolutions():
    model = nn.Sequential(
        sl.SparseConv1d(2, 6, 5, padding=2, sparsity=0.6),
        nn.ReLU(),
        sl.SparseConv1d(
            6, 4, 3, sparsity=0.5, stride=2, groups=2, padding_mode="circular", padding=1
        ),
    )
    return model, torch.randn(3, 2, 30)


def images():
    first = sl.SparseConv2d(2, 4, (3, 2), 1, (1, 2), (2, 1), sparsity=0.5)
    last = sl.SparseConv2d(4, 6, 3, 2, groups=2, padding=1, sparsity=0.5)
    return nn.Sequential(first, nn.ReLU(), last), torch.randn(3, 2, 8, 7)


def attention():
    block = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    return sl.sparsify(block, 0.5), torch.randn(2, 5, 16)


def apnea():
    return sl.DSN(4, 2, 6, pooled=5), torch.randn(2, 1, 40)


MODELS = [network, with_empty_rows, convolutions, images, attention, apnea]
# the old exporter does not write the pool of the last, and not torch's own encoder layer, either
TRACED = MODELS[:-2]


def compare(make, folder, dynamo):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, x = make()
    model.eval()
    file = str(folder / f"{make.__name__}.onnx")
    more = {"external_data": False} if dynamo else {}
    torch.onnx.export(model, (x,), file, dynamo=dynamo, verbose=False, **more)
    session = onnxruntime.InferenceSession(file)
    [y] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("make", MODELS)
def test_another_runtime_computes_the_same(make, tmp_path):
    compare(make, tmp_path, dynamo=True)


@needs_onnx
@pytest.mark.slow
def test_the_exporter_that_traces_writes_the_same(tmp_path):
    # in a process of its own: while torch.jit traces, sizes are tensors, which a checker of types
    # that watches this one refuses
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [make.__name__ for make in TRACED]


if __name__ == "__main__":
    for each in TRACED:
        compare(each, Path(sys.argv[1]), dynamo=False)
        print(each.__name__)
