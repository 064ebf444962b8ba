"""MEMIT: many facts in one closed-form change of several layers; ROME is its one-layer, one-edit case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..edits import EditError
from ..weights.modules import LinearModule
from .locate.config import LocateConfig
from .locate.method import LocateMethod

__all__ = ["MEMIT", "MEMITConfig"]

_WIDTH = 16384
"""Input width of the published model's MLP output, which `covariance_weight` was chosen for."""


@dataclass(frozen=True)
class MEMITConfig(LocateConfig):
    """MEMIT (Meng et al., 2023), as published for GPT-J; ``preset("rome")`` is ROME (Meng et al., 2022).

    ROME differs in the constraint: with the least-squares solve a new fact is weighed against all others
    (lambda), with equality it is met exactly and lambda drops out. The preset edits one layer and one fact
    at a time. Unlike ROME's own code it adds what is wanted to the layer's output (for a layer that adds its
    MLP's output the same as adding it to that), and meets it on the mean key.
    """

    covariance_weight: float = 15000.0
    """lambda, the weight of the keys' second moment. In relative units it counts for a module of 16,384
    inputs and is scaled by width, since a key's length in the moment's own metric grows with it."""
    floor: float = 0.1
    """Added to the moment's diagonal, as a share of its mean, for directions that some thousand tokens hardly
    show (published: 0)."""
    constraint: Literal["least squares", "equality"] = "least squares"
    """How new facts are met."""

    limits: ClassVar[tuple[tuple[str, float, float], ...]] = (
        *LocateConfig.limits,
        ("covariance_weight", 1e-12, 1e12),
        ("floor", 0, 1),
    )
    choices: ClassVar[dict[str, tuple[Any, ...]]] = LocateConfig.choices | {
        "constraint": ("least squares", "equality")
    }
    paper: ClassVar[dict[str, Any]] = {
        "lr": 0.5,
        "n_prefixes": 5,
        "relative_lr": False,
        "anchor": False,
        "n_kept": 0,
        "kl_weight": 0.0625,
        "steps": 25,
        "covariance_texts": 100_000,
        "floor": 0.0,
        "earlier": False,
        "units": "absolute",
        "batch_size": 10_000,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "rome": {
            "ranges": (("down", 5 / 28, 6 / 28),),
            "batch_size": 1,
            "constraint": "equality",
            "earlier": False,
            "weight_decay": 0.5,
        }
    }


class MEMIT(LocateMethod):
    """``change = R K' (C + K K')^-1`` in each layer (equation 14, as printed: keys are columns), in
    push-through form.

    Published, each batch is solved as if it were the first: ``C`` holds the base model's keys alone. By the
    method's own derivation what has been stored belongs to it, which is the default here
    (``earlier=False`` for the published way).
    """

    name = "memit"

    @property
    def _ridge(self) -> float:
        return 0.0 if self.config.constraint == "equality" else 1.0

    def _inverse_metric(self, site: LinearModule, moments: Tensor) -> Tensor:
        config, exact = self.config, moments.double()
        exact = exact + config.floor * exact.diagonal().mean() * torch.eye(
            site.d_k, device=exact.device, dtype=torch.float32
        )
        weight = config.covariance_weight * (site.d_k / _WIDTH if config.units == "relative" else 1.0)
        lower, info = torch.linalg.cholesky_ex(weight * exact)
        if bool(info):
            raise EditError(
                f"the second moment of {site.name} is singular: the text shows fewer directions than its "
                f"{site.d_k} inputs have; give more text (covariance, covariance_texts), or a floor above 0"
            )
        return torch.cholesky_inverse(lower)
