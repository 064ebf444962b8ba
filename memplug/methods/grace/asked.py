"""GRACE over LLP's retrieval: one layer's MLP output becomes an edit's value where the edit is asked for.

The published method compares one state with keys, which takes a prompt in other words, or in a chat, for
another one. Here the value is the published one, and LLP's room tells where it belongs: from the token that
ends the question to the end of the answer, and only while that is what is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...attending import check_recomputed
from ...chat import Prompt
from ...checked import check_rest, names, shaped
from ...edits import Edit, EditTable
from ...holding import check_holds
from ...hooks import Hook
from ...text import Pair
from ..base import Host, State
from ..continuing import unflat
from ..elder.places import find_places
from ..llp.config import LLPConfig
from ..llp.explain import Explanation
from ..llp.retriever import PARTS, Prepared, Retriever
from .config import GRACEConfig
from .values import train_values

__all__ = ["AskedGRACE"]


class AskedGRACE:
    """A value an edit, found by LLP's retrieval, over a base model whose weights never change.

    Args:
        host: the model.
        config: constants; the layer is chosen from the model's depth if left open.

    Raises:
        ValueError: a layer out of range.
        UnsupportedModelError: a layer without a linear that can be edited.
        ImportError: FAISS is missing.
    """

    def __init__(self, host: Host, config: GRACEConfig) -> None:
        depth = len(host.anatomy.layers)
        self.config = config.resolve(depth)
        self._host = host
        check_holds(host.model, host.anatomy)
        layer = self.config.layer or 0
        (self._place,) = find_places(host.model, host.anatomy, [layer])
        found = LLPConfig(most_recalled=1, train_stop=config.train_stop)
        if (found.resolve(depth).recall_layer or 0) > layer:  # what is asked has to be known below the layer
            found = replace(found, recall_layer=layer)
        self._finder = Retriever(host, found)
        self._values: dict[str, Tensor] = {}

    @property
    def active(self) -> bool:
        """Whether any edit is in force."""
        return bool(self._finder.on)

    # ------------------------------------------------------------------ forwards

    def hooks(self) -> list[Hook]:
        """Listen, and put values in place."""

        def after(_m: Any, _args: Any, _kwargs: Any, output: Tensor) -> Tensor | None:
            call = self._host.tracker.current
            if call is None:
                return None
            asked = self._finder.asked(call)
            if not any(at for row in asked for at in row):
                return None
            check_recomputed(self._host.anatomy.layers[self._place.layer])
            return self._replaced(unflat(output, len(asked)), asked).reshape(output.shape)

        return [*self._finder.room.hooks(), Hook(self._place.module, "after", after)]

    def _replaced(self, output: Tensor, asked: Sequence[Sequence[tuple[str, ...]]]) -> Tensor:
        """[B,T,D] with the value of the edit that speaks at a token in the place of what the MLP says."""
        at = torch.tensor([[bool(ids) for ids in row] for row in asked], device=output.device)
        values = torch.stack([self._values[ids[0]] for row in asked for ids in row if ids])
        out = output.clone()
        out[at] = values.to(device=output.device, dtype=output.dtype)
        return out

    # ------------------------------------------------------------------ edits

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens or a prompt longer than the context."""
        for edit in edits:
            self._pair(edit.prompt, edit.target)

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """Learn by what each edit is recognised, and its value."""
        quiet = not progress or len(edits) < 2
        with tqdm(total=len(edits), desc="learning", unit="edit", disable=quiet, leave=False) as bar:
            prepared = self._finder.prepare(edits, replaced)
            with self._host.tracker.off():
                jobs = [self._pairs(edit) for edit in edits]
                values = train_values(self._host, self.config, self._place, jobs, bar.update)
        self._put(prepared, {str(edit.id): v for edit, v in zip(edits, values, strict=True)})

    def _pairs(self, edit: Edit) -> list[Pair]:
        """The prompt and the answer, in plain text and in a chat."""
        pairs = [self._pair(edit.prompt, edit.target)]
        for prompt in self._host.text.forms(edit.prompt)[1:]:
            with suppress(ValueError):  # a template that rewrites the question
                pairs.append(self._pair(prompt, edit.target))
        return pairs

    def _pair(self, prompt: Prompt, target: str) -> Pair:
        return self._host.text.pair(prompt, target, stop=self.config.train_stop)

    def forget(self, edits: Sequence[Edit], *, progress: bool) -> None:
        """Drop values, and what edits are recognised by."""
        self._put(self._finder.without(edits), {})

    def switch(self, edits: Sequence[Edit], on: bool, *, progress: bool) -> None:
        """Take edits out of the search, or put them back."""
        self._put(self._finder.switched(edits, on), {})

    def _put(self, prepared: Prepared, values: Mapping[str, Tensor]) -> None:
        with self._host.tracker.gate.changing():
            self._finder.put(prepared)
            held = self._finder.held
            self._values = {id: v for id, v in {**self._values, **values}.items() if id in held}

    # ------------------------------------------------------------------ looking, saving

    def explain(self, prompt: Prompt) -> Explanation:
        """Which subjects were found, by which layers; how much is asked like their edits; what speaks.

        Raises:
            ValueError: the prompt is empty.
        """
        return self._finder.explain(prompt)

    def state(self) -> State:
        """Values, and what edits are recognised by."""
        tensors, meta = self._finder.state()
        if self._values:
            tensors["values"] = torch.stack([*self._values.values()])
        return State(tensors, meta | {"values": list(self._values), "config": asdict(self.config)})

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave; see `Method.restore`."""
        found = {name: tensor for name, tensor in tensors.items() if name.startswith(PARTS)}
        check_rest(tensors, (*found, *(["values"] if len(edits) else [])))
        restored = self._finder.read(found, meta, edits)
        ids = names(meta["values"], "the edits that have values")
        if sorted(ids) != sorted(edits):
            raise ValueError("the values are those of other edits, or an edit has none")
        shape = (len(ids), self._place.fan_out)
        values = shaped(tensors, "values", shape, torch.float32) if ids else torch.zeros(0)
        with self._host.tracker.gate.changing():
            self._finder.take_over(restored)
            self._values = dict(zip(ids, values, strict=True))
