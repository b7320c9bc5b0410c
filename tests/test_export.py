"""A network in C, compiled with every warning and sanitizer, computes what it computed."""

import shutil
import subprocess

import pytest
import torch
from torch import nn

import sparselib as sl

COMPILER = shutil.which("gcc") or shutil.which("clang")
STRICT = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic"]
SANITIZED = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
MAIN = """
#include <stdio.h>
int main(void)
{
    static float x[network_INPUTS], y[network_OUTPUTS];
    while (fread(x, sizeof x, 1, stdin) == 1) {
        network(x, y);
        fwrite(y, sizeof y, 1, stdout);
    }
    return 0;
}
"""

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")


def run(source, samples, folder, options=SANITIZED):
    """Compile a network with a main program around it, and send samples through it."""
    file = folder / "network.c"
    file.write_text(source.text + MAIN, encoding="ascii")
    program = folder / "network"
    subprocess.run([COMPILER, *STRICT, *options, file, "-o", program, "-lm"], check=True)
    done = subprocess.run(
        [program], input=samples.numpy().tobytes(), capture_output=True, check=True
    )
    return torch.frombuffer(bytearray(done.stdout), dtype=torch.float32)


def mlp():
    return sl.MLP(40, 33, 20, 10, layer=sl.CSRLinear, sparsity=0.9), (40,)


def wide():
    # more columns than 8 bits count, more connections than 16 do
    layers = [sl.CSRLinear(700, 300, sparsity=0.6), nn.ReLU(), sl.CSRLinear(300, 5, bias=False)]
    return nn.Sequential(*layers), (700,)


def mixed():
    layers = [nn.Linear(12, 8), nn.Tanh(), sl.CSRLinear(8, 6), nn.Sigmoid(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Flatten()), (12,)


def apnea():
    model = sl.DSN(4, 2, 6, pooled=5, inputs=2)
    model(torch.randn(8, 2, 40))  # statistics of the normalizations
    return model, (2, 40)


def dense_apnea():
    model = sl.DSN(3, 2, 6, pooled=7, sparsity=0.0)
    model(torch.randn(8, 1, 30))
    return model, (1, 30)


def padded():
    modes = ["zeros", "reflect", "replicate", "circular"]
    convolutions = [
        sl.SparseConv1d(3, 3, 5, padding=2, padding_mode=mode, sparsity=0.5) for mode in modes
    ]
    last = [sl.SparseConv1d(3, 6, 3, stride=2, groups=3, dilation=2), nn.MaxPool1d(3, 2, 1)]
    return nn.Sequential(*convolutions, *last), (3, 31)


def images():
    last = sl.SparseConv2d(4, 6, 3, 2, groups=2, padding_mode="circular", padding=1, sparsity=0.5)
    first = sl.SparseConv2d(2, 4, (3, 2), 1, (1, 2), (2, 1), sparsity=0.5)
    pixels = sl.SparseConv2d(6, 3, 1, sparsity=0.5)
    return nn.Sequential(first, nn.ReLU(), last, nn.Tanh(), pixels), (2, 8, 7)


class Residual(nn.Module):
    """Two ways that meet."""

    def __init__(self):
        super().__init__()
        self.first = sl.CSRLinear(9, 9, sparsity=0.5)
        self.second = sl.CSRLinear(9, 9, sparsity=0.5)

    def forward(self, x):
        """Return a sum of three."""
        return x + self.second(self.first(x).relu()) + 0.25


def residual():
    return Residual(), (4, 9)


@needs_compiler
@pytest.mark.parametrize("make", [mlp, wide, mixed, apnea, dense_apnea, padded, images, residual])
def test_c_computes_what_torch_does(make, tmp_path):
    torch.manual_seed(0)
    model, shape = make()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.3)  # biases too, which begin at zero
    model.eval()
    samples = torch.randn(5, *shape)
    source = sl.export.c(model, samples[:1])
    found = run(source, samples, tmp_path)
    with torch.no_grad():
        expected = torch.cat([model(sample[None]) for sample in samples])
    torch.testing.assert_close(found, expected.flatten(), rtol=1e-5, atol=2e-6)
    assert source.inputs == samples[0].numel()
    assert source.outputs == expected[0].numel()


def test_tables_hold_the_connections_and_activations_share_their_room():
    torch.manual_seed(0)
    model = sl.MLP(784, 256, 256, 256, 10, layer=sl.CSRLinear, sparsity=0.99)
    for layer in model.layers:
        nn.init.normal_(layer.bias)  # equal tables would be one
    source = sl.export.c(model, torch.zeros(1, 784))
    connections = sum(layer.csr.nnz for layer in model.layers)
    rows = 3 * 256 + 10
    # a weight of 4 bytes; columns below 256 take one byte, else two; pointers and biases
    first, *others = (layer.csr.nnz for layer in model.layers)
    pointers = sum(2 * (layer.csr.shape[0] + 1) for layer in model.layers[:3]) + 11
    assert source.flash == 4 * connections + 2 * first + sum(others) + pointers + 4 * rows
    assert source.ram <= 4 * 3 * 256
    assert model.training


def test_what_c_cannot_compute_is_refused_by_name():
    with pytest.raises(ValueError, match=r"aten\.layer_norm\.default .* has no form in C"):
        sl.export.c(nn.Sequential(sl.CSRLinear(4, 4), nn.LayerNorm(4)), torch.zeros(1, 4))
    model = nn.Sequential(sl.CSRLinear(4, 4))
    with pytest.raises(ValueError, match="one sample of float32"):
        sl.export.c(model, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="one sample of float32"):
        sl.export.c(model, torch.zeros(1, 4, dtype=torch.float64))
    for name in "3d", "int", "été":
        with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
            sl.export.c(model, torch.zeros(1, 4), name=name)
    with torch.no_grad():
        model[0].values[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        sl.export.c(model, torch.zeros(1, 4))
