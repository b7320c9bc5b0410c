"""Sweeps: papermill over a grid, on dask.distributed; and the rows of results they leave."""

from .rows import SOURCE, curve, gather, provenance, record, write

__all__ = ["SOURCE", "curve", "gather", "provenance", "record", "write"]
