"""Where sentences and turns begin and end, token by token.

An edit is asked for at the end of a sentence that names its subject, or at the end of a turn. Both are found
from token ids alone, as they come, so that a text fed whole, in pieces or token by token is cut alike. The
ids that stand around a user's turn are read off the tokenizer's chat template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from .chat import Message
from .templates import ChatTemplateError
from .tokens import Text

__all__ = ["Turns", "starts_sentence", "turns_of"]

_END = re.compile(r"[.!?…。！？][\"'”’)\]]*$")
_SHORT = re.compile(r"(?:^|[\s.])(?:[A-Za-z]|Dr|Mr|Mrs|Ms|St|Prof|Jr|Sr|vs|No|Mt|Gen|Col|Sen|Rev)\.$")
_FRACTION = re.compile(r"\d\.$")
_BEGIN = re.compile(r"^\s*[\"'“‘(\[*#-]*\s*[A-Z0-9ÀÞ-ß]|^\n|^\s*[^\x00-\x7f]")


class Turns(NamedTuple):
    """Token ids around a user's turn.

    Attributes:
        opens: what stands right before the question of a user.
        answers: what stands between the end of the question and the answer.
    """

    opens: tuple[int, ...]
    answers: tuple[int, ...]


def starts_sentence(before: str, piece: str) -> bool:
    """Whether a token begins a new sentence behind the text ``before`` (its last few tokens).

    A full stop ends a sentence if a capital, a digit or a new line follows, and if it stands behind no
    initial and no usual abbreviation. Blanks between the two may be a token of their own.
    """
    if before.endswith("\n"):
        return True
    if piece.startswith("\n"):
        return False  # the line break still belongs to the line
    said = before.rstrip(" ")
    if not _END.search(said) or not _BEGIN.match(piece):
        return False
    return not _SHORT.search(said) and not (_FRACTION.search(before) and piece[0].isdigit())


def turns_of(text: Text) -> Turns | None:
    """The ids around a user's turn; None where there is no template, or it marks no turns."""
    if not text.has_chat:
        return None
    asked = [_asked(text, [Message("user", q)]) for q in ("Who wrote it?", "Name one of them")]
    later = _asked(
        text, [Message("user", "Hello there"), Message("assistant", "Hi!"), Message("user", "Who wrote it?")]
    )
    if later is None or None in asked:
        return None
    found = [*(a for a in asked if a), later]
    # A blank before the question is a token of its own before some questions only.
    fronts = [_without_blanks(text, front) for front, _ in found]
    opens, answers = _common_end(fronts), _common_begin([end for _, end in found])
    return Turns(opens, answers) if opens and answers else None


def _asked(text: Text, messages: list[Message]) -> tuple[list[int], list[int]] | None:
    """Ids before and behind the question."""
    try:
        ids, span = text.asked_span(tuple(messages), 0, len(messages[-1].content))
    except (ChatTemplateError, ValueError):
        return None
    return ids[: span[0]], ids[span[-1] + 1 :]


def _without_blanks(text: Text, ids: list[int]) -> list[int]:
    while ids and not text.tokenizer.decode(ids[-1:]).strip(" "):
        ids = ids[:-1]
    return ids


def _common_end(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(reversed(_common_begin([list(reversed(row)) for row in rows])))


def _common_begin(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    found: list[int] = []
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        found.append(column[0])
    return tuple(found)
