"""GRACE as published: one layer's MLP output becomes an edit's value where a prompt ends near its key."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...edits import Edit, EditTable
from ...interface import Host, State
from ...model.attention import check_recomputed
from ...model.hooks import Hook
from ...model.row_state import check_holds
from ...saving.checked import check_edits, check_rest, many, names, numbered_from, shaped
from ...text.chat import Prompt
from ...text.printable import printable
from ...text.tokens import Pair
from ..continuing import unflat
from ..places import find_places, find_site
from ..prompt_end import Nearest, PromptEnd
from .codebook import Codebook, Keyed
from .config import GRACEConfig
from .values import tokens_replaced, train_values

__all__ = ["PublishedGRACE"]

_REFUSAL = "grace", 'scope="asked"'


class PublishedGRACE:
    """A codebook of keys, values and deferral radii over a base model whose weights never change.

    A row's key is read at its last prompt token, once, and decides for the whole text (`PromptEnd`). A text
    given in pieces with a cache is refused where a later piece decides otherwise.

    Of an encoder-decoder key and value are those of the decoder's start token, which has seen the prompt by
    then. After 6 edits of a small T5 that knows 24 facts, 6 of 6 rewordings were answered as edited and 35 of
    36 other questions as before; with the encoder's last state as the key, nearer to the authors' setting (T5
    edited in its encoder), these were 2 and 36.

    Args:
        host: the model.
        config: constants; the layer is chosen from the model's depth if left open.

    Raises:
        ValueError: a layer out of range.
        UnsupportedModelError: a layer without a linear that can be edited.
    """

    def __init__(self, host: Host, config: GRACEConfig) -> None:
        self.config = config.resolve(len(host.architecture.layers))
        self._host = host
        check_holds(host.model, host.architecture)
        layer, last = self.config.layer or 0, self.config.replace == "last"
        (self._place,) = find_places(host.model, host.architecture, [layer])
        read = layer - 1 if self.config.key == "hidden" else layer
        site = find_site(host.model, host.architecture, read, self.config.key)

        def goes_on(before: Tensor, now: Tensor) -> bool:
            return torch.equal(before, torch.full_like(now, -1) if last else now)

        self._width, self._ends = site.width, PromptEnd(host, site, self._find, goes_on, _REFUSAL)
        self.records: dict[str, tuple[Keyed, Edit]] = {}
        self.off: set[str] = set()
        self.book = Codebook(0.0)
        self._values: dict[tuple[str, ...], Tensor] = {}
        self._next = 0

    @property
    def active(self) -> bool:
        """Whether any edit is in force."""
        return bool(self.book.entries)

    # ------------------------------------------------------------------ forwards

    def hooks(self) -> list[Hook]:
        """Look at the key, and put the value in place."""

        def after(_m: Any, _args: Any, _kwargs: Any, output: Tensor) -> Tensor | None:
            call = self._host.tracker.current
            decision = None if call is None else self._ends.decide(call)
            if call is None or decision is None or not decision.given:
                return None
            check_recomputed(self._host.architecture.layers[self._place.layer])
            which = self.config.replace
            if not (call.is_prompt or which == "all"):
                return None
            count = call.real.long().cumsum(1)
            at = call.real & (decision.which >= 0)[:, None].to(count.device)
            if call.is_prompt:  # else these are tokens of the answer
                at = at & tokens_replaced(count, decision.end[:, None].to(count.device), which)
            value = decision.given[0].to(device=output.device, dtype=output.dtype)
            wide = unflat(output, len(at))
            return torch.where(at[..., None].to(output.device), value[:, None], wide).reshape(output.shape)

        return [self._ends.hook(), Hook(self._place.module, "after", after)]

    def _find(self, query: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The number of the entry that each row is near to, and its value; see `prompt_end.Find`."""
        which = torch.full((len(query),), -1)
        values = torch.zeros(len(query), self._place.fan_out, dtype=torch.float32)
        if self.book.entries:
            for row, (at, distance) in enumerate(zip(*self.book.nearest(query), strict=True)):
                entry = self.book.entries[at]
                if distance <= entry.radius:
                    which[row] = entry.first.number
                    values[row] = self._values[entry.members]
        return which, [values.to(self._place.device)] if bool((which >= 0).any()) else []

    # ------------------------------------------------------------------ edits

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens or a prompt longer than the context."""
        for edit in edits:
            self._pair(edit)

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """Give each edit its place in the codebook, in order, and train the values that this asks for."""
        gone = {str(edit.id) for edit in replaced}
        with self._host.tracker.off():
            keys = self._keys(edits)
            records = {id: record for id, record in self.records.items() if id not in gone}
            for n, (edit, key) in enumerate(zip(edits, keys, strict=True), start=self._next):
                records[str(edit.id)] = Keyed(n, str(edit.id), edit.target, key), edit
            self._apply(records, self.off - gone, progress)
        self._next += len(edits)

    def forget(self, edits: Sequence[Edit], *, progress: bool) -> None:
        """Drop keys and values; the codebook becomes what it would be without the edits."""
        gone = {str(edit.id) for edit in edits}
        records = {id: record for id, record in self.records.items() if id not in gone}
        self._apply(records, self.off - gone, progress)

    def switch(self, edits: Sequence[Edit], on: bool, *, progress: bool) -> None:
        """Switch edits; the codebook becomes that of the edits in force."""
        ids = {str(edit.id) for edit in edits}
        self._apply(self.records, self.off - ids if on else self.off | ids, progress)

    def _apply(self, records: dict[str, tuple[Keyed, Edit]], off: set[str], progress: bool) -> None:
        """Take over records and switches: nothing is changed before everything is computed."""
        book = self._book(records, off)
        values = {ids: value for ids, value in self._values.items() if set(ids) <= records.keys()}
        lacking = [entry.members for entry in book.entries if entry.members not in values]
        quiet = not progress or len(lacking) < 2
        with (
            self._host.tracker.off(),
            tqdm(total=len(lacking), desc="learning", unit="edit", disable=quiet, leave=False) as bar,
        ):
            jobs = [[self._pair(records[id][1]) for id in ids] for ids in lacking]
            trained = train_values(self._host, self.config, self._place, jobs, bar.update)
        values |= dict(zip(lacking, trained, strict=True))
        self._put(records, off, book, values)

    def _put(
        self,
        records: dict[str, tuple[Keyed, Edit]],
        off: set[str],
        book: Codebook,
        values: dict[tuple[str, ...], Tensor],
    ) -> None:
        with self._host.tracker.gate.changing():
            self.book, self._values = book, values
            self.records, self.off = dict(records), set(off)
            self._ends.version += 1

    def _book(self, records: Mapping[str, tuple[Keyed, Edit]], off: Iterable[str]) -> Codebook:
        """The codebook of the edits in force, continued where they only became more."""
        on = [keyed for id, (keyed, _) in records.items() if id not in set(off)]
        before = [keyed for id, (keyed, _) in self.records.items() if id not in self.off]
        if before and [k.number for k in on[: len(before)]] == [k.number for k in before]:
            book = self.book.copy()
            book.add(on[len(before) :])
        else:
            book = Codebook(self.config.epsilon, self._slack)
            book.add(on)
        return book

    @property
    def _slack(self) -> float:
        """In half precision a key differs by up to a thousandth with the batch that it is read in."""
        return 1e-2 if self._host.model.dtype in (torch.float16, torch.bfloat16) else 1e-4

    def _keys(self, edits: Sequence[Edit]) -> Tensor:
        """Float32 [n,p] on the CPU."""
        pairs = [self._pair(edit) for edit in edits]
        return self._ends.read([pair.prompt for pair in pairs]).cpu()

    def _pair(self, edit: Edit) -> Pair:
        return self._host.text.pair(edit.prompt, edit.target, stop=self.config.train_stop)

    # ------------------------------------------------------------------ looking, saving

    def explain(self, prompt: Prompt) -> Nearest:
        """The nearest key, its distance and radius, and whether its value takes effect."""
        if not self.active:
            reason = "deferred to the base model; no edit is in force"
            return Nearest(prompt, (), reason, (), math.nan, math.nan)
        text = self._host.text
        with self._host.tracker.off():
            (at,), (distance,) = self.book.nearest(self._ends.read([text.row(text.encode(prompt))]))
        entry = self.book.entries[at]
        edits = tuple(self.records[id][1] for id in entry.members)
        if distance > entry.radius:
            return Nearest(prompt, (), "deferred to the base model", edits, distance, entry.radius)
        reason = f"answered by edit {', '.join(map(printable, entry.members))}"
        return Nearest(prompt, edits, reason, edits, distance, entry.radius)

    def state(self) -> State:
        """Keys and values; radii follow from the keys."""
        records = [keyed for keyed, _ in self.records.values()]
        none = torch.zeros(0, self._width, dtype=torch.float32)
        tensors = {"keys": torch.stack([keyed.key for keyed in records]) if records else none}
        values = list(self._values.items())
        if values:
            tensors["values"] = torch.stack([value for _, value in values])
        meta = {
            "numbers": {keyed.id: keyed.number for keyed in records},
            "off": sorted(self.off),
            "values": [list(ids) for ids, _ in values],
            "next": self._next,
            "config": asdict(self.config),
        }
        return State(tensors, meta)

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave; see `Method.restore`."""
        numbers, off = numbered_from(meta), names(meta["off"], "the edits that are off")
        check_edits(numbers, off, edits)
        check_rest(tensors, ("keys", "values"))
        shared = [names(ids, "a value's edits") for ids in many(meta["values"], "the values")]
        if len(set(shared)) < len(shared) or not all(numbers.keys() >= set(ids) for ids in shared):
            raise ValueError("a value is there twice, or is that of an edit that is not there")
        keys = shaped(tensors, "keys", (len(numbers), self._width), torch.float32)
        values = torch.zeros(0, self._place.fan_out, dtype=torch.float32)
        if shared:
            values = shaped(tensors, "values", (len(shared), self._place.fan_out), torch.float32)
        records = {
            id: (Keyed(n, id, edits[id].target, key), edits[id])
            for (id, n), key in zip(numbers.items(), keys, strict=True)
        }
        held = dict(zip(shared, values, strict=True))
        book = self._book(records, off)
        lacking = [entry.members for entry in book.entries if entry.members not in held]
        if lacking:
            raise ValueError(f"the value of the edits {lacking[0]} is missing")
        self._put(records, set(off), book, held)
        self._next = meta["next"]
