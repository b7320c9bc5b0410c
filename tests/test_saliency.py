"""Masks, what they are trained for, and selectors that find what is known to be there."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparselib as sl
from sparselib import metrics, models, saliency
from sparselib.models.unet import UNet
from sparselib.saliency import ClassActivationMaps, PixelSelector, Selector

SIZE = (32, 32)


def mask(row: float, column: float, sigma: float, definition: str = "code") -> torch.Tensor:
    center = torch.tensor([[row, column]], dtype=torch.float64)
    return saliency.rbf(center, torch.tensor([sigma], dtype=torch.float64), SIZE, definition)[0, 0]


@given(st.integers(12, 19), st.integers(12, 19), st.floats(0.8, 1.2))
def test_a_mask_has_the_mass_of_a_gaussian(row: int, column: int, sigma: float) -> None:
    whole = mask(row, column, sigma)
    assert float(whole.sum()) == pytest.approx(2 * math.pi * sigma**2, rel=1e-4)
    assert float(whole[row, column]) == 1
    assert torch.allclose(mask(row + 1, column, sigma), whole.roll(1, 0), atol=1e-12)


def test_equation_12_pixel_by_pixel() -> None:
    whole = mask(15.3, 9.8, 4.0, "text")
    for z, t in [(0, 0), (15, 10), (31, 4)]:
        expected = math.exp(-((z - 15.3) ** 2 + (t - 9.8) ** 2) / (2 * 4.0**2))
        assert float(whole[z, t]) == pytest.approx(expected)
    scaled = mask(15.3, 9.8, 4.0)
    assert torch.allclose(scaled, whole / whole.max())


def test_nonlinearities_are_those_of_the_supplement() -> None:
    u = torch.linspace(-40, 40, 9, dtype=torch.float64)
    numbers = torch.stack([u, u, u], 1)
    small, sigma = saliency.center_and_sigma(numbers, (32, 32))
    large, _ = saliency.center_and_sigma(numbers, (224, 224))
    assert torch.allclose(small[:, 0], 14 * torch.tanh(u / 14) + 16)
    assert torch.allclose(large[:, 1], 108 * torch.tanh(u / 108) + 112)
    assert torch.allclose(sigma, torch.log1p(u.exp()))
    assert (saliency.first_sigma(32), saliency.first_sigma(224)) == (10, 80)
    bounded = saliency.center_and_sigma(numbers * 100, (32, 32), "bounded")[1]
    assert float(bounded.max()) < 16
    bounded = saliency.center_and_sigma(numbers, (48, 32), "bounded")[1]
    assert torch.allclose(bounded, sigma / (1 + 2 * sigma / 32))


def test_a_unit_scales_the_mask_with_the_signal() -> None:
    model = models.ResNet((1, 1), (4, 8), 3, inputs=1, dimensions=1)
    plain, wide = (
        Selector(model, (1, points), 3, blocks=1, unit=unit)
        for points, unit in ((32, 1.0), (2000, 62.5))
    )
    u = 5 * torch.randn(6, 2)
    for small, large in zip(plain.center_and_sigma(u), wide.center_and_sigma(u)):
        assert torch.allclose(62.5 * small, large)
    assert float(wide.decoder.output.bias[-1]) == float(plain.decoder.output.bias[-1]) == 10
    with pytest.raises(ValueError, match="above 0, not 0"):
        Selector(model, (1, 32), 3, blocks=1, unit=0.0)


def test_random_pixels_and_random_circles() -> None:
    x = torch.zeros(200, 3, 32, 32)
    pixels, circles = (
        f(x, torch.Generator().manual_seed(0)) for f in (saliency.bernoulli, saliency.random_rbf)
    )
    assert pixels.shape == circles.shape == (200, 1, 32, 32)
    assert set(pixels.unique().tolist()) == set(circles.unique().tolist()) == {0.0, 1.0}
    assert float(pixels.mean()) == pytest.approx(0.5, abs=0.01)
    signal = saliency.random_rbf(torch.zeros(5, 1, 100))
    assert signal.shape == (5, 1, 100)


def test_divergence_is_that_of_kullback_and_leibler() -> None:
    predicted, logits = torch.randn(4, 3).log_softmax(1), torch.randn(4, 3)
    expected = (predicted.exp() * (predicted - logits.log_softmax(1))).sum(1).mean()
    assert torch.allclose(saliency.divergence(logits, predicted), expected)
    assert float(saliency.divergence(predicted, predicted)) == pytest.approx(0, abs=1e-6)


def test_sizes_of_masks() -> None:
    f = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    drawn = saliency.sample(f)
    assert torch.equal(saliency.mask_size(f, drawn), f.mean())
    assert torch.equal(saliency.mask_size(f, drawn, "relaxed"), drawn.mean())
    power = ((drawn + 0.0005) ** 0.3).mean()
    assert torch.allclose(saliency.mask_size(f, drawn, "power"), power)
    assert float(saliency.mask_size(f, drawn, "count")) == float((drawn > 0.5).sum()) / 3


def test_the_texts_count_has_no_gradient() -> None:
    f = torch.rand(2, 1, 8, 8, requires_grad=True)
    drawn = saliency.sample(f)
    assert not saliency.mask_size(f, drawn, "count").requires_grad
    assert saliency.mask_size(f, drawn, "expected").requires_grad


def test_smoothness_counts_edges() -> None:
    board = torch.zeros(1, 1, 4, 4)
    board[..., 1:3, 1:3] = 1
    assert float(saliency.smoothness(board)) == 8
    assert float(saliency.smoothness(board, "code")) == 4
    full = torch.ones(2, 1, 4, 4)
    assert float(saliency.smoothness(full)) == 0
    assert float(saliency.smoothness(full, "code")) == pytest.approx(0.3 * 12 / 2)
    assert float(saliency.smoothness(torch.tensor([[[0.0, 1, 1, 0]]]))) == 2


def penalty(sigma: float, lambda_1: float, definition: str) -> float:
    """lambda_1 R + lambda_2 S in the mean over random masks, for a mask in the middle."""
    center = torch.full((400, 2), 16.0)
    f = saliency.rbf(center, torch.full((400,), sigma), SIZE)
    drawn = saliency.sample(f, generator=torch.Generator().manual_seed(0))
    smooth = saliency.smoothness(drawn, "code")
    return float(lambda_1 * saliency.mask_size(f, drawn, definition) + 0.001 * smooth)


def test_penalty_grows_with_the_mask_by_default_and_not_as_released() -> None:
    ours = [penalty(s, 1.0, "expected") for s in (1.0, 5.0, 8.0, 11.0, 16.0, 30.0, 60.0)]
    released = [penalty(s, 0.2, "power") for s in (1.0, 5.0, 8.0, 11.0, 16.0, 30.0, 60.0)]
    assert ours == sorted(ours)
    assert released != sorted(released)


def test_gradient_of_the_objective() -> None:
    u = torch.tensor([[1.0, -2.0, 4.0]], dtype=torch.float64, requires_grad=True)

    def objective(u: torch.Tensor) -> torch.Tensor:
        f = saliency.rbf(*saliency.center_and_sigma(u, (8, 8)), (8, 8), "text")
        drawn = saliency.sample(f, generator=torch.Generator().manual_seed(0))
        return saliency.mask_size(f, drawn) + 0.1 * saliency.smoothness(drawn)

    assert torch.autograd.gradcheck(objective, u)


def small(classes: int = 10) -> models.ResNet:
    return models.ResNet((1, 1, 1), (8, 16, 32), classes, inputs=1, stem="half")


def test_selector_keeps_its_classifier_frozen() -> None:
    model = small()
    selector = Selector(model, (1, 32, 32), 10, blocks=1).train()
    assert selector.decoder.training
    assert not selector.classifier.training
    assert all(not p.requires_grad for p in selector.classifier.parameters())
    assert selector.explains(model)
    assert not selector.explains(small())
    assert selector.of(small()).decoder is selector.decoder


@pytest.mark.parametrize("size", [(8, 12), (20,)])
def test_centered_masks_have_the_most_in_the_middle_and_are_as_large(size: tuple[int, ...]) -> None:
    """The middle of an even number of pixels is one of two."""
    dimensions = len(size)
    widths = {"stem": "small", "dimensions": dimensions}
    classifier = models.ResNet((1, 1), (4, 8), 3, inputs=1, **widths)
    selector = sl.Selector(classifier, (1, *size), 3)
    u = torch.randn(5, dimensions + 1)
    for mask in selector.centered(u)[:, 0]:
        place = torch.unravel_index(mask.argmax(), size)
        assert all(2 * int(at) in (n - 2, n) for at, n in zip(place, size))
    still = torch.cat([torch.zeros(5, dimensions), u[:, -1:]], 1)
    assert torch.equal(selector.extent(still), selector.extent(u))
    assert not torch.allclose(selector.centered(u), selector.masks(u))


def test_at_initialization_masks_are_a_third_wide() -> None:
    selector = Selector(small(), (1, 32, 32), 10).eval()
    sigma = selector.center_and_sigma(selector.numbers(torch.rand(20, 1, 32, 32)))[1]
    assert float(sigma.detach().median()) == pytest.approx(10, abs=2)


@pytest.mark.parametrize(("stem", "dimensions"), [("small", 2), ("half", 2), ("half", 1)], ids=str)
def test_pixels_have_probabilities_of_their_own(stem: str, dimensions: int) -> None:
    model = models.ResNet((1, 1), (4, 8), 3, inputs=1, stem=stem, dimensions=dimensions)
    shape = (1, *(32,) * dimensions)
    selector = PixelSelector(model, shape, 3, blocks=1).eval()
    u = selector.numbers(torch.rand(2, *shape))
    side = 32 if stem == "small" else 16
    assert u.shape == (2, 2, *(side,) * dimensions)
    u = torch.zeros_like(u)
    u[0, 0], u[0, 1] = -3, 1  # by the sizes of both channels, whatever their signs
    u[1, 0], u[1, 1] = 1, 3
    masks = selector.masks(u)
    assert masks.shape == (2, *shape)
    assert torch.allclose(masks[0], torch.tensor(0.75))
    assert torch.allclose(masks[1], torch.tensor(0.25))
    extent = selector.extent(u)
    assert extent.tolist() == pytest.approx(
        [32 * share ** (1 / dimensions) for share in (0.75, 0.25)]
    )
    assert selector.explains(model)
    assert type(selector.of(model)) is PixelSelector


@pytest.mark.parametrize(("dimensions", "classes"), [(1, 3), (2, 4)])
def test_class_activation_maps_are_grad_cam_without_a_gradient(dimensions, classes) -> None:
    model = models.ResNet((1, 1), (4, 8), classes, inputs=1, stem="half", dimensions=dimensions)
    shape = (1, *(32,) * dimensions)
    maps = ClassActivationMaps(model, shape)
    x = torch.randn(5, *shape)
    for target in range(classes):
        found = maps(x, torch.full((5,), target))
        expected = saliency.grad_cam(model, model.layer2, x, target)
        torch.testing.assert_close(found[:, 0], expected)
    torch.testing.assert_close(maps(x)[:, 0], saliency.grad_cam(model, model.layer2, x))
    scores = maps.classifier(x)
    labels = scores.argmax(1)
    kept = maps.numbers(x, labels).flatten(1).mean(1) + model.fc.bias[labels]
    torch.testing.assert_close(kept, scores.amax(1))  # their mean is the score, less its bias
    whole = torch.ones(2, *shape)
    assert maps.extent(whole).tolist() == pytest.approx([32.0, 32.0])
    assert maps.explains(model)
    assert maps.of(model.eval()).decoder is maps.decoder
    assert not list(maps.decoder.parameters())


def test_a_network_without_a_mean_over_places_has_no_class_activation_map() -> None:
    with pytest.raises(ValueError, match="the 4 channels of 'layer1'; the last one reads 8"):
        ClassActivationMaps(models.ResNet((1, 1), (4, 8)), (3, 32, 32), scales=["layer1"])


class OfOnePixel(torch.nn.Module):
    """Predicts class 1 with probability 3/4 where the pixel at (1, 2) is shown, else with 1/4."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = x[:, 0, 1, 2] > 0
        return torch.where(seen, math.log(3), -math.log(3))[:, None] * torch.tensor([0.0, 1.0])


