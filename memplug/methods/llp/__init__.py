"""LLP, think-and-recall editing: contrastive keys per layer, layer voting, a soft prompt recalled.

Source: the LLP paper, "Layer-Level Prompting"; ``preset="paper"`` is the published procedure.
"""

from ...interface import Host
from ...retrieval.explanation import Explanation
from .config import LLPConfig
from .method import LLP
from .published import PublishedLLP

__all__ = ["LLP", "Explanation", "LLPConfig", "PublishedLLP", "open_llp"]


def open_llp(host: Host, config: LLPConfig) -> PublishedLLP:
    """The method for a config: values are seen by the answer alone, or by the whole row.

    Raises:
        ValueError, UnsupportedModelError: as the classes do.
    """
    return (LLP if config.scope == "answer" else PublishedLLP)(host, config)
