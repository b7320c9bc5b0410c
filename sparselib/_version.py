"""The version of the library, for the package and for the rows of results."""

__version__ = "0.1.0"