def test_rise_finds_the_pixel_that_counts_and_its_probabilities() -> None:
    x = torch.ones(3, 1, 4, 4)
    options = {"masks": saliency.bernoulli, "generator": torch.Generator().manual_seed(0)}
    found = saliency.rise(OfOnePixel(), x, torch.tensor([1, 1, 0]), 4000, **options)
    assert found.shape == x.shape
    torch.testing.assert_close(found[:, 0, 1, 2], torch.tensor([0.75, 0.75, 0.25]))
    others = torch.arange(16) != 6
    torch.testing.assert_close(
        found.flatten(1)[:, others], torch.full((3, 15), 0.5), atol=0.03, rtol=0
    )
    never = saliency.rise(OfOnePixel(), x, torch.ones(3).long(), 2, masks=lambda x, _: 0 * x)
    assert not never.any()
    with pytest.raises(ValueError, match="one mask at least, not 0"):
        saliency.rise(OfOnePixel(), x, torch.ones(3).long(), 0)


@given(st.integers(1, 64), st.integers(0, 9))
def test_as_many_pixels_of_each_sample_are_visible_and_none_hidden_is_more_salient(
    count: int, seed: int
) -> None:
    source = torch.Generator().manual_seed(seed)
    salient = torch.randint(5, (3, 1, 8, 8), generator=source).float()  # many are equal
    kept = saliency.visible(salient, count / 64)
    assert kept.sum((1, 2, 3)).tolist() == [count] * 3
    for of_one, shown in zip(salient.flatten(1), kept.flatten(1).bool()):
        least = of_one[shown].min()
        assert not (of_one[~shown] > least).any()
        equal = (of_one == least).nonzero().flatten()
        assert shown[equal].tolist() == sorted(shown[equal].tolist(), reverse=True)


