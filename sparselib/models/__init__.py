"""Networks."""

from sparselib.models.dsn import DSN as DSN
from sparselib.models.ecgresnet import ECGResNet as ECGResNet
from sparselib.models.heads import cnn as cnn
from sparselib.models.mlp import MLP as MLP
from sparselib.models.oscnn import OSCNN as OSCNN
from sparselib.models.san import SAN as SAN
from sparselib.models.san import SparseCode as SparseCode
