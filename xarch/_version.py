"""The version of xarch."""

__version__ = "0.1.0"
