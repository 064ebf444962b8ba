"""MEND: outer products of transformed activations and gradients, one batch at a time from the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .hypernet.config import FitConfig
from .hypernet.method import FittedEditor

__all__ = ["MEND", "MENDConfig"]


@dataclass(frozen=True)
class MENDConfig(FitConfig):
    """MEND (Mitchell et al., 2022), with the shared low-rank blocks of its later users (MALMEN's code)."""

    style: Literal["joint", "outer"] = "outer"
    tokens: Literal["answer", "both", "all"] = "all"
    steps: int = 1
    trajectory: tuple[int, int] = (1, 1)
    locality: Literal["base", "previous", "none"] = "previous"
    locality_weight: float = 1.0
    norm_weight: float = 0.0

    paper: ClassVar[dict[str, Any]] = FitConfig.published_fit | {
        "tokens": "all",
        "rank": 1920,
        "n_blocks": 2,
        "fit_batch": 20,
    }


class MEND(FittedEditor):
    """The change is ``-lr k' g``, summed over all tokens, of keys and gradients that a network transformed.

    Fitted on single batches, each from the base model: what earlier edits did to the weights is not seen in
    fitting, so that long sequences of edits wear the model out.
    """

    name = "mend"
