"""Methods whose edits are found by LLP's retrieval room: what is the same in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from ..edits import Edit, EditTable
from ..interface import Explanation, Host, State
from ..retrieval.config import RetrievalConfig
from ..retrieval.retriever import PARTS, Prepared, Retriever
from ..saving.checked import check_rest
from ..text.chat import Prompt

__all__ = ["RetrievalMethod"]


class RetrievalMethod:
    """Finds edits by what is asked; what an edit does then is the subclass's own.

    Args:
        host: the model.
        config: the method's constants.
        found: LLP's, by which edits are found.

    Attributes:
        retriever: finds edits.
    """

    def __init__(self, host: Host, config: Any, found: RetrievalConfig) -> None:
        self.config, self._host, self.retriever = config, host, Retriever(host, found)

    @property
    def active(self) -> bool:
        """Whether any edit is in force."""
        return bool(self.retriever.on)

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens or a prompt longer than the context."""
        for edit in edits:
            self._host.text.pair(edit.prompt, edit.target, stop=self.config.train_stop)

    def forget(self, edits: Sequence[Edit], *, progress: bool) -> Any:
        """Drop what edits do, and what they are recognised by."""
        self._put(self.retriever.without(edits))

    def switch(self, edits: Sequence[Edit], on: bool, *, progress: bool) -> None:
        """Take edits out of the search, or put them back."""
        self._put(self.retriever.switched(edits, on))

    def _put(self, prepared: Prepared, learned: Any = None) -> None:
        """Put what edits are recognised by in place, with what the subclass has learned."""
        with self._host.tracker.gate.changing():
            self.retriever.put(prepared)
            self._take(learned)

    def _take(self, learned: Any) -> None:
        """Take over what was learned, or nothing (None); edits may have gone."""

    def explain(self, prompt: Prompt) -> Explanation:
        """Which subjects were found, by which layers; how much is asked like their edits; what speaks."""
        return self.retriever.explain(prompt)

    def state(self) -> State:
        """What edits are recognised by, and what the subclass has learned."""
        tensors, meta = self.retriever.state()
        own = self._state()
        return State(tensors | own.tensors, meta | own.meta | {"config": asdict(self.config)})

    def _state(self) -> State:
        return State({}, {})

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave; see `Method.restore`."""
        found = {name: tensor for name, tensor in tensors.items() if name.startswith(PARTS)}
        own = {name: tensor for name, tensor in tensors.items() if name not in found}
        restored, learned = self.retriever.read(found, meta, edits), self._read(own, meta, edits)
        with self._host.tracker.gate.changing():
            self.retriever.take_over(restored)
            self._take(learned)

    def _read(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> Any:
        """What `_state` gave, checked, as `_take` takes it."""
        check_rest(tensors, ())
