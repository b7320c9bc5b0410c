"""Sparse activations: the algorithms cell by cell, in 1-D and 2-D, with exact gradients."""

from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import sparselib as sl
from sparselib.nn import extrema, extrema_pool_indices, identity, relu, topk_absolutes
from sparselib.ops.backends import cpu_extrema, reference

SPARSE = [topk_absolutes, extrema_pool_indices, extrema, partial(extrema, definition="text")]
EVERY = [identity, relu, *SPARSE]

# few levels make ties and plateaus; both zeros make magnitudes that are equal
LEVELS = st.sampled_from([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0])
SIGNALS = arrays("float32", st.tuples(st.integers(1, 40)), elements=LEVELS)
IMAGES = arrays("float32", array_shapes(min_dims=2, max_dims=2, max_side=9), elements=LEVELS)
SMOOTH = arrays("float32", st.tuples(st.integers(1, 60)), elements=st.floats(-4, 4, width=16))


def turns(s, definition="code"):
    """Places of all extrema of a map, and what lies at every place."""
    shape = s.shape
    cells = {place: float(s[place]) for place in product(*map(range, shape))}

    def is_extremum(place, peak):
        if definition == "code" and (cells[place] > 0) != peak:
            return False
        for axis in range(len(shape)):
            near = [(*place[:axis], place[axis] + d, *place[axis + 1 :]) for d in (-1, 1)]
            before, after = (cells.get(other, cells[place]) - cells[place] for other in near)
            before = -before
            if definition == "text":
                found = (after >= 0 and before < 0) if peak else (after < 0 and before >= 0)
            else:
                found = (after <= 0 and before > 0) if peak else (after > 0 and before <= 0)
            if not found:
                return False
        return True

    return [p for p in cells if is_extremum(p, True) or is_extremum(p, False)], cells


def sequential(s, size, tolerance=0, definition="code"):
    """Algorithm 3 one extremum after the other, in plain Python: the places that are kept."""
    places, cells = turns(s, definition)
    places.sort(key=lambda place: -abs(cells[place]))
    distance, kept = max(size - tolerance, 1), []
    for place in places:
        apart = (max(abs(a - b) for a, b in zip(place, other)) for other in kept)
        if all(d > distance for d in apart):
            kept.append(place)
    return kept


def mask(s, places):
    kept = torch.zeros(s.shape)
    for place in places:
        kept[place] = 1
    return kept


def kept_by(activation, s, size):
    """Where the gradient passes: the kept places, those of amplitude zero too."""
    s = s.clone().requires_grad_()
    activation(s, size).sum().backward()
    return s.grad


@pytest.mark.slow
@given(
    st.one_of(SIGNALS, IMAGES, SMOOTH),
    st.integers(1, 12),
    st.integers(0, 4),
    st.sampled_from(["code", "text"]),
)
def test_extrema_are_those_of_the_sequential_algorithm(s, size, tolerance, definition):
    s = torch.from_numpy(s)
    expected = mask(s, sequential(s, size, tolerance, definition))
    activation = partial(extrema, tolerance=tolerance, definition=definition)
    for kernels in ("auto", "reference"):
        with sl.ops.backend(kernels):
            assert torch.equal(kept_by(activation, s[None, None], size)[0, 0], expected)
            assert torch.equal(activation(s[None, None], size)[0, 0], s * expected)


@pytest.mark.slow
def test_ten_thousand_random_signals_index_for_index():
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(2500, 24, generator=draw)
    ties = torch.randint(-3, 4, (2500, 24), generator=draw).float()
    plateaus = torch.randn(2500, 8, generator=draw).repeat_interleave(3, 1)
    ramps = torch.randn(2500, 24, generator=draw).abs().cumsum(1) * ties[:, :1]
    s = torch.cat([noise, ties, plateaus, ramps])
    for distance in (1, 6):
        expected = torch.stack([mask(row, sequential(row, distance)) for row in s])
        assert expected.sum() > 10_000
        for kernels in ("auto", "reference"):
            with sl.ops.backend(kernels):
                assert torch.equal(extrema(s[:, None], distance)[:, 0], s * expected)


