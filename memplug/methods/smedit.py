"""SMEdit: several steps of features and changes for each edit, and no Kullback-Leibler term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .hypernet.config import FitConfig
from .hypernet.method import FittedEditor

__all__ = ["SMEdit", "SMEditConfig"]


@dataclass(frozen=True)
class SMEditConfig(FitConfig):
    """SMEdit (arXiv 2508.04012, later EMSEdit): step-specific networks whose rank falls, and a norm
    penalty."""

    steps: int = 4
    """As in `EditorConfig` (published: 2)."""
    locality: Literal["base", "previous", "none"] = "none"
    norm_weight: float = 1e-3

    paper: ClassVar[dict[str, Any]] = FitConfig.published_fit | {
        "locality": "none",
        "steps": 2,
        "batch_size": 30,
        "fit_batch": 30,
        "trajectory": (400, 400),
        "fit_steps": 400,
        "norm_weight": 0.5,
    }


class SMEdit(FittedEditor):
    """S times, features are taken on the weights that the steps before left and turned into a change; the
    loss is taken once, after the last step, and its gradient reaches every step's network through its own
    change (what an earlier change did to later features counts as constant).

    Every step has a network of its own, of rank r, r/2, r/3, ... as the paper has it for sequences.
    """

    name = "smedit"
