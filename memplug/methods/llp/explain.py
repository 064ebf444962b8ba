"""What the layers see in a prompt, for LLP as published: the subject with the most votes is recalled."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ...edits import Edit
from ...interface import Host
from ...memory import Found, KeyMemory, span_similarity, unit_rows, voting
from ...retrieval.config import RetrievalConfig
from ...retrieval.explanation import Candidate, Explanation, seen
from ...retrieval.keys import think_states
from ...text.chat import Prompt
from ...text.printable import printable

__all__ = ["explain_votes"]


@torch.no_grad()
def explain_votes(
    host: Host,
    memory: KeyMemory,
    config: RetrievalConfig,
    subjects: Mapping[int, tuple[str, tuple[Edit, ...]]],
    prompt: Prompt,
) -> Explanation:
    """Read ``prompt`` without generating, and report on the two subjects it resembles most.

    Args:
        host, memory, config: the method's.
        subjects: key number -> subject and its edits in force.
        prompt: any text.
    """
    ids = host.text.encode(prompt)
    tokens = tuple(host.text.tokenizer.decode([i]) for i in ids)
    quorum, threshold = memory.quorum, config.threshold
    if not subjects:
        return Explanation(prompt, tokens, quorum, threshold, None, None, "no edit is in force")
    with host.tracker.off():
        states = think_states(host, [ids], config.think_layers or ())
    valid = torch.ones(1, len(ids), dtype=torch.bool)
    valid[0, 0] = ids[0] != host.text.bos_id
    winner, _ = memory.search(list(states), valid)
    units, keys = unit_rows(states[:, 0].cpu(), torch.float64), np.array(list(subjects))
    heat = torch.stack([span_similarity(units, valid[0], memory.get(key).cpu()) for key in subjects]).float()
    best, at = heat.max(-1)  # [E,R]
    limits = torch.tensor([memory.limit(key) for key in subjects])
    passing = torch.where(best > limits[:, None], best, 0.0).T
    voted = torch.from_numpy(voting(Found(np.zeros_like(keys), keys, keys, passing.numpy()), memory.top_k))
    found = {
        key: seen(*subjects[key], config.think_layers or (), tokens, quorum, *parts)
        for key, *parts in zip(keys.tolist(), heat, at, voted.T, limits.tolist(), strict=True)
    }
    recalled = found.get(int(winner[0]))
    ranked = sorted(found.values(), key=lambda one: (-one.votes, -one.similarity))
    runner_up = next((one for one in ranked if recalled is None or one.subject != recalled.subject), None)
    reason = _reason(recalled, runner_up, quorum, threshold)
    return Explanation(prompt, tokens, quorum, threshold, recalled, runner_up, reason)


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
    if not other.enough:
        return f"{text}; the runner-up, {second}, has {other.votes}"
    if other.votes < best.votes:
        return f"{text}; the runner-up, {second}, has fewer ({other.votes})"
    gap = f"{other.similarity:.3f} < {best.similarity:.3f}"
    return f"{text}; {second} has as many, but is less similar ({gap})"
