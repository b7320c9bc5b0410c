"""What an optimizer needs to know about a sparse model: which weights decay, and how far they go.

A sparse layer with the step of the dense one learns too slowly: of its sum over n inputs only the
share that is its density is there. The rule that mends it stands here.
"""

import math

import torch
from torch import nn

from sparselib._types import ParameterGroup
from sparselib.nn.sparse_layer import sparse_layers

# by which power of the density the step is divided; the docstring below derives them
EXPONENTS = {"adam": 1.0, "sgd": 1.0, "relative": 0.5}


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    optimizer: str = "adam",
    density_step: bool = True,
) -> list[ParameterGroup]:
    r"""Return the parameter groups from which to build an optimizer of a sparse model.

    Sparse values decay although they are one-dimensional, as do dense weight matrices and kernels;
    biases, the parameters of normalizations and embeddings do not. The step of a sparse layer's
    values follows its density :math:`\rho`, the share of connections that are there (sparse maximal
    update parameterization; Dey, Bergsma and Hestness, NeurIPS 2024, arXiv 2405.15743):

    .. math:: \eta_\rho = \eta / \rho, \qquad \lambda_\rho = \rho \lambda

    It keeps what one step changes in a layer's outputs independent of the density. Output i of a
    layer sums over the :math:`\rho n` inputs that it is connected to, so that an update
    :math:`\Delta w` changes it by

    .. math:: \Delta y_i = \sum_{j \in N(i)} \Delta w_{ij} x_j .

    Adam's :math:`\Delta w_{ij}` has the size :math:`\eta` and, near the sign of
    :math:`\delta_i x_j`, terms that add up: :math:`|\Delta y_i| \propto \eta \rho n`. For SGD
    :math:`\Delta w_{ij} = -\eta \delta_i x_j` and :math:`\Delta y_i = -\eta \delta_i \sum_j x_j^2
    \propto \eta \delta_i \rho n`; the backpropagated :math:`\delta_i` does not depend on
    :math:`\rho` if weights are initialized with a variance of :math:`1 / (\rho n)`, for the next
    layer sums :math:`\rho n` of them as well. Both are constant for :math:`\eta \propto 1 / \rho`.
    Optimizers whose updates are relative to the size of the weights, which is
    :math:`(\rho n)^{-1/2}`, need :math:`\eta / \sqrt\rho`.

    What a weight loses by decay per step, :math:`\eta_\rho \lambda_\rho = \eta \lambda` of itself
    with SGD and AdamW, is what it loses in a dense layer.

    Parameters
    ----------
    model : nn.Module
        Its parameters that require gradients are grouped, each once.
    lr : float
        :math:`\eta`, the step of the dense parameters, and that which suits the dense twin.
    weight_decay : float
        :math:`\lambda`, of the weights that decay.
    optimizer : {"adam", "sgd", "relative"}
        The kind: ``"adam"`` for Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad, Rprop and
        Lion; ``"sgd"`` with or without momentum; ``"relative"`` for those that measure the update
        by the weights: Adafactor, LAMB, LARS.
    density_step : bool
        False gives sparse values the step and the decay of dense weights.

    Returns
    -------
    list of dict
        For ``torch.optim.AdamW(groups)``: ``params``, ``lr``, ``weight_decay`` and ``density``,
        one group for each density, in the order of the model. Schedulers scale each group's own
        step; ``OneCycleLR`` wants them as ``max_lr=[group["lr"] for group in groups]``.

    Raises
    ------
    ValueError
        If the kind is unknown, a number is negative or nothing in the model is trained.

    Examples
    --------
    >>> groups = parameter_groups(model, lr=1e-3, weight_decay=0.1)
    >>> optimizer = torch.optim.AdamW(groups)
    """
    if optimizer not in EXPONENTS:
        raise ValueError(
            f"optimizer is one of {sorted(EXPONENTS)}, not {optimizer!r}"
        )
    if lr < 0 or weight_decay < 0:
        raise ValueError(
            f"lr={lr} and weight_decay={weight_decay} have to be 0 or larger"
        )
    densities = _densities(model)
    embeddings = _embeddings(model)
    groups: dict[tuple[float, float], ParameterGroup] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        density = densities.get(parameter, 1.0)
        decays = parameter in densities or (
            parameter.ndim > 1 and parameter not in embeddings
        )
        scale = density ** EXPONENTS[optimizer] if density_step else 1.0
        decay = weight_decay * scale if decays else 0.0
        group = {
            "params": [],
            "lr": lr / scale,
            "weight_decay": decay,
            "density": density,
        }
        groups.setdefault((density, decay), group)["params"].append(parameter)
    if not groups:
        raise ValueError(
            f"{type(model).__name__} has no parameter that requires a gradient"
        )
    return list(groups.values())


def _densities(model: nn.Module) -> dict[torch.Tensor, float]:
    """Return the density of each sparse layer that has connections, by its values."""
    return {
        layer.values: layer.values.numel() / math.prod(layer.shape)
        for layer in sparse_layers(model).values()
        if layer.values.numel()
    }


def _embeddings(model: nn.Module) -> set[torch.Tensor]:
    """Return the weights that are looked up; one that is tied to a layer is one of them."""
    kinds = nn.Embedding | nn.EmbeddingBag
    return {
        module.weight for module in model.modules() if isinstance(module, kinds)
    }
