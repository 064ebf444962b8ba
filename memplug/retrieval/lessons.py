"""Lessons: the lines from which an edit's key, its gate and its value are learned.

An edit is asked for in plain text and in the chat template, alone, behind a sentence, behind another system
turn and in a second turn. Other statements and questions about its subject are to be answered as before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch

from ..edits import Edit, EditError
from ..text.chat import Message, Messages, Prompt, behind, in_chat, question
from ..text.names import names, place_of, placed
from ..text.tokens import Text, TokenizerError
from ..text.vocabulary import is_spaced
from .calibration import Calibration
from .config import RetrievalConfig
from .neutral_texts import FRONTS, MENTIONS, REQUESTS, SYSTEM, TALK, some
from .passes import Line
from .questions import Question
from .relations import Wording, wordings

__all__ = [
    "Lesson",
    "further_lessons",
    "lessons_of",
    "may_go_on",
    "other_lines",
    "statements_of",
]

_BACK = 2  # tokens before the end of a neutral statement at which nothing may change either
_ASKED = 64  # questions that are asked together
_SENTENCE = 20  # tokens of the model's own answer


class Lesson(NamedTuple):
    """One line of an edit.

    Attributes:
        line: its tokens; it starts at the last token of the prompt, or a few before it if it does not ask.
        subject: the tokens of the subject in it.
        words: the tokens of the question, with the subject; none where the answer has begun already.
        asks: whether it asks for the edit; else it is to be answered as the base model does.
        plain: whether it is plain text, not a chat.
    """

    line: Line
    subject: range
    words: range
    asks: bool
    plain: bool

    @property
    def answer(self) -> tuple[int, ...]:
        """The answer's token ids."""
        return self.line.ids[self.line.start + 1 :]


def may_go_on(edit: Edit, config: RetrievalConfig) -> bool:
    """Whether a model might go on with the last word of an edit's answer."""
    return not config.train_stop and is_spaced(edit.target)


def lessons_of(text: Text, config: RetrievalConfig, edit: Edit, statement: str | None) -> list[Lesson]:
    """The lessons in which an edit is asked for; the first is its own prompt.

    Args:
        statement: the beginning of a sentence that gives the answer, see `statements_of`; or None.

    Raises:
        TokenizerError: the prompt or the target does not fit the model.
    """
    own = _lesson(text, config, edit.prompt, edit, edit.target)
    prompts = list(_prompts(text, config, edit))
    if statement is not None and statement != edit.question:
        prompts.append(statement)
    found = [_fitting(text, config, prompt, edit, edit.target) for prompt in prompts]
    if statement is not None and text.has_chat:
        found.append(_begun(text, in_chat(edit.question), statement, edit, config))
    return [own, *(one for one in found if one is not None)]


def further_lessons(
    text: Text, config: RetrievalConfig, edit: Edit, asked: Sequence[Question], calibration: Calibration
) -> list[Lesson]:
    """What follows from how like an edit's question is to the neutral ones.

    If one of those asks the same, its wordings ask for the edit, too; else a statement is put as a question.
    Of the others, those that resemble the edit's own most are to be answered as before, as they are the ones
    that it could be taken for, one wording of each. So are texts that name the subject in passing, and the
    edit's own question while it is not finished.

    Args:
        asked: in which words the edit is asked for.

    Raises:
        EditError: the calibration is a saved one, made with other neutral questions.
    """
    subject, known = str(edit.subject), wordings()
    matched, labels = calibration.matched(asked), calibration.labels.tolist()
    if len(labels) != len(known):
        raise EditError(
            f"this plug was calibrated with {len(labels)} neutral questions, and this memplug has "
            f"{len(known)}: its edits work as they are, but for further ones make all anew with a new plug"
        )
    reworded = [] if edit.question.endswith("?") else [f"{edit.question} what?"]
    if matched is not None:
        mine = [one for one, label in zip(known, labels, strict=True) if label == matched]
        reworded = [one.about(subject) for one in _varied(mine, config.n_rewordings)]
    asking: list[Prompt] = [one for one in reworded[: config.n_rewordings] if one != edit.question]
    asking += map(in_chat, asking[:]) if text.has_chat else ()
    staying: list[Prompt] = []
    similar = _similar(asked, calibration)
    # Where nothing is known to ask the same, what is rather like it may do so.
    far = min(calibration.relation) if matched is None else calibration.same
    close = {matched}
    for scores in similar:
        close |= {label for label, score in zip(labels, scores, strict=True) if score >= far}
    for scores, passing, plain in zip(similar, (MENTIONS, REQUESTS), (True, False), strict=False):
        nearest: dict[int, str] = {}
        for i in sorted(range(len(known)), key=lambda i: -scores[i]):
            if labels[i] not in close:
                nearest.setdefault(labels[i], known[i].about(subject))
        named = [w.replace("{s}", subject) for w in some(passing, config.n_mentions, config.seed, subject)]
        said = [*list(nearest.values())[: config.n_others], *named]
        staying += said if plain else map(in_chat, said)
    staying += _unfinished(edit)
    found = [
        *(_fitting(text, config, prompt, edit, edit.target) for prompt in asking),
        *(_fitting(text, config, prompt, edit, None) for prompt in staying),
    ]
    return [one for one in found if one is not None]


def _similar(asked: Sequence[Question], calibration: Calibration) -> list[list[float]]:
    """In plain text and in chat, how like each neutral question is to what asks for the edit."""
    found = []
    for chat, neutral in enumerate(calibration.neutral):
        mine = [neutral @ one.vector.float().cpu() for one in asked if one.asks and one.chat == bool(chat)]
        found.append(torch.stack(mine or [torch.zeros(len(neutral))]).amax(0).tolist())
    return found


