"""HiEdit: RLEdit with a high-level network that chooses which modules an edit may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .hypernet.config import EditorConfig
from .hypernet.fitted import FittedEditor

__all__ = ["HiEdit", "HiEditConfig"]


@dataclass(frozen=True)
class HiEditConfig(EditorConfig):
    """HiEdit: hierarchical lifelong editing; both low-level styles by ``style`` and ``tokens``."""

    steps: int = 5
    """As in `EditorConfig` (published: 1; several small steps wear the model out less than one large one)."""
    back_depth: int = 10
    n_selected: float = 0.5
    """Share of the modules that a batch of edits may change."""
    hidden: int = 256
    """Width of the gate's encoders."""
    selection: Literal["learned", "random", "static", "gradient"] = "learned"
    """How modules are chosen; the others are controls: at random for each batch, always the last ones, those
    with the largest gradients."""
    gate_training: Literal["straight-through", "score"] = "score"
    """"score": choices are drawn and their log-probability is raised by the reward (the published intrinsic
    reward, made effective); "straight-through" (published): the losses' slope by each module's multiplier,
    selected or not."""
    baseline: Literal["full", "random"] = "full"
    """What the reward is measured against: all modules, or as many at random."""

    paper: ClassVar[dict[str, Any]] = EditorConfig.published_fit | {
        "rank": 1024,
        "n_blocks": 4,
        "gate_training": "straight-through",
        "steps": 1,
        "batch_size": 1,
        "fit_batch": 1,
        "trajectory": (8000, 8000),
        "fit_steps": 8000,
        "back_samples": None,
        "locality": "previous",
        "locality_weight": 0.6,
        "norm_weight": 1e-4,
        "same_subject": False,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {allowed}")


_CHOICES: dict[str, tuple[str, ...]] = {
    "selection": ("learned", "random", "static", "gradient"),
    "gate_training": ("straight-through", "score"),
    "baseline": ("full", "random"),
}


class HiEdit(FittedEditor):
    """A gate scores the modules from the edit's features; the k best are changed, the others are not.

    In fitting, each module's change is multiplied by its gate in the side branch, so that the losses' slope
    reaches the scores of modules that were chosen and of those that were not.

    ``faithful=True`` fits as the published code does: as in `RLEdit`; the gate learns in the first step alone
    and from the norm penalty alone, the networks never from the norm; with ``style="outer"`` gradients are
    dropped before each step, so that the last step's alone are left.
    """

    name = "hiedit"
    gated = True
