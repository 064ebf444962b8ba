"""SMEdit: several steps of features and changes for each edit, and no Kullback-Leibler term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .hypernet.config import EditorConfig
from .hypernet.fitted import FittedEditor

__all__ = ["SMEdit", "SMEditConfig"]


@dataclass(frozen=True)
class SMEditConfig(EditorConfig):
    """SMEdit (arXiv 2508.04012, later EMSEdit): step-specific networks whose rank falls, and a norm
    penalty."""

    steps: int = 4
    """As in `EditorConfig` (published: 2)."""
    locality: Literal["base", "previous", "none"] = "none"
    norm_weight: float = 1e-3

    paper: ClassVar[dict[str, Any]] = EditorConfig.published_fit | {
        "rank": 1024,
        "n_blocks": 4,
        "steps": 2,
        "batch_size": 30,
        "fit_batch": 30,
        "trajectory": (400, 400),
        "fit_steps": 400,
        "norm_of": "drift",
        "norm_weight": 0.5,
    }


class SMEdit(FittedEditor):
    """S times, features are taken on the weights that the steps before left and turned into a change; the
    loss is taken once, after the last step, and its gradient reaches every step's network through its own
    change (what an earlier change did to later features counts as constant).

    For sequences every step has a network of its own, of rank r, r/2, r/3, ... (the default). For single
    large batches set ``shared_steps=True`` and ``trajectory=(1, 1)``: one network, and an optimiser step
    after each of the S steps, on weights that hold the steps before, as the paper's second algorithm says
    (its code goes back to the base model between them, which is what ``faithful`` does not copy).
    """

    name = "smedit"
