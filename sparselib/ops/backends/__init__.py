"""The ways to compute a product."""
