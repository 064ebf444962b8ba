"""AlphaEdit: MEMIT's flow, with changes only along directions that the model's other keys do not use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..edits import EditError
from ..weights.modules import LinearModule
from .locate.config import LocateConfig
from .locate.method import LocateMethod

__all__ = ["AlphaEdit", "AlphaEditConfig"]


@dataclass(frozen=True)
class AlphaEditConfig(LocateConfig):
    """AlphaEdit (Fang et al., 2025); published for Llama-3's layers 4 to 8 of 32."""

    threshold: float = 0.05
    """Eigenvalues of the keys' second moment that count as none; in relative units, the largest share of all
    keys' squared length that those directions may hold together."""
    ridge: float = 0.2
    """Weight of the change's squared norm; in relative units, a share of a key's mean squared length."""

    limits: ClassVar[tuple[tuple[str, float, float], ...]] = (
        *LocateConfig.limits,
        ("threshold", 0, 1e12),
        ("ridge", 1e-12, 1e12),
    )
    paper: ClassVar[dict[str, Any]] = {
        "ranges": (("down", 4 / 32, 9 / 32),),
        "n_prefixes": 5,
        "relative_lr": False,
        "weight_decay": 0.5,
        "clamp": 0.75,
        "anchor": False,
        "n_kept": 0,
        "kl_weight": 0.0625,
        "steps": 25,
        "covariance_texts": 100_000,
        "units": "absolute",
        "threshold": 0.02,
        "ridge": 10.0,
        "batch_size": 100,
    }


class AlphaEdit(LocateMethod):
    """``change = R K'P (K_p K_p' P + K K' P + ridge I)^-1`` (equation 14 of its paper,
    keys are columns) with P the projection onto the null space of the keys' second moment and K_p the keys of
    all earlier edits, in push-through form.
    """

    name = "alphaedit"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._used: dict[str, Tensor] = {}

    def _inverse_metric(self, site: LinearModule, moments: Tensor) -> Tensor:
        config, exact = self.config, moments.double()
        values, vectors = torch.linalg.eigh(exact)
        values = values.clamp(min=0)
        relative = config.units == "relative"
        small = values.cumsum(0) <= config.threshold * values.sum() if relative else values < config.threshold
        if not bool(small.any()):
            raise EditError(
                f"no direction of {site.name} is free at threshold {config.threshold}: its smallest "
                f"eigenvalue is {float(values[0]):.3g} of {float(values.sum()):.3g} in all; raise the "
                "threshold"
            )
        self._used[site.name] = vectors[:, ~small]
        ridge = config.ridge * (float(values.sum()) if relative else 1.0)
        return torch.eye(site.d_k, dtype=exact.dtype, device=exact.device) / ridge

    def _project(self, site: LinearModule, keys: Tensor) -> Tensor:
        used = self._used[site.name]
        return keys - (keys @ used) @ used.T
