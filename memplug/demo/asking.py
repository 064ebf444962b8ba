"""What every stage of the demo on a real model asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console

from ..evaluation import answer
from ..text.chat import in_chat
from ..text.tokens import Text
from .facts import KEPT, Fact
from .stages import Clock

__all__ = ["FORMS", "Said", "Stage"]

_PLAIN, _CHAT = 12, 24  # tokens of an answer
FORMS = ("same prompt", "in other words", "in chat")

Said = dict[str, list[str]]
"""Answers to all facts, by form."""


@dataclass
class Stage:
    """What all stages need; ``broken`` names what had to hold to the bit and does not."""

    console: Console
    clock: Clock
    model: Any
    tokenizer: Any
    facts: Sequence[Fact]
    broken: list[str] = field(default_factory=list)

    def claim(self, text: str, holds: bool, *, must: bool = False) -> None:
        """Print whether it holds; with ``must``, the demo fails if it does not."""
        self.console.print(f"{text}: {'[green]yes[/green]' if holds else '[bold red]NO[/bold red]'}")
        if must and not holds:
            self.broken.append(text)

    def ask(self) -> Said:
        """All facts in all forms."""
        plain = [f.prompt for f in self.facts] + [f.other for f in self.facts]
        said = answer(self.model, self.tokenizer, plain, max_new_tokens=_PLAIN)
        chat = self.chat([f.question for f in self.facts])
        count = len(self.facts)
        return dict(zip(FORMS, (said[:count], said[count:], chat), strict=True))

    def chat(self, prompts: Sequence[Any]) -> list[str]:
        """Answers in a chat."""
        asked = [in_chat(prompt) for prompt in prompts]
        return answer(self.model, self.tokenizer, asked, max_new_tokens=_CHAT)

    def kept(self) -> list[list[int]]:
        """Tokens said about what is to stay, a prompt at a time, so that they do not depend on each other."""
        text = Text(self.model, self.tokenizer)
        rows = [torch.tensor([text.encode(in_chat(prompt))]) for _, prompt in KEPT]
        settings = text.plain_settings(_CHAT)
        rows = [ids.to(text.device) for ids in rows]
        made = [
            self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
            )
            for ids in rows
        ]
        return [out[0, ids.shape[1] :].tolist() for out, ids in zip(made, rows, strict=True)]

    def logits(self) -> torch.Tensor:
        """Of the first question in a chat."""
        ids = Text(self.model, self.tokenizer).encode(in_chat(self.facts[0].question))
        with torch.no_grad():
            made: torch.Tensor = self.model(input_ids=torch.tensor([ids], device=self.model.device)).logits
        return made
