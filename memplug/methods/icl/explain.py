"""What happens to the edits when the model reads a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from ... import interface as base
from ...edits import Edit
from ...retrieval.explanation import Explanation as Found
from ...text.chat import Prompt

__all__ = ["Explanation"]


@dataclass(frozen=True, repr=False)
class Explanation(base.Explanation):
    """What happens to the edits when the model reads a prompt.

    Attributes:
        found: which subjects were found in it, and how much of what it asks resembles their edits.
        edits: the edits whose notes are read before it, in this order.
        notes: these notes; empty where the base model answers.
    """

    found: Found
    edits: tuple[Edit, ...]
    notes: str

    @property
    def prompt(self) -> Prompt:  # type: ignore[override]
        """The text or messages."""
        return self.found.prompt

    @property
    def reason(self) -> str:  # type: ignore[override]
        """What is read."""
        return f"read after {self.notes!r}" if self.notes else "answered by the base model"

    def details(self) -> list[str]:
        """What was found."""
        return [str(self.found)]
