"""The products of sparse layers, linear and convolutional, on any device."""

from sparselib.ops.conv import conv1d as conv1d
from sparselib.ops.dispatch import backend as backend
from sparselib.ops.dispatch import fast as fast
from sparselib.ops.images import conv2d as conv2d
from sparselib.ops.operands import feature_major as feature_major
from sparselib.ops.products import Layer as Layer
from sparselib.ops.products import gradients as gradients
from sparselib.ops.products import masked_product as masked_product
from sparselib.ops.products import network as network
from sparselib.ops.products import sddmm as sddmm
from sparselib.ops.products import spmm as spmm
from sparselib.ops.products import spmm_t as spmm_t
