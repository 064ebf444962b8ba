"""What the adapter does to a prompt, for explanations."""

from __future__ import annotations

from dataclasses import dataclass

from ...text.chat import Prompt, quoted

__all__ = ["Explanation"]


@dataclass(frozen=True)
class Explanation:
    """What happens when the model reads a prompt. An adapter has no parts that belong to single edits.

    Attributes:
        prompt: the text or messages.
        base: the base model's next token.
        edited: the edited model's.
        shares: by linear, the size of what is added at the last token over that of the linear's own output.
    """

    prompt: Prompt
    base: str
    edited: str
    shares: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        lines = [f"{quoted(self.prompt)}: next token {self.edited!r} (base model {self.base!r})"]
        lines += [f"  {name}: adds {share:.1%} of the linear's own output" for name, share in self.shares]
        return "\n".join(lines)

    __repr__ = __str__
