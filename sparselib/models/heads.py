"""Classifiers that Bizopoulos and Koutsouris stack on what their networks reconstruct."""

from torch import nn


def cnn(features: int, classes: int) -> nn.Sequential:
    """Return the CNN of Section IV-B, for samples of shape (samples, features).

    Two convolutions with 3 and 16 kernels of size 5, each followed by a ReLU and a pool of 2, and
    layers of 656, 120 and 84 units: 656 is what 178 features leave. Its classifier of images is a
    single fully connected layer, ``MLP(784, 10)`` (Section IV-C).

    Raises
    ------
    ValueError
        If a sample is shorter than 16, so that nothing is left of it.
    """
    left = ((features - 4) // 2 - 4) // 2
    if left < 1:
        raise ValueError(
            f"a sample of {features} features is shorter than the 16 that two convolutions of "
            f"size 5 and two pools of 2 need"
        )
    convolutions = (nn.Conv1d(1, 3, 5), nn.Conv1d(3, 16, 5))
    stages = [
        module
        for c in convolutions
        for module in (c, nn.ReLU(), nn.MaxPool1d(2))
    ]
    layers = [
        nn.Linear(16 * left, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
    ]
    return nn.Sequential(
        nn.Unflatten(1, (1, features)),
        *stages,
        nn.Flatten(),
        *layers,
        nn.Linear(84, classes),
    )
