"""Measure the model that `train_zsre.py` makes: what it knows, what it reads, how it looks inside.

Answers are whole: generated greedily until the model stops by itself, then compared exactly.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from measure_world import Measure, cosines
from zsre import Questions

from memplug.data import Loaded
from memplug.edits import Case, Probe


def measure(
    folder: Path, given: Questions, edit: Loaded, unseen: Loaded, limit: int = 1000
) -> dict[str, Any]:
    """Every measurement; at most ``limit`` prompts for each share.

    Args:
        given: what the model was trained on.
        edit: the cases behind ``given.edits``, with the rephrasings and new targets that were not shown.
        unseen: cases of which nothing was shown.
    """
    with torch.random.fork_rng():
        taken = Measure(folder, limit)
        return {
            "parameters": sum(p.numel() for p in taken.model.parameters()),
            "knowledge": _knowledge(taken, given, edit),
            "context": _context(taken, given, edit, unseen),
            "cosine of the last subject token, embeddings then layers": _lexicality(taken, edit, limit),
        }


def _knowledge(taken: Measure, given: Questions, edit: Loaded) -> dict[str, Any]:
    pairs = list(zip(edit.cases, given.edits, strict=True))
    return {
        "edited cases, prompts": taken.share_right(Probe(q.prompts[0], q.answer) for q in given.edits),
        "edited cases, rephrasings never shown": taken.share_right(
            Probe(rephrase, q.answer) for case, q in pairs for rephrase in case.rephrases
        ),
        "other known cases, prompts": taken.share_right(Probe(q.prompts[0], q.answer) for q in given.known),
        "locality questions": taken.share_right(Probe(q.prompts[0], q.answer) for q in given.locality),
        "locality questions left out for the length of the answer": given.dropped,
        "new target before any edit": taken.share_right(
            Probe(case.edit.prompt, q.withheld) for case, q in pairs if q.withheld
        ),
    }


def _context(taken: Measure, given: Questions, edit: Loaded, unseen: Loaded) -> dict[str, Any]:
    """Answers from a note against memory, and answers that a note about something else must not change."""
    rng = random.Random(0)
    cases = [case for case, q in zip(edit.cases, given.edits, strict=True) if q.withheld]
    beside = []
    for question in given.edits:
        other = rng.choice([q for q in given.edits if q.subject != question.subject])
        false = rng.choice(given.values[other.template])
        beside.append(Probe(f"Note: {other.prompts[0]} {false}. {question.prompts[0]}", question.answer))
    return {
        "note overrides memory": taken.share_right(_told(case, case.edit.prompt) for case in cases),
        "note overrides memory, asked by a rephrasing": taken.share_right(
            _told(case, rephrase) for case in cases for rephrase in case.rephrases
        ),
        "note about a subject never shown": taken.share_right(
            _told(case, case.edit.prompt) for case in unseen.cases
        ),
        "right behind a false note about somebody else": taken.share_right(beside),
    }


def _told(case: Case, prompt: str) -> Probe:
    """The prompt behind a note with the case's new target."""
    return Probe(f"Note: {case.edit.prompt} {case.edit.target}. {prompt}", case.edit.target)


def _lexicality(taken: Measure, edit: Loaded, limit: int) -> dict[str, Any]:
    """Cosine of a subject's last-token state in its prompt and in a rephrasing."""
    found = [
        (case.edit.prompt, rephrase, case.edit.subject)
        for case in edit.cases
        for rephrase in case.rephrases[:1]
        if case.edit.subject and case.edit.subject in case.edit.prompt and case.edit.subject in rephrase
    ]
    one, two, subjects = zip(*found[:limit], strict=True)
    states = [taken.subject_states(prompts, subjects) for prompts in (one, two)]
    return cosines(*states, [subject.split()[-1] for subject in subjects])
