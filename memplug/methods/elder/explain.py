"""Explanations: what a prompt is routed to, which edit is nearest, and whether the base model answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ...chat import Prompt, quoted
from ...edits import Edit
from ...shown import printable
from .deferral import Decision
from .experts import Routing
from .places import Place

__all__ = ["Explanation", "Use", "explained"]


class Use(NamedTuple):
    """One edited linear: the experts that the prompt is routed to, and their weights."""

    layer: int
    linear: str
    experts: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Explanation:
    """What happens to the edits when the model reads a prompt.

    Attributes:
        prompt: the text or messages.
        deferred: whether the base model answers.
        uses: the allocation, linear by linear; without effect where deferred.
        nearest: the edit with the nearest code, None without edits in force.
        distance, epsilon: its Hamming distance, which must be below epsilon; None without edits.
        similar: the edit with the most similar query, None where none comes near.
        similarity: its cosine.
        threshold: what it has to exceed, None where no similarity is asked for.
        reason: one sentence on the decision.
    """

    prompt: Prompt
    deferred: bool
    uses: tuple[Use, ...]
    nearest: Edit | None
    distance: int | None
    epsilon: int
    similar: Edit | None
    similarity: float
    threshold: float | None
    reason: str

    def __str__(self) -> str:
        lines = [f"{quoted(self.prompt)}: {self.reason}"]
        if self.nearest is not None:
            lines.append(f"  nearest code: edit {printable(self.nearest.id)}, {self.distance} bits away")
        if self.similar is not None:
            lines.append(
                f"  most similar query: edit {printable(self.similar.id)}, cosine {self.similarity:.3f}"
            )
        for use in self.uses:
            parts = ", ".join(f"{e} ({w:.2f})" for e, w in zip(use.experts, use.weights, strict=True))
            lines.append(f"  layer {use.layer} {use.linear}: experts {parts}")
        return "\n".join(lines)

    __repr__ = __str__


def explained(
    prompt: Prompt,
    places: tuple[Place, ...],
    routing: Routing,
    decision: Decision,
    edits: Mapping[int, Edit],
    epsilon: int,
    threshold: float | None,
) -> Explanation:
    """The explanation of the one row in ``routing`` and ``decision``; ``edits`` by number."""
    uses = tuple(
        Use(place.layer, place.name, tuple(picks[0].tolist()), tuple(weights[0].tolist()))
        for place, picks, weights in zip(places, *routing, strict=True)
    )
    nearest = edits.get(int(decision.nearest[0]))
    distance = None if nearest is None else int(decision.distance[0])
    similar = edits.get(int(decision.similar[0]))
    similarity = float(decision.similarity[0])
    scope = bool(decision.scope[0])
    if scope:
        reason = f"in scope, {distance} bits from the nearest code (fewer than {epsilon} needed)"
    elif not edits:
        reason = "deferred to the base model; no edit is in force"
    elif bool(decision.blocked[0]):
        reason = "deferred to the base model; most similar is an edit that was deleted or switched off"
    elif nearest is None:
        reason = "deferred to the base model; it names no edited subject"
    elif distance is not None and distance >= epsilon:
        reason = f"deferred to the base model; the nearest code is {distance} bits away ({epsilon} or more)"
    else:
        reason = f"deferred to the base model; no edit's query is similar enough (above {threshold:.3f})"
    return Explanation(
        prompt, not scope, uses, nearest, distance, epsilon, similar, similarity, threshold, reason
    )