@pytest.mark.slow
@given(
    arrays(
        "float32", array_shapes(min_dims=2, max_dims=3, max_side=9), elements=st.integers(-3, 3)
    ),
    st.integers(1, 6),
)
def test_competing_maps_keep_what_one_after_the_other_would(s, size):
    """The strongest of all maps comes first, and silences its surroundings in every map."""
    s, found = torch.from_numpy(s), []
    for number, map_ in enumerate(s):
        places, cells = turns(map_)
        found += [(-abs(cells[place]), number, place) for place in places]
    kept = []
    for _, number, place in sorted(found):
        apart = (max(abs(a - b) for a, b in zip(place, other[1:])) for other in kept)
        if all(distance > size for distance in apart):
            kept.append((number, *place))
    for kernels in ("auto", "reference"):
        with sl.ops.backend(kernels):
            assert torch.equal(extrema(s[None], size, across=True)[0], s * mask(s, kept))


RAMPS = {
    "one cell": [3.0],
    "constant": [1.0] * 9,
    "rising": [1.0, 2.0, 3.0, 4.0],
    "falling": [4.0, 3.0, 2.0, 1.0],
    "negative rising": [-4.0, -3.0, -2.0],
    "negative falling": [-1.0, -2.0, -3.0],
    "plateau": [0.0, 2.0, 2.0, 2.0, 0.0],
    "valley floor": [-1.0, -2.0, -2.0, -1.0],
}
ENDS = {"rising": [3], "negative rising": [0], "plateau": [1], "valley floor": [2]}
PRINTED = {"falling": [0, 3], "negative falling": [0, 2], "plateau": [3], "valley floor": [1]}


@pytest.mark.parametrize("name", RAMPS)
def test_ends_and_plateaus(name):
    """Padding with zero steps makes the two ends of a signal differ, and the two readings too."""
    s = torch.tensor(RAMPS[name])
    for definition, places in (("code", ENDS), ("text", PRINTED)):
        activation = partial(extrema, definition=definition)
        found = kept_by(activation, s[None, None], 1)[0, 0].nonzero().flatten().tolist()
        assert found == places.get(name, [])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (0, 1, 9), (2, 1, 0), (3, 2, 300), (3, 2, 17, 23), (2, 3, 1, 9)]
)
def test_compiled_extrema_are_those_of_the_definition(shape, dtype):
    wide = torch.randn(*shape[:-1], 2 * shape[-1], dtype=dtype).round(decimals=1)
    wide[..., ::11] = torch.inf
    for s in (wide[..., : shape[-1]].contiguous(), wide[..., ::2]):
        for options in product((1, 3, 400), (True, False), (True, False)):
            assert torch.equal(cpu_extrema.greedy(s, *options), reference.extrema(s, *options))


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 3, 2), (3, 1, 40), (2, 2, 5, 7), (1, 3, 1, 1)])
def test_compiled_extrema_stay_within_their_memory(shape):
    """Run as Python, where numpy checks every index, they do what they do when compiled."""
    text = Path(cpu_extrema.__file__).read_text(encoding="utf-8")
    names: dict[str, object] = {}
    exec(compile(text.replace("@compiled\n", ""), "extrema, not compiled", "exec"), names)
    s = torch.randn(shape).round(decimals=1)
    for options in product((1, 4), (True, False), (True, False)):
        assert torch.equal(names["greedy"](s, *options), cpu_extrema.greedy(s, *options))


def test_extrema_keep_their_distance():
    s = torch.randn(8, 2, 500)
    for size, tolerance in ((1, 0), (5, 0), (20, 3), (250, 0)):
        distance = max(size - tolerance, 1)
        for row in extrema(s, size, tolerance).flatten(0, 1):
            assert (row.nonzero().flatten().diff() > distance).all()


