"""Networks."""

from sparselib.models.dsn import DSN as DSN
from sparselib.models.ecgresnet import ECGResNet as ECGResNet
from sparselib.models.gpt import GPT as GPT
from sparselib.models.heads import cnn as cnn
from sparselib.models.mlp import MLP as MLP
from sparselib.models.mobilenet import MobileNetV2 as MobileNetV2
from sparselib.models.oscnn import OSCNN as OSCNN
from sparselib.models.pretrained import cifar10_resnet as cifar10_resnet
from sparselib.models.resnet import ResNet as ResNet
from sparselib.models.resnet import resnet20 as resnet20
from sparselib.models.resnet import resnet34 as resnet34
from sparselib.models.resnet import resnet50 as resnet50
from sparselib.models.resnet import resnet56 as resnet56
from sparselib.models.resnet import resnet101 as resnet101
from sparselib.models.san import SAN as SAN
from sparselib.models.san import SparseCode as SparseCode
from sparselib.models.unet import UNet as UNet
