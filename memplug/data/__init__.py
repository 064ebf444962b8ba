"""Readers of editing data sets in their original formats."""

from .load import BadRow, Loaded, load_cases
from .rows import DataError

__all__ = ["BadRow", "DataError", "Loaded", "load_cases"]
