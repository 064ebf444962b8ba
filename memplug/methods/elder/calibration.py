"""Calibration: limits that keep unrelated prompts out of scope, found on text of the base model itself.

Texts are sampled from the base model. What stands for an unrelated prompt is such a text cut off at a token
with which some edit's prompt ends too (a question mark, say), as queries at other tokens are easily told
apart. A text that names an edit's subject does not count against that edit.
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

_ENOUGH = 50  # cut-off texts that make a rate; with fewer, texts are cut off anywhere


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
    at_end = torch.isin(heldout.tokens.cpu(), torch.tensor(sorted(ends)))
    chosen = at_end if int(at_end.sum()) >= _ENOUGH else torch.ones_like(at_end)
    owner = heldout.owner[chosen].tolist()
    names = list(dict.fromkeys(subjects))
    place = {name: i for i, name in enumerate(names)}
    named = np.array([[name in text for name in names] for text in heldout.texts], bool)
    column = [place[subject] for subject in subjects]
    excluded = named[owner][:, column]
    near = closeness(deferral, experts, queries[chosen.to(queries.device)], excluded)
    return _choose(near, rate, epsilon, threshold, gate, 2 * experts.top_k * len(experts.places))


def _choose(
    near: Closeness, rate: float, epsilon: int | None, threshold: float | None, gate: bool, bits: int
) -> Limits:
    """``bits``: the largest distance there can be."""
    count = len(near.distance)

    def accepted(limit: int, threshold: float = -2.0) -> float:
        inside = (near.distance < limit) & (near.similarity > threshold)
        return float(inside.sum()) / max(1, count)

    keeping = [limit for limit in range(2, bits + 3, 2) if accepted(limit) <= rate]
    alone = epsilon or max(keeping, default=2)
    enough = accepted(alone) <= rate and (epsilon is not None or alone > bits // 2)
    if not gate or (enough and threshold is None):
        return Limits(alone, None, accepted(alone), count)
    limit = epsilon or 3 * bits // 4
    inside = np.sort(near.similarity[near.distance < limit])[::-1]
    allowed = int(rate * count)
    if threshold is None and len(inside) > allowed:
        threshold = float(np.clip(inside[allowed], 0.0, 0.999))
    return Limits(limit, threshold, accepted(limit, -2.0 if threshold is None else threshold), count)
