"""An explanation of what a prompt says to the edits: subjects found, what its end asks for, what speaks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...calibration import Calibration
from ...call import Call
from ...chat import Prompt
from ...edits import Edit
from ...listening import Listener, span_scores
from ...shown import printable
from ..base import Host
from .entries import Entry
from .explain import Candidate, Explanation, LayerVote
from .keys import think_states
from .room import Room

__all__ = ["explain_answer"]

_NONE = -1.0  # where no window fits


@torch.no_grad()
def explain_answer(
    host: Host,
    room: Room,
    entries: Mapping[str, Entry],
    owner: Mapping[int, str],
    prompt: Prompt,
) -> Explanation:
    """Read ``prompt`` without generating, and report on the subjects that it resembles most."""
    listener, calibration = room.listener, room.calibration
    ids = host.text.encode(prompt)
    tokens = tuple(host.text.tokenizer.decode([i]) for i in ids)
    quorum = listener.memory.quorum
    on = {key: entries[subject] for key, subject in owner.items() if entries[subject].on}
    if calibration is None or not on:
        return Explanation(prompt, tokens, quorum, 0.0, None, None, "no edit is in force")
    with host.tracker.off():
        states = think_states(host, [ids], calibration.layers)
    valid = torch.ones(1, len(ids), dtype=torch.bool)
    valid[0, 0] = ids[0] != host.text.bos_id
    zero = torch.zeros(1, dtype=torch.long)
    kept = {layer: states[i].to(host.text.device) for i, layer in enumerate(calibration.layers)}
    call = Call(valid, torch.ones_like(valid), 0, zero, zero, states=kept, ids=torch.tensor([ids]))
    met: dict[str, float] = {}
    _, spoken = listener.listen(calibration, call, room.longest, met)
    speaking = [one.edit for one in spoken[0][-1]]
    begins = torch.zeros(1, len(ids), dtype=torch.bool)
    begins[0, 0] = host.text.bos_id is None
    units = [calibration.apply(i, kept[one], begins)[0] for i, one in enumerate(calibration.layers[:-1])]
    found = _Found(listener, calibration, torch.stack(units), valid[0], tokens)
    best = sorted((found.candidate(key, entry) for key, entry in on.items()), key=_rank)
    recalled = next((one for one in best if any(e.id in speaking for e in one.edits)), None)
    if recalled is not None:
        edits = tuple(edit for edit in recalled.edits if edit.id in speaking)
        recalled = recalled._replace(edits=edits)
    other = next((one for one in best if recalled is None or one.subject != recalled.subject), None)
    reason = _reason(recalled, other, quorum, calibration, _asked(met, other or recalled))
    likeness, limits = _asked(met, recalled or other), calibration.relation
    return Explanation(
        prompt, tokens, quorum, calibration.threshold, recalled, other, reason, likeness, limits
    )


def _rank(candidate: Candidate) -> tuple[int, float]:
    return -candidate.votes, -candidate.similarity


def _asked(met: Mapping[str, float], candidate: Candidate | None) -> float | None:
    """The best likeness of what the prompt asks at its end to the candidate's edits, or None."""
    edits: tuple[Edit, ...] = candidate.edits if candidate else ()
    return max((met[str(e.id)] for e in edits if str(e.id) in met), default=None)


def _reason(
    best: Candidate | None,
    other: Candidate | None,
    quorum: int,
    calibration: Calibration,
    asked: float | None,
) -> str:
    if best is not None:
        return f"{printable(best.subject)} is named ({best.votes} votes, {quorum} needed) and asked for"
    if other is None:
        return "nothing is recalled; no edit is in force"
    subject = printable(other.subject)
    if other.votes >= quorum:
        limits = "{:.2f} in plain text, {:.2f} in chat".format(*calibration.relation)
        likeness = "" if asked is None else f" (likeness {asked:.2f}; to be exceeded: {limits})"
        return f"nothing is recalled; {subject} is named, but its edits are not asked for{likeness}"
    return (
        f"nothing is recalled; the closest subject, {subject}, has {other.votes} votes of the "
        f"{quorum} needed (similarity above {calibration.threshold:.2f})"
    )


class _Found:
    """What the think layers see of each key."""

    def __init__(
        self,
        listener: Listener,
        calibration: Calibration,
        units: Tensor,
        valid: Tensor,
        tokens: tuple[str, ...],
    ) -> None:
        self._memory, self._calibration = listener.memory, calibration
        self._units, self._valid, self._tokens = units, valid, tokens

    def candidate(self, key: int, entry: Entry) -> Candidate:
        heat = span_scores(self._units, self._valid, self._memory.get(key)).cpu()
        limit = self._memory.limit(key)
        best = int(((heat > limit).sum(0) + heat.mean(0) / 4).argmax())  # the most votes, then the closest
        fits = bool(heat[0, best] > _NONE)
        at, token = (best, self._tokens[best]) if fits else (-1, "")
        votes = tuple(
            LayerVote(layer, token, at, float(heat[r, best]), bool(heat[r, best] > limit))
            for r, layer in enumerate(self._calibration.layers[:-1])
        )
        heat = heat.masked_fill(heat <= _NONE, torch.nan)
        mean = sum(vote.similarity for vote in votes) / len(votes)
        edits = tuple(entry.edits[id] for id in entry.on)
        return Candidate(entry.subject, edits, sum(v.voted for v in votes), mean, votes, heat)
