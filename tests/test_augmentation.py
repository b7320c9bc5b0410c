"""Changed images: what enters is zero, each change as frequent as the others; changed signals."""

from collections import Counter

import pytest
import torch
from torch.nn import functional

import sparselib as sl
from sparselib import training
from sparselib.datasets.augmentation import scaled_and_jittered, shifted_and_flipped
from sparselib.datasets.image_folder import standardized


def changes(image: torch.Tensor, most: int) -> dict[tuple[int, int, bool], torch.Tensor]:
    """Every image that one may become, by shift and flip."""
    _, height, width = image.shape
    wide = functional.pad(image, (most, most, most, most))
    found = {}
    for row in range(2 * most + 1):
        for column in range(2 * most + 1):
            crop = wide[:, row : row + height, column : column + width]
            found[row, column, False] = crop
            found[row, column, True] = crop.flip(2)
    return found


def test_each_image_becomes_one_of_its_crops_and_all_are_as_frequent() -> None:
    image = torch.randn(3, 5, 6)
    x = image.expand(9000, -1, -1, -1)
    y = shifted_and_flipped(x, 1, generator=torch.Generator().manual_seed(0))
    seen: Counter[tuple[int, int, bool]] = Counter()
    for name, crop in changes(image, 1).items():
        seen[name] = int((y == crop).flatten(1).all(1).sum())
    assert seen.total() == 9000
    assert len(seen) == 18
    assert all(abs(count - 500) < 5 * 500**0.5 for count in seen.values())


def test_without_a_shift_and_a_flip_nothing_changes() -> None:
    x = torch.randn(4, 3, 8, 7)
    assert torch.equal(shifted_and_flipped(x, 0, flip=False), x)
    same = [shifted_and_flipped(x, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], x)
    with pytest.raises(ValueError, match="at least 0 pixels, not -1"):
        shifted_and_flipped(x, -1)


def test_a_margin_has_the_color_that_is_asked_for() -> None:
    """Padding bytes with black and standardizing them then is the same."""
    pixels = torch.randint(0, 256, (40, 3, 6, 5), dtype=torch.uint8)
    statistics = sl.datasets.cifar.STATISTICS["imagenet"]
    padded = standardized(functional.pad(pixels, (2, 2, 2, 2)).numpy(), *statistics)
    x = standardized(pixels.numpy(), *statistics)
    y = shifted_and_flipped(x, 2, flip=False, fill=sl.datasets.cifar.black("imagenet"))
    crops = padded.unfold(2, 6, 1).unfold(3, 5, 1)
    found = (crops == y[:, :, None, None]).flatten(4).all(4).all(1)
    assert found.flatten(1).any(1).all()
    assert not torch.equal(x, y)


@pytest.mark.parametrize("fill", [torch.zeros(2), torch.zeros(1), torch.zeros(3, 1)])
def test_margins_of_another_number_of_colors_are_refused(fill: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="one value or one for each of 3 colors, not the shape"):
        shifted_and_flipped(torch.zeros(2, 3, 8, 8), fill=fill)


def test_training_sees_changed_images_and_evaluation_the_given_ones() -> None:
    data = sl.datasets.digits()
    seen = []

    def change(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return torch.zeros_like(x)

    model = sl.MLP(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    before = model.layers[0].weight.detach().clone()
    loss = training.augmented(training.criterion(functional.cross_entropy), change)
    sl.fit(model, data, optimizer, 1, loss=loss, batch_size=400, progress=False)
    assert seen == [400, 400, 397]
    assert torch.equal(model.layers[0].weight, before)  # zeros have no gradient
    assert not torch.equal(model.layers[0].bias, torch.zeros(10))


def test_signals_are_scaled_as_a_whole_and_their_points_changed_one_by_one() -> None:
    """The factor's variance is that of a signal's mean, and the noise's that of the rest."""
    x = torch.full((4000, 400), 2.0)
    y = scaled_and_jittered(x, 0.1, 0.3, torch.Generator().manual_seed(0))
    factors = y.mean(1) / 2
    assert float(factors.mean()) == pytest.approx(1, abs=0.01)
    assert float(factors.std()) == pytest.approx(0.1, rel=0.05)
    assert float((y - y.mean(1, keepdim=True)).std()) == pytest.approx(0.3, rel=0.01)
    scaled = scaled_and_jittered(x * torch.arange(400), 0.1, 0.0)
    assert torch.allclose(scaled / (2 * scaled[:, 1:2]), x * torch.arange(400) / 4)


def test_signals_without_a_change_stay_and_changes_repeat() -> None:
    x = torch.randn(5, 30, dtype=torch.float64)
    assert torch.equal(scaled_and_jittered(x, 0.0, 0.0), x)
    same = [scaled_and_jittered(x, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*same)
    assert same[0].dtype == x.dtype
    assert not torch.equal(same[0], x)
    for options in ({"scale": -0.1}, {"jitter": -1.0}):
        with pytest.raises(ValueError, match="standard deviations count from 0, not scale="):
            scaled_and_jittered(x, **options)
