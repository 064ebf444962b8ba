"""Explanations: what a prompt is routed to, which edit is nearest, and whether the base model answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...retrieval.explanation import Explanation as Found
from ..places import Place
from ..prompt_end import Nearest
from .experts import Routing

__all__ = ["Answered", "Explanation", "Use", "uses_of"]


class Use(NamedTuple):
    """One edited linear: the experts that the prompt is routed to, and their weights."""

    layer: int
    linear: str
    experts: tuple[int, ...]
    weights: tuple[float, ...]

    def __str__(self) -> str:
        parts = ", ".join(f"{e} ({w:.2f})" for e, w in zip(self.experts, self.weights, strict=True))
        return f"  layer {self.layer} {self.linear}: experts {parts}"


@dataclass(frozen=True, repr=False)
class Answered(Found):
    """What happens to the edits when the model reads a prompt, with scope "answer".

    Attributes:
        uses: the experts of the edit that is asked for, linear by linear; none where none is.
    """

    uses: tuple[Use, ...] = ()

    def details(self) -> list[str]:
        """What the retrieval room has found, and the experts."""
        return [*super().details(), *map(str, self.uses)]


@dataclass(frozen=True, repr=False)
class Explanation(Nearest):
    """What happens to the edits when the model reads a prompt, with scope "row".

    Distances are Hamming distances of codes, which have to be below the limit, epsilon.

    Attributes:
        uses: the allocation, linear by linear; without effect where the base model answers.
    """

    uses: tuple[Use, ...]

    def details(self) -> list[str]:
        """The nearest code, and the experts."""
        return [*super().details(), *map(str, self.uses)]


def uses_of(places: Sequence[Place], routing: Routing) -> tuple[Use, ...]:
    """What the first row of a routing uses."""
    return tuple(
        Use(place.layer, place.name, tuple(picks[0].tolist()), tuple(weights[0].tolist()))
        for place, picks, weights in zip(places, *routing, strict=True)
    )
