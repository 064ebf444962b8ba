"""GRACE: one layer's MLP output becomes an edit's value, with its values found as published or by LLP's room.

Hartvigsen et al., "Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors" (2023).
One file, one word: `asked` values where edits are asked for (default) · `method` the published codebook ·
`codebook` keys, labels, deferral radii · `values` training.
"""

from ...interface import Host
from .config import GRACEConfig
from .method import GRACE
from .published import PublishedGRACE

__all__ = ["GRACE", "GRACEConfig", "PublishedGRACE", "open_grace"]


def open_grace(host: Host, config: GRACEConfig) -> GRACE | PublishedGRACE:
    """The method for a config: values where an edit is asked for, or within a radius of its key.

    Raises:
        ValueError, UnsupportedModelError: as the classes do.
    """
    return (GRACE if config.scope == "asked" else PublishedGRACE)(host, config)
