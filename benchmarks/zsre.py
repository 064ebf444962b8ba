"""Training lines from the questions of ZsRE (Levy et al., 2017; edits as in Meng et al., 2022, appendix).

A question's phrasings come from its own prompt and from what rows of the same relation pair with it: where
one row asks the prompt of another row in a second way, that way fits the other row's subject too. What an
edit asks for, and the rephrasing it is judged by, never come up for its subject. Knows nothing about
tokenizers.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from memplug.data import Loaded
from memplug.world.corpus import ANSWER, IGNORED, STOP, TEXT, Piece

# Share of the lines of each sort, in per cent: facts first, then reading, which is learned later.
FACTS = {"question": 38, "chain": 15, "note": 27, "disturbed": 17, "names": 3}
READING = {"question": 16, "chain": 8, "note": 52, "disturbed": 21, "names": 3}


@dataclass(frozen=True)
class Question:
    """Something asked, with its true answer.

    Attributes:
        prompts: ways to ask it, its own first.
        answer: the true one.
        subject: who or what it is about; None where the data set does not say.
        template: its own prompt without the subject; "" without a subject.
        withheld: an answer that is never shown for it.
    """

    prompts: tuple[str, ...]
    answer: str
    subject: str | None = None
    template: str = ""
    withheld: str | None = None


@dataclass(frozen=True)
class Questions:
    """What the model is to know, and what it only reads about.

    Attributes:
        edits: the questions of the cases that will be edited.
        known: further questions to know.
        locality: the unrelated questions of the edited cases, with answers that are not too long.
        read: questions that come up in notes only.
        values: answers of all rows, by template; "" holds all of them.
        dropped: how many unrelated questions were left out for the length of their answers.
    """

    edits: list[Question]
    known: list[Question]
    locality: list[Question]
    read: list[Question]
    values: dict[str, list[str]] = field(repr=False)
    dropped: int = 0

    @property
    def deck(self) -> list[Question]:
        """All that the model is to know."""
        return [*self.edits, *self.known, *self.locality]


def template(prompt: str, subject: str | None) -> str:
    """The prompt with a hole for the subject; "" where the subject is not in it."""
    return prompt.replace(subject, "{s}") if subject and subject in prompt else ""


def questions(edit: Loaded, train: Loaded, known: int, longest: int = 40) -> Questions:
    """Sort out what is to be known.

    Args:
        edit: the cases that will be edited; they and their locality questions are to be known.
        train: other cases, with subjects of their own.
        known: how many of these are to be known, from the first.
        longest: answers of locality questions of more characters are left out.

    Raises:
        ValueError: a case without a true answer, or more cases to know than there are.
    """
    if known > len(train.cases):
        raise ValueError(f"known is {known}, but there are {len(train.cases)} cases; ask for no more")
    for loaded in (edit, train):
        for case, answers in zip(loaded.cases, loaded.true_targets, strict=True):
            if not answers:
                raise ValueError(f"no true answer of {case.edit.prompt!r}; give rows with target_true")
    ways = _ways(train)

    def made(loaded: Loaded, judged: bool) -> list[Question]:
        found = []
        for case, answers in zip(loaded.cases, loaded.true_targets, strict=True):
            own = template(case.edit.prompt, case.edit.subject)
            filled = [way.replace("{s}", case.edit.subject or "") for way in ways.get(own, ())]
            if judged:
                filled = [prompt for prompt in filled if prompt not in case.rephrases]
            withheld = case.edit.target if judged and case.edit.target != answers[0] else None
            prompts = (case.edit.prompt, *filled)
            found.append(Question(prompts, answers[0], case.edit.subject, own, withheld))
        return found

    edits, others = made(edit, True), made(train, False)
    probes = {probe.prompt: probe.target for case in edit.cases for probe in case.locality}
    locality = [Question((prompt,), target) for prompt, target in probes.items() if len(target) <= longest]
    values = defaultdict[str, list[str]](list)
    for loaded, asked in ((edit, edits), (train, others)):
        for case, question in zip(loaded.cases, asked, strict=True):
            for key in {"", question.template}:
                values[key] += [question.answer, case.edit.target]
    return Questions(
        edits, others[:known], locality, others[known:], dict(values), len(probes) - len(locality)
    )


def _ways(train: Loaded) -> dict[str, list[str]]:
    """Of each template those that ask the same, as often as they are paired with it."""
    found = defaultdict[str, list[str]](list)
    for case in train.cases:
        one = template(case.edit.prompt, case.edit.subject)
        for rephrase in case.rephrases:
            two = template(rephrase, case.edit.subject)
            if one and two and one != two:
                found[one].append(two)
                found[two].append(one)
    return found


Part = tuple[str, str, float]  # a prompt, its answer, the answer's weight


class ZsreLines:
    """Endless training lines; what is to be known comes up equally often.

    Args:
        seed: the same seed gives the same lines.
        mixture: of each sort the share of the lines.
    """

    def __init__(self, given: Questions, seed: str, mixture: dict[str, int] = FACTS) -> None:
        self._mixture = mixture
        self.rng = random.Random(f"zsre {seed}")
        self._given, self._items = given, given.deck
        self._about = [q for q in [*given.edits, *given.known, *given.read] if q.subject]
        self._alike = defaultdict[str, list[Question]](list)  # by template, and by a subject's last word
        for question in self._about:
            self._alike[question.template].append(question)
            self._alike[_last(question)].append(question)
        self._deck: list[Question] = []
        self._makers: dict[str, Callable[[], list[Piece]]] = {
            "question": lambda: _line([self._ask(self._next())]),
            "chain": self._chain,
            "note": self._note,
            "disturbed": self._disturbed,
            "names": lambda: [Piece(self._names(), TEXT)],
        }

    def line(self) -> list[Piece]:
        """The next line."""
        (sort,) = self.rng.choices(list(self._mixture), list(self._mixture.values()))
        return self._makers[sort]()

    def _next(self) -> Question:
        if not self._deck:
            self._deck = self._items.copy()
            self.rng.shuffle(self._deck)
        return self._deck.pop()

    def _prompt(self, question: Question) -> str:
        own, *ways = question.prompts
        return self.rng.choice(ways) if ways and self.rng.random() < 0.6 else own

    def _ask(self, question: Question, answer: str | None = None, weight: float = ANSWER) -> Part:
        return self._prompt(question), answer or question.answer, weight

    def _false(self, question: Question) -> str:
        """An answer that is not true: often one to a question of the same form."""
        key = question.template if self.rng.random() < 0.6 else ""
        for _ in range(20):  # few answers may fit a template
            value = self.rng.choice(self._given.values[key])
            if value not in (question.answer, question.withheld):
                return value
            key = ""
        raise ValueError(f"no other answer than that of {question.prompts[0]!r}; give more cases")

    def _noted(self, question: Question, value: str) -> Part:
        prompt, answer, weight = self._ask(question, value, IGNORED)
        return ("Note: " if self.rng.random() < 0.5 else "") + prompt, answer, weight

    def _other(self, question: Question) -> Question:
        """About another subject: often asked alike, sometimes with the same last word."""
        draw = self.rng.random()
        key = _last(question) if draw < 0.25 else question.template
        found = self._alike[key] if draw < 0.6 and key in self._alike else self._about
        while (other := self.rng.choice(found)).subject == question.subject:
            found = self._about
        return other

    # -- the sorts of lines ------------------------------------------------------------------------

    def _chain(self) -> list[Piece]:
        return _line([self._ask(self._next()) for _ in range(2 if self.rng.random() < 0.7 else 3)])

    def _note(self) -> list[Piece]:
        """A note that contradicts what is true, then a question about it, answered from the note."""
        rng = self.rng
        question = self._next() if rng.random() < 0.6 else rng.choice(self._given.read or self._items)
        value = self._false(question)
        parts = [self._noted(question, value)]
        if rng.random() < 0.35:  # a second note, about something else, on either side
            other = self._other(question)
            parts.insert(rng.randint(0, 1), self._noted(other, self._false(other)))
        return _line([*parts, self._ask(question, value)])

    def _disturbed(self) -> list[Piece]:
        """Something else first, which must not change the answer."""
        rng, question = self.rng, self._next()
        asides = []
        for _ in range(1 if rng.random() < 0.7 else 2):
            other = self._other(question)
            asides.append(self._noted(other, self._false(other)))
        line = _line([*asides, self._ask(question)])
        draw = rng.random()
        if draw > 0.4:
            return line
        prompt, answer = line[-2:]
        if draw < 0.1:
            return [Piece(f"{self._names()}.", IGNORED), prompt, answer]
        words = "".join(piece.text for piece in line[:-2]).split()  # broken off anywhere, as sampled text is
        return [Piece(" ".join(words[: rng.randint(1, len(words))]), IGNORED), prompt, answer]

    def _names(self) -> str:
        chosen = self.rng.sample(self._about, self.rng.randint(2, 5))
        return "Names: " + ", ".join(question.subject or "" for question in chosen)


def _last(question: Question) -> str:
    """The last word of the subject, told from a template by the hole in front."""
    return "{s} " + question.subject.split()[-1] if question.subject else ""


def _line(parts: list[Part]) -> list[Piece]:
    """Parts in a row, a full stop after each but the last."""
    line: list[Piece] = []
    for i, (prompt, answer, weight) in enumerate(parts):
        if i:
            line.append(Piece(".", STOP))
        line += [Piece(" " * bool(i) + prompt, TEXT), Piece(" " + answer, weight)]
    return line
