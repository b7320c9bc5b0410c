"""Sparsely activated networks: Eq. 9 to 14, codes that decode bit for bit, and the phi of Eq. 6."""

from functools import partial
from itertools import product

import pytest
import torch
from torch.nn import functional

import sparselib as sl
from sparselib import metrics
from sparselib.nn import extrema, extrema_pool_indices, identity, relu, topk_absolutes
from sparselib.training import step

EVERY = [identity, relu, topk_absolutes, extrema_pool_indices, extrema]
DEFINITIONS = ("text", "code", "corrected")
SIZES = {1: (64,), 2: (13, 17)}


def network(sizes, activation=extrema, dimensions=1, **options):
    return sl.SAN(sizes, activation, dimensions, **options)


@pytest.mark.parametrize("activation", EVERY)
@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("definition", DEFINITIONS)
def test_a_code_decodes_bit_for_bit(activation, dimensions, definition):
    x = torch.randn(5, *SIZES[dimensions])
    san = network([3, 3, 4, 1, 6], activation, dimensions, definition=definition)
    code = san.describe(x)
    assert code.shape == (5, 5, *SIZES[dimensions])
    assert torch.equal(code.maps(), san.encode(x))
    assert torch.equal(code.decode().view(torch.int32), san(x).view(torch.int32))
    active = int((san.encode(x) != 0).sum())
    weights = sum(size**dimensions for size in san.kernel_sizes)
    assert code.nbytes == 4 * (2 * active + weights)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("size", range(1, 8))
def test_similarities_are_torch_s_same_convolution(dimensions, size):
    """For even sizes too, whose one more zero lies at the end."""
    x = torch.randn(3, *SIZES[dimensions])
    san = network([size, size], dimensions=dimensions, definition="code")
    convolve = functional.conv1d if dimensions == 1 else functional.conv2d
    for i, kernel in enumerate(san.kernels):
        expected = convolve(x[:, None], kernel[None, None], padding="same")
        assert torch.allclose(san.similarities(x)[:, i : i + 1], expected, atol=1e-6)
        maps = torch.randn(3, 2, *SIZES[dimensions])
        expected = convolve(maps[:, i : i + 1], kernel[None, None], padding="same")
        assert torch.allclose(san.reconstructions(maps)[:, i : i + 1], expected, atol=1e-6)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("size", range(1, 8))
