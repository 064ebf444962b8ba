"""Counterfactual edits of the made-up world, each with what is needed to judge it.

The subjects fall into three groups that never mix: those of the test cases, those of the training cases (for
editors that learn to edit), and bystanders, who are never edited and lend their facts to the locality
probes.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Literal

from ..edits import Case, Edit, Probe
from .facts import Fact, facts_of, hop_answer, names, pool
from .relations import HOPS, KINDS, RELATIONS

__all__ = ["cases", "namesakes", "subjects"]

Split = Literal["test", "train"]

# Shares of each kind's subjects, in per cent: test, train, bystanders of either.
_SHARES = {"test": 60, "train": 31, "test bystanders": 4.5, "train bystanders": 4.5}
_LOCALITY = 6  # probes a case; the first two ask the edited relation where the kind allows
_TYPE_WORDS = {"The", "of", "River", "Water"}  # say what a thing is, so sharing them does not count


@cache
def _groups() -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {group: [] for group in _SHARES}
    for kind in KINDS:
        shuffled = list(names(kind))
        random.Random(f"split {kind}").shuffle(shuffled)
        start = 0.0
        for group, share in _SHARES.items():
            stop = start + len(shuffled) * share / 100
            groups[group] += shuffled[round(start) : round(stop)]
            start = stop
    return {group: tuple(members) for group, members in groups.items()}


def subjects(split: Split = "test") -> tuple[str, ...]:
    """The subjects that cases of this split edit.

    Raises:
        ValueError: no such split.
    """
    if split not in ("test", "train"):
        raise ValueError(f"split must be 'test' or 'train', got {split!r}")
    return _groups()[split]


@cache
def _words(name: str) -> frozenset[str]:
    return frozenset(name.split()) - _TYPE_WORDS


def _order(seed: int, split: Split) -> list[Fact]:
    """Facts in the order they are edited: one of every subject, then another of every subject, ..."""
    rng = random.Random(f"cases {split} {seed}")
    order = list(subjects(split))
    rng.shuffle(order)
    shuffled = {s: rng.sample(list(facts_of(s).values()), len(facts_of(s))) for s in order}
    longest = max(map(len, shuffled.values()))
    return [shuffled[s][turn] for turn in range(longest) for s in order if turn < len(shuffled[s])]


def _new_target(fact: Fact, rng: random.Random) -> str:
    """Another value of the relation, one from which other answers follow if there is one."""
    hops = [hop for hop in HOPS if hop.first == fact.relation]
    others = [value for value in pool(fact.relation) if value not in (fact.target, fact.subject)]
    rng.shuffle(others)
    telling = (v for v in others if all(hop_answer(h, v) != hop_answer(h, fact.target) for h in hops))
    return next(telling, others[0])


def _seen_question(fact: Fact, rng: random.Random) -> Probe:
    return Probe(fact.prompt(rng.choice(fact.questions())), fact.target)


def _locality(fact: Fact, split: Split, rng: random.Random) -> tuple[Probe, ...]:
    taken, chosen = _words(fact.subject), list[Fact]()
    others = [s for s in _groups()[f"{split} bystanders"] if not _words(s) & taken]
    others = rng.sample(others, len(others))
    chosen += [facts_of(s)[fact.relation] for s in others if fact.relation in facts_of(s)][:2]
    for subject in others:
        if len(chosen) < _LOCALITY and all(subject != done.subject for done in chosen):
            chosen.append(rng.choice(list(facts_of(subject).values())))
    return tuple(_seen_question(one, rng) for one in chosen)


def _case(fact: Fact, seed: int, split: Split) -> Case:
    rng = random.Random(f"case {fact.subject} {fact.relation} {seed}")
    new = _new_target(fact, rng)
    asked = rng.choice(fact.questions())
    rest = [facts_of(fact.subject)[name] for name in facts_of(fact.subject) if name != fact.relation]
    return Case(
        edit=Edit(fact.prompt(asked), new, fact.subject),
        rephrases=tuple(fact.prompt(i) for i in (*fact.unseen, *(i for i in fact.seen if i != asked))),
        locality=_locality(fact, split, rng),
        same_subject=tuple(Probe(other.prompt(rng.choice(other.unseen)), other.target) for other in rest),
        portability=tuple(
            Probe(rng.choice(hop.phrasings).format(s=fact.subject), hop_answer(hop, new))
            for hop in HOPS
            if hop.first == fact.relation
        ),
    )


def cases(n: int, seed: int = 0, split: Split = "test") -> list[Case]:
    """``n`` counterfactual cases; the first ``n`` of any longer list of the same seed and split.

    - ``edit``: a question in a phrasing the model was trained on for this subject; the target is another
      value of the relation. Subjects are distinct while there are enough (over 1,000 in the test split),
      then come back with another relation.
    - ``rephrases``: first the two phrasings the model never saw for this subject, then the others it saw;
      statements to complete are among them.
    - ``locality``: six facts about subjects that share no word with the edited one and that no case of this
      split edits; the first two ask the edited relation.
    - ``same_subject``: one unseen phrasing for every other relation of the subject.
    - ``portability``: the two-hop questions whose answer follows from the new target; none for relations
      from which nothing follows.

    The two splits share no edited subject and no bystander.

    Raises:
        ValueError: ``n`` is not positive or larger than the split's number of facts; no such split.
    """
    order = _order(seed, split)
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(order):
        raise ValueError(f"n must be a whole number from 1 to {len(order)} for the {split} split, got {n!r}")
    return [_case(fact, seed, split) for fact in order[:n]]


def namesakes(subject: str, relation: str | None = None, seed: int = 0) -> list[Probe]:
    """Questions about the subjects that share a word with this one, with their true answers.

    Those that share its last word come first. They show whether an edit of ``subject`` fires on
    somebody who only looks like it.

    Args:
        subject: a subject of this world.
        relation: ask this relation of every namesake (those of another kind are left out); by default, any.

    Raises:
        ValueError: no such subject or relation.
    """
    if relation is not None and relation not in RELATIONS:
        raise ValueError(f"relation {relation!r} is not in this world; choose one of {', '.join(RELATIONS)}")
    facts_of(subject)
    rng = random.Random(f"namesakes {subject} {seed}")
    words, last = _words(subject), subject.split()[-1]
    everybody = (name for kind in KINDS for name in names(kind))
    others = [name for name in everybody if name != subject and _words(name) & words]
    ordered = sorted(others, key=lambda name: name.split()[-1] != last)
    asked = [list(facts_of(s).values()) for s in ordered]
    if relation is not None:
        asked = [[f for f in known if f.relation == relation] for known in asked]
    return [_seen_question(rng.choice(known), rng) for known in asked if known]
