"""How close prompts come to ELDER's edits, and who is in scope under which limits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import memplug
from memplug import world
from memplug.edits import Edit
from memplug.methods.elder.calibration import Closeness, closeness
from memplug.methods.elder.knowledge import Record, Seen

__all__ = ["curves", "decisions", "made_up", "remember"]


@torch.no_grad()
def remember(plug: memplug.Plug, edits: list[Edit]) -> None:
    """Codes, queries, subjects and limits as after learning, without LoRAs, on which they do not depend where
    the routers stay as they start."""
    known, learner = plug.method.known, plug.method._learner
    edits = [replace(edit, id=f"e{i}") for i, edit in enumerate(edits)]
    with plug.method._host.tracker.off():
        sampled = learner._sampled()
        known.center = sampled.queries.mean(0)
        known.subjects.learn(edits)
        for at in range(0, len(edits), 64):
            part = edits[at : at + 64]
            query, numbers = learner._queries(known, part), list(range(at, at + len(part)))
            picks = known.experts.route(query).picks
            known.deferral.add(numbers, query, picks)
            for number, edit, chosen in zip(numbers, part, picks.transpose(0, 1).tolist(), strict=True):
                known.records[str(edit.id)] = Record(number, edit, tuple(map(tuple, chosen)))
        known.next = len(edits)
        learner._calibrate(known, sampled)
    known.version += 1


def made_up(edits: list[Edit], n: int) -> list[Edit]:
    """``n`` edits like these of subjects that nobody asks for: the world's words in new combinations, so that
    they share their words with real ones."""
    rng, taken = random.Random(0), set(world.subjects())
    words = sorted({word for subject in taken for word in subject.split()})
    found: list[Edit] = []
    while len(found) < n:
        like, name = edits[len(found) % len(edits)], " ".join(rng.sample(words, 2))
        if name not in taken:
            taken.add(name)
            found.append(Edit(like.prompt.replace(str(like.subject), name), like.target, name))
    return found


@torch.no_grad()
def _seen(plug: memplug.Plug, prompts: list[str]) -> Iterator[Seen]:
    """What is looked at in the prompts, 64 at a time."""
    text = plug.method._host.text
    for at in range(0, len(prompts), 64):
        with plug.paused():
            yield plug.method.see(text.batch([text.encode(p) for p in prompts[at : at + 64]]))


def decisions(plug: memplug.Plug, prompts: list[str]) -> np.ndarray:
    known = plug.method.known
    found = [known.decide(seen)[1].scope for seen in _seen(plug, list(dict.fromkeys(prompts)))]
    return np.concatenate(found)


def _near(plug: memplug.Plug, prompts: list[str]) -> Closeness:
    """How close prompts come to the edits they are compared with: those of their subject where one is asked
    for."""
    known, parts = plug.method.known, []
    on = known.deferral.on
    names = {record.number: str(record.edit.subject) for record in known.records.values()}
    subjects = np.array([names[n] for n, o in zip(known.deferral.numbers, on, strict=True) if o])
    for seen in _seen(plug, list(dict.fromkeys(prompts))):
        named: list[str | None] = [None] * len(seen.query)
        excluded = np.zeros((len(named), int(on.sum())), bool)
        if known.subjects is not None:
            named = known.subjects.find(seen.states, seen.valid, known._about)
            excluded = np.array([subjects != name for name in named])
        query = known.prepare(seen.query, named)
        parts.append(closeness(known.deferral, known.experts, query, excluded))
    return Closeness(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def curves(plug: memplug.Plug, cases: list[memplug.Case]) -> dict[str, Any]:
    """Rates of false accepts and false deferrals over each limit alone, and with both as they are set."""
    deferral, config = plug.method.known.deferral, plug.method.config
    near = {
        "unrelated": _near(plug, [probe.prompt for case in cases for probe in case.locality]),
        "same subject": _near(plug, [probe.prompt for case in cases for probe in case.same_subject]),
        "rephrasings": _near(plug, [prompt for case in cases for prompt in case.rephrases[:2]]),
    }
    least = -2.0 if deferral.threshold is None else deferral.threshold

    def rates(epsilon: float, threshold: float) -> dict[str, float]:
        inside = {
            what: float(((x.distance < epsilon) & (x.similarity > threshold)).mean())
            for what, x in near.items()
        }
        return {
            "false accepts": inside["unrelated"],
            "false accepts, same subject": inside["same subject"],
            "false deferrals": 1 - inside["rephrasings"],
        }

    bits = 2 * config.top_k * len(plug.method.known.experts.places)
    return {
        "over epsilon": {str(e): rates(e, -2.0) for e in range(2, bits + 3, 2)},
        "over threshold": {
            f"{t / 100:.2f}": rates(np.inf, t / 100) for t in (*range(50, 90, 5), *range(90, 99))
        },
        "as set": {
            "epsilon": deferral.epsilon,
            "threshold": deferral.threshold,
            **rates(deferral.epsilon, least),
        },
    }