def test_a_kernel_is_written_where_it_was_read(definition, dimensions, size):
    """With the code's padding an even kernel lies one cell before those that it was read from."""
    center = tuple(n // 2 for n in SIZES[dimensions])
    san = network([size], identity, dimensions, definition=definition)
    x = torch.zeros(1, *SIZES[dimensions], requires_grad=True)
    san.similarities(x)[(0, 0, *center)].backward()
    read = (x.grad[0] != 0).nonzero()
    spike = torch.zeros(1, 1, *SIZES[dimensions])
    spike[(0, 0, *center)] = 1
    written = (san.decode(spike)[0] != 0).nonzero()
    shift = 1 if definition == "code" and size % 2 == 0 else 0
    assert torch.equal(read, written + shift)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_corrected_decoder_is_the_transpose_of_the_encoder(dimensions):
    """<s(x), a> = <x, decode(a)> for any maps a."""
    x = torch.randn(2, *SIZES[dimensions], dtype=torch.float64)
    maps = torch.randn(2, 3, *SIZES[dimensions], dtype=torch.float64)
    san = network([4, 5, 5], dimensions=dimensions, definition="corrected", dtype=torch.float64)
    there = (san.similarities(x) * maps).sum()
    assert torch.allclose(there, (x * san.decode(maps)).sum())


@pytest.mark.parametrize("dimensions", [1, 2])
def test_partial_reconstructions_add_up(dimensions):
    san = network([3, 4, 4, 2], relu, dimensions)
    maps = san.encode(torch.randn(4, *SIZES[dimensions]))
    assert torch.allclose(san.reconstructions(maps).sum(1), san.decode(maps), atol=1e-6)


def test_kernels_of_any_sizes_can_compete():
    """Together they get the distance of the largest, and no two maps speak at one place."""
    x = torch.randn(4, 120)
    san = network([3, 5, 9], partial(extrema, across=True), together=True)
    for sample in san.encode(x):
        places = sample.nonzero()[:, 1].sort().values
        assert int(places.diff().min()) > 9
    assert torch.equal(san.describe(x).decode(), san(x))


def test_samples_do_not_see_each_other():
    x, san = torch.randn(6, 40), network([5, 8])
    alone = torch.cat([san(one[None]) for one in x])
    assert torch.allclose(alone, san(x), atol=1e-6)


def test_the_gradient_of_the_loss_is_exact():
    """Maps are held fixed where nothing is kept, so Eq. 15 is the gradient of a smooth function."""
    x = torch.randn(2, 30, dtype=torch.float64)
    for definition in DEFINITIONS:
        san = network([4, 3], extrema_pool_indices, definition=definition, dtype=torch.float64)

        def loss(*kernels, san=san):
            names = dict(zip([f"kernels.{i}" for i in range(2)], kernels))
            return functional.mse_loss(torch.func.functional_call(san, names, x), x)

        assert torch.autograd.gradcheck(loss, tuple(san.kernels))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("size", range(1, 8))
def test_gradients_are_those_of_torch_s_same_convolution(dimensions, size):
    """Of inputs, maps and kernels, and their own gradients."""
    san = network([size, size], dimensions=dimensions, definition="code", dtype=torch.float64)
    convolve = functional.conv1d if dimensions == 1 else functional.conv2d
    kernels = tuple(san.kernels)
    stack = torch.stack(kernels)[None]
    maps = torch.randn(3, 2, *SIZES[dimensions], dtype=torch.float64, requires_grad=True)
    given = (maps, *kernels)
    sums = [san.decode(maps), convolve(maps, stack, padding="same")[:, 0]]
    first = [torch.autograd.grad(y.sin().sum(), given, create_graph=True) for y in sums]
    assert all(map(torch.allclose, *first))
    second = [torch.autograd.grad(sum(g.square().sum() for g in of), given) for of in first]
    assert all(map(torch.allclose, *second))


def test_equal_starts_of_the_code_stay_equal_and_random_ones_do_not():
    """The released code begins with 0.1 everywhere: q = 2 is then one kernel counted twice."""
    x = torch.randn(64, 50)
    for start, same in (({"mean": 0.1, "std": 0.0}, True), ({}, False)):
        san = network([8, 8], topk_absolutes, **start)
        optimizer = torch.optim.Adam(san.parameters(), lr=0.01)
        for _ in range(20):
            step(san, optimizer, x, x, functional.l1_loss)
        assert torch.equal(*san.kernels) is same


@pytest.mark.slow
def test_training_finds_a_repeated_pattern():
    """Spikes carried by one kernel are described by less than a fifth of the numbers, exactly."""
    generator = torch.Generator().manual_seed(3)
    pattern, x = torch.tensor([1.0, 3.0, 5.0, 3.0, 1.0]), torch.zeros(32, 100)
    for row in x:
        for place in range(5, 95, 15):
            height = 1 + torch.rand((), generator=generator)
            row[place : place + 5] += pattern * height
    san = network([5], extrema, generator=generator)
    optimizer = torch.optim.Adam(san.parameters(), lr=0.01)
    for _ in range(300):
        step(san, optimizer, x, x, functional.l1_loss)
    kernel = san.kernels[0].detach()
    assert torch.allclose(kernel / kernel.abs().max(), pattern / 5 * kernel[2].sign(), atol=0.1)
    assert metrics.phi(san, x).mean() < 0.25


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: network([]), r"not \(\), 1 and 'text'"),
        (lambda: network([3, 0]), r"not \(3, 0\), 1 and 'text'"),
        (lambda: network([3], dimensions=3), r"not \(3,\), 3 and 'text'"),
        (lambda: network([3], definition="book"), "and 'book'"),
        (lambda: network([3])(torch.zeros(2, 4, 4)), r"1-D SAN takes \(samples, length\), not"),
        (lambda: network([3]).decode(torch.zeros(2, 2, 9)), r"\(2, 2, 9\) do not belong to 1 "),
    ],
)
def test_what_cannot_be_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


