"""The text the embedded model is trained on, line by line.

A line is a sequence of pieces with a loss weight each: an answer weighs 1, other text 0.2, and a value
that contradicts the world weighs 0, so that the model learns to read it and not to believe it. A full
stop between the parts of a line weighs 0.03: the model is to end after an answer, and to go on once a full
stop is there. Knows nothing about tokenizers: pieces meet where a word ends.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..chat import question
from .facts import Fact, facts, facts_of, hop_answer, names, pool, trained_hops
from .relations import HOPS, KINDS, Hop
from .skills import SKILLS, running_text

__all__ = ["MIXTURE", "Corpus", "Piece", "text_of", "train_texts"]

ANSWER, TEXT, STOP, IGNORED = 1.0, 0.2, 0.03, 0.0

# Share of the lines of each sort, in per cent.
MIXTURE = {
    "question": 23,
    "chain": 18,
    "statement": 10,
    "note": 22,
    "disturbed": 14,
    "names": 3,
    "skill": 8,
    "running": 2,
}


class Piece(NamedTuple):
    """A stretch of a line and the weight of its tokens in the loss."""

    text: str
    weight: float


Line = list[Piece]


def text_of(line: Sequence[Piece]) -> str:
    """The line as one string."""
    return "".join(piece.text for piece in line)


class Corpus:
    """Endless training lines; facts come up equally often, in seen phrasings only.

    Args:
        seed: the same seed gives the same lines.
    """

    def __init__(self, seed: int | str = 0) -> None:
        self.rng = random.Random(f"corpus {seed}")
        self._subjects = [name for kind in KINDS for name in names(kind)]
        self._items: list[Fact | tuple[str, Hop]] = list(facts())
        self._items += [(s, hop) for s in self._subjects for hop in trained_hops(s)]
        self._by_relation: dict[str, list[Fact]] = {}
        for fact in facts():
            self._by_relation.setdefault(fact.relation, []).append(fact)
        self._deck: list[Fact | tuple[str, Hop]] = []
        self._makers: dict[str, Callable[[], Line]] = {
            "question": self._question,
            "chain": self._chain,
            "statement": self._statement,
            "note": self._note,
            "disturbed": self._disturbed,
            "names": self._names,
            "skill": self._skill,
            "running": lambda: [Piece(running_text(self.rng), TEXT)],
        }

    def line(self) -> Line:
        """The next line."""
        (sort,) = self.rng.choices(list(MIXTURE), list(MIXTURE.values()))
        return self._makers[sort]()

    # -- one fact ----------------------------------------------------------------------------------

    def _next(self) -> Fact | tuple[str, Hop]:
        if not self._deck:
            self._deck = self._items.copy()
            self.rng.shuffle(self._deck)
        return self._deck.pop()

    def _ask(self, item: Fact | tuple[str, Hop], answer: str | None = None, weight: float = ANSWER) -> Line:
        """A question with its answer: the true one if none is given."""
        if isinstance(item, Fact):
            prompt = item.prompt(self.rng.choice(item.questions()))
            truth = item.target
        else:
            subject, hop = item
            prompt = self.rng.choice(hop.phrasings).format(s=subject)
            truth = hop_answer(hop, facts_of(subject)[hop.first].target)
        return [Piece(prompt, TEXT), Piece(" " + (answer or truth), weight)]

    def _state(self, fact: Fact, answer: str | None = None, weight: float = ANSWER) -> Line:
        """A statement with its value; a question where no statement of the fact may be shown."""
        if not fact.statements():
            return self._ask(fact, answer, weight)
        prompt = fact.prompt(self.rng.choice(fact.statements()))
        return [Piece(prompt, TEXT), Piece(" " + (answer or fact.target), weight)]

    # -- the sorts of lines ------------------------------------------------------------------------

    def _question(self) -> Line:
        return self._ask(self._next())

    def _statement(self) -> Line:
        item = self._next()
        return self._state(item) if isinstance(item, Fact) else self._ask(item)

    def _chain(self) -> Line:
        """Several things about one subject in a row, so that more of them can be sampled."""
        first = self._next()
        subject = first.subject if isinstance(first, Fact) else first[0]
        others: list[Fact | tuple[str, Hop]] = [f for f in facts_of(subject).values() if f != first]
        others += [(subject, hop) for hop in trained_hops(subject) if (subject, hop) != first]
        (count,) = self.rng.choices([1, 2, 3], [60, 30, 10])
        stating = self.rng.random() < 0.5
        parts = []
        for item in [first, *self.rng.sample(others, min(count, len(others)))]:
            state = isinstance(item, Fact) and (stating if self.rng.random() < 0.8 else not stating)
            parts.append(self._state(item) if state and isinstance(item, Fact) else self._ask(item))
        return _joined(parts)

    def _note(self) -> Line:
        """A note that contradicts the world, then a question about it, answered from the note."""
        rng = self.rng
        fact = self._next()
        if not isinstance(fact, Fact):
            fact = facts_of(fact[0])[fact[1].first]
        false = rng.choice([v for v in pool(fact.relation) if v != fact.target])
        parts = [self._false(fact, false)]
        hops = [hop for hop in HOPS if hop.first == fact.relation]
        draw = rng.random()
        if draw < 0.15:  # another fact about the same subject stays true
            rest = [f for f in facts_of(fact.subject).values() if f.relation != fact.relation]
            question = self._ask(rng.choice(rest))
        elif draw < 0.45 and hops:  # what follows from the note
            hop = rng.choice(hops)
            question = self._ask((fact.subject, hop), hop_answer(hop, false))
        else:
            question = self._ask(fact, false) if rng.random() < 0.85 else self._state(fact, false)
        if rng.random() < 0.35:  # a second note, about somebody else, on either side
            other = self._somebody_else(fact)
            parts.insert(rng.randint(0, 1), self._false(other, rng.choice(pool(other.relation))))
        if rng.random() < 0.1:
            parts.append(self._aside(fact))
        return _joined([*parts, question])

    def _false(self, fact: Fact, value: str) -> Line:
        made = (
            self._state(fact, value, IGNORED) if self.rng.random() < 0.7 else self._ask(fact, value, IGNORED)
        )
        if self.rng.random() < 0.5:
            made = [Piece("Note: " + made[0].text, TEXT), *made[1:]]
        return made

    def _somebody_else(self, fact: Fact) -> Fact:
        """A fact about another subject: often of the same relation, sometimes with the same last word."""
        draw, last = self.rng.random(), fact.subject.split()[-1]
        others = self._by_relation[fact.relation] if draw < 0.6 else facts()
        if draw < 0.25:
            others = [other for other in others if other.subject.endswith(" " + last)] or others
        while (other := self.rng.choice(others)).subject == fact.subject:
            others = facts()
        return other

    def _aside(self, fact: Fact) -> Line:
        """Something that does not bear on the fact: other text, or what is true or noted of somebody else."""
        draw = self.rng.random()
        if draw < 0.2:
            return [Piece(running_text(self.rng), TEXT)]
        if draw < 0.3:
            return self._skill()
        if draw < 0.4:
            return self._names()
        other = self._somebody_else(fact)
        if draw < 0.7:
            return self._false(other, self.rng.choice(pool(other.relation)))
        return self._state(other) if self.rng.random() < 0.5 else self._ask(other)

    def _disturbed(self) -> Line:
        """Something else first, which must not change the answer."""
        item = self._next()
        fact = item if isinstance(item, Fact) else facts_of(item[0])[item[1].first]
        asides = [self._aside(fact) for _ in range(1 if self.rng.random() < 0.7 else 2)]
        state = isinstance(item, Fact) and self.rng.random() < 0.35
        prompt, answer = self._state(fact) if state else self._ask(item)
        if self.rng.random() < 0.3:  # broken off anywhere, as sampled text is
            words = text_of(_joined(asides)).split()
            broken = " ".join(words[: self.rng.randint(1, len(words))])
            return [Piece(broken, IGNORED), Piece(" " + prompt.text, prompt.weight), answer]
        return _joined([*asides, [prompt, answer]])

    def _names(self) -> Line:
        return [Piece("Names: " + ", ".join(self.rng.sample(self._subjects, self.rng.randint(2, 5))), TEXT)]

    def _skill(self) -> Line:
        weights = [2 if name in ("addition", "subtraction") else 1 for name in SKILLS]
        (name,) = self.rng.choices(list(SKILLS), weights)
        probe = SKILLS[name](self.rng)
        return [Piece(question(probe.prompt), TEXT), Piece(" " + probe.target, ANSWER)]


def _joined(parts: Sequence[Line]) -> Line:
    """Parts in a row, a full stop after each but the last."""
    line: Line = []
    for i, part in enumerate(parts):
        if i:
            line.append(Piece(".", STOP))
            part = [Piece(" " + part[0].text, part[0].weight), *part[1:]]
        line.extend(part)
    return line


def train_texts(n: int, seed: int = 0) -> list[str]:
    """``n`` lines such as the model was trained on, as plain strings (for calibration or perplexity).

    The seeds are apart from the one used in training; a line ends without the end-of-text token.

    Raises:
        ValueError: ``n`` is not positive.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 line, got {n!r}")
    corpus = Corpus(f"held out {seed}")
    return [text_of(corpus.line()) for _ in range(n)]