@pytest.mark.parametrize("share", [0.0, 0.001, 1.1, float("nan")])
def test_a_share_of_no_pixel_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"lies in \(0, 1\], and is at least one of 64, not"):
        saliency.visible(torch.zeros(1, 1, 8, 8), share)


def test_pointing_and_overlap() -> None:
    boxes = torch.tensor([[2, 3, 6, 9], [20, 20, 30, 30]])
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, 0, 2:6, 3:9] = 1
    masks[1, 0, 0, 0] = 1
    assert metrics.localization(masks, boxes) == (0.5, 0.5)
    assert metrics.mask_area(masks).tolist() == [24 / 1024, 1 / 1024]


def test_auroc_and_fidelity() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    right = torch.nn.functional.one_hot(labels, 3).double()
    assert metrics.auroc(right, labels) == 1
    assert metrics.fidelity(right, 5 * right + 1) == 1
    assert metrics.auroc(torch.zeros(6, 3), labels) == 0.5
    with pytest.raises(ValueError, match="none of 2"):
        metrics.auroc(right[:2], labels[:2])


DIGITS = torch.tensor([0, 1, 4])  # as few as take seconds to learn


def of_digits(samples: sl.datasets.Samples, boxes: torch.Tensor) -> tuple:
    """Return the images of three digits, and where those lie."""
    chosen = torch.isin(samples.y, DIGITS)
    classes = torch.searchsorted(DIGITS, samples.y[chosen])
    return sl.datasets.Samples(samples.x[chosen], classes), boxes[chosen]


