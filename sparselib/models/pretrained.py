"""Public weights of networks that others have trained."""

from pathlib import Path

import torch
from torch import Tensor

from sparselib.datasets import files
from sparselib.models.resnet import ResNet, resnet20, resnet56

CIFAR10 = {
    20: ("resnet20-12fca82f.th", resnet20),
    56: ("resnet56-4bfd9763.th", resnet56),
}


def cifar10_resnet(depth: int = 56, folder: files.Folder = None) -> ResNet:
    """Return a ResNet with the CIFAR-10 weights that Idelbayev (2018) has published.

    They were trained on all 50,000 training images, shifted and flipped at random, and reach 91.73
    (20 layers) and 93.39 % (56) of the official test images according to their author. The images
    have to be standardized as they were: ``datasets.cifar10(statistics="imagenet")``.

    Parameters
    ----------
    depth : {20, 56}
        Layers.
    folder
        Where `pretrained-cifar10/` lies or is fetched to; see `datasets.files.folders`.

    Raises
    ------
    ValueError
        If there is no such network, or the file is damaged.
    DataUnavailable
        If the file lies nowhere and cannot be fetched.
    """
    if depth not in CIFAR10:
        raise ValueError(
            f"there are weights of ResNets of 20 and 56 layers, not of {depth}"
        )
    name, build = CIFAR10[depth]
    path = files.find("pretrained-cifar10", name, folder)
    model = build(shortcut="pad_both")
    model.load_state_dict(_renamed(path))
    return model.eval()


def _renamed(path: Path) -> dict[str, Tensor]:
    """Read tensors, and nothing that runs, and give them the names of `ResNet`."""
    found = torch.load(path, map_location="cpu", weights_only=True)
    return {
        key.removeprefix("module.").replace("linear.", "fc."): tensor
        for key, tensor in found["state_dict"].items()
    }
