"""GRACE: a codebook at one layer; a row whose prompt ends near a key has that layer's MLP output replaced.

Hartvigsen et al., "Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors" (2023).
One file, one word: `codebook` keys, labels, deferral radii · `coded` what rows are given · `values` training.
"""

from .config import GRACEConfig
from .explain import Explanation
from .method import GRACE

__all__ = ["GRACE", "Explanation", "GRACEConfig"]
