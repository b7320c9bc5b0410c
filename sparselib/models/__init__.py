"""Networks."""

from sparselib.models.mlp import MLP as MLP
