"""Notes: edits as text, and as the tokens that stand before what is asked."""

from __future__ import annotations

from collections.abc import Sequence

from ...edits import Edit
from ...text.tokens import Text
from ...text.turns import Turns
from .config import ICLConfig

__all__ = ["Notes"]


class Notes:
    """Writes notes.

    Args:
        text: the model's tokenizer.
        config: their wordings.
        turns: the ids around a user's turn, or None.
    """

    def __init__(self, text: Text, config: ICLConfig, turns: Turns | None) -> None:
        self._text, self._config = text, config
        self.opens = turns.opens if turns else ()
        """What stands right before a user's question."""

    def turn(self, row: Sequence[int]) -> int | None:
        """Where the last user's turn in ``row`` begins, or None: in plain text."""
        size = len(self.opens)
        for at in range(len(row) - size, -1, -1) if size else ():
            if tuple(row[at : at + size]) == self.opens:
                return at + size
        return None

    def write(self, edits: Sequence[Edit], chat: bool) -> str:
        """The notes on ``edits``, in this order, and what stands before and behind them."""
        config = self._config
        said = (
            config.template.format(prompt=edit.question, target=edit.target, subject=edit.subject)
            for edit in edits
        )
        front, end = (config.chat_front, config.chat_end) if chat else (config.front, config.end)
        return front + " ".join(said) + end

    def ids(self, edits: Sequence[Edit], chat: bool) -> list[int]:
        """Their tokens, without the one that begins a text."""
        ids = self._text.encode(self.write(edits, chat))
        return ids[1:] if ids[:1] == [self._text.bos_id] else ids
