"""Constants of LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ...configs import check_numbers, from_preset

__all__ = ["LoRAConfig"]


@dataclass(frozen=True)
class LoRAConfig:
    """One adapter over some linears, trained on the edits.

    Defaults were looked at on ten facts of a pretrained model of 135 million parameters
    (``benchmarks/results/real-weights-trials.json``).

    Raises:
        ValueError: a constant out of its range.
    """

    linears: tuple[str, ...] = ("up", "down")
    """Which linears of an MLP are adapted: "gate", "up", "down"."""
    start: float = 0.5
    """The first layer whose MLP is adapted, as a share of the depth."""
    stop: float = 0.85
    """The layer before which it ends, as a share of the depth."""
    modules: tuple[str, ...] | None = None
    """Linears by name, instead of the rule."""
    rank: int = 16
    """r of each pair."""
    alpha: float = 32.0
    """What is added is scaled by alpha / rank (by alpha / sqrt(rank) with `rslora`)."""
    rslora: bool = False
    """Rank-stabilised scaling (Kalajdzievski 2023)."""
    lr: float = 1e-3
    """Adam's step."""
    batch_size: int = 32
    """Edits a step."""
    epochs: int = 30
    """Passes over the edits at most."""
    stop_loss: float = 0.05
    """Training ends when every edit is below this loss; a pass leaves those out that are."""
    replay: int = 16
    """Earlier edits trained again beside each step, drawn anew for each."""
    keep: int = 16
    """Neutral questions beside each step to which the base model's answers are to be kept."""
    keep_pool: int = 48
    """Of so many, and of four that resemble each edit's own (see `NeutralPool`)."""
    keep_weight: float = 5.0
    """Weight of the divergence from these answers."""
    train_stop: bool = True
    """Train the answer to end with the stop token."""
    seed: int = 0
    """Of all random choices."""

    former: ClassVar[dict[str, Any]] = {"keep_tokens": None, "sample_top_k": None}
    """Fields of files written earlier, of any value: nothing that was learned depends on them."""

    def __post_init__(self) -> None:
        check_numbers(self, _RANGES, exact=True)
        for name in ("linears", "modules"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        allowed = ("gate", "up", "down")
        if not isinstance(self.linears, tuple) or not self.linears or set(self.linears) - set(allowed):
            raise ValueError(f"linears is {self.linears!r}; give some of {allowed}")
        if self.start >= self.stop:
            raise ValueError(f"start is {self.start}, stop {self.stop}; start has to be smaller")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> LoRAConfig:
        """``"default"``; fields given by name win.

        Raises:
            ValueError: no such preset or field.
        """
        return from_preset(cls, {"default": {}}, name, overrides)


_RANGES = (
    ("start", 0.0, 1.0),
    ("stop", 0.0, 1.0),
    ("rank", 1, 1 << 12),
    ("alpha", 1e-6, 1e6),
    ("lr", 1e-9, 1e3),
    ("batch_size", 1, 1 << 20),
    ("epochs", 1, 1 << 20),
    ("stop_loss", 0.0, 1e3),
    ("replay", 0, 1 << 20),
    ("keep", 0, 1 << 20),
    ("keep_weight", 0.0, 1e6),
    ("keep_pool", 1, 1 << 20),
)
