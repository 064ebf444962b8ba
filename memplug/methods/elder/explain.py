"""Explanations: what a prompt is routed to, which edit is nearest, and whether the base model answers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

from ...chat import Prompt, quoted
from ...edits import Edit
from ...shown import printable
from ..llp.explain import Explanation as Found
from .experts import Routing
from .places import Place

__all__ = ["Answered", "Explanation", "Use", "uses_of"]


class Use(NamedTuple):
    """One edited linear: the experts that the prompt is routed to, and their weights."""

    layer: int
    linear: str
    experts: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Answered(Found):
    """What happens to the edits when the model reads a prompt, with scope "answer".

    Attributes:
        uses: the experts of the edit that is asked for, linear by linear; none where none is.
    """

    uses: tuple[Use, ...] = ()

    @staticmethod
    def of(found: Found, uses: tuple[Use, ...]) -> Answered:
        """With what the retrieval room has found."""
        return Answered(**{field.name: getattr(found, field.name) for field in fields(found)}, uses=uses)

    @property
    def deferred(self) -> bool:
        """Whether the base model answers."""
        return self.recalled is None

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *_lines(self.uses)])

    __repr__ = __str__


@dataclass(frozen=True)
class Explanation:
    """What happens to the edits when the model reads a prompt, with scope "row".

    Attributes:
        prompt: the text or messages.
        deferred: whether the base model answers.
        uses: the allocation, linear by linear; without effect where deferred.
        nearest: the edit with the nearest code, None without edits in force.
        distance, epsilon: its Hamming distance, which must be below epsilon; None without edits.
        reason: one sentence on the decision.
    """

    prompt: Prompt
    deferred: bool
    uses: tuple[Use, ...]
    nearest: Edit | None
    distance: int | None
    epsilon: int
    reason: str

    def __str__(self) -> str:
        lines = [f"{quoted(self.prompt)}: {self.reason}"]
        if self.nearest is not None:
            lines.append(f"  nearest code: edit {printable(self.nearest.id)}, {self.distance} bits away")
        return "\n".join([*lines, *_lines(self.uses)])

    __repr__ = __str__

    @staticmethod
    def of(
        prompt: Prompt,
        uses: tuple[Use, ...],
        nearest: Edit | None,
        distance: int | None,
        epsilon: int,
        blocked: bool,
    ) -> Explanation:
        """That of a prompt whose code is so many bits from that of the nearest edit in force."""
        scope = distance is not None and distance < epsilon and not blocked
        if scope:
            reason = f"in scope, {distance} bits from the nearest code (fewer than {epsilon} needed)"
        elif blocked:
            reason = "deferred to the base model; most similar is an edit that was deleted or switched off"
        elif nearest is None:
            reason = "deferred to the base model; no edit is in force"
        else:
            reason = (
                f"deferred to the base model; the nearest code is {distance} bits away ({epsilon} or more)"
            )
        return Explanation(prompt, not scope, uses, nearest, distance, epsilon, reason)


def uses_of(places: tuple[Place, ...], routing: Routing) -> tuple[Use, ...]:
    """What the first row of a routing uses."""
    return tuple(
        Use(place.layer, place.name, tuple(picks[0].tolist()), tuple(weights[0].tolist()))
        for place, picks, weights in zip(places, *routing, strict=True)
    )


def _lines(uses: tuple[Use, ...]) -> list[str]:
    lines = []
    for use in uses:
        parts = ", ".join(f"{e} ({w:.2f})" for e, w in zip(use.experts, use.weights, strict=True))
        lines.append(f"  layer {use.layer} {use.linear}: experts {parts}")
    return lines
