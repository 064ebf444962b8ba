"""HiEdit: RLEdit with a high-level network that chooses which modules an edit may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..configs import Limit
from .hypernet.config import FitConfig
from .hypernet.method import FittedEditor

__all__ = ["HiEdit", "HiEditConfig"]


@dataclass(frozen=True)
class HiEditConfig(FitConfig):
    """HiEdit: hierarchical lifelong editing; both low-level styles by ``style`` and ``tokens``. The
    gate is `hypernet.module_selector`."""

    back_depth: int = 10
    n_selected: float = 0.5
    """Share of the modules that a batch of edits may change."""
    hidden: int = 256
    """Width of the gate's encoders."""

    paper: ClassVar[dict[str, Any]] = FitConfig.published_fit | {
        "batch_size": 1,
        "fit_batch": 1,
        "trajectory": (8000, 8000),
        "fit_steps": 8000,
        "locality_weight": 0.6,
        "norm_weight": 1e-4,
    }

    limits: ClassVar[tuple[Limit, ...]] = (*FitConfig.limits, ("n_selected", 0, 1), ("hidden", 1, 1 << 16))


class HiEdit(FittedEditor):
    """A gate scores the modules from the edit's features; the k best are changed, the others are not.

    In fitting each module's change is multiplied by its gate beside the weights, so that the losses' gradient
    reaches the scores of modules that were chosen and of those that were not. That is the whole pathwise
    gradient: a baseline that no parameter reaches, such as the published intrinsic reward's, adds nothing.
    """

    name = "hiedit"
    gated = True