# --- compression ratio and phi


def maps_of(activation, size, kernels, *shape):
    """Maps of random similarities: what a table needs that does not depend on the data."""
    return activation(torch.randn(1, kernels, *shape), size)


def verbosity(maps, sizes, definition="text"):
    return f"{float(1 / metrics.compression_ratio(maps, sizes, definition)):.2f}"


# kernel size -> 1/CR of every row of Table I; rows of one size print the same
TOPK = {74: 0.10, 5: 0.41, 10: 0.21, 7: 0.29, 20: 0.12, 4: 0.50, 6: 0.34, 36: 0.09}
POOL = {51: 0.09, 10: 0.21, 8: 0.26, 12: 0.18, 9: 0.23, 13: 0.17}
POOL |= {37: 0.09, 23: 0.11, 7: 0.29, 232: 0.24, 18: 0.13, 70: 0.10}
TABLE_1 = [
    (activation, size, f"{printed:.2f}")
    for activation, column in (
        (identity, {1: 2.00}),
        (topk_absolutes, TOPK),
        (extrema_pool_indices, POOL),
    )
    for size, printed in column.items()
]


@pytest.mark.parametrize(("activation", "size", "printed"), TABLE_1)
def test_table_1_prints_these_compression_ratios(activation, size, printed):
    maps = maps_of(activation, size, 1, 1000)
    assert [verbosity(maps, [size], d) for d in DEFINITIONS] == [printed] * 3


IDENTITY_2 = [4.09, 4.10, 4.11, 4.12, 4.13, 4.15, 4.16, 4.17]
SPARSE_2 = [0.58, 0.53, 0.49, 0.48, 0.45, 0.44, 0.43, 0.42]


@pytest.mark.parametrize("size", range(8, 16))
def test_table_2_prints_these_compression_ratios(size):
    columns = {identity: IDENTITY_2, topk_absolutes: SPARSE_2, extrema_pool_indices: SPARSE_2}
    for activation, printed in columns.items():
        maps = maps_of(activation, size, 2, 178)
        assert verbosity(maps, [size, size]) == f"{printed[size - 8]:.2f}"


def test_the_tables_of_images_count_m_weights_of_a_kernel():
    """Tables III and IV print .63 .39 .20 .14 for top-k; with all m x m weights it is more."""
    printed = {"code": ".63 .39 .20 .14", "text": ".64 .42 .26 .21"}
    for definition, row in printed.items():
        for size, text in zip(range(3, 7), row.split()):
            maps = maps_of(topk_absolutes, size, 2, 28, 28)
            assert verbosity(maps, [size, size], definition) == f"0{text}"


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_corrected_ratio_is_that_of_the_bytes(dimensions):
    x = torch.randn(1, *SIZES[dimensions])
    san = network([3, 4], extrema, dimensions)
    ratio = metrics.compression_ratio(san.encode(x), san.kernel_sizes, "corrected")
    assert float(ratio) == pytest.approx(x.nbytes / san.describe(x).nbytes, rel=1e-12)


def test_phi_of_no_error_is_the_verbosity_and_of_silence_one():
    """A kernel that is a single one copies its input; kernels of zeros describe nothing."""
    x = torch.randn(4, 100)
    copy = network([1], identity, mean=1.0, std=0.0)
    assert torch.allclose(metrics.phi(copy, x), torch.full((4,), 2.01, dtype=torch.float64))
    silent = network([4], identity, mean=0.0, std=0.0)
    expected = (0.04**2 + 1) ** 0.5
    assert metrics.phi(silent, x).tolist() == pytest.approx([expected] * 4)
    assert metrics.normalized_loss(torch.zeros_like(x), x).tolist() == [1.0] * 4


