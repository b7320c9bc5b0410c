"""The data sets of the five papers, and small embedded stand-ins for them."""

from . import augmentation, synthetic
from .apnea import apnea_ecg
from .cifar import cifar10
from .files import DataUnavailable
from .image_folder import photographs
from .images import digits, fashion_mnist, mnist
from .localization import placed_digits, placed_spells
from .physionet_records import RECORDS, apnea_excerpt, physionet
from .split import Samples, Split
from .tabular import epilepsy, higgs, isolet
from .text import Text, coriolanus, shakespeare

__all__ = [
    "RECORDS",
    "DataUnavailable",
    "Samples",
    "Split",
    "Text",
    "apnea_ecg",
    "apnea_excerpt",
    "augmentation",
    "cifar10",
    "coriolanus",
    "digits",
    "epilepsy",
    "fashion_mnist",
    "higgs",
    "isolet",
    "mnist",
    "photographs",
    "physionet",
    "placed_digits",
    "placed_spells",
    "shakespeare",
    "synthetic",
]
