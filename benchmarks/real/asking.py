"""Puts prompts to a model in batches, as plain text or as chat turns, and keeps what the base model says.

The same prompts always make the same batches, so that base and edited model are compared on the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from memplug.evaluation.encoding import batches
from memplug.model.architecture import evaluating
from memplug.text.tokens import Text

__all__ = ["Asker", "Turns", "chat", "plain"]

Turns = tuple[tuple[str, str], ...]
"""Roles with what they say; the one role of a plain text is "text"."""


def plain(text: str) -> Turns:
    """A text that is to be continued."""
    return (("text", text),)


def chat(message: str, *, before: Sequence[tuple[str, str]] = ()) -> Turns:
    """A user's message, behind other turns."""
    return (*before, ("user", message))


class Asker:
    """A model that is asked.

    Args:
        model, tokenizer: edited or not; nothing is kept of what it says.
        batch: rows run at once.
    """

    def __init__(self, model: Any, tokenizer: Any, batch: int = 32) -> None:
        self.text, self.batch = Text(model, tokenizer), batch

    def encode(self, turns: Turns) -> list[int]:
        """Token ids of a plain text, or of chat turns with the header of the answer behind them."""
        if turns[0][0] == "text":
            return self.text.encode(turns[0][1])
        messages = [{"role": role, "content": content} for role, content in turns]
        found = self.text.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return list(found)

    def continuations(self, prompts: Sequence[Turns], tokens: int) -> list[list[int]]:
        """Greedy continuations as token ids, without the stop token, in the order of the prompts."""
        unique = list(dict.fromkeys(prompts))
        rows = [self.encode(turns) for turns in unique]
        found: dict[Turns, list[int]] = {}
        with evaluating(self.text.model):
            for batch in batches(rows, self.batch, "asked", False):
                out = self.text.generate([rows[i] for i in batch], tokens)
                found |= {unique[i]: ids for i, ids in zip(batch, out, strict=True)}
        return [found[turns] for turns in prompts]

    def texts(self, prompts: Sequence[Turns], tokens: int) -> list[str]:
        """Greedy continuations as text."""
        return [self.text.decode(ids) for ids in self.continuations(prompts, tokens)]

    @torch.no_grad()
    def perplexities(self, prompts: Sequence[Turns], answers: Sequence[Sequence[int]]) -> list[float]:
        """The perplexity of each continuation behind its prompt; 1 for continuations without a token."""
        heads = [self.encode(turns) for turns in prompts]
        rows = [[*head, *answer] for head, answer in zip(heads, answers, strict=True)]
        found = [1.0] * len(rows)
        with evaluating(self.text.model):
            for batch in batches(rows, max(1, self.batch // 2), "perplexity", False):
                padded = self.text.batch([rows[i] for i in batch])
                logits = self.text.model(input_ids=padded.ids, attention_mask=padded.mask).logits
                for row, i in enumerate(batch):
                    start, end = len(heads[i]), len(rows[i])
                    if start < end:
                        scores = logits[row, start - 1 : end - 1].float().log_softmax(-1)
                        taken = scores.gather(1, padded.ids[row, start:end, None])
                        found[i] = float((-taken.mean()).exp())
        return found
