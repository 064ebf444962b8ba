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
    fit_steps: int = 100
    trajectory: tuple[int, int] = (1, 1)
    locality: Literal["base", "previous", "none"] = "previous"
    locality_weight: float = 1.0
    norm_weight: float = 0.0

    paper: ClassVar[dict[str, Any]] = EditorConfig.published_fit | {
        "rank": 1920,
        "n_blocks": 2,
        "fit_batch": 512,
        "same_subject": False,
    }


class MALMEN(FittedEditor):
    """All tokens' wanted output changes are met together: ``min |K W - V|^2 + ridge |W|^2`` (equation 4).

    Fitted on single batches, each from the base model.
    """

    name = "malmen"