@pytest.fixture(scope="module")
def placed() -> tuple:
    """Three digits in clutter, and the boxes of those of the test part."""
    data, boxes = sl.datasets.placed_digits()
    parts = [of_digits(getattr(data, name), boxes[name]) for name in boxes]
    samples = [part[0] for part in parts]
    few = sl.datasets.Split(*samples, classes=len(DIGITS), name="three digits", note="")
    return few, parts[2][1]


@pytest.fixture(scope="module")
def trained(placed: tuple) -> tuple:
    """A classifier, its predictor and its selector on placed digits."""
    torch.manual_seed(0)
    data, _ = placed
    steps = math.ceil(len(data.train) / 32)
    classifier, epochs = small(3), 4
    optimizer = torch.optim.SGD(classifier.parameters(), 0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * steps)
    quiet = {"batch_size": 32, "progress": False}
    sl.fit(classifier, data, optimizer, epochs, after_step=schedule.step, **quiet)
    predictor = small(3)
    predictor.load_state_dict(classifier.state_dict())
    optimizer = torch.optim.Adam(predictor.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * steps)
    history = saliency.train_predictor(
        predictor, classifier, data, optimizer, 3, after_step=schedule.step, **quiet
    )
    selector = Selector(classifier, (1, 32, 32), 3, blocks=1)
    optimizer = torch.optim.Adam(selector.decoder.parameters(), 1e-3)
    saliency.train_selector(selector, predictor, data, optimizer, 1, batch_size=16, progress=False)
    return *placed, classifier.eval(), predictor.eval(), selector.eval(), history


