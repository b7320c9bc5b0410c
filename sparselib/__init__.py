"""Truly sparse, evolving layers for PyTorch."""
