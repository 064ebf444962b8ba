"""What an editor is judged by while it is fitted: batches of cases, as rows of prompts and answers.

Letters: B rows, T tokens, D width, P answer positions, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...edits import Case, Edit
from ...interface import Host
from ...model.hooks import capture_input, resume
from ...text.tokens import Pair
from ..inweights.rows import Answers, alike, chunks, flat_rows
from .config import FitConfig
from .features import Request, requests

__all__ = ["Base", "Sample", "draw_batches", "logits_of", "sample_of", "weighted"]

_TEXT_SHARE, _TEXT_TOKENS = 0.3, 32  # of what is kept: ordinary text, all of its tokens


class Sample(NamedTuple):
    """One case as it is judged in a trajectory.

    Attributes:
        edit: the edit's prompt and new answer, in each of its forms.
        asked: a rephrasing (or the prompt), in one of its forms, and the new answer.
        kept: an unrelated prompt and its answer, or a text; None where there is none.
    """

    edit: tuple[Request, ...]
    asked: Pair
    kept: Pair | None


def draw_batches(cases: Sequence[Case], length: int, size: int, rng: random.Random) -> list[list[Case]]:
    """A trajectory: up to ``length`` batches of ``size`` cases, none twice, with each other's targets.

    Cases whose prompts differ in nothing but the subject ask the same, so that the answer to one could be the
    answer to another: networks that see the same targets again and again learn them by heart.
    """
    picked = rng.sample(cases, min(len(cases), length * size))
    pools: dict[str, list[str]] = {}
    for case in cases:
        pools.setdefault(_question(case.edit), []).append(case.edit.target)
    fresh = [
        replace(case, edit=replace(case.edit, target=rng.choice(pools[_question(case.edit)])))
        for case in picked
    ]
    return [[fresh[i] for i in part] for part in chunks(range(len(fresh)), size)]


def _question(edit: Edit) -> str:
    if not edit.subject:
        return edit.question
    return f"{edit.question[: edit.place.begin]}{{}}{edit.question[edit.place.end :]}"


def sample_of(host: Host, case: Case, config: FitConfig, texts: Sequence[Pair], rng: random.Random) -> Sample:
    """How a case is judged, drawn at random; ``texts`` are rows of ordinary text."""
    text, edit = host.text, case.edit
    own = not case.rephrases or rng.random() < config.own_prompt
    prompt = edit.prompt if own else rng.choice(case.rephrases)
    probes, kept = (*case.locality, *case.same_subject), None
    if config.locality != "none" and probes:
        probe = rng.choice(probes)
        kept = text.pair(rng.choice(text.forms(probe.prompt)), probe.target)
        if texts and rng.random() < _TEXT_SHARE:
            piece = rng.choice(texts)
            kept = piece._replace(ids=piece.ids[:_TEXT_TOKENS])
    asked = text.pair(rng.choice(text.forms(prompt)), edit.target)
    return Sample(tuple(requests(text, edit, text.forms(edit.prompt), config.tokens)), asked, kept)


class Base:
    """What the base model computes on the rows of a trajectory, once; its weights must be the base model's.

    Args:
        host: the model.
        low: the lowest edited layer.
        pairs: the rows.
        micro_batch: most rows in one forward.
    """

    def __init__(self, host: Host, low: int, pairs: Sequence[Pair], micro_batch: int) -> None:
        self.host, self.low = host, low
        self._hidden: dict[tuple[Any, ...], Tensor] = {}
        self._said: dict[tuple[Any, ...], Tensor] = {}
        unique = list({pair.key: pair for pair in pairs}.values())
        for part in alike([len(pair.ids) for pair in unique], micro_batch, host.text.device):
            batch = host.text.batch([unique[i].read for i in part])
            states = capture_input(
                host.architecture, low, partial(host.forward, host.architecture.decoder, batch)
            )
            for i, state in zip(part, states, strict=True):
                self._hidden[unique[i].key] = state[: len(unique[i].ids) - 1].clone()

    def logits(self, pairs: Sequence[Pair]) -> tuple[Tensor, Answers]:
        """Logits [P,V] at the answers' positions, at the weights as they are now, float32 or wider."""
        return logits_of(self.host, self.low, pairs, [self._hidden[pair.key] for pair in pairs])

    @torch.no_grad()
    def said(self, pairs: Sequence[Pair]) -> Tensor:
        """Log-probabilities [P,V] at the answers' positions, kept from the first time that they are asked."""
        new = [pair for pair in pairs if pair.key not in self._said]
        if new:
            logits, at = self.logits(new)
            for row, pair in enumerate(new):
                self._said[pair.key] = logits[at.row == row].log_softmax(-1)
        return torch.cat([self._said[pair.key] for pair in pairs])


def logits_of(
    host: Host, low: int, pairs: Sequence[Pair], hidden: Sequence[Tensor]
) -> tuple[Tensor, Answers]:
    """Logits [P,V] at the answers' positions, from layer ``low`` on, whose inputs are ``hidden``."""
    batch = host.text.batch([pair.read for pair in pairs])
    states = torch.nn.utils.rnn.pad_sequence(list(hidden), batch_first=True)
    at = flat_rows(pairs, batch.ids.shape[1], batch.ids.device)
    logits = resume(
        host.model, host.architecture, low, states, lambda: host.forward(host.model, batch), at.flat
    )
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), at


def weighted(
    history: Sequence[Sequence[Sample]], config: FitConfig, rng: random.Random
) -> list[tuple[Sample, float]]:
    """The samples of a step's loss and their weights; the last batch of ``history`` is the step's own.

    A batch j steps back weighs ``back_decay ** j``, shared by its samples; all weights sum to 1. Where the
    earlier batches hold more than ``back_samples``, so many draws in proportion to those weights stand for
    them, an unbiased estimate of their sum.
    """
    now = [(item, 1.0 / len(history[-1])) for item in history[-1]]
    past = [
        (item, config.back_decay**back / len(batch))
        for back, batch in enumerate(reversed(history[-config.back_depth : -1]), start=1)
        for item in batch
    ]
    whole = 1.0 + sum(weight for _, weight in past)
    if config.back_samples is not None and len(past) > config.back_samples:
        weights = [weight for _, weight in past]
        drawn = rng.choices([item for item, _ in past], weights, k=config.back_samples)
        past = [(item, (whole - 1.0) / config.back_samples) for item in drawn]
    judged: dict[int, tuple[Sample, float]] = {}
    for item, weight in now + past:  # one that was drawn twice is run once
        judged[id(item)] = (item, judged.get(id(item), (item, 0.0))[1] + weight / whole)
    return list(judged.values())
