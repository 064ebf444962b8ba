"""What a method is handed and what it must do. A new method is one module and one line in the table.

Methods never register hooks and never write weights themselves: they say which hooks they want.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from .edits import Case, Edit, EditTable
from .model.architecture import Architecture, taken
from .model.hooks import Hook
from .model.tracker import CallTracker
from .text.chat import Prompt, quoted
from .text.tokens import Batch, Text

__all__ = ["ChangesWeights", "Explanation", "Fits", "Host", "Method", "State"]


@dataclass(frozen=True)
class Host:
    """The model that a method works on, taken apart once.

    Attributes:
        model: the user's own model object.
        text: its tokenizer.
        architecture: its layers and how they are called.
        tracker: the forward that is running, for hooks.
    """

    model: Any
    text: Text
    architecture: Architecture
    tracker: CallTracker

    def forward(self, module: Any, batch: Batch) -> Any:
        """Run the model or its decoder on right-padded rows counted from position 0, without a cache."""
        batch = self.encoded(batch)
        given = batch.given
        if module is self.architecture.decoder or batch.source is None:
            given = {"input_ids": batch.ids, "attention_mask": batch.mask, "position_ids": batch.positions}
        if module is self.architecture.decoder and batch.source is not None:
            given |= {"encoder_hidden_states": batch.source, "encoder_attention_mask": batch.source_mask}
        return module(**taken(module, given | {"use_cache": False}))

    @torch.no_grad()
    def encoded(self, batch: Batch) -> Batch:
        """The batch with what the encoder makes of its sources, so that several forwards read them once."""
        encoder = self.architecture.encoder
        if encoder is None or batch.source is None or batch.encoded:
            return batch
        states = encoder(input_ids=batch.source, attention_mask=batch.source_mask)[0]
        return batch._replace(source=states)


class State(NamedTuple):
    """What a method needs to be itself again: tensors for safetensors, the rest for JSON."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


class Explanation:
    """What happens to the edits when the model reads a prompt; methods say more in classes of their own.

    Attributes:
        prompt: the text or messages.
        edits: those that take effect; empty where the base model answers.
        reason: one sentence.
    """

    prompt: Prompt
    edits: tuple[Edit, ...]
    reason: str

    @property
    def applies(self) -> bool:
        """Whether any edit takes effect."""
        return bool(self.edits)

    def details(self) -> list[str]:
        """Further lines for a person."""
        return []

    def __str__(self) -> str:
        return "\n".join([f"{quoted(self.prompt)}: {self.reason}", *self.details()])

    __repr__ = __str__


class Method(Protocol):
    """Learns edits, applies them in forwards, forgets them."""

    config: Any

    @property
    def active(self) -> bool:
        """Whether a forward could be changed at all; False leaves the model alone."""

    def hooks(self) -> list[Hook]:
        """The hooks that apply the edits."""

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises ValueError for an edit that could not be learned; nothing is computed."""

    def learn(
        self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool
    ) -> Collection[str] | None:
        """Learn ``edits`` (with ids) in place of ``replaced``; on any error nothing has changed.

        Gives back the ids of those that it has warned of (`warn_unlearned`), where it knows that they did not
        take before anything has changed. `Plug` asks for the others.
        """

    def forget(self, edits: Sequence[Edit], *, progress: bool) -> Any:
        """Remove edits for good; gives back what is to be said about what is left of them, or None.

        Methods whose edits share parameters also take ``retrain: bool = False``.
        """

    def switch(self, edits: Sequence[Edit], on: bool, *, progress: bool) -> None:
        """Switch edits off, or on again."""

    def explain(self, prompt: Prompt) -> Any:
        """What happens to the edits when the model reads ``prompt``; its ``str`` tells a person."""

    def state(self) -> State:
        """Everything learned."""

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over a saved state in place of what is held; ``ValueError`` where it is not one. On any error
        nothing has changed.

        What is in it may be anything: sizes, kinds, numbers and names are checked (see `checked`) before they
        are used, so that no later call stumbles over them.
        """


@runtime_checkable
class ChangesWeights(Protocol):
    """What a method also does if its edits are in the weights."""

    def paused(self) -> AbstractContextManager[None]:
        """The original weights inside the ``with``, to the bit."""

    def base(self) -> AbstractContextManager[None]:
        """The original weights inside the ``with``, for this thread alone; no change is made meanwhile."""

    def release(self) -> None:
        """Put the original weights back, for good."""

    def merge(self) -> None:
        """Make the edited weights the model's own."""


@runtime_checkable
class Fits(Protocol):
    """What a method also does if it learns to edit before it edits."""

    config: Any

    def fit(self, cases: Sequence[Case], **options: Any) -> Any:
        """Learn to edit from ``cases``; the model and its edits stay as they are."""

    def editor_state(self) -> dict[str, Tensor]:
        """What was learned; ``ValueError`` where nothing was."""

    def load_editor(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `editor_state` gave; ``ValueError`` where it does not fit."""
