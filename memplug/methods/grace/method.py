"""GRACE over LLP's retrieval: one layer's MLP output becomes an edit's value where the edit is asked for.

The published method compares one state with keys, which takes a prompt in other words, or in a chat, for
another one. Here the value is the published one, and LLP's room tells where it belongs: from the token that
ends the question to the end of the answer, and only while that is what is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...edits import Edit, EditTable
from ...interface import Host, State
from ...model.attention import check_recomputed
from ...model.hooks import Hook
from ...model.row_state import check_holds
from ...retrieval.config import RetrievalConfig
from ...saving.checked import check_rest, names, shaped
from ...text.chat import Prompt
from ...text.tokens import Pair
from ..continuing import unflat
from ..places import find_places
from ..retrieval_method import RetrievalMethod
from .config import GRACEConfig
from .values import train_values

__all__ = ["GRACE"]


class GRACE(RetrievalMethod):
    """A value an edit, found by LLP's retrieval, over a base model whose weights never change.

    Args:
        host: the model.
        config: constants; the layer is chosen from the model's depth if left open.

    Raises:
        ValueError: a layer out of range.
        UnsupportedModelError: a layer without a linear that can be edited.
    """

    def __init__(self, host: Host, config: GRACEConfig) -> None:
        depth = len(host.architecture.layers)
        config = config.resolve(depth)
        check_holds(host.model, host.architecture)
        layer = config.layer or 0
        (self._place,) = find_places(host.model, host.architecture, [layer])
        found = RetrievalConfig(most_recalled=1, train_stop=config.train_stop)
        if (found.resolve(depth).recall_layer or 0) > layer:  # what is asked has to be known below the layer
            found = replace(found, recall_layer=layer)
        super().__init__(host, config, found)
        self._values: dict[str, Tensor] = {}

    def hooks(self) -> list[Hook]:
        """Listen, and put values in place."""

        def after(_m: Any, _args: Any, _kwargs: Any, output: Tensor) -> Tensor | None:
            call = self._host.tracker.current
            if call is None:
                return None
            asked = self.retriever.asked(call)
            if not any(at for row in asked for at in row):
                return None
            check_recomputed(self._host.architecture.layers[self._place.layer])
            return self._replaced(unflat(output, len(asked)), asked).reshape(output.shape)

        return [*self.retriever.room.hooks(), Hook(self._place.module, "after", after)]

    def _replaced(self, output: Tensor, asked: Sequence[Sequence[tuple[str, ...]]]) -> Tensor:
        """[B,T,D] with the value of the edit that speaks at a token in the place of what the MLP says."""
        at = torch.tensor([[bool(ids) for ids in row] for row in asked], device=output.device)
        values = torch.stack([self._values[ids[0]] for row in asked for ids in row if ids])
        out = output.clone()
        out[at] = values.to(device=output.device, dtype=output.dtype)
        return out

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """Learn by what each edit is recognised, and its value."""
        quiet = not progress or len(edits) < 2
        with tqdm(total=len(edits), desc="learning", unit="edit", disable=quiet, leave=False) as bar:
            prepared = self.retriever.prepare(edits, replaced)
            with self._host.tracker.off():
                jobs = [self._pairs(edit) for edit in edits]
                values = train_values(self._host, self.config, self._place, jobs, bar.update)
        self._put(prepared, {str(edit.id): value for edit, value in zip(edits, values, strict=True)})

    def _pairs(self, edit: Edit) -> list[Pair]:
        """The prompt and the answer, in plain text and in a chat."""
        pairs = [self._pair(edit.prompt, edit.target)]
        for prompt in self._host.text.forms(edit.prompt)[1:]:
            with suppress(ValueError):  # a template that rewrites the question
                pairs.append(self._pair(prompt, edit.target))
        return pairs

    def _pair(self, prompt: Prompt, target: str) -> Pair:
        return self._host.text.pair(prompt, target, stop=self.config.train_stop)

    def _take(self, learned: Mapping[str, Tensor] | None) -> None:
        held = self.retriever.held
        self._values = {id: v for id, v in {**self._values, **(learned or {})}.items() if id in held}

    def _state(self) -> State:
        values = {"values": torch.stack([*self._values.values()])} if self._values else {}
        return State(values, {"values": list(self._values)})

    def _read(
        self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable
    ) -> dict[str, Tensor]:
        check_rest(tensors, ["values"] if len(edits) else [])
        ids = names(meta["values"], "the edits that have values")
        if sorted(ids) != sorted(edits):
            raise ValueError("the values are those of other edits, or an edit has none")
        shape = (len(ids), self._place.fan_out)
        values = shaped(tensors, "values", shape, torch.float32) if ids else torch.zeros(0)
        return dict(zip(ids, values, strict=True))