def test_phi_is_a_number_a_sample():
    x, san = torch.randn(7, 90), network([6, 9], partial(extrema, tolerance=3))
    alone = [float(metrics.phi(san, one[None])) for one in x]
    assert metrics.phi(san, x).tolist() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: metrics.compression_ratio(m, [3]), r"\(2, 2, 9\) and 1 kernel sizes"),
        (lambda m: metrics.compression_ratio(m, [3, 3], "book"), "not 'book'"),
        (lambda m: metrics.normalized_loss(m, m * 0), "sample 0 is zero everywhere"),
    ],
)
def test_measures_refuse_what_has_none(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(torch.ones(2, 2, 9))


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_description_is_its_three_equations(dimensions):
    x, san = torch.randn(5, *SIZES[dimensions]), network([3, 4], dimensions=dimensions)
    found = metrics.description(san, x, "code")
    ratio = metrics.compression_ratio(san.encode(x), [3, 4], "code")
    assert torch.equal(found["verbosity"], 1 / ratio)
    assert torch.equal(found["error"], metrics.normalized_loss(san(x).detach(), x))
    assert torch.allclose(found["phi"] ** 2, found["verbosity"] ** 2 + found["error"] ** 2)


def test_the_classifier_of_the_paper_has_656_features():
    """Section IV-B: 178 samples leave 16 x 41, and layers of 120, 84 and 3 follow."""
    head = sl.models.cnn(178, 3)
    sizes = [(m.in_features, m.out_features) for m in head if hasattr(m, "in_features")]
    assert sizes == [(656, 120), (120, 84), (84, 3)]
    assert head(torch.randn(2, 178)).shape == (2, 3)
    assert sl.models.cnn(16, 2)(torch.randn(1, 16)).shape == (1, 2)
    with pytest.raises(ValueError, match="15 features is shorter than the 16"):
        sl.models.cnn(15, 2)


# record, activation, kernel size and 1/CR, loss, mean phi as printed
CLOSE = partial(extrema, tolerance=3)
MATCHED = [
    ("mitdb", extrema_pool_indices, 10, (0.21, 0.44, 0.49)),
    ("mitdb", topk_absolutes, 7, (0.29, 0.52, 0.59)),
    ("bidmc", extrema_pool_indices, 10, (0.21, 0.24, 0.32)),
    ("bidmc", topk_absolutes, 5, (0.41, 0.64, 0.76)),
    ("bidmc", CLOSE, 113, (0.13, 0.30, 0.32)),
    ("emgdb", CLOSE, 7, (0.15, 0.51, 0.53)),
    ("ctu-uhb-ctgdb", CLOSE, 45, (0.07, 0.57, 0.57)),
]


@pytest.mark.realdata
@pytest.mark.parametrize(("database", "activation", "size", "printed"), MATCHED)
def test_rows_of_table_1_are_met_within_a_hundredth(database, activation, size, printed):
    """Adam, 30 epochs, batches of 2, N(0, 0.1), the padding and extrema of the code."""
    data = sl.datasets.physionet(sl.datasets.RECORDS[database])
    generator = torch.Generator().manual_seed(0)
    san = network([size], activation, definition="code", generator=generator)
    optimizer = torch.optim.Adam(san.parameters(), lr=0.01)
    for _ in range(30):
        for batch in torch.randperm(6, generator=generator).split(2):
            x = data.train.x[batch]
            step(san, optimizer, x, x, functional.l1_loss)
    x = data.test.x
    verbosity = (1 / metrics.compression_ratio(san.encode(x), [size])).mean()
    loss = metrics.normalized_loss(san(x).detach(), x).mean()
    found = [float(verbosity), float(loss), float(metrics.phi(san, x).mean())]
    assert found == pytest.approx(printed, abs=0.0101)


@pytest.mark.gpu
@pytest.mark.parametrize(("activation", "dimensions"), list(product(EVERY, [1, 2])))
def test_codes_decode_on_the_gpu(activation, dimensions):
    x = torch.randn(5, *SIZES[dimensions], device="cuda")
    san = network([3, 4], activation, dimensions, device="cuda")
    assert torch.equal(san.describe(x).decode(), san(x))
