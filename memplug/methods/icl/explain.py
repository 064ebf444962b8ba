"""What happens to the edits when the model reads a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from ...chat import Prompt, quoted, show
from ...edits import Edit
from ...shown import printable

__all__ = ["Explanation"]


@dataclass(frozen=True)
class Explanation:
    """What happens to the edits when the model reads a prompt.

    Attributes:
        prompt: the text or messages.
        nearest: edits with their cosine, the most similar first; a few more than are read.
        threshold: the cosine to exceed.
        notes: what is read before the prompt; empty where the base model answers.
    """

    prompt: Prompt
    nearest: tuple[tuple[Edit, float], ...]
    threshold: float
    notes: str

    def __str__(self) -> str:
        what = f"read after {self.notes!r}" if self.notes else "answered by the base model"
        lines = [f"{quoted(self.prompt)}: {what} (threshold {self.threshold:.3f})"]
        lines += [
            f"  edit {printable(edit.id)}, cosine {cosine:.3f}: {printable(show(edit.prompt))}"
            for edit, cosine in self.nearest
        ]
        return "\n".join(lines)

    __repr__ = __str__
