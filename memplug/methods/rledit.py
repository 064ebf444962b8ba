"""RLEdit: the solve of MALMEN, fitted on whole trajectories of edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .hypernet.config import EditorConfig
from .hypernet.fitted import FittedEditor

__all__ = ["RLEdit", "RLEditConfig"]


@dataclass(frozen=True)
class RLEditConfig(EditorConfig):
    """RLEdit (Li et al., 2025): lifelong editing as a trajectory with memory backtracking."""

    steps: int = 5
    """As in `EditorConfig` (published: 1; several small steps wear the model out less than one large one)."""
    back_depth: int = 10

    paper: ClassVar[dict[str, Any]] = EditorConfig.published_fit | {
        "rank": 1024,
        "n_blocks": 4,
        "steps": 1,
        "batch_size": 20,
        "fit_batch": 20,
        "trajectory": (400, 400),
        "fit_steps": 400,
        "back_samples": None,
        "locality": "previous",
        "locality_weight": 0.6,
        "norm_weight": 1e-4,
        "same_subject": False,
    }


class RLEdit(FittedEditor):
    """Edits are fitted in the order they will come in: each on the weights that the ones before left, judged
    on its own rephrasings and, with weight ``back_decay ** j``, on those of the batch j steps back.

    Called reinforcement learning by its authors; the reward is differentiable and the gradient is the
    pathwise one, through each step's changes alone (weights before the step are constants).

    ``faithful=True`` fits as the published code does: one Adam step at the end of one trajectory, on
    gradients that are clipped to norm 1 after each step while they pile up (so that the last steps outweigh
    the others), a norm penalty without a gradient, initial weights that are not scaled, and step sizes that
    are not in logs.
    """

    name = "rledit"
