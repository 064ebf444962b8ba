"""What a user asks for: edits, and the cases that judge them.

Knows nothing about models. Everything that can be checked on the text alone is checked here, so
that the same mistake gets the same message from every method.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from .subjects.checked import SubjectError, as_written, found_in
from .text.chat import Given, Prompt, PromptError, as_prompt, in_chat, is_chat, question, quoted, show
from .text.names import Place, place_of
from .text.printable import printable

__all__ = [
    "Case",
    "Edit",
    "EditError",
    "EditTable",
    "Probe",
    "UnknownEditError",
    "as_edits",
]


class EditError(ValueError):
    """An edit that cannot be made; the message says what was given and what to change."""


class Probe(NamedTuple):
    """A prompt and the answer expected to it."""

    prompt: Prompt
    target: str


@dataclass(frozen=True)
class Edit:
    """From now on ``prompt`` is answered by ``target``; the fact is about ``subject``.

    The prompt is a text, or the messages of a chat: dicts with a role and a content, kept as a tuple of
    `Message`, of which the last is the user's question. Texts carry no leading or trailing space.
    ``subject`` is a piece of the question, whole words, and is kept as the question writes it, whichever
    Unicode, apostrophe or letter case it is given in; ``None`` lets it be found (`subjects.find`). ``id`` is
    given when the edit is learned.

    Raises:
        EditError: a text is not a string, is empty, too long or cannot be written, messages that are no
            prompt (see `as_prompt`), or the subject is not in the question.
    """

    prompt: Prompt
    target: str
    subject: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "prompt", as_prompt(self.prompt))
        except PromptError as error:
            raise EditError(str(error)) from error
        said = (self.prompt,) if isinstance(self.prompt, str) else tuple(turn.content for turn in self.prompt)
        size = sum(len(part) for part in (*said, self.target) if isinstance(part, str))
        if size > _MOST:
            raise EditError(
                f"prompt and target have {size} characters, an edit has {_MOST} at most; shorten it"
            )
        for name in ("prompt", "target", "subject", "id"):
            if name == "prompt" and not isinstance(self.prompt, str):
                continue
            value = getattr(self, name)
            if value is None and name in ("subject", "id"):
                continue
            if not isinstance(value, str):
                raise EditError(f"{name} must be a string, got {type(value).__name__}: {value!r}")
            if not value.strip():
                raise EditError(f"{name} is empty ({value!r}); give it some text")
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise EditError(
                    f"{name} is no text ({value!r}: half a character); mend its encoding"
                ) from error
            object.__setattr__(self, name, value.strip())
        if self.subject is not None:
            try:
                object.__setattr__(self, "subject", as_written(self.prompt, self.subject))
            except SubjectError as error:
                raise EditError(str(error)) from error

    @property
    def question(self) -> str:
        """What is asked: the prompt, or its last user turn."""
        return question(self.prompt)

    @property
    def place(self) -> Place:
        """Where in the question the subject stands."""
        found = place_of(self.question, self.subject or "")
        if found is None:
            raise EditError(f"the edit of {quoted(self.prompt)} has no subject; see with_subject()")
        return found

    def with_subject(self) -> Edit:
        """This edit with its subject filled in.

        Raises:
            EditError: no subject was given and the question names none plainly; see `find_subject`.
        """
        if self.subject is not None:
            return self
        try:
            return replace(self, subject=found_in(self.question))
        except SubjectError as error:
            raise EditError(str(error)) from error


@dataclass(frozen=True)
class Case:
    """An edit with what is needed to judge it. Prompts are texts or messages, as in `Edit`.

    Attributes:
        edit: the request.
        rephrases: other prompts that ask the same and must get the same target.
        locality: unrelated probes; the target is the answer before the edit.
        same_subject: other facts about the edited subject; the target is the answer before the edit.
        portability: questions whose answer follows from the edit; the target is the new answer.

    Raises:
        PromptError: messages that are no prompt.
    """

    edit: Edit
    rephrases: tuple[Prompt, ...] = field(default=())
    locality: tuple[Probe, ...] = field(default=())
    same_subject: tuple[Probe, ...] = field(default=())
    portability: tuple[Probe, ...] = field(default=())

    def __post_init__(self) -> None:
        if any(not isinstance(prompt, str) for prompt in self.rephrases):
            object.__setattr__(self, "rephrases", tuple(map(as_prompt, self.rephrases)))
        for name in ("locality", "same_subject", "portability"):
            probes = getattr(self, name)
            if any(not isinstance(prompt, str) for prompt, _ in probes):
                object.__setattr__(self, name, tuple(Probe(as_prompt(p), target) for p, target in probes))

    def in_chat(self) -> Case:
        """The case with every prompt that is a text as a single user turn."""

        def turned(probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
            return tuple(Probe(in_chat(prompt), target) for prompt, target in probes)

        return Case(
            replace(self.edit, prompt=in_chat(self.edit.prompt)),
            tuple(map(in_chat, self.rephrases)),
            turned(self.locality),
            turned(self.same_subject),
            turned(self.portability),
        )


def as_edits(
    prompt: Given | Edit | Case | Iterable[Edit | Case],
    target: str | None = None,
    subject: str | None = None,
) -> list[Edit]:
    """The edits in what a user may hand to ``plug.edit``, in order, subjects filled in.

    Raises:
        EditError: nothing to edit, a target beside a list, or an item that is not an edit.
    """
    if isinstance(prompt, str) or is_chat(prompt):
        if target is None:
            raise EditError(f"no target for {prompt!r}; call edit(prompt, target)")
        return [Edit(prompt, target, subject).with_subject()]  # type: ignore[arg-type]  # checked by Edit
    if target is not None or subject is not None:
        raise EditError("target and subject belong to a single prompt; a list carries its own")
    if not isinstance(prompt, Edit | Case | Iterable):
        raise EditError(
            f"cannot edit {prompt!r}; give a prompt and a target, an Edit, a Case, or a list of these"
        )
    items: list[Edit | Case] = [prompt] if isinstance(prompt, Edit | Case) else list(prompt)  # type: ignore[arg-type]
    if not items:
        raise EditError("the list of edits is empty; give at least one Edit")
    edits = [item.edit if isinstance(item, Case) else item for item in items]
    for item in edits:
        if not isinstance(item, Edit):
            raise EditError(
                f"expected an Edit or a Case, got {type(item).__name__}: {item!r}; "
                "give Edit(prompt, target, subject), or a list of these"
            )
    return [edit.with_subject() for edit in edits]


class UnknownEditError(EditError, KeyError):
    """An id that no edit has."""

    def __str__(self) -> str:
        return str(self.args[0])


class EditTable(Mapping[str, Edit]):
    """The edits by id, in the order they were learned; its ``repr`` is a table."""

    def __init__(self, edits: Mapping[str, Edit], off: Iterable[str] = ()) -> None:
        self._edits, self._off = dict(edits), frozenset(off)

    def __getitem__(self, id: str) -> Edit:
        if id not in self._edits:
            near = difflib.get_close_matches(str(id), self._edits, n=1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"there are {len(self._edits)} edits{_first(self._edits)}"
            )
            raise UnknownEditError(f"no edit has the id {id!r}; {hint}")
        return self._edits[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._edits)

    def __len__(self) -> int:
        return len(self._edits)

    def enabled(self, id: str) -> bool:
        """Whether the edit is in force."""
        return self[id].id not in self._off

    def named(self, given: Iterable[str | Edit | Iterable[str | Edit]]) -> list[Edit]:
        """The edits that a user names, each once: by an id, an `Edit`, or several of these.

        Raises:
            EditError: none was named.
            UnknownEditError: there is no such edit, or another one under its id.
        """
        flat: list[str | Edit] = []
        for item in given:
            whole = isinstance(item, str | Edit) or not isinstance(item, Iterable)
            flat += [item] if whole else list(item)  # type: ignore[list-item, arg-type]
        if not flat:
            raise EditError("no edit was named; give an Edit, an id, or several")
        found: dict[str, Edit] = {}
        for item in flat:
            edit = self[str(item.id if isinstance(item, Edit) else item)]
            if isinstance(item, Edit) and edit.prompt != item.prompt:
                raise UnknownEditError(
                    f"{edit.id!r} is the edit of {quoted(edit.prompt)} here, not of {quoted(item.prompt)}; "
                    "give an edit of this plug, see plug.edits"
                )
            found[str(edit.id)] = edit
        return list(found.values())

    def __repr__(self) -> str:
        rows: list[tuple[str, ...]] = [("id", "", "prompt", "target", "subject")]
        rows += [
            (
                printable(e.id),
                "off" if e.id in self._off else "on",
                *map(printable, (_brief(e.prompt), e.target, e.subject)),
            )
            for e in self.values()
        ]
        rows = [
            tuple(cell if len(cell) <= _WIDTH else cell[: _WIDTH - 3] + "..." for cell in row) for row in rows
        ]
        if len(rows) > 41:
            rows = [*rows[:21], ("...", "", f"{len(rows) - 41} more", "", ""), *rows[-20:]]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join(
            [f"{len(self)} edits, {len(self) - len(self._off)} in force", *(lines if len(self) else [])]
        )


_MOST = 1 << 20  # characters of an edit; ten million take half a minute to become tokens
_WIDTH = 60  # of a table's column, at most


def _brief(prompt: Prompt) -> str:
    """A prompt for a column; of a chat that is too long for it, the question."""
    shown = show(prompt)
    if isinstance(prompt, str) or len(shown) <= _WIDTH:
        return shown
    return f"[chat, {len(prompt)} turns] {question(prompt)}"


def _first(ids: Iterable[str]) -> str:
    shown = [printable(id) for id in ids]
    return f" ({', '.join(shown[:5])}{', ...' if len(shown) > 5 else ''})" if shown else ""
