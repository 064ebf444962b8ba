"""LoRA: one adapter that learns every edit, as the baseline that fine-tunes few parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...edits import Edit, EditTable
from ...interface import Host, State
from ...model.architecture import evaluating
from ...model.hooks import Hook, OwnHooks
from ...saving.checked import check_edits, check_rest, names, shaped
from ...text.chat import Prompt
from ...text.tokens import Pair
from ...weights.modules import find_sites
from ...weights.originals import OriginalWeights
from ..neutral import NeutralPool
from .adapter import Adapter
from .config import LoRAConfig
from .seen import Explanation
from .training import answered, train

__all__ = ["LoRA", "Removed"]


class Removed(NamedTuple):
    """What is left of a deleted edit.

    Attributes:
        edit: the edit.
        answered: whether its prompt still gets its target, token by token.
        loss: -log p of the target, mean over its tokens.
    """

    edit: Edit
    answered: bool
    loss: float


@dataclass
class _Draft:
    """An adapter in training, and the edits that it will stand for; see `LoRA`."""

    adapter: Adapter
    records: dict[str, Edit]
    off: set[str]
    before: dict[tuple[str, ...], list[Tensor]]

    def on(self) -> tuple[str, ...]:
        """Ids of the edits in force."""
        return tuple(id for id in self.records if id not in self.off)


class LoRA:
    """One low-rank adapter over a base model whose weights never change.

    All edits share the adapter, which is trained on with each of them. So a single edit cannot be taken out
    of it: deleting one leaves its traces (the result measures them), and only ``delete(..., retrain=True)``,
    which starts afresh and learns the kept edits, removes it. Switching one off does that too; switching it
    on again brings the adapter back from before, unless something was learned or deleted meanwhile. Without
    an edit in force the model is the base model, to the bit.

    peft's layers are called from hooks, beside the model's own linears; see `adapter`.

    Args:
        host: the model.
        config: constants.

    Raises:
        ImportError: peft is missing or too old.
        ValueError: modules that do not exist.
        UnsupportedModelError: linears that cannot be adapted.
    """

    def __init__(self, host: Host, config: LoRAConfig) -> None:
        self.config, self._host = config, host
        ranges = [(name, config.start, config.stop) for name in config.linears]
        sites = find_sites(host.model, host.architecture, ranges, config.modules, writable=False)
        self.adapter = Adapter(host.model, sites, config)
        self.records: dict[str, Edit] = {}
        self.off: set[str] = set()
        self._before: dict[tuple[str, ...], list[Tensor]] = {}
        self._pool = NeutralPool(host, config.keep_pool, config.seed)

    @property
    def active(self) -> bool:
        """Whether any edit is in force."""
        return bool(self._on())

    def _on(self) -> tuple[str, ...]:
        return tuple(id for id in self.records if id not in self.off)

    def hooks(self) -> list[Hook]:
        """Add the adapter's part to every adapted linear."""
        tracker = self._host.tracker

        def make(index: int) -> Hook:
            def after(_m: Any, args: tuple[Any, ...], _kwargs: Any, output: Tensor) -> Tensor | None:
                return None if tracker.current is None else self.adapter.add(index, args[0], output)

            return Hook(self.adapter.sites[index].module, "after", after)

        return [make(index) for index in range(len(self.adapter.sites))]

    # ------------------------------------------------------------------ edits

    @contextmanager
    def _changing(self) -> Iterator[_Draft]:
        """A copy of the adapter and the edits, for changing; it takes their place if nothing goes wrong."""
        tracker = self._host.tracker
        draft = _Draft(self.adapter.copy(), dict(self.records), set(self.off), dict(self._before))
        with tracker.off():
            yield draft
        with tracker.gate.changing():
            self.adapter, self.records = draft.adapter, draft.records
            self.off, self._before = draft.off, draft.before

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens or a prompt longer than the context."""
        for edit in edits:
            self._pair(edit)

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """Train the adapter further, on all of ``edits`` together."""
        with self._changing() as draft:
            gone = {str(edit.id) for edit in replaced}
            kept = {id: edit for id, edit in draft.records.items() if id not in gone}
            earlier = [edit for id, edit in kept.items() if id not in draft.off]
            self._train(draft.adapter, edits, earlier, progress)
            draft.records = kept | {str(edit.id): edit for edit in edits}
            draft.off, draft.before = draft.off - gone, {}

    def forget(self, edits: Sequence[Edit], *, progress: bool, retrain: bool = False) -> tuple[Removed, ...]:
        """Let go of the edits and say what the adapter still holds of them.

        ``retrain=True`` starts from a fresh adapter and learns the kept edits anew: the only true removal, at
        the price of learning them all. The last edit in force takes the adapter with it.
        """
        with self._changing() as draft:
            gone = {str(edit.id) for edit in edits}
            draft.records = {id: edit for id, edit in draft.records.items() if id not in gone}
            draft.off, draft.before = draft.off - gone, {}
            if retrain or not draft.on():
                self._relearn(draft, progress)
            found = answered(self._host, draft.adapter, [self._pair(edit) for edit in edits])
        return tuple(Removed(edit, *left) for edit, left in zip(edits, found, strict=True))

    def switch(self, edits: Sequence[Edit], on: bool, *, progress: bool) -> None:
        """Learn the edits in force anew without these, or go back to the adapter that held them."""
        with self._changing() as draft:
            ids = {str(edit.id) for edit in edits}
            draft.before[draft.on()] = draft.adapter.snapshot()
            draft.off = draft.off - ids if on else draft.off | ids
            if draft.on() in draft.before:
                draft.adapter.load(draft.before[draft.on()])
            else:
                self._relearn(draft, progress)

    def _relearn(self, draft: _Draft, progress: bool) -> None:
        draft.adapter.reset()
        kept = [draft.records[id] for id in draft.on()]
        if kept:
            self._train(draft.adapter, kept, [], progress)

    def _train(
        self, adapter: Adapter, edits: Sequence[Edit], earlier: Sequence[Edit], progress: bool
    ) -> None:
        fresh, before = ([pair for edit in some for pair in self._pairs(edit)] for some in (edits, earlier))
        quiet = not progress or len(fresh) < 2
        with tqdm(total=len(fresh), desc="learning", unit="answer", disable=quiet, leave=False) as bar:
            train(self._host, adapter, self.config, fresh, before, self._kept(edits), bar.update)

    def _kept(self, edits: Sequence[Edit]) -> list[Pair]:
        """What the base model answers to neutral questions, and to some about these edits' subjects."""
        if not self.config.keep or not self.config.keep_weight:
            return []
        return self._pool.pairs(edits)

    def _pairs(self, edit: Edit) -> list[Pair]:
        """The edit as it is asked in plain text and in the chat template."""
        text, stop = self._host.text, self.config.train_stop
        return [text.pair(form, edit.target, stop=stop) for form in text.forms(edit.prompt)]

    def _pair(self, edit: Edit) -> Pair:
        return self._host.text.pair(edit.prompt, edit.target, stop=self.config.train_stop)

    # ------------------------------------------------------------------ weights

    def paused(self) -> AbstractContextManager[None]:
        """Nothing to do: no weight is ever changed."""
        return nullcontext()

    def base(self) -> AbstractContextManager[None]:
        """Nothing to do, for the same reason."""
        return nullcontext()

    def release(self) -> None:
        """Nothing to put back."""

    def merge(self) -> None:
        """Add the adapter to the model's weights.

        Raises:
            UnsupportedModelError: weights that cannot be written.
        """
        if not self.active:
            return
        model, architecture = self._host.model, self._host.architecture
        sites = find_sites(model, architecture, (), [site.name for site in self.adapter.sites])
        weights = OriginalWeights({site.name: site for site in sites})
        weights.write(self.adapter.changes())
        weights.drop()

    # ------------------------------------------------------------------ looking, saving

    @torch.no_grad()
    def explain(self, prompt: Prompt) -> Explanation:
        """The next token with and without the adapter, and how much it adds to each linear."""
        text, shares = self._host.text, list[tuple[str, float]]()
        batch = text.batch([text.row(text.encode(prompt))])

        def sizes(index: int) -> Hook:
            hook, site = self.adapter.hook(index, lambda: self.active), self.adapter.sites[index]

            def after(m: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
                changed = hook.fn(m, args, kwargs, output)
                if changed is not None:
                    own, new = (x.reshape(-1, x.shape[-1])[-1].float() for x in (output, changed))
                    shares.append((site.name, float((new - own).norm() / own.norm().clamp(min=1e-30))))
                return changed

            return Hook(site.module, "after", after)

        with self._host.tracker.off(), evaluating(self._host.model):
            base = self._host.forward(self._host.model, batch).logits[0, -1].argmax()
            with OwnHooks([sizes(i) for i in range(len(self.adapter.sites))]):
                edited = self._host.forward(self._host.model, batch).logits[0, -1].argmax()
        before, after = (text.tokenizer.decode([int(token)]) for token in (base, edited))
        return Explanation(prompt, before, after, tuple(shares))

    def state(self) -> State:
        """The adapter."""
        tensors = {f"adapter.{i}": tensor for i, tensor in enumerate(self.adapter.snapshot())}
        meta = {"edits": list(self.records), "off": sorted(self.off), "config": asdict(self.config)}
        return State(tensors, meta)

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave; see `Method.restore`."""
        held, off = names(meta["edits"], "the adapter's edits"), names(meta["off"], "those that are off")
        check_edits(held, off, edits)
        mine = {f"adapter.{i}": parameter for i, parameter in enumerate(self.adapter.parameters)}
        check_rest(tensors, mine)
        made = [shaped(tensors, name, tuple(p.shape), p.dtype) for name, p in mine.items()]
        with self._host.tracker.gate.changing():
            self.adapter.load(made)
            self.records, self.off, self._before = {id: edits[id] for id in held}, set(off), {}
