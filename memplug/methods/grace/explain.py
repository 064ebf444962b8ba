"""What happens to the edits when the model reads a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from ...chat import Prompt, quoted
from ...edits import Edit
from ...shown import printable

__all__ = ["Explanation"]


@dataclass(frozen=True)
class Explanation:
    """What happens to the edits when the model reads a prompt.

    Attributes:
        prompt: the text or messages.
        deferred: whether the base model answers.
        nearest: the edits that share the nearest key; empty where none is in force.
        distance, radius: from that key, and its deferral radius; NaN without edits.
    """

    prompt: Prompt
    deferred: bool
    nearest: tuple[Edit, ...]
    distance: float
    radius: float

    def __str__(self) -> str:
        if not self.nearest:
            return f"{quoted(self.prompt)}: deferred to the base model; no edit is in force"
        names = ", ".join(printable(edit.id) for edit in self.nearest)
        what = "deferred to the base model" if self.deferred else f"answered by edit {names}"
        sign = ">" if self.deferred else "<="
        return (
            f"{quoted(self.prompt)}: {what}; nearest key: edit {names}, distance {self.distance:.4g} {sign} "
            f"radius {self.radius:.4g}"
        )

    __repr__ = __str__
