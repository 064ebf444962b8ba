"""LLP as published: a key per subject in the early layers, a soft prompt recalled into the later ones."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...edits import Edit, EditTable
from ...interface import Host, State
from ...model.attention import lowest_layer
from ...model.hooks import Hook
from ...model.lru import Kept
from ...model.prefix import KV, Prefix
from ...model.recall import Recall
from ...model.row_state import hold
from ...retrieval.entries import Entry, pack, unpack
from ...retrieval.explanation import Explanation
from ...retrieval.held import Held
from ...retrieval.keys import contexts_of, contrast, subject_states
from ...retrieval.samples import sample_texts
from ...retrieval.think import Recalling, draft_of, match_rows, think_hooks
from ...saving.checked import check_rest
from ...text.chat import Prompt
from ...weights.modules import adapters
from ..continuing import not_in_pieces
from ..unlearned import warn_unlearned
from .config import LLPConfig
from .explain import explain_votes
from .values import Learned, train_values

__all__ = ["LEARNED", "PublishedLLP"]

LEARNED = 1.0
"""Nats a token; above, the answer is likelier not to come."""
_PREFIXES_KEPT = 1024  # recalled entries whose keys and values per layer stay at hand


class PublishedLLP(Held):
    """Layer-level prompting (LLP) over a base model whose weights never change.

    Args:
        host: the model.
        config: constants; layers left open are chosen from the model's depth.

    Raises:
        ValueError: layers out of range, or think layers not below the recall layer.
        UnsupportedModelError: the model's attention cannot take a recalled prefix.
    """

    def __init__(self, host: Host, config: LLPConfig) -> None:
        self.config = config.resolve(len(host.architecture.layers))
        lowest = lowest_layer(host.model, host.architecture)
        if config.recall_layer is None and (self.config.recall_layer or 0) < lowest < len(
            host.architecture.layers
        ):
            # In a hybrid of several kinds of layers, above the last that has no attention.
            self.config = replace(config, recall_layer=lowest).resolve(len(host.architecture.layers))
        self._layers = self.config.think_layers or ()
        self._host = host
        self._recall = Recall(host.model, host.architecture, self.config.recall_layer or 0)
        super().__init__(host, self.config, self._width())
        self._prefixes: list[str] | None = None
        self._kv: Kept[tuple[Any, ...], KV] = Kept(_PREFIXES_KEPT)

    def _width(self) -> int:
        """Of the states that are compared."""
        return self._host.architecture.width

    # ------------------------------------------------------------------ forwards

    def hooks(self) -> list[Hook]:
        """Think, decide, recall."""
        tracker = self._host.tracker

        def current() -> Prefix | None:
            call = tracker.current
            return None if call is None else call.scratch

        think = think_hooks(self._host.architecture, tracker, self._layers)
        return [*think, *self._recall.hooks(self._decide, current)]

    def _decide(self) -> Prefix | None:
        call = self._host.tracker.current
        if call is None:
            return None
        key, match = match_rows(self.memory, call, self._layers, self._stamp)
        held = Recalling.of(call, self.memory)
        if call.past and call.is_prompt and bool((key != (-1 if held is None else held.key)).any()):
            raise not_in_pieces("llp", 'scope="answer"')
        first, start = (held.first, held.start) if held else (call.first, call.start)
        if call.tokens is not None:  # a row may have been padding so far
            first, start = call.tokens.first, call.tokens.real.int().argmax(1)
        if held and held.version == self._stamp and torch.equal(held.key, key):
            prefix = held.prefix
        else:
            prefix = self._prefix(key, first, start)
        if call.cache is not None:
            looking = self._host.tracker.gate.looking
            draft = draft_of(self.memory, call, self._layers, looking)
            hold(call.cache, Recalling(self.memory, self._stamp, key, match, first, start, prefix, draft))
        call.scratch = prefix
        return prefix

    def _prefix(self, key: Tensor, first: Tensor, start: Tensor) -> Prefix | None:
        rows = [
            self._kv_of(k, p) if k >= 0 else None for k, p in zip(key.tolist(), first.tolist(), strict=True)
        ]
        return Prefix.stack(rows, start)

    def _kv_of(self, key: int, first: int) -> KV:
        """Keys and values of an entry per layer; computed alone, so that its bits depend on nothing else."""
        entry = self.entries[self._owner[key]]

        @torch.no_grad()
        def project() -> KV:
            with self._host.tracker.off():
                value = entry.values[entry.on][None].to(self._host.text.device)
                return self._recall.project(value, torch.tensor([first]))

        return self._kv.get((entry.stamp, first, adapters(self._host.model)), project)

    # ------------------------------------------------------------------ edits

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens or a prompt longer than the context."""
        for edit in edits:
            self._host.text.pair(edit.prompt, edit.target, stop=self.config.train_stop)

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> Collection[str]:
        """Train keys and values; several edits of one subject share both, as published."""
        return self._apply(self._with(edits, replaced), progress)

    def forget(self, edits: Sequence[Edit], *, progress: bool) -> None:
        """Drop keys and values; where a subject keeps other edits, its value is trained anew from these."""
        self._apply(self._without({edit.id for edit in edits}), progress)

    def switch(self, edits: Sequence[Edit], on: bool, *, progress: bool) -> None:
        """Switch edits; a subject with others in force gets the value of just these."""
        self._apply(self._switched(edits, on), progress)

    def _apply(self, drafts: Mapping[str, Entry], progress: bool) -> Collection[str]:
        """Train what the drafts lack, then put them in place: nothing is changed before all is computed.

        Returns:
            The ids of edits that it has warned of.
        """
        lacking = [draft for draft in drafts.values() if draft.on and draft.on not in draft.values]
        learned = self._train(lacking, progress)
        for draft, result in zip(lacking, learned, strict=True):
            draft.values[draft.on] = result.value
        fresh = [draft for draft in drafts.values() if draft.edits and not draft.keys]
        keys = self._keys(fresh)
        poor = [draft for draft, one in zip(lacking, learned, strict=True) if one.loss > LEARNED]
        # A warning may be an error: nothing has changed yet.
        warn_unlearned([draft.subject for draft in poor], len(lacking), 4)
        with self._host.tracker.gate.changing():
            numbers = self._add(keys)
            for draft in drafts.values():
                self._put(draft, draft.keys + numbers.get(draft.subject, ()))
        return {id for draft in poor for id in draft.on}

    def _train(self, drafts: Sequence[Entry], progress: bool) -> list[Learned]:
        if not drafts:
            return []
        config = self.config
        with (
            self._host.tracker.off(),
            tqdm(
                total=len(drafts),
                desc="learning",
                unit="subject",
                disable=not progress or len(drafts) < 2,
                leave=False,
            ) as bar,
        ):
            groups = [[draft.edits[id] for id in draft.on] for draft in drafts]
            return train_values(self._host, self._recall, config, groups, self._contexts(), bar.update)

    def _contexts(self) -> list[str]:
        """Sampled texts to stand before prompts; drawn once, so that they do not depend on the edits."""
        if self._prefixes is None:
            config = self.config
            self._prefixes = sample_texts(
                self._host.text, config.n_prefixes, config.prefix_tokens, config.sample_top_k, config.seed
            )
        return self._prefixes

    def _keys(self, drafts: Sequence[Entry]) -> dict[str, list[Tensor]]:
        if not drafts:
            return {}
        config = self.config
        with self._host.tracker.off():
            prefixes = self._contexts()
            contexts = [contexts_of(next(iter(draft.edits.values())), prefixes) for draft in drafts]
            states = subject_states(self._host, contexts, config)
        stored = self.memory.ids()
        if len(stored) > config.negatives:
            stored = random.Random(config.seed + len(stored)).sample(stored, config.negatives)
        others = [self.memory.get(number) for number in stored]
        keys: dict[str, list[Tensor]] = {}
        for draft, groups in zip(drafts, states, strict=True):
            keys[draft.subject] = [contrast(group, others[-config.negatives :], config) for group in groups]
            others += keys[draft.subject]
        return keys

    # ------------------------------------------------------------------ looking, saving

    def explain(self, prompt: Prompt) -> Explanation:
        """Per think layer the best-matching token, similarity and vote; what is recalled, and why."""
        subjects = {}
        for key, subject in self._owner.items():
            entry = self.entries[subject]
            if entry.on:
                subjects[key] = subject, tuple(entry.edits[id] for id in entry.on)
        return explain_votes(self._host, self.memory, self.config, subjects, prompt)

    def state(self) -> State:
        """Keys, values, and which edit they belong to."""
        tensors = {f"key.{name}": tensor for name, tensor in self.memory.state_dict().items()}
        values, entries = pack(self.entries.values())
        tensors |= values
        return State(tensors, {"entries": entries, "next": self._next, "config": asdict(self.config)})

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave; see `Method.restore`."""
        check_rest(tensors, (name for name in tensors if name.startswith(("key.", "value."))))
        entries = unpack(
            tensors,
            meta["entries"],
            edits,
            (self.config.n_values, self._host.architecture.width),
            torch.float32,
        )
        if any(entry.on and not len(entry.values.get(entry.on, ())) for entry in entries.values()):
            raise ValueError("the value of edits in force is missing")
        with self._host.tracker.gate.changing():
            self._take_over(tensors, entries, meta)
            self._kv.clear()
