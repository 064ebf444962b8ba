"""Explanations: what each think layer saw in a prompt, and why an edit was recalled or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import interface as base
from ..edits import Edit
from ..memory import count_votes
from ..text.chat import Prompt, quoted
from ..text.printable import printable

__all__ = ["Candidate", "Explanation", "LayerVote", "seen"]


class LayerVote(NamedTuple):
    """One think layer's view of one subject: its best-matching token, how similar, and the vote."""

    layer: int
    token: str
    position: int
    similarity: float
    voted: bool


class Candidate(NamedTuple):
    """A subject with edits, and how much of it the think layers found in the prompt.

    Attributes:
        subject: the subject.
        edits: its edits in force.
        votes: layers that vote for it.
        similarity: its mean similarity over the layers.
        layers: each layer's view.
        heat: [R,T] similarity of the window of tokens that ends at each position; NaN where none fits.
        threshold: the similarity a vote needs.
        enough: whether its votes reach the quorum.
    """

    subject: str
    edits: tuple[Edit, ...]
    votes: int
    similarity: float
    layers: tuple[LayerVote, ...]
    heat: Tensor
    threshold: float
    enough: bool = False


@dataclass(frozen=True, repr=False)
class Explanation(base.Explanation):
    """What happens to the edits when the model reads a prompt.

    Attributes:
        prompt, tokens: the text and its T tokens.
        quorum, threshold: votes needed, and the similarity a vote needs for the subject that is recalled, or
            for the next best.
        recalled: the subject that is recalled, or None.
        runner_up: the next best subject, or the best where none is recalled; None without edits.
        reason: one sentence on the decision.
        likeness: how much what is asked resembles the edits of the subject that is recalled, or of the next
            best; None where nothing is asked about it.
        limits: what that has to exceed, in plain text and in a chat; None without edits.
        beside: edits of other subjects that are recalled as well.
    """

    prompt: Prompt
    tokens: tuple[str, ...]
    quorum: int
    threshold: float
    recalled: Candidate | None
    runner_up: Candidate | None
    reason: str
    likeness: float | None = None
    limits: tuple[float, float] | None = None
    beside: tuple[Edit, ...] = ()

    @property
    def edits(self) -> tuple[Edit, ...]:  # type: ignore[override]
        """The edits that are recalled, what is asked for most first."""
        return (*self.recalled.edits, *self.beside) if self.recalled else ()

    def details(self) -> list[str]:
        """Subjects, their edits and votes; how much is asked like them."""
        lines = []
        for name, candidate in (("recalled", self.recalled), ("runner-up", self.runner_up)):
            if candidate is None:
                continue
            count = f"{candidate.votes} votes of {len(candidate.layers)}"
            lines.append(f"  {name}: {printable(candidate.subject)} ({count})")
            lines += [
                f"    edit {printable(e.id)}: {quoted(e.prompt)} -> {e.target!r}" for e in candidate.edits
            ]
            for vote in candidate.layers:
                mark = "votes" if vote.voted else "no vote"
                lines.append(f"    layer {vote.layer}: {vote.token!r} {vote.similarity:.3f} {mark}")
        lines += [
            f"  beside it: edit {printable(e.id)}: {quoted(e.prompt)} -> {e.target!r}" for e in self.beside
        ]
        if self.likeness is not None and self.limits is not None:
            plain, chat = self.limits
            lines.append(
                f"  asked for: likeness {self.likeness:.3f}, to be exceeded: {plain:.3f} in plain text, "
                f"{chat:.3f} in chat"
            )
        return lines


def seen(
    subject: str,
    edits: tuple[Edit, ...],
    layers: Sequence[int],
    tokens: Sequence[str],
    quorum: int,
    heat: Tensor,
    at: Tensor,
    voted: Tensor,
    threshold: float,
) -> Candidate:
    """A subject as the layers see it.

    Args:
        layers: the R think layers.
        heat: [R,T], see `span_similarity`.
        at: LongTensor [R], where each layer sees it.
        voted: BoolTensor [R], which layers vote for it.
        threshold: the similarity a vote needs.
    """
    seen_by = []
    for layer, similarity, t, vote in zip(layers, heat, at.tolist(), voted.tolist(), strict=True):
        fits = bool(similarity[t] > -1.0)
        token = tokens[t] if fits else ""
        seen_by.append(LayerVote(layer, token, t if fits else -1, float(similarity[t]), vote))
    mean = sum(vote.similarity for vote in seen_by) / len(seen_by)
    votes, enough = count_votes(voted, quorum)
    heat = heat.masked_fill(heat <= -1.0, torch.nan)
    return Candidate(subject, edits, int(votes), mean, tuple(seen_by), heat, threshold, bool(enough))
