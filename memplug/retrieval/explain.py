"""An explanation of what a prompt says to the edits: subjects found, what its end asks for, what speaks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..edits import Edit
from ..interface import Host
from ..memory import count_votes, span_similarity
from ..model.context import Call
from ..text.chat import Prompt
from ..text.printable import printable
from .calibration import Calibration
from .entries import Entry
from .explanation import Candidate, Explanation, seen
from .keys import think_states
from .room import Room

__all__ = ["explain_answer"]


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
    states = torch.stack(units)
    best = []
    for key, entry in on.items():
        heat = span_similarity(states, valid[0], listener.memory.get(key)).cpu()
        limit = listener.memory.limit(key)
        passing = heat > limit
        votes, _ = count_votes(passing, quorum)
        at = (votes + heat.mean(0) / 4).argmax().expand(len(heat))  # the most votes, then the closest
        voted = passing.gather(1, at[:, None])[:, 0]
        edits = tuple(entry.edits[id] for id in entry.on)
        best.append(
            seen(entry.subject, edits, calibration.layers[:-1], tokens, quorum, heat, at, voted, limit)
        )
    best.sort(key=lambda one: (-one.votes, -one.similarity))
    of: dict[str, tuple[Candidate, Edit]] = {}
    for one in best:  # an entry may have several keys: the one that is seen best
        for edit in one.edits:
            of.setdefault(str(edit.id), (one, edit))
    asked = [of[id] for id in speaking if id in of]
    recalled, beside = asked[0][0] if asked else None, tuple[Edit, ...]()
    if recalled is not None:
        mine = tuple(edit for one, edit in asked if one.subject == recalled.subject)
        beside = tuple(edit for one, edit in asked if one.subject != recalled.subject)
        recalled = recalled._replace(edits=mine)
    other = next((one for one in best if recalled is None or one.subject != recalled.subject), None)
    reason = _reason(recalled, other, quorum, calibration, _asked(met, other or recalled))
    likeness, limits = _asked(met, recalled or other), calibration.relation
    threshold = (recalled or best[0]).threshold
    return Explanation(prompt, tokens, quorum, threshold, recalled, other, reason, likeness, limits, beside)


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
    if other.enough:
        limits = "{:.2f} in plain text, {:.2f} in chat".format(*calibration.relation)
        likeness = "" if asked is None else f" (likeness {asked:.2f}; to be exceeded: {limits})"
        return f"nothing is recalled; {subject} is named, but its edits are not asked for{likeness}"
    return (
        f"nothing is recalled; the closest subject, {subject}, has {other.votes} votes of the "
        f"{quorum} needed (similarity above {other.threshold:.2f})"
    )
