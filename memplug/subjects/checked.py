"""What an edit is about: its subject as its question writes it, or why there is none."""

from __future__ import annotations

from ..text.chat import Prompt, question, quoted, turn_with
from ..text.names import inside, place_of
from .find import look

__all__ = ["SubjectError", "as_written", "found_in"]


class SubjectError(ValueError):
    """A subject that the question does not name, or none where it is not plain; the message offers others."""


def as_written(prompt: Prompt, subject: str) -> str:
    """The subject in the letters of the question, which may be other ones: see `text.names`.

    Raises:
        SubjectError: the question does not name it.
    """
    asked = question(prompt)
    place = place_of(asked, subject)
    if place is not None:
        return asked[place.begin : place.end]
    where = None if isinstance(prompt, str) else turn_with(prompt, subject)
    if where is not None:
        raise SubjectError(
            f"subject {subject!r} is in {where} and not in the question {asked!r}; an "
            "edit is found by its subject in the last user turn, so ask with it there"
        )
    word = inside(asked, subject)
    if word is not None:
        raise SubjectError(
            f"subject {subject!r} is not in the prompt {quoted(prompt)} as a word of its own, only inside of "
            f"{word!r}; a subject is whole words" + _offer(asked)
        )
    raise SubjectError(
        f"subject {subject!r} is not in the prompt {quoted(prompt)}{_unlike(asked, subject)}; "
        "copy it from the prompt letter by letter, or leave it out to have it found" + _offer(asked)
    )


def found_in(asked: str) -> str:
    """The subject of a question that names one plainly.

    Raises:
        SubjectError: it does not.
    """
    found = look(asked)
    if found.subject is not None:
        return found.subject
    if not found.candidates:
        raise SubjectError(
            f"no subject found in {asked!r} (looked for quoted titles and capitalised words); "
            "say what the fact is about: edit(prompt, target, subject=...)"
        )
    raise SubjectError(
        f"no plain subject found in {asked!r}: it could be {_listed(found.candidates)}; "
        f"say which: edit(prompt, target, subject={found.candidates[0]!r})"
    )


def _offer(asked: str) -> str:
    found = look(asked)
    some = [found.subject] if found.subject is not None else found.candidates
    return f" (found there: {_listed(some)})" if some else ""


def _listed(some: tuple[str, ...] | list[str]) -> str:
    return " or ".join(filter(None, (", ".join(map(repr, some[:-1])), repr(some[-1]))))


def _unlike(asked: str, subject: str) -> str:
    """What tells the two apart where they look alike: letters of other scripts, or that are not seen."""
    strange = sorted({letter for letter in subject if ord(letter) > 0x7F and letter not in asked})
    return f" (which has no {', '.join(f'U+{ord(letter):04X}' for letter in strange)})" if strange else ""
