"""Well-known facts to edit, written for this benchmark, and what is asked about each.

``own.jsonl`` has one fact a line. Of every fact there is a false answer of the right type; three other ways
to ask (a question, a statement to complete, a sentence that asks in passing); three other facts about the
subject; two facts of the same kind about subjects that no edit names; and six texts that name the subject
and ask something else entirely. ``own-tuning.jsonl`` has the same of other facts, from which constants are
chosen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from memplug.edits import Edit

from .asking import Turns, chat

__all__ = ["Fact", "Known", "in_conversation", "own"]

_OWN = {"table": "own.jsonl", "tuning": "own-tuning.jsonl"}

_SYSTEM = "You answer questions truthfully and in one short sentence."
_EARLIER = (
    ("user", "Hello! Can you tell me how many days a week has?"),
    ("assistant", "A week has seven days."),
)
_LONG = (
    "I am putting together a little quiz for my family, and most of it is done by now: there are some "
    "riddles, a few sums for the children and two songs to recognise. One thing is still missing. "
)


class Known(NamedTuple):
    """Something that must not change: a prompt with its true answers."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """An edit and what judges it.

    Attributes:
        id, kind: its name, and what sort of fact it is ("capital").
        prompt, subject, target: the edit.
        truth: the old answers, any of which is right for the base model.
        rephrases: other ways to ask; the first is a question.
        templates: further ways to ask, made from templates of the same relation.
        others: other facts about the subject.
        neighbours: facts of the same kind about other subjects.
        mentions: texts that name the subject and ask something else.
    """

    id: str
    kind: str
    prompt: str
    subject: str
    target: str
    truth: tuple[str, ...]
    rephrases: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    others: tuple[Known, ...] = ()
    neighbours: tuple[Known, ...] = ()
    mentions: tuple[str, ...] = ()

    @property
    def edit(self) -> Edit:
        """What a plug is given."""
        return Edit(self.prompt, self.target, self.subject)

    @property
    def question(self) -> str:
        """The fact as a question where there is one, else the edit's prompt."""
        return next((text for text in (self.prompt, *self.rephrases) if text.endswith("?")), self.prompt)


def own(part: Literal["table", "tuning"] = "table") -> list[Fact]:
    """The facts of ``own.jsonl``, or the fewer ones of ``own-tuning.jsonl`` on which constants are chosen."""
    lines = (Path(__file__).parent / _OWN[part]).read_text().splitlines()
    return [_fact(json.loads(line)) for line in lines]


def in_conversation(fact: Fact) -> dict[str, Turns]:
    """The fact's question where a conversation would have it."""
    return {
        "with a system turn": chat(fact.question, before=[("system", _SYSTEM)]),
        "in a second turn": chat(fact.question, before=_EARLIER),
        "behind a longer message": chat(_LONG + fact.question),
    }


def _fact(row: dict[str, Any]) -> Fact:
    known = {key: tuple(Known(p, tuple(a)) for p, a in row[key]) for key in ("others", "neighbours")}
    return Fact(
        *(row[key] for key in ("id", "kind", "prompt", "subject", "target")),
        others=known["others"],
        neighbours=known["neighbours"],
        truth=tuple(row["truth"]),
        rephrases=tuple(row["rephrases"]),
        mentions=tuple(row["mentions"]),
    )