def _varied(known: Sequence[Wording], count: int) -> list[Wording]:
    """``count`` of some wordings, half of them statements to be completed."""
    statements, questions = ([one for one in known if one.open == kind] for kind in (True, False))
    pairs = zip_longest(questions, statements)
    return [one for pair in pairs for one in pair if one is not None][:count]


def _unfinished(edit: Edit) -> list[str]:
    """The edit's question without its last word or mark, where the subject stands before that: the value is
    seen there already, as the words that ask are known, and has to wait."""
    asked = edit.question.rstrip()
    cut = asked[:-1] if asked.endswith("?") else asked.rpartition(" ")[0]
    return [cut] if names(cut, str(edit.subject)) else []


def statements_of(text: Text, edits: Sequence[Edit]) -> list[str | None]:
    """For each edit the beginning of a sentence that gives the answer next, or None.

    A prompt to be completed is one. For a question the model itself is asked: its own answer, up to the first
    name or number behind the subject that the question does not hold ("The capital of Japan is | Tokyo").
    """
    found: list[str | None] = [None if edit.question.endswith("?") else edit.question for edit in edits]
    asked = [i for i, one in enumerate(found) if one is None]
    for at in range(0, len(asked), _ASKED):
        part = asked[at : at + _ASKED]
        prompts = [edits[i].question for i in part]
        rows = [text.encode(in_chat(p) if text.has_chat else f"Q: {p}\nA:") for p in prompts]
        for i, row in zip(part, text.generate(rows, _SENTENCE), strict=True):
            found[i] = _beginning(text.decode(row), edits[i])
    return found


def _beginning(said: str, edit: Edit) -> str | None:
    subject = str(edit.subject)
    sentence = said.split("\n")[0]
    place = place_of(sentence, subject)
    if place is None:
        return None
    known = set(re.findall(r"\w+", edit.question.lower()))
    for word in re.finditer(r"\w+", sentence[place.end :]):
        text = word.group()
        if (text[0].isupper() or text[0].isdigit()) and text.lower() not in known:
            front = sentence[: place.end + word.start()].rstrip(" \"'“‘(")
            return front if len(front) > place.end else None
    return None


def _begun(
    text: Text, prompt: Messages, statement: str, edit: Edit, config: RetrievalConfig
) -> Lesson | None:
    """A chat in which the answer has begun as a sentence."""
    try:
        begun = text.pair(prompt, statement)
        whole = text.pair(prompt, f"{statement} {edit.target}", stop=config.train_stop)
    except ValueError:
        return None
    last = len(begun.ids) - 1
    if whole.ids[: last + 1] != begun.ids or len(whole.ids) > text.max_length:
        return None
    _, span = text.asked_span(prompt, *edit.place)
    return Lesson(Line(tuple(whole.ids), last), span, range(0), True, False)


def _prompts(text: Text, config: RetrievalConfig, edit: Edit) -> Iterator[Prompt]:
    """Other ways to put an edit's prompt to the model."""
    fronts = some(FRONTS, config.n_fronts, config.seed, edit.question)
    yield from text.forms(edit.prompt)[1:]
    for front in fronts:
        yield behind(front, edit.question)
    if edit.question.endswith("?"):
        yield f"Q: {edit.question}\nA:"
    if not text.has_chat:
        return
    asked = in_chat(edit.question)
    yield in_chat(edit.question, SYSTEM)
    yield (Message("user", TALK[0]), Message("assistant", TALK[1]), *asked)
    for front in fronts[:1]:
        yield behind(front, asked)


def other_lines(text: Text, subject: str, prompts: Sequence[Prompt]) -> list[tuple[Line, range, range, bool]]:
    """Prompts about a subject as lines, in each the tokens of the subject and of the question, and whether it
    is a chat."""
    found = []
    for prompt in prompts:
        asked = question(prompt)
        ids, span = text.asked_span(prompt, *placed(asked, subject))
        words = text.asked_span(prompt, 0, len(asked))[1]
        found.append((Line(tuple(ids), len(ids) - 1), span, words, not isinstance(prompt, str)))
    return found


def _fitting(
    text: Text, config: RetrievalConfig, prompt: Prompt, edit: Edit, target: str | None
) -> Lesson | None:
    """The lesson, or None where it does not fit the model's context or its tokenizer."""
    try:
        return _lesson(text, config, prompt, edit, target)
    except ValueError:
        return None


def _lesson(text: Text, config: RetrievalConfig, prompt: Prompt, edit: Edit, target: str | None) -> Lesson:
    asked = question(prompt)
    begin = asked.index(edit.question) if edit.question in asked else 0
    place = placed(asked, str(edit.subject), begin)
    if target is None:
        ids, start = text.encode(prompt), None
    else:
        pair = text.pair(prompt, target, stop=config.train_stop)
        ids, start = pair.ids, pair.start
    span = text.asked_span(prompt, *place)[1]
    asking = (asked.index(edit.question), len(edit.question)) if edit.question in asked else (0, len(asked))
    words = text.asked_span(prompt, asking[0], sum(asking))[1]
    if len(ids) > text.max_length:
        raise TokenizerError(f"{asked[:60]!r}... does not fit into the model's context")
    last = (len(ids) if start is None else start) - 1
    if target is None and isinstance(prompt, str):  # on the way from the subject to the end, too
        last = max(span[-1], last - _BACK)
    return Lesson(Line(tuple(ids), last), span, words, target is not None, isinstance(prompt, str))
