"""RLEdit: the solve of MALMEN, fitted on whole trajectories of edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .hypernet.config import FitConfig
from .hypernet.method import FittedEditor

__all__ = ["RLEdit", "RLEditConfig"]


@dataclass(frozen=True)
class RLEditConfig(FitConfig):
    """RLEdit (Li et al., 2025): lifelong editing as a trajectory with memory backtracking."""

    back_depth: int = 10

    paper: ClassVar[dict[str, Any]] = FitConfig.published_fit | {
        "batch_size": 20,
        "fit_batch": 20,
        "trajectory": (400, 400),
        "fit_steps": 400,
        "locality_weight": 0.6,
        "norm_weight": 1e-4,
    }


class RLEdit(FittedEditor):
    """Edits are fitted in the order they will come in: each on the weights that the ones before left, judged
    on its own rephrasings and, with weight ``back_decay ** j``, on those of the batch j steps back.

    Called reinforcement learning by its authors; the reward is differentiable and the gradient is the
    pathwise one, through each step's changes alone (weights before the step are constants).
    """

    name = "rledit"
