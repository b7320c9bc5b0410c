"""The data sets of the five papers, and small embedded stand-ins for them."""

from . import synthetic
from .files import DataUnavailable
from .images import digits, fashion_mnist, mnist
from .split import Samples, Split
from .tabular import higgs, isolet

__all__ = [
    "DataUnavailable",
    "Samples",
    "Split",
    "digits",
    "fashion_mnist",
    "higgs",
    "isolet",
    "mnist",
    "synthetic",
]
