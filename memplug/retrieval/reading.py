"""Reading a row: which edits speak at which of its tokens.

A subject and a question have to come together. A subject that is named waits for the end of its
sentence; where its words resemble those of an edit's own prompt, the edit is asked for and speaks at that
token. It goes on while the tokens that follow are its answer, and ends with it, or when something else is
said. Inside a user's turn nothing speaks: what its questions and its end ask for speaks where the answer
begins. In the answer itself nothing else speaks, nor behind a full stop, unless what is said there is close
to what the edit is asked by.

All of it is decided from the tokens so far, one by one. So a text fed whole, in pieces, token by token or
without a cache is read alike, and what a finished turn asked for does not speak in the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..text.turns import Turns, starts_sentence

__all__ = ["CLOSES", "Kind", "Reader", "Reading", "Score", "Speaking"]

CLOSES = -2
"""Behind the last token of an answer: the edit speaks at that token, too, to end its word there."""

_DONE = (".", "!", "…", "。")  # what ends a sentence that does not wait for an answer

Kind = Literal["open", "aside", "due"]
"""What may ask: a question or a statement to be completed; or a sentence that has ended and is no question,
or that says in an answer what its user did not ask for; or the beginning of an answer to a question that
asked for the edit. See `Calibration.limit`."""

Score = Callable[[str, int, int, int, int, bool, Kind], "float | None"]
"""(edit, key, place, begin, at, chat, kind): how much the tokens ``begin`` to ``at`` of a row resemble what
the edit is asked by; its key was seen to end at ``place``; ``chat`` in a user's turn. None where they ask for
something else."""

_CLOSE = 2 / 3  # of the best likeness, to speak beside it about the same subject
_RECENT = 4  # tokens whose text is looked at to find the end of a sentence


@dataclass(frozen=True)
class Speaking:
    """An edit that speaks.

    Attributes:
        edit: its name.
        since: the token of the row at which it began.
        rest: the token ids that its answer may still have, one tuple a form.
    """

    edit: str
    since: int
    rest: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Reading:
    """What is known of a row after some of its tokens. Never changed in place.

    Attributes:
        count: real tokens so far.
        recent: the last ids, and where the sentence of each began.
        begins: see ``recent``.
        user: whether a user's turn is open.
        named: keys of the key memory, with the place of their last token where they were seen last.
        asked: edits that a sentence of the open user's turn asked for.
        wanted: edits that the user's turn before this answer asked for; None where this is no answer.
        speaking: edits that spoke at the last token.
        said: edits whose answer has been given in this sentence.
        due: edits that a question asked for and whose answer has not been given.
    """

    count: int = 0
    recent: tuple[int, ...] = ()
    begins: tuple[int, ...] = ()
    user: bool = False
    named: Mapping[int, int] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    wanted: tuple[str, ...] | None = None
    speaking: tuple[Speaking, ...] = ()
    said: tuple[str, ...] = ()
    due: tuple[str, ...] = ()


class Reader:
    """Reads rows with one tokenizer.

    Args:
        piece: the text of a token id.
        turns: the ids around a user's turn, or None.
        edits_of: the edits in force of a key of the key memory.
        answers: the token ids of an edit's answer, one tuple for each form.
        limit: edits that may speak at one token.
    """

    def __init__(
        self,
        piece: Callable[[int], str],
        turns: Turns | None,
        edits_of: Callable[[int], Sequence[str]],
        answers: Callable[[str], tuple[tuple[int, ...], ...]],
        limit: int,
    ) -> None:
        self._piece, self._turns = piece, turns
        self._edits_of, self._answers, self._limit = edits_of, answers, limit
        self._kept = max(_RECENT, *map(len, turns)) + 1 if turns else _RECENT

    @property
    def reach(self) -> int:
        """Tokens between the end of a question and the place where it is answered."""
        return len(self._turns.answers) if self._turns else 1

    def read(
        self,
        row: Reading,
        ids: Sequence[int],
        named: Mapping[int, Sequence[int]],
        score: Score,
    ) -> tuple[Reading, list[tuple[Speaking, ...]]]:
        """The row after ``ids``, and what speaks at each of them.

        Args:
            row: the row before.
            ids: its next real tokens.
            named: keys that end at the i-th of them.
            score: see `Score`.
        """
        spoken: list[tuple[Speaking, ...]] = []
        for i, token in enumerate(ids):
            row = self._next(row, token, named.get(i, ()), score)
            spoken.append(row.speaking)
        return row, spoken

    def _next(self, row: Reading, token: int, keys: Sequence[int], score: Score) -> Reading:
        at = row.count
        before = "".join(map(self._piece, row.recent[-_RECENT:]))
        begin = row.begins[-1] if row.begins else 0
        said, asked, due = row.said, row.asked, row.due
        if row.recent and starts_sentence(before, self._piece(token)):
            said, asking = (), before.rstrip().endswith("?")
            if asking and row.user and row.named:
                asked = (*asked, *self._asking(row, begin, at - 1, score, asked))
            if not asking:  # a question and what answers it belong together
                begin = at
                due = due if row.wanted else ()
        recent, begins = (*row.recent, token), (*row.begins, begin)
        named = {**row.named, **dict.fromkeys(keys, at)} if keys else row.named
        speaking, done = _going_on(row.speaking, token)
        said, due = (*said, *done), tuple(edit for edit in due if edit not in done)
        row = replace(row, count=at + 1, named=named, said=said, asked=asked, speaking=speaking, due=due)
        turns = self._turns
        if turns and recent[-len(turns.opens) :] == turns.opens:
            begins = (*begins[:-1], at + 1)
            row = replace(row, user=True, asked=(), wanted=None, said=(), speaking=(), named={}, due=())
        elif turns and row.user and recent[-len(turns.answers) :] == turns.answers:
            back = len(turns.answers)
            found = row.asked
            if named and len(begins) > back:
                ended = self._ended(recent[:-back])
                more = self._asking(row, begins[-1 - back], at - back, score, found, ended)
                found = (*found, *more)
            begins = (*begins[:-1], at + 1)
            speaking, found = self._spoken(found, at), tuple(found)
            row = replace(row, user=False, asked=(), wanted=found, said=(), speaking=speaking, due=found)
        elif not row.user and named and not speaking:
            here = self._asking(row, begin, at, score, said, self._ended(recent))
            row = replace(row, speaking=self._spoken(here, at)) if here else row
            if here and self._text(recent).endswith("?"):
                row = replace(row, due=tuple(dict.fromkeys((*due, *here))))
        return replace(row, recent=recent[-self._kept :], begins=begins[-self._kept :])

    def _asking(
        self,
        row: Reading,
        begin: int,
        at: int,
        score: Score,
        without: Sequence[str],
        ended: bool = False,
    ) -> list[str]:
        """Edits of subjects named from ``begin`` to ``at`` that these tokens ask for, best first.

        Of several edits of one subject those that are asked for much less than the best are left out.
        """
        scores: dict[str, float] = {}
        for key, place in row.named.items():
            if not begin <= place <= at:
                continue
            mine: dict[str, float] = {}
            for edit in self._edits_of(key):
                if edit not in scores and edit not in without:
                    aside = ended or (row.wanted is not None and edit not in row.wanted)
                    kind: Kind = "aside" if aside else "due" if edit in row.due else "open"
                    value = score(edit, key, place, begin, at, row.user, kind)
                    if value is not None:
                        mine[edit] = value
            least = _CLOSE * max(mine.values(), default=0.0)
            scores |= {edit: value for edit, value in mine.items() if value >= least}
        return sorted(scores, key=lambda edit: -scores[edit])[: self._limit]

    def _ended(self, ids: Sequence[int]) -> bool:
        return self._text(ids).endswith(_DONE)

    def _text(self, ids: Sequence[int]) -> str:
        """The last of these tokens as text, without blanks at its end."""
        return "".join(map(self._piece, ids[-_RECENT:])).rstrip()

    def _spoken(self, edits: Sequence[str], at: int) -> tuple[Speaking, ...]:
        return tuple(Speaking(edit, at, self._answers(edit)) for edit in edits[: self._limit])


def _going_on(speaking: Sequence[Speaking], token: int) -> tuple[tuple[Speaking, ...], tuple[str, ...]]:
    """Of those that spoke at the last token: who goes on at this one, and whose answer it ends."""
    left: list[Speaking] = []
    done: list[str] = []
    for one in speaking:
        rest = tuple(form[1:] for form in one.rest if form[0] == token)
        ended = any(form in ((), (CLOSES,)) for form in rest)
        if ended:
            done.append(one.edit)
            rest = tuple(form for form in rest if form == (CLOSES,))
        if rest:
            left.append(replace(one, rest=rest))
    return tuple(left), tuple(done)
