"""What happens to the edits when the model reads a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from ...chat import quoted
from ...edits import Edit
from ..llp.explain import Explanation as Found

__all__ = ["Explanation"]


@dataclass(frozen=True)
class Explanation:
    """What happens to the edits when the model reads a prompt.

    Attributes:
        found: which subjects were found in it, and how much of what it asks resembles their edits.
        edits: the edits whose notes are read before it, in this order.
        notes: these notes; empty where the base model answers.
    """

    found: Found
    edits: tuple[Edit, ...]
    notes: str

    def __str__(self) -> str:
        what = f"read after {self.notes!r}" if self.notes else "answered by the base model"
        return f"{quoted(self.found.prompt)}: {what}\n{self.found}"

    __repr__ = __str__
