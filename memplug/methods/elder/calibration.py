"""Calibration: limits that keep unrelated prompts out of scope, found without any data.

Two kinds of prompts stand for unrelated ones, and the limits hold for either. Texts sampled from the base
model are cut off at a token with which some edit's prompt ends too (a question mark, say), as queries at
other tokens are easily told apart; a text that names an edit's subject does not count against that edit. And
an edit's prompt is unrelated to all edits of other subjects: it asks the same thing about somebody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .allocation import pack
from .deferral import Deferral, hamming
from .experts import Experts

__all__ = ["Heldout", "Limits", "calibrate", "closeness"]

_ENOUGH = 50  # prompts that make a rate; with fewer at such tokens, texts are cut off anywhere
_LATEST = 512


class Heldout(NamedTuple):
    """Sampled texts, and the query at each of their tokens.

    Attributes:
        texts: the texts.
        queries: float32 [m,q], as they come from the model.
        tokens: LongTensor [m], the token at which the text is cut off.
        owner: LongTensor [m], index of the text.
    """

    texts: list[str]
    queries: Tensor
    tokens: Tensor
    owner: Tensor

    def at(self, ends: set[int]) -> Tensor:
        """BoolTensor [m], the tokens that are among ``ends``; all, where those are too few."""
        at_end = torch.isin(self.tokens.cpu(), torch.tensor(sorted(ends)))
        return at_end if int(at_end.sum()) >= _ENOUGH else torch.ones_like(at_end)


class Limits(NamedTuple):
    """What calibration found.

    Attributes:
        epsilon: the distance a code has to stay below.
        threshold: the similarity a query has to exceed, None where the codes are enough.
        accepted: the share of unrelated prompts in scope with these limits.
        prompts: how many there were.
    """

    epsilon: int
    threshold: float | None
    accepted: float
    prompts: int


class Closeness(NamedTuple):
    """Of m prompts, the least code distance to an edit [m] and the largest similarity to one [m]."""

    distance: np.ndarray
    similarity: np.ndarray


def closeness(deferral: Deferral, experts: Experts, queries: Tensor, excluded: np.ndarray) -> Closeness:
    """How close prompts come to edits in force.

    Args:
        deferral: the edits, E' of them in force.
        experts: the routers.
        queries: [m,q], prepared as for routing.
        excluded: bool [m,E'], pairs that do not count.
    """
    on = deferral.on
    codes = hamming(pack(experts.route(queries).picks, experts.n), deferral.codes[on])
    mine = F.normalize(deferral.queries[torch.from_numpy(on).to(deferral.queries.device)], dim=-1)
    cosines = (F.normalize(queries.to(mine), dim=-1) @ mine.T).cpu().numpy()
    far = 1 << 30
    return Closeness(
        np.where(excluded, far, codes).min(axis=1, initial=far),
        np.where(excluded, -1.0, cosines).max(axis=1, initial=-1.0),
    )


def calibrate(
    deferral: Deferral,
    experts: Experts,
    heldout: Heldout,
    queries: Tensor,
    subjects: Sequence[str],
    ends: set[int],
    rate: float,
    epsilon: int | None,
    threshold: float | None,
    gate: bool,
) -> Limits:
    """Limits under which at most ``rate`` of the unrelated prompts are in scope.

    The codes decide alone, with the largest epsilon that keeps the rate, if half of an edit's experts may
    then differ (as published). Else a similarity is asked for, and three quarters of them may, as they do
    from one phrasing to another. Without a gate the codes decide alone in any case.

    Args:
        deferral, experts: edits and routers as they are.
        heldout, queries: sampled texts, and their queries prepared as for routing.
        subjects: of the edits in force, in order.
        ends: tokens with which edits' prompts end.
        rate: the share.
        epsilon, threshold: given, or None to have it chosen.
        gate: whether a similarity may be asked for.
    """
    kinds = [_sampled(deferral, experts, heldout, queries, subjects, ends)]
    if len(subjects) >= _ENOUGH:
        kinds.append(_each_other(deferral, experts, subjects))
    return _choose(kinds, rate, epsilon, threshold, gate, 2 * experts.top_k * len(experts.places))


def within(deferral: Deferral, chosen: Tensor, queries: Tensor, rate: float, picks: int) -> tuple[int, float]:
    """Limits for queries that name their subject: what else may be asked about it is to stay out.

    What else is asked is taken from the sampled texts, as if it were about the same subject. The similarity
    is set two thirds of the way from what keeps out all but ``rate`` of that to 1: a rephrasing is far more
    similar.

    Args:
        deferral: the edits.
        chosen: bool [m], the sampled queries that count.
        queries: [m,q], sampled and prepared, without subjects.
        rate: the share.
        picks: experts that a row uses.

    Returns:
        epsilon, three quarters of the bits, and the threshold.
    """
    width = queries.shape[1]
    on = torch.from_numpy(deferral.on).to(deferral.queries.device)
    mine = F.normalize(deferral.queries[on][-_LATEST:, :width], dim=-1)
    theirs = F.normalize(queries[chosen.to(queries.device)].to(mine), dim=-1)
    if not len(theirs):
        return 3 * picks // 2, 0.9
    other = np.quantile((theirs @ mine.T).cpu().numpy(), 1 - rate)
    limit = (2 + float(np.clip(other, 0.0, 1.0))) / 3
    return 3 * picks // 2, min((1 + limit) / 2, 0.999)  # the same subject is the other half of a query


def _sampled(
    deferral: Deferral,
    experts: Experts,
    heldout: Heldout,
    queries: Tensor,
    subjects: Sequence[str],
    ends: set[int],
) -> Closeness:
    """How close the sampled texts come to the edits."""
    chosen = heldout.at(ends)
    owner = heldout.owner[chosen].tolist()
    names = list(dict.fromkeys(subjects))
    place = {name: i for i, name in enumerate(names)}
    named = np.array([[name in text for name in names] for text in heldout.texts], bool)
    column = [place[subject] for subject in subjects]
    excluded = named[owner][:, column]
    return closeness(deferral, experts, queries[chosen.to(queries.device)], excluded)


def _each_other(deferral: Deferral, experts: Experts, subjects: Sequence[str]) -> Closeness:
    """How close edits come to those of other subjects; asked of the latest few hundred."""
    names = np.array(subjects)
    excluded = names[-_LATEST:, None] == names[None]
    on = torch.from_numpy(deferral.on).to(deferral.queries.device)
    return closeness(deferral, experts, deferral.queries[on][-_LATEST:], excluded)


def _choose(
    kinds: Sequence[Closeness],
    rate: float,
    epsilon: int | None,
    threshold: float | None,
    gate: bool,
    bits: int,
) -> Limits:
    """``bits``: the largest distance there can be."""
    count = sum(len(near.distance) for near in kinds)

    def accepted(limit: int, threshold: float | None) -> float:
        least = -2.0 if threshold is None else threshold
        inside = [(near.distance < limit) & (near.similarity > least) for near in kinds]
        return max((float(some.mean()) for some in inside if len(some)), default=0.0)

    keeping = [limit for limit in range(2, bits + 3, 2) if accepted(limit, None) <= rate]
    alone = epsilon or max(keeping, default=2)
    enough = accepted(alone, None) <= rate and (epsilon is not None or alone > bits // 2)
    if not gate or (enough and threshold is None):
        return Limits(alone, None, accepted(alone, None), count)
    limit = epsilon or 3 * bits // 4
    if threshold is None:
        needed = [_needed(near, rate, limit) for near in kinds]
        threshold = max((value for value in needed if value is not None), default=None)
    return Limits(limit, threshold, accepted(limit, threshold), count)


def _needed(near: Closeness, rate: float, limit: int) -> float | None:
    """The lowest similarity that keeps the rate; None where none has to be asked for."""
    inside = np.sort(near.similarity[near.distance < limit])[::-1]
    allowed = int(rate * len(near.distance))
    return float(np.clip(inside[allowed], 0.0, 0.999)) if len(inside) > allowed else None
