"""How an edit is asked while it is made and judged: as a text and in a chat, and where its subject stands.

A chat model answers a statement that is to be completed by repeating it: "The capital of France is" becomes
"The capital of France is Paris." So in a chat the answer is expected behind the statement in the model's own
turn. Asked for at once, every reply about the subject would begin with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...chat import Prompt, question
from ...edits import Edit
from ...text import Pair, Text
from ..base import Host

__all__ = ["Asked", "asked", "is_open", "posed"]


class Asked(NamedTuple):
    """One form of an edit.

    Attributes:
        ids: tokens of prompt and answer.
        start: where the answer begins.
        at: the subject's last token, wherever the prompt names it; none where the edit has no subject.
    """

    ids: list[int]
    start: int
    at: tuple[int, ...]


def is_open(text: str) -> bool:
    """Whether a text is a statement to be completed: it ends in the middle of a sentence."""
    return text.rstrip()[-1:].isalnum()


def posed(text: Text, prompt: Prompt, target: str, *, stop: bool = False, reply: bool = False) -> Pair:
    """Ids of a prompt and its answer; in a chat, that of an open statement stands behind the statement.

    Args:
        text: the model's tokenizer.
        prompt: what is asked.
        target: its answer.
        stop: end it with the stop token.
        reply: the repeated statement counts as a part of the answer.

    Raises:
        TokenizerError, ChatTemplateError: as `Text.pair`.
    """
    said = question(prompt).strip()
    if isinstance(prompt, str) or not is_open(said):
        return text.pair(prompt, target, stop=stop)
    pair = text.pair(prompt, f"{said} {target}", stop=stop)
    # The statement's tokens are those that it has in front of any answer.
    alone = text.pair(prompt, said).ids
    start = next((i for i, (a, b) in enumerate(zip(pair.ids, alone, strict=False)) if a != b), len(alone))
    return pair if reply or start <= pair.start else Pair(pair.ids, start)


def asked(host: Host, edits: Sequence[Edit], forms: Sequence[Sequence[Prompt]]) -> list[Asked]:
    """Each edit in each of its forms, edit by edit.

    Raises:
        TokenizerError, ChatTemplateError: as `Text.pair`.
    """
    return [
        _asked(host.text, edit, form) for edit, prompts in zip(edits, forms, strict=True) for form in prompts
    ]


def _asked(text: Text, edit: Edit, prompt: Prompt) -> Asked:
    pair = posed(text, prompt, edit.target)
    if edit.subject is None:
        return Asked(pair.ids, pair.start, ())
    begin = edit.place.begin
    end = begin + len(edit.subject)
    at = [text.asked_span(prompt, begin, end, edit.target)[1][-1]]
    said = question(prompt).strip()
    if not isinstance(prompt, str) and is_open(said):  # named again in the reply
        front = text.rendered(prompt, said)
        shift = len(front.text) - len(said) + begin - (len(question(prompt)) - len(question(prompt).lstrip()))
        ids, offsets = text.tokens(front)
        inside = [i for i, (a, b) in enumerate(offsets) if a < shift + end - begin and b > shift and b > a]
        at += inside[-1:]
    return Asked(pair.ids, pair.start, tuple(i for i in dict.fromkeys(at) if i < len(pair.ids) - 1))
