"""Readers of editing data sets in their original formats."""

from .load import ODDITIES, BadRow, Loaded, load_cases, sift
from .rows import DataError

__all__ = ["ODDITIES", "BadRow", "DataError", "Loaded", "load_cases", "sift"]
