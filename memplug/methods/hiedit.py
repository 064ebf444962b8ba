"""HiEdit: RLEdit with a high-level network that chooses which modules an edit may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .checks import Limit
from .hypernet.config import FitConfig
from .hypernet.method import FittedEditor

__all__ = ["HiEdit", "HiEditConfig"]


@dataclass(frozen=True)
class HiEditConfig(FitConfig):
    """HiEdit: hierarchical lifelong editing; both low-level styles by ``style`` and ``tokens``."""

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
    reward, made effective); "straight-through" (published): the losses' gradient by each module's multiplier,
    selected or not."""

    paper: ClassVar[dict[str, Any]] = FitConfig.published_fit | {
        "gate_training": "straight-through",
        "batch_size": 1,
        "fit_batch": 1,
        "trajectory": (8000, 8000),
        "fit_steps": 8000,
        "locality_weight": 0.6,
        "norm_weight": 1e-4,
    }

    limits: ClassVar[tuple[Limit, ...]] = (*FitConfig.limits, ("n_selected", 0, 1), ("hidden", 1, 1 << 16))
    choices: ClassVar[dict[str, tuple[Any, ...]]] = FitConfig.choices | {
        "selection": ("learned", "random", "static", "gradient"),
        "gate_training": ("straight-through", "score"),
    }


class HiEdit(FittedEditor):
    """A gate scores the modules from the edit's features; the k best are changed, the others are not.

    In fitting, each module's change is multiplied by its gate in the side branch, so that the losses'
    gradient reaches the scores of modules that were chosen and of those that were not.
    """

    name = "hiedit"
    gated = True
