"""Lessons: the lines from which an edit's key, its gate and its value are learned.

An edit is asked for in plain text and in the chat template, alone, behind a sentence, behind another system
turn and in a second turn. Other statements and questions about its subject are to be answered as before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from ...chat import Message, Messages, Prompt, behind, in_chat, question
from ...edits import Edit
from ...naming import names, place_of, placed
from ...text import Text, TokenizerError
from .config import LLPConfig
from .passes import Line
from .wordings import CHAT, FRONTS, MENTIONS, PLAIN, REQUESTS, SYSTEM, TALK, some

__all__ = [
    "Lesson",
    "lessons_of",
    "other_lessons",
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


def lessons_of(text: Text, config: LLPConfig, edit: Edit, statement: str | None) -> list[Lesson]:
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
    if config.ask_what and not edit.question.endswith("?"):
        asked = _fitting(text, config, f"{edit.question} what?", edit, edit.target)
        found.append(asked and asked._replace(words=range(0)))  # it is nobody's way to ask
    return [own, *(one for one in found if one is not None)]


def other_lessons(text: Text, config: LLPConfig, edit: Edit, similar: Tensor, same: float) -> list[Lesson]:
    """What is said and asked about an edit's subject and is to be answered as before.

    Those neutral prompts that resemble the edit's own most, as these are the ones that it could be taken for;
    not those that resemble it so much that they may well ask the same. Some that name the subject in passing.
    And the edit's own question while it is not finished.

    Args:
        similar: [M] likeness of each neutral prompt (`other_prompts`) to what asks for the edit.
        same: likeness from which on it may ask the same.
    """
    subject = str(edit.subject)
    prompts = other_prompts(text, subject)
    chosen: list[Prompt] = []
    for plain, passing in ((True, MENTIONS), (False, REQUESTS)):
        mine = [i for i, prompt in enumerate(prompts) if isinstance(prompt, str) == plain]
        mine = sorted((i for i in mine if similar[i] < same), key=lambda i: -float(similar[i]))
        chosen += [prompts[i] for i in mine[: config.n_others]]
        if plain or text.has_chat:
            named = [
                w.replace("{s}", subject) for w in some(passing, config.n_mentions, config.seed, subject)
            ]
            chosen += named if plain else map(in_chat, named)
    chosen += _unfinished(edit)
    lessons = (_fitting(text, config, prompt, edit, None) for prompt in chosen)
    return [one for one in lessons if one is not None]


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


def _begun(text: Text, prompt: Messages, statement: str, edit: Edit, config: LLPConfig) -> Lesson | None:
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


def other_prompts(text: Text, subject: str) -> list[Prompt]:
    """All neutral statements and questions about a subject, plain ones first."""
    prompts: list[Prompt] = [wording.replace("{s}", subject) for wording in PLAIN]
    if text.has_chat:
        prompts += [in_chat(wording.replace("{s}", subject)) for wording in CHAT]
    return prompts


def _prompts(text: Text, config: LLPConfig, edit: Edit) -> Iterator[Prompt]:
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


def _fitting(text: Text, config: LLPConfig, prompt: Prompt, edit: Edit, target: str | None) -> Lesson | None:
    """The lesson, or None where it does not fit the model's context or its tokenizer."""
    try:
        return _lesson(text, config, prompt, edit, target)
    except ValueError:
        return None


def _lesson(text: Text, config: LLPConfig, prompt: Prompt, edit: Edit, target: str | None) -> Lesson:
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