@given(SIGNALS, st.integers(1, 40))
def test_topk_keeps_the_first_of_the_largest(s, k):
    k = min(k, len(s))
    order = sorted(range(len(s)), key=lambda i: -abs(s[i]))
    expected = mask(torch.from_numpy(s), [(i,) for i in order[:k]])
    found = kept_by(partial(topk_absolutes, k=k), torch.from_numpy(s)[None, None], 1)
    assert torch.equal(found[0, 0], expected)


@given(st.one_of(SIGNALS, IMAGES), st.integers(1, 6))
def test_pool_keeps_the_first_of_the_largest_of_each_region(s, size):
    size = min(size, *s.shape)
    s, expected = torch.from_numpy(s), torch.zeros(s.shape)
    for corner in product(*(range(0, n - size + 1, size) for n in s.shape)):
        region = [
            tuple(a + b for a, b in zip(corner, d)) for d in product(range(size), repeat=s.ndim)
        ]
        expected[max(region, key=lambda place: (abs(s[place]), [-a for a in place]))] = 1
    assert torch.equal(kept_by(extrema_pool_indices, s[None, None], size)[0, 0], expected)


def test_an_image_of_28_pixels_has_as_many_activations_as_the_paper_sets():
    """k = floor(n/m)^dim: 49 of a map for m = 4, where the released pool keeps one."""
    s = torch.randn(3, 1, 28, 28)
    for size in range(1, 7):
        for activation in (topk_absolutes, extrema_pool_indices):
            assert (activation(s, size) != 0).sum((1, 2, 3)).tolist() == [(28 // size) ** 2] * 3


@pytest.mark.parametrize("activation", EVERY)
@pytest.mark.parametrize("shape", [(4, 3, 30), (4, 3, 7, 9)])
def test_what_is_kept_is_unchanged_and_its_gradient_is_one(activation, shape):
    s = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    maps = activation(s, 3)
    assert maps.dtype == s.dtype
    assert torch.equal(maps[maps != 0], s[maps != 0])
    (gradient,) = torch.autograd.grad(maps.sum(), s)
    assert torch.equal(gradient, (maps != 0).double())
    assert torch.autograd.gradcheck(lambda s: activation(s, 3), s)


@pytest.mark.parametrize("activation", EVERY)
@pytest.mark.parametrize("shape", [(4, 3, 30), (4, 3, 7, 9)])
def test_maps_do_not_see_each_other(activation, shape):
    s = torch.randn(shape)
    alone = [activation(s[i : i + 1, j : j + 1], 4) for i, j in product(range(4), range(3))]
    assert torch.equal(torch.cat(alone).view(shape), activation(s, 4))


@pytest.mark.parametrize("activation", SPARSE)
def test_a_nan_is_refused_by_name(activation):
    s = torch.randn(2, 1, 30)
    s[1, 0, 7] = torch.nan
    with pytest.raises(ValueError, match="1 of 60 similarities are NaN"):
        activation(s, 3)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: extrema(torch.zeros(3, 4), 2), r"not \(3, 4\) and 2"),
        (lambda: extrema(torch.zeros(1, 1, 4), 0), r"not \(1, 1, 4\) and 0"),
        (lambda: extrema(torch.zeros(1, 1, 4), 2, -1), "not -1 and 'code'"),
        (lambda: extrema(torch.zeros(1, 1, 4), 2, definition="book"), "not 0 and 'book'"),
        (lambda: extrema_pool_indices(torch.zeros(1, 1, 4), 5), r"size 5 does not fit.*\(4,\)"),
        (lambda: topk_absolutes(torch.zeros(1, 1, 4), 5), "cannot keep 0 of the 4 .*size 5"),
        (lambda: topk_absolutes(torch.zeros(1, 1, 4), 1, k=9), "cannot keep 9 of the 4 .*k=9"),
    ],
)
def test_what_cannot_be_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize("activation", EVERY)
@pytest.mark.parametrize("shape", [(16, 2, 178), (8, 2, 28, 28)])
def test_the_gpu_keeps_the_same_cells(activation, shape):
    s = (torch.randn(shape) * 4).round() / 4
    assert torch.equal(activation(s.cuda(), 5).cpu(), activation(s, 5))