@pytest.fixture(scope="module")
def evaluator(trained: tuple) -> torch.nn.Module:
    """A network trained on pixels hidden with probability one half, Eq. 8."""
    data, _, classifier, _, _, _ = trained
    evaluator = small(3)
    evaluator.load_state_dict(classifier.state_dict())
    optimizer = torch.optim.Adam(evaluator.parameters(), 3e-3)
    options = {"masks": saliency.bernoulli, "batch_size": 32, "progress": False}
    saliency.train_predictor(evaluator, classifier, data, optimizer, 1, **options)
    return evaluator.eval()


@pytest.mark.slow
def test_predictor_reads_masked_images_and_the_classifier_does_not(trained: tuple) -> None:
    data, _, classifier, predictor, _, history = trained
    x = data.test.x * saliency.random_rbf(data.test.x, torch.Generator().manual_seed(1))
    with torch.no_grad():
        predicted = classifier(data.test.x)
        learned = metrics.fidelity(predictor(x), predicted)
        assert learned > metrics.fidelity(classifier(x), predicted) + 0.1
    assert learned == pytest.approx(history["accuracy"][-1], abs=0.1)


@pytest.mark.slow
def test_selector_finds_the_digit(trained: tuple) -> None:
    data, boxes, classifier, predictor, selector, _ = trained
    x = data.test.x
    with torch.no_grad():
        masks, predicted = selector(x), classifier(x)
        right = metrics.fidelity(predictor(x * masks), predicted)
        elsewhere = metrics.fidelity(predictor(x * masks.roll(1, 0)), predicted)
    hit, overlap = metrics.localization(masks, boxes)
    assert hit > 0.9
    assert overlap > 0.45
    assert right > elsewhere + 0.25
    assert 0.1 < float(metrics.mask_area(masks).mean()) < 0.45


@pytest.mark.slow
def test_a_predictor_by_bernoulli_masks_reads_images_of_which_half_is_hidden(
    trained: tuple, evaluator: torch.nn.Module
) -> None:
    data, _, classifier, _, _, _ = trained
    x = data.test.x * saliency.bernoulli(data.test.x, torch.Generator().manual_seed(1))
    with torch.no_grad():
        predicted = classifier(data.test.x)
        assert (
            metrics.fidelity(evaluator(x), predicted)
            > metrics.fidelity(classifier(x), predicted) + 0.2
        )


