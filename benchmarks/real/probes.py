"""Everything that is asked about a set of edits, as prompts with what their answers are judged against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from .asking import Turns, chat, plain
from .facts import Fact, Known, in_conversation
from .unrelated import Unrelated

__all__ = ["ANSWER", "ASKED", "JUDGED", "KEPT", "LENGTHS", "LONG", "Probe", "near", "probes"]

ANSWER, LONG = 24, 60
ASKED = ("as asked", "rephrased", "rephrased by template", "in conversation")
"""Groups that must give the edit's target."""

KEPT = ("other facts", "neighbours")
"""Groups that must still give the true answer."""

LENGTHS = {"as asked": LONG, "passing mentions": LONG, "unrelated": 30}
"""Tokens that are generated, where it is not `ANSWER`."""

JUDGED = ("as asked", "passing mentions")
"""Groups whose texts are looked at for being broken."""

_FORMS: dict[str, Callable[[str], Turns]] = {"plain": plain, "chat": chat}


class Probe(NamedTuple):
    """A prompt and what judges the answer.

    Attributes:
        group, form: what it tests, and how it is put: "plain", "chat", or where in a conversation it stands.
        name: the fact's id with the prompt's number, for examples.
        turns: the prompt.
        target: the edit's.
        old: answers that were true before; for `KEPT` groups those that must still be given.
    """

    group: str
    form: str
    name: str
    turns: Turns
    target: str = ""
    old: tuple[str, ...] = ()


def probes(facts: Sequence[Fact], others: Sequence[Unrelated]) -> list[Probe]:
    """All probes of the edits and the prompts that have nothing to do with them, each once."""
    found = [probe for fact in facts for probe in _of(fact)]
    for one in others:
        form = "plain" if one.turns[0][0] == "text" else "chat"
        found.append(Probe("unrelated", form, one.id, one.turns))
    return list({(probe.group, probe.turns): probe for probe in found}.values())


def near(facts: Iterable[Fact], held: Iterable[Fact], each: int = 2) -> dict[str, tuple[Known, ...]]:
    """For each held fact's id, up to ``each`` facts of its kind about subjects that no held fact is about."""
    held = list(held)
    subjects = {fact.subject.casefold() for fact in held}
    pools: dict[str, list[Known]] = {}
    for fact in facts:
        if fact.subject.casefold() not in subjects:
            pools.setdefault(fact.kind, []).append(Known(fact.prompt, fact.truth))
    found = {}
    for number, fact in enumerate(held):
        pool = pools.get(fact.kind, [])
        chosen = [pool[(each * number + i) % len(pool)] for i in range(each)] if pool else []
        found[fact.id] = tuple(dict.fromkeys(chosen))
    return found


def _of(fact: Fact) -> Iterator[Probe]:
    texts = {
        "as asked": (fact.prompt,),
        "rephrased": fact.rephrases,
        "rephrased by template": fact.templates,
    }
    for form, way in _FORMS.items():
        for group, some in texts.items():
            for i, text in enumerate(some):
                yield Probe(group, form, f"{fact.id} {i}", way(text), fact.target, fact.truth)
        for group, known in (("other facts", fact.others), ("neighbours", fact.neighbours)):
            for i, (text, answers) in enumerate(known):
                yield Probe(group, form, f"{fact.id} {i}", way(text), fact.target, answers)
    for form, turns in in_conversation(fact).items():
        yield Probe("in conversation", form, fact.id, turns, fact.target, fact.truth)
    for i, text in enumerate(fact.mentions):
        form = "chat" if text[-1] in ".?!" else "plain"
        yield Probe("passing mentions", form, f"{fact.id} {i}", _FORMS[form](text), fact.target, fact.truth)
