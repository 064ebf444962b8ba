"""Constants shared by the methods that solve for a wanted hidden state in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ...configs import Limit
from ...weights.modules import Range
from ..inweights.config import WeightConfig

__all__ = ["LocateConfig"]


@dataclass(frozen=True)
class LocateConfig(WeightConfig):
    """Where a fact is written, how the wanted state is found, and what the module's other keys look like.

    Defaults were looked at on ten facts of a pretrained model of 135 million parameters
    (``benchmarks/results/real-locate.json``), several changed at once; ``preset("paper")`` is as published.

    Raises:
        ValueError: a constant out of its range.
    """

    ranges: tuple[Range, ...] = (("down", 3 / 28, 9 / 28),)
    """The MLP's output linear in a run of layers; the wanted state is that of the last of them (published:
    layers 3 to 8 of GPT-J's 28)."""
    batch_size: int = 100
    """Edits solved together; longer lists are cut into batches of this size."""

    max_change: float = 20.0
    """As in `WeightConfig`; on small models many edits outweigh few modules long before they do harm."""

    # The wanted state.
    steps: int = 20
    """Most Adam steps (published: 25)."""
    lr: float = 0.1
    """Adam's step. Small steps end near the smallest state that answers as edited, which leaves most of what
    else is known of the subject (MEMIT: 0.5, AlphaEdit: 0.1, both absolute)."""
    relative_lr: bool = True
    """Take it in units of the state's root mean square (published: absolute)."""
    stop_loss: float = 0.05
    """An edit is done below this loss."""
    clamp: float = 4.0
    """Largest length of what is added to the state, as a multiple of the state's."""
    weight_decay: float = 1e-3
    """Weight of the squared length of what is added, over the state's."""
    anchor: bool = True
    """Keep the wanted state as long as the state was (norm anchoring, arXiv 2602.02543; published: no)."""
    kl_weight: float = 0.5
    """Weight of the divergence of what the model says after "<subject> is a" and the like (published:
    0.0625)."""
    n_kept: int = 4
    """Further neutral texts about the subject that are to go on as before (published: none)."""
    n_prefixes: int = 1
    """Sampled texts put before the prompt, beside the prompt alone, plain and in the chat template
    (published: 5, and no template)."""
    prefix_tokens: int = 10
    """Longest of them, in tokens."""
    sample_top_k: int = 5
    """Top-k of that sampling."""
    train_stop: bool = False
    """The wanted state makes the answer end with the stop token."""
    micro_batch: int = 192
    """Most rows in one forward pass."""

    # What the keys of other facts look like.
    covariance: str | tuple[str, ...] | None = None
    """Text whose keys are to stay where they are: a file with one text a line, or texts. None: text that the
    base model wrote itself."""
    covariance_texts: int = 64
    """Texts that it writes, and the most that are taken of a file (published: 100,000 of Wikipedia). Each
    counts plain and, where there is a chat template, as a user turn."""
    covariance_length: int = 64
    """Longest of them, in tokens."""
    cache_dir: str | None = None
    """Folder to keep the keys' second moments in; None computes them anew for each plug."""
    earlier: bool = True
    """Count the keys of earlier edits among those that stay."""

    limits: ClassVar[tuple[Limit, ...]] = (
        ("steps", 0, 1 << 20),
        ("lr", 1e-9, 1e6),
        ("stop_loss", 0, 1e3),
        ("clamp", 1e-9, 1e9),
        ("weight_decay", 0, 1e6),
        ("kl_weight", 0, 1e6),
        ("n_prefixes", 0, 64),
        ("n_kept", 0, 64),
        ("prefix_tokens", 1, 1 << 12),
        ("sample_top_k", 1, 1 << 20),
        ("micro_batch", 1, 1 << 20),
        ("covariance_texts", 1, 1 << 24),
        ("covariance_length", 2, 1 << 16),
    )
    paths: ClassVar[tuple[str, ...]] = ("covariance", "cache_dir")
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {"units": ("relative", "absolute")}

    units: Literal["relative", "absolute"] = "relative"
    """Constants of the solve in units of the model's own keys, or as published for other models."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.covariance, list | tuple):
            object.__setattr__(self, "covariance", tuple(self.covariance))
            if not self.covariance or not all(isinstance(text, str) and text for text in self.covariance):
                raise ValueError("covariance holds no text; give texts that are not empty, a file, or None")
