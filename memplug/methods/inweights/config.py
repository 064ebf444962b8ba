"""Constants shared by all methods that change weights through the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from ...configs import Limit, check_choices, check_numbers, from_preset
from ...weights.modules import WHICH, Range

__all__ = ["WeightConfig"]


@dataclass(frozen=True)
class WeightConfig:
    """Which weights are changed and how, and what is refused.

    Subclasses name their further fields' limits in `limits` and `choices`.

    Raises:
        ValueError: a constant out of its range.
    """

    modules: tuple[str, ...] | None = None
    """Names of the linear modules to edit; None: found by `ranges`."""
    ranges: tuple[Range, ...] | None = (("gate", 11 / 32, 16 / 32), ("up", 18 / 32, 25 / 32))
    """Which linear of the MLP, from which to which share of the depth (published for Llama-3, 32 layers)."""
    mode: Literal["merged", "side"] = "merged"
    """"merged" writes the weights; "side" adds ``(x A) B`` beside them (quantised, instant switching)."""
    batch_size: int = 10
    """Edits made together; longer lists are cut into batches of this size."""
    seed: int = 0
    """Of all random choices."""

    # The guard.
    max_change: float = 2.0
    """An edit is refused past this norm of a module's change, as a share of its weight's."""
    max_perplexity: float = 20.0
    """An edit is refused past this perplexity on `guard_texts`, as a multiple of the base model's."""
    guard_every: int = 1
    """Batches of edits between two looks; 0 never looks."""
    guard_texts: tuple[str, ...] | None = None
    """Held-out texts; None: some that the base model wrote itself."""

    paper: ClassVar[dict[str, Any]] = {}
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Further presets by name."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Fields that may name files or folders."""
    limits: ClassVar[tuple[Limit, ...]] = ()
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {}

    def __post_init__(self) -> None:
        if self.modules is not None:
            object.__setattr__(self, "modules", tuple(self.modules))
        if self.ranges is not None:
            ranges = tuple((str(which), float(start), float(stop)) for which, start, stop in self.ranges)
            object.__setattr__(self, "ranges", ranges)
        if self.guard_texts is not None:
            object.__setattr__(self, "guard_texts", tuple(self.guard_texts))
        for which, start, stop in self.ranges or ():
            if which not in WHICH or not 0 <= start < stop <= 1:
                raise ValueError(
                    f"ranges holds {(which, start, stop)}; give one of {WHICH} and two shares of the depth, "
                    "0 <= from < to <= 1"
                )
        check_numbers(self, (*_LIMITS, *self.limits))
        check_choices(self, _CHOICES | self.choices)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """``"default"``, or ``"paper"`` for the published constants; fields given by name win.

        Raises:
            ValueError: no such preset or field.
        """
        return from_preset(cls, {"default": {}, "paper": cls.paper} | cls.presets, name, overrides)


_CHOICES: dict[str, tuple[Any, ...]] = {"mode": ("merged", "side")}
_LIMITS: tuple[Limit, ...] = (
    ("batch_size", 1, 1 << 20),
    ("max_change", 1e-9, 1e9),
    ("max_perplexity", 1, 1e12),
    ("guard_every", 0, 1 << 30),
)
