"""Networks."""

from sparselib.models.mlp import MLP as MLP
from sparselib.models.san import SAN as SAN
from sparselib.models.san import SparseCode as SparseCode
