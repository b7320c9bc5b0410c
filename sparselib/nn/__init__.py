"""Layers."""

from sparselib.nn.activation import extrema as extrema
from sparselib.nn.activation import extrema_pool_indices as extrema_pool_indices
from sparselib.nn.activation import identity as identity
from sparselib.nn.activation import relu as relu
from sparselib.nn.activation import topk_absolutes as topk_absolutes
from sparselib.nn.attention import (
    SparseMultiheadAttention as SparseMultiheadAttention,
)
from sparselib.nn.averaging import Averaged as Averaged
from sparselib.nn.averaging import average as average
from sparselib.nn.conv import SparseConv1d as SparseConv1d
from sparselib.nn.conv import centered_zeros as centered_zeros
from sparselib.nn.conv import replicate_right as replicate_right
from sparselib.nn.conv2d import SparseConv2d as SparseConv2d
from sparselib.nn.conversion import Conversion as Conversion
from sparselib.nn.conversion import densify as densify
from sparselib.nn.conversion import sparsify as sparsify
from sparselib.nn.dropout import Dropout as Dropout
from sparselib.nn.fusion import Sequential as Sequential
from sparselib.nn.fusion import chain as chain
from sparselib.nn.fusion import fuse as fuse
from sparselib.nn.gate import ChannelGate as ChannelGate
from sparselib.nn.gate import Channels as Channels
from sparselib.nn.gate import Prunable as Prunable
from sparselib.nn.gate import Scaled as Scaled
from sparselib.nn.gate import gumbel_sigmoid as gumbel_sigmoid
from sparselib.nn.linear import CSRLinear as CSRLinear
from sparselib.nn.sparse_layer import SparseLayer as SparseLayer
from sparselib.nn.sparse_layer import sparse_layers as sparse_layers
from sparselib.ops.products import masked_product as masked_product