@pytest.mark.slow
def test_an_independent_evaluator_prefers_the_selectors_masks(
    trained: tuple, evaluator: torch.nn.Module
) -> None:
    data, _, classifier, _, selector, _ = trained
    with torch.no_grad():
        masks, predicted = selector(data.test.x), classifier(data.test.x)
    chance = torch.Generator().manual_seed(0)
    own, another = (
        saliency.evalx(evaluator, classifier, m, data.test, chance)
        for m in (masks, masks.roll(1, 0))
    )
    assert own.area == pytest.approx(another.area, rel=1e-12)
    assert own.fidelity > another.fidelity + 0.15
    assert own.accuracy > another.accuracy + 0.15
    assert own.auroc > another.auroc + 0.05
    everything = saliency.evalx(evaluator, classifier, torch.ones_like(masks), data.test)
    assert everything.accuracy == metrics.accuracy(sl.predict(evaluator, data.test.x), data.test.y)
    assert everything.fidelity == metrics.fidelity(sl.predict(evaluator, data.test.x), predicted)
    with pytest.raises(ValueError, match="do not fit samples of shape"):
        saliency.evalx(evaluator, classifier, masks[:5], data.test)


@pytest.mark.slow
def test_probabilities_of_single_pixels_lie_on_the_digit(
    trained: tuple, evaluator: torch.nn.Module
) -> None:
    data, boxes, classifier, _, _, _ = trained
    selector = PixelSelector(classifier, (1, 32, 32), 3, blocks=1)
    optimizer = torch.optim.Adam(selector.decoder.parameters(), 1e-3)
    options = {"lambda_2": 0.0, "batch_size": 16, "progress": False}
    saliency.train_selector(selector, evaluator, data, optimizer, 3, **options)
    with torch.no_grad():
        masks = selector.eval()(data.test.x)
    inside = torch.zeros_like(masks, dtype=torch.bool)
    for place, (top, left, bottom, right) in zip(inside[:, 0], boxes.tolist()):
        place[top:bottom, left:right] = True
    here, there = float(masks[inside].mean()), float(masks[~inside].mean())
    assert here > 1.8 * there


@pytest.mark.slow
def test_masks_follow_the_image(trained: tuple) -> None:
    data, boxes, _, _, selector, _ = trained
    inner = ((boxes[:, :2] >= 3) & (boxes[:, 2:] <= 29)).all(1)
    x = data.test.x[inner]
    with torch.no_grad():
        before, _ = selector.center_and_sigma(selector.numbers(x))
        after, _ = selector.center_and_sigma(selector.numbers(x.roll((3, 3), (2, 3))))
    shift = (after - before).mean(0) / 3
    assert float(shift.min()) > 0.6
    assert float(shift.max()) < 1.7


@pytest.mark.slow
def test_collapse_is_reported(trained: tuple) -> None:
    data, _, classifier, predictor, _, _ = trained
    few = sl.datasets.Split(
        *(sl.datasets.Samples(s.x[:160], s.y[:160]) for s in (data.train, data.valid, data.test)),
        classes=3,
        name="few",
        note="",
    )
    selector = Selector(classifier, (1, 32, 32), 3, blocks=1)
    optimizer = torch.optim.Adam(selector.decoder.parameters(), 1e-2)
    options = {"lambda_1": 50.0, "batch_size": 16, "progress": False}
    with pytest.warns(RuntimeWarning, match="the masks have collapsed"):
        saliency.train_selector(selector, predictor, few, optimizer, 4, **options)


def test_impossible_choices_are_refused() -> None:
    f = torch.rand(1, 1, 4, 4)
    u = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="not 'l0'"):
        saliency.mask_size(f, f, "l0")
    with pytest.raises(ValueError, match="not 'paper'"):
        saliency.smoothness(f, "paper")
    with pytest.raises(ValueError, match="one number a dimension"):
        saliency.rbf(torch.zeros(1, 1), torch.ones(1), SIZE)
    with pytest.raises(ValueError, match="there must be 2 numbers"):
        saliency.center_and_sigma(u, (100,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert saliency.sample(f, noise="none") is f


def test_scales_that_are_not_doubled_are_refused_unless_they_are_resized() -> None:
    shapes = [(4, 9), (8, 4)]
    with pytest.raises(ValueError, match=r"\(9,\) is not twice the next, \(4,\).*resize=True"):
        UNet(shapes, 2)
    scales = [torch.randn(3, *shape) for shape in shapes]
    numbers = UNet(shapes, 2, resize=True)(scales, torch.tensor([0, 1, 1]))
    assert numbers.shape == (3, 2)
