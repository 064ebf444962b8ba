"""A prompt is a text, or the messages of a chat that ends with the user's question.

Knows nothing about tokenizers; `templates` puts messages into a model's chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .names import names, same_text
from .printable import printable

__all__ = [
    "ROLES",
    "Given",
    "Message",
    "Messages",
    "Prompt",
    "PromptError",
    "as_prompt",
    "behind",
    "canonical",
    "from_json",
    "in_chat",
    "is_chat",
    "question",
    "quoted",
    "show",
    "to_json",
    "turn_with",
    "with_question",
]

ROLES = ("system", "user", "assistant")
"""Who may speak in a prompt. Tool calls are left out: a role and a text cannot hold them."""


class PromptError(ValueError):
    """A prompt that cannot be used; the message says what was given and what to change."""


class Message(NamedTuple):
    """One turn of a chat: a role of `ROLES` and what is said, as it is given to the chat template."""

    role: str
    content: str


Messages = tuple[Message, ...]
Prompt = str | Messages
Given = str | Sequence[Message | Mapping[str, Any]]
"""What a user may write for a prompt."""


def is_chat(given: Any) -> bool:
    """Whether ``given`` is meant as messages: a list or tuple with an item that has a role or a content."""
    if not isinstance(given, list | tuple) or isinstance(given, Message):
        return False
    return any(
        isinstance(item, Message) or (isinstance(item, Mapping) and not {"role", "content"}.isdisjoint(item))
        for item in given
    )


def as_prompt(given: Any) -> Prompt:
    """The prompt in what a user may hand in: a text as it is, or messages as a tuple of `Message`.

    A message has a role and a content, a text or a list of text parts, which are joined. The last one is
    the user's: an edit or a probe asks for the answer to it.

    Raises:
        PromptError: something else, no messages, a role that is not in `ROLES`, a content that is no text,
            an empty user turn, or a last turn that is not the user's.
    """
    if isinstance(given, str):
        return given
    if isinstance(given, Mapping | Message):
        raise PromptError(f"the prompt is a single message ({given!r}); put it into a list: [message]")
    if not isinstance(given, list | tuple):
        raise PromptError(
            f"the prompt must be a string or a list of messages, got {type(given).__name__}: {given!r}"
        )
    return _checked(given)


def _checked(given: Sequence[Any]) -> Messages:
    if not given:
        raise PromptError("the prompt has no messages; give at least one: " + _EXAMPLE)
    messages = tuple(_message(number, item) for number, item in enumerate(given, start=1))
    last = messages[-1]
    if all(message.role != "user" for message in messages):
        raise PromptError(
            f"the prompt has no user turn, only {', '.join(message.role for message in messages)}; its last "
            "message asks the question: " + _EXAMPLE
        )
    if last.role == "assistant":
        raise PromptError(
            f"the prompt ends with an assistant turn ({last.content!r}), which the answer would continue; "
            "leave that turn out, or make its content the target"
        )
    if last.role != "user":
        raise PromptError(
            f"the prompt ends with a {last.role} turn ({last.content!r}); the last message is the user's "
            "question, so put that turn before it"
        )
    return messages


def _message(number: int, item: Any) -> Message:
    """A message, checked; ``number`` counts from 1."""
    if isinstance(item, Message):
        item = item._asdict()
    if not isinstance(item, Mapping):
        raise PromptError(
            f"message {number} must have a role and a content, got {type(item).__name__}: {item!r}; "
            "write " + _EXAMPLE
        )
    for name in ("role", "content"):
        if name not in item:
            raise PromptError(f"message {number} has no {name}, only {sorted(item)}; write " + _EXAMPLE)
    others = sorted(str(name) for name in item.keys() - {"role", "content"} if item[name])
    if others:
        raise PromptError(
            f"message {number} also has {', '.join(map(repr, others))}; a prompt's messages have a role and "
            "a content, tool calls and names are no part of them"
        )
    role = item["role"]
    if role not in ROLES:
        hint = "; what a tool said can stand in the user turn" if role in ("tool", "function") else ""
        raise PromptError(f"message {number} has the role {role!r}; choose one of {', '.join(ROLES)}{hint}")
    content = _content(number, item["content"])
    if role == "user" and not content.strip():
        raise PromptError(f"message {number}, a user turn, is empty ({content!r}); give it some text")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"message {number} is no text ({content!r}: half a character); mend its encoding"
        ) from error
    return Message(role, content)


def _content(number: int, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise PromptError(
            f"message {number} must have a string as its content, got {type(content).__name__}: {content!r}"
        )
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise PromptError(
                f"message {number} has a part of the type {kind!r}; memplug edits text, so give text parts "
                'alone ({"type": "text", "text": ...}), or a string'
            )
        texts.append(part["text"])
    return "".join(texts)


_EXAMPLE = '[{"role": "user", "content": "What is the capital of France?"}]'


def question(prompt: Prompt) -> str:
    """What is asked: a text itself, or the content of the last user turn without blanks at its ends."""
    return prompt if isinstance(prompt, str) else prompt[-1].content.strip()


def with_question(prompt: Prompt, text: str) -> Prompt:
    """The prompt with another question, everything before it as it is."""
    return text if isinstance(prompt, str) else (*prompt[:-1], Message("user", text))


def behind(front: str, prompt: Prompt) -> Prompt:
    """The prompt with a text before its question and a space between; in messages, in the last user turn."""
    return with_question(prompt, f"{front} {question(prompt)}") if front else prompt


def turn_with(prompt: Messages, piece: str) -> str | None:
    """Which turn before the last one names a subject, in words; None where none does."""
    for number, message in enumerate(prompt[:-1], start=1):
        if names(message.content, piece):
            return f"the {message.role} turn (message {number})"
    return None


def in_chat(prompt: Prompt, system: str | None = None) -> Messages:
    """A text as one user turn, behind a system turn if one is given; messages stay as they are.

    Raises:
        PromptError: the text is empty.
    """
    if not isinstance(prompt, str):
        return prompt
    head = () if system is None else (Message("system", system),)
    return _checked((*head, Message("user", prompt)))


def canonical(prompt: Prompt) -> Prompt:
    """What tells whether two prompts ask the same: a single user turn is the text that it says.

    Blanks at the ends of turns do not count, nor whether letters are composed or decomposed. With any other
    turn beside it, a question is another prompt.
    """
    if isinstance(prompt, str) or len(prompt) == 1:
        return same_text(question(prompt))
    return tuple(Message(role, same_text(content.strip())) for role, content in prompt)


def show(prompt: Prompt) -> str:
    """A prompt as one text: a string as it is; messages in one line, ``[chat] system: ... | user: ...``."""
    if isinstance(prompt, str):
        return prompt
    return "[chat] " + " | ".join(f"{role}: {' '.join(content.split())}" for role, content in prompt)


def quoted(prompt: Prompt) -> str:
    """A prompt for a message, every non-printable character escaped: a string in quotation marks; messages as
    `show` gives them."""
    return repr(prompt) if isinstance(prompt, str) else printable(show(prompt))


def to_json(prompt: Prompt) -> str | list[dict[str, str]]:
    """Plain values: a string, or messages as dicts, as chat templates and JSON files have them."""
    return prompt if isinstance(prompt, str) else [message._asdict() for message in prompt]


def from_json(value: Any) -> Prompt:
    """What `to_json` gave; see `as_prompt`."""
    return as_prompt(value)
