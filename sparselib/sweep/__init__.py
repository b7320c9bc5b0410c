"""Sweeps: papermill over a grid, on dask.distributed; and the rows of results they leave."""

from .parameters import (
    Device,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    check,
)
from .rows import SOURCE, curve, gather, provenance, record, row, stored, write

__all__ = [
    "SOURCE",
    "Device",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "Share",
    "check",
    "curve",
    "gather",
    "provenance",
    "record",
    "row",
    "stored",
    "write",
]
