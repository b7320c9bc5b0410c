"""Truly sparse, evolving layers for PyTorch, and what five papers need around them."""

from sparselib import bitstream as bitstream
from sparselib import checkpoint as checkpoint
from sparselib import comparison as comparison
from sparselib import cost as cost
from sparselib import cuda_graphs as graphs
from sparselib import datasets as datasets
from sparselib import distribution as distribution
from sparselib import export as export
from sparselib import init as init
from sparselib import metrics as metrics
from sparselib import models as models
from sparselib import nn as nn
from sparselib import ops as ops
from sparselib import pruning as pruning
from sparselib import saliency as saliency
from sparselib import timing as timing
from sparselib import topology as topology
from sparselib._version import __version__ as __version__
from sparselib.csr import CSR
from sparselib.evolution import DST, SET, Evolution, GradientGrowth, LiSET, RigL
from sparselib.evolution import drop as drop
from sparselib.evolution import grow as grow
from sparselib.evolution import resident as resident
from sparselib.models import DSN, MLP, OSCNN, SAN, ECGResNet
from sparselib.nn import (
    Averaged,
    Conversion,
    CSRLinear,
    SparseConv1d,
    SparseConv2d,
    average,
    densify,
    fuse,
    masked_product,
    sparsify,
)
from sparselib.optimization import parameter_groups
from sparselib.pruning import prune
from sparselib.saliency import Selector
from sparselib.training import (
    criterion,
    evaluate,
    fit,
    predict,
    reconstruction,
    sigmoid_squared_error,
)

__all__ = [
    "CSR",
    "DSN",
    "DST",
    "MLP",
    "OSCNN",
    "SAN",
    "SET",
    "Averaged",
    "CSRLinear",
    "Conversion",
    "ECGResNet",
    "Evolution",
    "GradientGrowth",
    "LiSET",
    "RigL",
    "Selector",
    "SparseConv1d",
    "SparseConv2d",
    "__version__",
    "average",
    "bitstream",
    "checkpoint",
    "comparison",
    "cost",
    "criterion",
    "datasets",
    "densify",
    "distribution",
    "drop",
    "evaluate",
    "export",
    "fit",
    "fuse",
    "graphs",
    "grow",
    "init",
    "masked_product",
    "metrics",
    "models",
    "nn",
    "ops",
    "parameter_groups",
    "predict",
    "prune",
    "pruning",
    "reconstruction",
    "resident",
    "saliency",
    "sigmoid_squared_error",
    "sparsify",
    "timing",
    "topology",
]
