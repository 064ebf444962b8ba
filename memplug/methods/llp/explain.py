"""Explanations: what each think layer saw in a prompt, and why an edit was recalled or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...chat import Prompt, question, quoted
from ...edits import Edit
from ...memory import KeyMemory, Scores
from ...shown import printable
from ..base import Host
from .config import LLPConfig
from .keys import think_states

__all__ = ["Candidate", "Explanation", "LayerVote", "explain"]


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
    """

    subject: str
    edits: tuple[Edit, ...]
    votes: int
    similarity: float
    layers: tuple[LayerVote, ...]
    heat: Tensor


@dataclass(frozen=True)
class Explanation:
    """What happens to the edits when the model reads a prompt.

    Attributes:
        prompt, tokens: the text and its T tokens.
        quorum, threshold: votes needed, and the similarity a vote needs.
        recalled: the subject that is recalled, or None.
        runner_up: the next best subject, or the best where none is recalled; None without edits.
        reason: one sentence on the decision.
        likeness: how much what is asked resembles the edits of the subject that is recalled, or of the next
            best; None where nothing is asked about it.
        limits: what that has to exceed, in plain text and in a chat; None without edits.
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

    def __str__(self) -> str:
        lines = [f"{quoted(self.prompt)}: {self.reason}"]
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
        if self.likeness is not None and self.limits is not None:
            plain, chat = self.limits
            lines.append(
                f"  asked for: likeness {self.likeness:.3f}, to be exceeded: {plain:.3f} in plain text, "
                f"{chat:.3f} in chat"
            )
        return "\n".join(lines)

    __repr__ = __str__


@torch.no_grad()
def explain(
    host: Host,
    memory: KeyMemory,
    config: LLPConfig,
    subjects: Mapping[int, tuple[str, tuple[Edit, ...]]],
    prompt: Prompt,
) -> Explanation:
    """Read ``prompt`` without generating, and report on the two subjects it resembles most.

    Args:
        host, memory, config: the method's.
        subjects: key number -> subject and its edits in force.
        prompt: any text.

    Raises:
        ValueError: the prompt is empty.
    """
    if not question(prompt).strip():
        raise ValueError(f"the prompt is empty ({prompt!r}); give it some text")
    ids = host.text.encode(prompt)
    tokens = tuple(host.text.tokenizer.decode([i]) for i in ids)
    quorum, threshold = memory.quorum, config.threshold
    if not subjects:
        return Explanation(prompt, tokens, quorum, threshold, None, None, "no edit is in force")
    with host.tracker.off():
        states = think_states(host, [ids], config.think_layers or ())
    valid = torch.ones(1, len(ids), dtype=torch.bool)
    valid[0, 0] = ids[0] != host.text.bos_id
    hits, _ = memory.search(list(states), valid)
    scores = memory.scores(list(states[:, 0]), valid[0])
    winner = int(hits.winner[0])
    order = _ranking(scores, subjects)
    make = _Maker(host, memory, config, subjects, scores, states[:, 0].float().cpu(), valid[0], tokens)
    recalled = make(winner) if winner >= 0 else None
    other = next((k for k in order if recalled is None or subjects[k][0] != recalled.subject), None)
    runner_up = None if other is None else make(other)
    reason = _reason(recalled, runner_up, quorum, threshold)
    return Explanation(prompt, tokens, quorum, threshold, recalled, runner_up, reason)


def _ranking(scores: Scores, subjects: Mapping[int, object]) -> list[int]:
    """Key numbers, best first: by votes, then by summed similarity."""
    votes, total = scores.voted.sum(0), scores.similarity.sum(0)
    rank = sorted(range(len(scores.ids)), key=lambda i: (-int(votes[i]), -float(total[i])))
    return [int(scores.ids[i]) for i in rank if int(scores.ids[i]) in subjects]


def _reason(best: Candidate | None, other: Candidate | None, quorum: int, threshold: float) -> str:
    second = "" if other is None else printable(other.subject)
    if best is None:
        if other is None:
            return "nothing is recalled; no edit is in force"
        return (
            f"nothing is recalled; the closest subject, {second}, has {other.votes} votes "
            f"of the {quorum} needed (similarity above {threshold:g})"
        )
    text = f"{printable(best.subject)} is recalled with {best.votes} votes ({quorum} needed)"
    if other is None:
        return text
    if other.votes < quorum:
        return f"{text}; the runner-up, {second}, has {other.votes}"
    if other.votes < best.votes:
        return f"{text}; the runner-up, {second}, has fewer ({other.votes})"
    gap = f"{other.similarity:.3f} < {best.similarity:.3f}"
    return f"{text}; {second} has as many, but is less similar ({gap})"


class _Maker(NamedTuple):
    """What a `Candidate` is made from."""

    host: Host
    memory: KeyMemory
    config: LLPConfig
    subjects: Mapping[int, tuple[str, tuple[Edit, ...]]]
    scores: Scores
    states: Tensor  # [R,T,D]
    valid: Tensor
    tokens: tuple[str, ...]

    def __call__(self, key: int) -> Candidate:
        column = self.scores.ids.tolist().index(key)
        subject, edits = self.subjects[key]
        votes = []
        for r, layer in enumerate(self.config.think_layers or ()):
            at = int(self.scores.position[r, column])
            similarity = float(self.scores.similarity[r, column])
            voted = bool(self.scores.voted[r, column])
            votes.append(LayerVote(layer, self.tokens[at] if at >= 0 else "", at, similarity, voted))
        mean = sum(vote.similarity for vote in votes) / len(votes)
        count = sum(vote.voted for vote in votes)
        return Candidate(subject, edits, count, mean, tuple(votes), self._heat(key))

    def _heat(self, key: int) -> Tensor:
        span = self.memory.get(key).float().cpu()
        cosines = torch.einsum("rtd,rsd->rts", F.normalize(self.states, dim=-1), span)
        cosines[:, ~self.valid] = torch.nan
        length = span.shape[1]
        heat = torch.full(cosines.shape[:2], torch.nan, dtype=torch.float32)
        for t in range(length - 1, cosines.shape[1]):
            window = cosines[:, t - length + 1 : t + 1].diagonal(dim1=1, dim2=2)
            heat[:, t] = window.amin(-1)
        return heat
