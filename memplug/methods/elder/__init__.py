"""ELDER: a mixture of LoRAs per edited linear, used where an edit is asked for, or routed as published.

Source: Li et al., "ELDER: Enhancing Lifelong Model Editing with Mixture-of-LoRA" (2024).
One file, one word: `asked` experts where edits are asked for (default) · `method` the published procedure,
`known` what it has learned, `codes` its allocations and deferral · `experts` LoRAs and routers ·
`training` · `explain`.
"""

from ...interface import Host
from .config import ELDERConfig
from .explain import Answered, Explanation
from .known import Removed
from .method import ELDER
from .published import PublishedELDER

__all__ = ["ELDER", "Answered", "ELDERConfig", "Explanation", "PublishedELDER", "Removed", "open_elder"]


def open_elder(host: Host, config: ELDERConfig) -> ELDER | PublishedELDER:
    """The method for a config: experts by the answer of what is asked, or by whole rows.

    Raises:
        ValueError, UnsupportedModelError: as the classes do.
    """
    return (ELDER if config.scope == "answer" else PublishedELDER)(host, config)
