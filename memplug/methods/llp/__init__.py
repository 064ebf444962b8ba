"""LLP, think-and-recall editing: contrastive keys per layer, layer voting, a soft prompt recalled."""

from .config import LLPConfig
from .explain import Explanation
from .method import LLP

__all__ = ["LLP", "Explanation", "LLPConfig"]
