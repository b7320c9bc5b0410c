"""Amortized saliency: where a classifier looked, in one forward pass (Ganjdanesh)."""

from sparselib.saliency.activation_maps import grad_cam as grad_cam
from sparselib.saliency.evaluators import Verdict as Verdict
from sparselib.saliency.evaluators import evalx as evalx
from sparselib.saliency.masks import bernoulli as bernoulli
from sparselib.saliency.masks import center_and_sigma as center_and_sigma
from sparselib.saliency.masks import first_sigma as first_sigma
from sparselib.saliency.masks import random_rbf as random_rbf
from sparselib.saliency.masks import rbf as rbf
from sparselib.saliency.masks import reach as reach
from sparselib.saliency.masks import sample as sample
from sparselib.saliency.masks import visible as visible
from sparselib.saliency.objectives import divergence as divergence
from sparselib.saliency.objectives import mask_size as mask_size
from sparselib.saliency.objectives import smoothness as smoothness
from sparselib.saliency.sampling import rise as rise
from sparselib.saliency.selector import (
    ClassActivationMaps as ClassActivationMaps,
)
from sparselib.saliency.selector import MaskSelector as MaskSelector
from sparselib.saliency.selector import PixelSelector as PixelSelector
from sparselib.saliency.selector import Selector as Selector
from sparselib.saliency.training import predicted_by as predicted_by
from sparselib.saliency.training import train_predictor as train_predictor
from sparselib.saliency.training import train_selector as train_selector
