"""Messages through a tokenizer's chat template, as a string in which the question and the answer are found.

A template is a program of somebody else's: what it does is looked up in what it writes, by marks in the place
of a question or an answer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .chat import Message, Messages, question, show, to_json

__all__ = ["ChatTemplateError", "Rendered", "Turn", "chat_ids", "has_template", "render", "turn_of"]

_MARK = "\ue000memplug\ue001"  # of the private use area: in no text, and no blank that a template may trim


class ChatTemplateError(ValueError):
    """Messages for a tokenizer that has no chat template, or one that does not take them."""


class Rendered(NamedTuple):
    """A prompt, with its answer or without, as the one string that is put into tokens.

    Attributes:
        text: the whole string.
        special: whether the tokenizer adds its special tokens; a template has written its own.
        question_begin: where the question (`chat.question`) stands in it.
        prompt_end: where the prompt ends. An answer comes behind it, and behind the blank between them.
    """

    text: str
    special: bool
    question_begin: int
    prompt_end: int


class Turn(NamedTuple):
    """What a template writes around an answer: the blanks before it, and everything behind it."""

    before: str
    behind: str


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of messages with the generation prompt: what a user's ``generate`` is given.

    Raises:
        ChatTemplateError: as for `render`.
    """
    return list(_applied(tokenizer, messages, True, tokenize=True, return_dict=False))


def render(tokenizer: Any, messages: Messages, target: str | None = None) -> Rendered:
    """Messages with the generation prompt, and ``target`` behind it.

    Between the two stands what the template puts before an answer itself: nothing, or blanks.

    Raises:
        ChatTemplateError: there is no template, it does not take these messages, or it rewrites the question.
    """
    text = _applied(tokenizer, messages, True)
    last, asked = messages[-1].content, question(messages)
    marked = Message("user", last.replace(asked, _MARK, 1))
    begin = _applied(tokenizer, (*messages[:-1], marked), True).rfind(_MARK)
    if begin < 0 or not text.startswith(asked, begin):
        begin = text.rfind(asked)  # a template that looks at the question
    if begin < 0:
        raise ChatTemplateError(
            f"the chat template of {_name(tokenizer)} rewrites the question {asked!r}, so that its subject "
            "cannot be found; give the question as the template writes it, or a plain prompt"
        )
    answer = "" if target is None else turn_of(tokenizer).before + target
    return Rendered(text + answer, False, begin, len(text))


def turn_of(tokenizer: Any) -> Turn:
    """What the template writes around an answer; blanks alone count before it, as the model says the rest.

    Raises:
        ChatTemplateError: there is no template.
    """
    asked = (Message("user", "Who?"),)
    prompt = _applied(tokenizer, asked, True)
    try:
        whole = _applied(tokenizer, (*asked, Message("assistant", _MARK)), False)
    except ChatTemplateError:
        return Turn("", "")
    front, mark, end = whole.partition(_MARK)
    between = front[len(prompt) :] if front.startswith(prompt) else ""
    return Turn(between if not between.strip() else "", end if mark else "")


def _applied(tokenizer: Any, messages: Messages, prompted: bool, **how: Any) -> Any:
    if not has_template(tokenizer):
        raise ChatTemplateError(
            f"{_name(tokenizer)} has no chat template; give a plain prompt, or set tokenizer.chat_template "
            "to the template that the model was trained on"
        )
    how = {"tokenize": False} | how
    try:
        return tokenizer.apply_chat_template(to_json(messages), add_generation_prompt=prompted, **how)
    except ImportError:  # of the package that reads templates
        raise
    except Exception as error:
        raise ChatTemplateError(
            f"the chat template of {_name(tokenizer)} does not take {show(messages)[:200]!r}: {error}; "
            "change the turns as it says, or give a plain prompt"
        ) from error


def _name(tokenizer: Any) -> str:
    path = getattr(tokenizer, "name_or_path", "")
    return f"the tokenizer {path!r}" if path else f"this {type(tokenizer).__name__}"
