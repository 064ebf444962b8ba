"""Asks a model everything about its edits and judges the texts beside those of the base model.

Measures, each with its share and the number of probes it is a share of:

right      the first 24 tokens give the target, and no old answer before it
old        they give an old answer, and are not right
kept       of what the base model answers truly in 24 tokens: the true answer is still there
same       token for token what the base model says (30 tokens of unrelated prompts, 60 of passing mentions)
broken     of 60-token texts that are not broken of the base model: broken now (see `judging.limits`, set by
           the base model's own 60-token texts behind unrelated prompts, plain and chat apart)
blurts     of passing mentions where the base model does not say the target: it is said now
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from .asking import Asker
from .judging import LEAST_TOKENS, Limits, contains, first, is_broken, limits, right
from .probes import ANSWER, ASKED, JUDGED, KEPT, LENGTHS, LONG, Probe

__all__ = ["Reference", "Said", "Share", "answers", "examples", "refer", "shares", "verdicts"]


class Said(NamedTuple):
    """What a model generated: token ids, the text, its first `ANSWER` tokens as text, and how unlikely the
    base
    model finds it (0 where that is not judged)."""

    ids: tuple[int, ...]
    text: str
    answer: str
    perplexity: float = 0.0


class Share(NamedTuple):
    """A share, and of how many."""

    share: float
    n: int


class Reference(NamedTuple):
    """What the base model says to each probe, and the limits of broken text, by form."""

    said: dict[Probe, Said]
    limits: dict[str, Limits]

    def asked(self, probes: Sequence[Probe]) -> list[Probe]:
        """The probes worth asking an edited model: of what must be kept, those that the base model knows."""
        return [p for p in probes if p.group not in KEPT or contains(self.said[p].answer, p.old)]


def refer(asker: Asker, probes: Sequence[Probe], cache: Path | None = None, model: str = "") -> Reference:
    """The base model's texts; a run with the same model and probes takes them from the folder ``cache``.

    Args:
        asker: the base model.
        probes: everything that will be asked.
        cache: a folder outside the repository's history, as it holds texts of the model.
        model: a name for its weights to the bit.
    """
    digest = hashlib.sha256(repr((model, asker.batch, list(probes))).encode()).hexdigest()[:20]
    path = cache / f"base-{digest}.json" if cache else None
    if path and path.is_file():
        rows = json.loads(path.read_text())
        said = {p: _said(asker, p, ids, score) for p, (ids, score) in zip(probes, rows, strict=True)}
    else:
        said = answers(asker, probes)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([(list(said[p].ids), said[p].perplexity) for p in probes]))
    return Reference(said, _limits(said))


def answers(
    asker: Asker,
    probes: Sequence[Probe],
    known: Mapping[Probe, Said] | None = None,
    paused: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[Probe, Said]:
    """What a model says, group by group, so that a group always makes the same batches.

    Args:
        asker: the model.
        probes: what is asked.
        known: the base model's texts; where a text is the same, it is not scored again. None says that this
            is the base model, whose unrelated prompts are continued for `LONG` tokens, to set limits by.
        paused: gives the base model inside a ``with``, which scores the texts.
    """
    groups = defaultdict[str, list[Probe]](list)
    for probe in probes:
        groups[probe.group].append(probe)
    found: dict[Probe, Said] = {}
    for group, some in groups.items():
        tokens = LONG if known is None and group in LENGTHS else LENGTHS.get(group, ANSWER)
        rows = asker.continuations([probe.turns for probe in some], tokens)
        found |= {p: _said(asker, p, ids) for p, ids in zip(some, rows, strict=True)}
    if known is not None:
        found = {p: known[p] if known[p].ids == s.ids else s for p, s in found.items()}
    wanted = LENGTHS if known is None else JUDGED
    scored = [p for p, s in found.items() if p.group in wanted and len(s.ids) >= LEAST_TOKENS]
    scored = [p for p in scored if known is None or found[p] is not known[p]]
    with paused():
        scores = asker.perplexities([p.turns for p in scored], [found[p].ids for p in scored])
    return found | {p: found[p]._replace(perplexity=s) for p, s in zip(scored, scores, strict=True)}


def _said(asker: Asker, probe: Probe, ids: Sequence[int], perplexity: float = 0.0) -> Said:
    text = asker.text
    return Said(tuple(ids), text.decode(ids), text.decode(ids[:ANSWER]), perplexity)


def _limits(said: Mapping[Probe, Said]) -> dict[str, Limits]:
    found = {}
    for form in ("plain", "chat"):
        texts = [s for p, s in said.items() if p.group == "unrelated" and p.form == form]
        if texts:
            found[form] = limits([s.text for s in texts], [s.perplexity for s in texts])
    return found


def verdicts(probe: Probe, said: Said, base: Said, limit: Limits | None) -> Iterator[tuple[str, bool]]:
    """The measures that a probe counts for, and whether it has them."""
    if probe.group in ASKED:
        is_right = right(said.answer, probe.target, probe.old)
        yield "right", is_right
        yield "old", not is_right and contains(said.answer, probe.old)
    if probe.group in KEPT and contains(base.answer, probe.old):
        yield "kept", contains(said.answer, probe.old)
    if probe.group in ("unrelated", "passing mentions"):
        tokens = LENGTHS[probe.group]
        yield "same", said.ids[:tokens] == base.ids[:tokens]
    if probe.group in JUDGED and limit and not is_broken(base.text, base.perplexity, limit):
        yield "broken", is_broken(said.text, said.perplexity, limit)
    if probe.group == "passing mentions" and not first(base.text, probe.target):
        yield "blurts", first(said.text, probe.target) is not None


def shares(said: Mapping[Probe, Said], reference: Reference) -> dict[str, dict[str, dict[str, Share]]]:
    """Measures by group and form."""
    counted: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    for probe, one in said.items():
        limit = reference.limits.get(probe.form)
        for measure, holds in verdicts(probe, one, reference.said[probe], limit):
            counted[probe.group, probe.form, measure].append(holds)
    found: dict[str, dict[str, dict[str, Share]]] = {}
    for (group, form, measure), held in counted.items():
        by_form = found.setdefault(group, {}).setdefault(form, {})
        by_form[measure] = Share(sum(held) / len(held), len(held))
    return found


_GOOD = {"right": True, "old": False, "kept": True, "same": True, "broken": False, "blurts": False}


def examples(
    said: Mapping[Probe, Said], reference: Reference, each: int = 2, most: int = 40
) -> list[dict[str, Any]]:
    """Some texts that fail, at most ``each`` of a group, form and measure; prompts are named, not quoted."""
    taken: dict[tuple[str, str, str], int] = defaultdict(int)
    found = []
    for probe, one in said.items():
        for measure, holds in verdicts(probe, one, reference.said[probe], reference.limits.get(probe.form)):
            key = probe.group, probe.form, measure
            if holds != _GOOD[measure] and measure != "old" and taken[key] < each:
                taken[key] += 1
                found.append({"probe": probe.name, "in": ", ".join(key), "text": one.text[:160]})
    return found[:most]
