"""Layers."""

from sparselib.nn.chain import chain as chain
from sparselib.nn.linear import CSRLinear as CSRLinear
from sparselib.nn.linear import masked_product as masked_product
from sparselib.nn.sparsify import sparsify as sparsify
