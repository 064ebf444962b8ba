"""What an editor is judged by while it is fitted: trajectories of cases, and the rows of their outer loss.

Letters: B rows, T tokens, D width, P answer positions, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...edits import Case, Edit
from ...hooks import capture_input, resume
from ...text import Pair
from ..base import Host
from .capture import Answers, alike, chunks, flat_rows
from .config import EditorConfig

__all__ = [
    "Prepared", "Row", "Sample", "autocast", "draw_batches", "logits_of", "prepare", "row_of", "sample_of",
    "weighted",
]  # fmt: skip

Row = tuple[tuple[int, ...], int]
"""What tells a row from others: its tokens, and where its answer starts."""


def row_of(pair: Pair) -> Row:
    """The row of a pair."""
    return tuple(pair.ids), pair.start


def autocast(host: Host, config: EditorConfig) -> AbstractContextManager[Any]:
    """What the model is run under while an editor is fitted."""
    if not config.autocast:
        return nullcontext()
    return torch.autocast(host.text.device.type, dtype=torch.bfloat16)


class Sample(NamedTuple):
    """One case as it is judged in a trajectory: a rephrasing with the new answer, an unrelated prompt with
    its own.

    Attributes:
        edit: the edit's prompt and new answer, without the stop token.
        asked: a rephrasing (or the prompt) and the new answer.
        kept: an unrelated prompt and its answer; None where the case has none.
    """

    edit: Pair
    asked: Pair
    kept: Pair | None


class Prepared(NamedTuple):
    """A sample with what does not change in a trajectory.

    Attributes:
        sample: the sample.
        asked, kept: [T,D] inputs of the lowest edited layer for the two rows.
        base: [P,V] the base model's log-probabilities at the unrelated answer's positions.
    """

    sample: Sample
    asked: Tensor
    kept: Tensor | None
    base: Tensor | None


def draw_batches(
    cases: Sequence[Case], length: int, size: int, rng: random.Random, fresh: bool
) -> list[list[Case]]:
    """A trajectory: up to ``length`` batches of ``size`` cases, none twice; targets traded where ``fresh``.

    Cases whose prompts differ in nothing but the subject ask the same, so that the answer to one could be the
    answer to another.
    """
    order = rng.sample(range(len(cases)), min(len(cases), length * size))
    picked = [cases[i] for i in order]
    if fresh:
        pools: dict[str, list[str]] = {}
        for case in cases:
            pools.setdefault(_question(case.edit), []).append(case.edit.target)
        picked = [
            replace(case, edit=replace(case.edit, target=rng.choice(pools[_question(case.edit)])))
            for case in picked
        ]
    return [[picked[i] for i in part] for part in chunks(range(len(picked)), size)]


def _question(edit: Edit) -> str:
    if not edit.subject:
        return edit.question
    return f"{edit.question[: edit.place.begin]}{{}}{edit.question[edit.place.end :]}"


def sample_of(host: Host, case: Case, config: EditorConfig, rng: random.Random) -> Sample:
    """How a case is judged, drawn at random."""
    text, edit = host.text, case.edit
    own = not case.rephrases or rng.random() < config.own_prompt
    prompt = edit.prompt if own else rng.choice(case.rephrases)
    probes = case.locality + (case.same_subject if config.same_subject else ())
    probe = rng.choice(probes) if probes and config.locality != "none" else None
    return Sample(
        text.pair(edit.prompt, edit.target),
        text.pair(prompt, edit.target, stop=config.learn_stop),
        text.pair(*probe, stop=config.learn_stop) if probe else None,
    )


@torch.no_grad()
def prepare(host: Host, low: int, samples: Sequence[Sample], config: EditorConfig) -> list[Prepared]:
    """Run the base model once over a trajectory's rows; the weights must be the base model's."""
    hidden: dict[tuple[int, ...], Tensor] = {}
    base: dict[Row, Tensor] = {}
    pairs = [pair for s in samples for pair in (s.asked, s.kept) if pair is not None]
    unique = list({tuple(p.ids): p for p in pairs}.values())
    device = host.text.device
    for part in alike([len(p.ids) for p in unique], config.micro_batch, device):
        batch = host.text.batch([unique[i].ids[:-1] for i in part])
        with autocast(host, config):
            states = capture_input(host.anatomy, low, partial(host.forward, host.anatomy.decoder, batch))
        for i, state in zip(part, states, strict=True):
            hidden[tuple(unique[i].ids)] = state[: len(unique[i].ids) - 1].clone()
    if config.locality == "base":
        kept = list({row_of(s.kept): s.kept for s in samples if s.kept is not None}.values())
        for part in alike([len(p.ids) for p in kept], config.micro_batch, device):
            rows = [kept[i] for i in part]
            with autocast(host, config):
                logits, at = logits_of(host, low, rows, [hidden[tuple(p.ids)] for p in rows])
            for r, pair in enumerate(rows):
                base[row_of(pair)] = logits[at.row == r].log_softmax(-1)
    return [
        Prepared(
            s,
            hidden[tuple(s.asked.ids)],
            hidden[tuple(s.kept.ids)] if s.kept else None,
            base.get(row_of(s.kept)) if s.kept else None,
        )
        for s in samples
    ]


def logits_of(
    host: Host, low: int, pairs: Sequence[Pair], hidden: Sequence[Tensor]
) -> tuple[Tensor, Answers]:
    """Float32 logits [P,V] at the answers' positions, from layer ``low`` on."""
    batch = host.text.batch([pair.ids[:-1] for pair in pairs])
    width = batch.ids.shape[1]
    states = torch.nn.utils.rnn.pad_sequence(list(hidden), batch_first=True)
    at = flat_rows(pairs, width, batch.ids.device)
    logits = resume(host.model, host.anatomy, low, states, lambda: host.forward(host.model, batch), at.flat)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), at


def weighted(
    history: Sequence[Sequence[Prepared]], config: EditorConfig, rng: random.Random
) -> list[tuple[Prepared, float]]:
    """The samples of a step's loss and their weights; the last batch of ``history`` is the step's own.

    A batch j steps back weighs ``back_decay ** j``, shared by its samples; all weights sum to 1. With
    ``back_samples`` the earlier batches are stood for by so many draws in proportion to those weights, an
    unbiased estimate of their sum.
    """
    now = [(item, 1.0 / len(history[-1])) for item in history[-1]]
    past = [
        (item, config.back_decay**back / len(batch))
        for back, batch in enumerate(reversed(history[-config.back_depth : -1]), start=1)
        for item in batch
    ]
    if config.back_samples is not None and len(past) > config.back_samples:
        weights = [weight for _, weight in past]
        drawn = rng.choices([item for item, _ in past], weights, k=config.back_samples)
        past = [(item, sum(weights) / config.back_samples) for item in drawn]
    whole = 1.0 + sum(config.back_decay**back for back in range(1, len(history[-config.back_depth :])))
    judged: dict[int, tuple[Prepared, float]] = {}
    for item, weight in now + past:  # one that was drawn twice is run once
        judged[id(item)] = (item, judged.get(id(item), (item, 0.0))[1] + weight / whole)
    return list(judged.values())
