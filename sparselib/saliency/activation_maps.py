"""Where a network looked: class activation maps by gradient."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sparselib.modes import in_evaluation


def grad_cam(
    model: nn.Module,
    layer: nn.Module,
    x: Float[Tensor, "batch *size"],
    target: int | None = None,
) -> Float[Tensor, "batch ..."]:
    r"""How much each point of a signal or image supports a class (Selvaraju and others, 2019).

    .. math:: L^c = \mathrm{ReLU}\Big(\sum_k \alpha_k^c A^k\Big), \quad
       \alpha_k^c = \frac{1}{Z} \sum_p \frac{\partial y^c}{\partial A_p^k}

    with the maps :math:`A^k` that `layer` writes, of :math:`Z` points each, and the score
    :math:`y^c` before any softmax (their Equations 1 and 2, of 2-D maps; here of signals too).
    Brought to the size of the input by linear interpolation, and divided by its own maximum.

    Parameters
    ----------
    model : nn.Module
        Returns one score per class. Called in evaluation mode; it is left as it was.
    layer : nn.Module
        A part of it that writes maps (batch, channels, time) or (batch, channels, height, width).
    x : Tensor
        Signals or images, with or without the dimension of channels if the model allows both.
    target : int, optional
        The class; by default the one that each sample scores highest.

    Returns
    -------
    Tensor
        In [0, 1], of shape (batch, time) or (batch, height, width); all 0 where nothing supports
        the class.

    Raises
    ------
    ValueError
        If the layer writes no maps, was not called, or the class is none.
    """
    maps: list[Tensor] = []

    def keep(
        module: nn.Module, inputs: tuple[object, ...], output: Tensor
    ) -> Tensor:
        # a leaf of its own, so that nothing below it is differentiated
        maps.append(output.detach().requires_grad_())
        return maps[-1]

    handle = layer.register_forward_hook(keep)
    try:
        with in_evaluation(model), torch.enable_grad():
            scores = model(x)
    finally:
        handle.remove()
    if not maps or maps[-1].ndim not in (3, 4):
        shape = tuple(maps[-1].shape) if maps else "nothing"
        raise ValueError(
            f"Grad-CAM needs a layer that writes maps (batch, channels, *size); "
            f"{type(layer).__name__} wrote {shape}"
        )
    if target is not None and not 0 <= target < scores.shape[1]:
        raise ValueError(f"class {target} is none of {scores.shape[1]}")
    if target is None:
        classes = scores.argmax(1)
    else:
        classes = torch.full((len(scores),), target, device=scores.device)
    with torch.enable_grad():
        score = scores.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, maps[-1])
    activations = maps[-1].detach()
    dimensions = activations.ndim - 2
    ones = (1,) * dimensions
    weights = gradient.flatten(2).mean(2)  # (batch, channels), Eq. 1
    weighted = weights.view(*weights.shape, *ones) * activations
    cam = torch.relu(weighted.sum(1, keepdim=True))  # Eq. 2
    mode = "linear" if dimensions == 1 else "bilinear"
    size = x.shape[-dimensions:]
    cam = functional.interpolate(cam, size, mode=mode, align_corners=False)[
        :, 0
    ]
    largest = cam.flatten(1).amax(1).view(-1, *ones)
    smallest = torch.finfo(cam.dtype).tiny
    return torch.where(largest > 0, cam / largest.clamp(min=smallest), cam)
