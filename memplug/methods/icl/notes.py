"""Notes: edits as text, and as the tokens that stand between a text's beginning and the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from ...edits import Edit
from ...text import Text
from .config import ICLConfig

__all__ = ["Notes"]


class Notes:
    """Writes notes.

    Args:
        text: the model's tokenizer.
        config: template and separator.
    """

    def __init__(self, text: Text, config: ICLConfig) -> None:
        self._text, self._template = text, config.template
        self.separator = self._usual() if config.separator is None else config.separator

    def _usual(self) -> str:
        """Nothing, if a text's tokens are the same at the beginning and after another text and a space."""
        encode = self._text.encode
        apart = encode("So it is.") + self._bare(encode("Where is it?"))
        return "" if encode("So it is. Where is it?") == apart else "\n"

    def _bare(self, ids: list[int]) -> list[int]:
        return ids[1:] if ids[:1] == [self._text.bos_id] else ids

    def write(self, edits: Sequence[Edit]) -> str:
        """The notes on ``edits``, in this order, and the separator."""
        notes = (
            self._template.format(prompt=edit.question, target=edit.target, subject=edit.subject)
            for edit in edits
        )
        return " ".join(notes) + self.separator

    def ids(self, edits: Sequence[Edit]) -> list[int]:
        """Their tokens, without the one that begins a text."""
        return self._bare(self._text.encode(self.write(edits)))
