"""MALMEN: one least-squares solve for a large batch of edits, from the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .hypernet.config import EditorConfig
from .hypernet.fitted import FittedEditor

__all__ = ["MALMEN", "MALMENConfig"]


@dataclass(frozen=True)
class MALMENConfig(EditorConfig):
    """MALMEN (Tan et al., 2024): made for one large batch."""

    batch_size: int = 1024
    fit_batch: int = 64
    fit_steps: int = 300
    trajectory: tuple[int, int] = (1, 1)
    locality: Literal["base", "previous", "none"] = "previous"
    locality_weight: float = 1.0
    norm_weight: float = 0.0

    paper: ClassVar[dict[str, Any]] = {
        "rank": 1920,
        "n_blocks": 2,
        "inner_lr": 1e-6,
        "std_floor": 0.0,
        "protect": 0.0,
        "capacity": 0,
        "remember": 0.0,
        "enough": 1.0,
        "extra_steps": 0,
        "fit_lr": 1e-5,
        "fit_batch": 512,
        "own_prompt": 0.0,
        "same_subject": False,
        "learn_stop": False,
        "fresh_targets": False,
    }


class MALMEN(FittedEditor):
    """All tokens' wanted output changes are met together: ``min |K W - V|^2 + ridge |W|^2`` (equation 4).

    Fitted on single batches, each from the base model.
    """

    name = "malmen"
