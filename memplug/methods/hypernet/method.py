"""The method behind all weight editors: features, changes, the ledger, the guard.

What a single method does differently stands in its own file, mostly as constants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...edits import Edit, EditError
from ...entries import Entry
from ...hooks import Hook
from ...layers import evaluating
from ...ledger import Ledger
from ...sites import find_sites
from ..base import Host, State
from .branch import Factors, side_branch
from .calibrate import find_step, stand_ins
from .capture import chunks
from .config import EditorConfig
from .editor import Editor, Made
from .explain import Explanation, report
from .guard import Guard

__all__ = ["UnfittedError", "WeightEditor"]

_STAND_INS = 64


class UnfittedError(EditError):
    """An editor that has to be fitted first."""


class WeightEditor:
    """Learns an edit by predicting low-rank changes of a few weights from activations and gradients.

    Args:
        host: the model.
        config: constants.

    Raises:
        ValueError: modules that do not exist, or are named twice.
        UnsupportedModelError: modules that cannot be edited.
    """

    name: ClassVar[str] = ""
    networks: ClassVar[bool] = True
    """Whether there is something to fit."""
    gated: ClassVar[bool] = False
    """Whether modules are chosen for each batch of edits."""

    def __init__(self, host: Host, config: EditorConfig) -> None:
        self.config, self._host = config, host
        merged = config.mode == "merged"
        self.sites = find_sites(host.model, host.anatomy, config.ranges, config.modules, writable=merged)
        self.ledger = Ledger(self.sites, config.mode)
        self.editor = Editor(self.sites, config, self.gated, self.networks).to(host.text.device)
        self._guard = Guard(host, self.ledger, config)
        self._edits: dict[str, Edit] = {}
        self._named: str | None = None

    @property
    def active(self) -> bool:
        """Whether an edit is in force."""
        return self.ledger.active

    def hooks(self) -> list[Hook]:
        """In side mode, the changes beside the weights; else none."""
        if self.config.mode == "merged":
            return []
        tracker = self._host.tracker

        def current(name: str) -> Factors | None:
            return None if tracker.current is None else self.ledger.branch(name)

        return [side_branch(site, lambda name=site.name: current(name)) for site in self.sites]  # type: ignore[misc]

    def paused(self) -> AbstractContextManager[None]:
        """The original weights inside the ``with``."""
        return self.ledger.paused()

    def release(self) -> None:
        """Put the original weights back, for good."""
        self.ledger.release()

    def merge(self) -> None:
        """Make the edited weights the model's own."""
        find_sites(self._host.model, self._host.anatomy, (), [site.name for site in self.sites])
        self.ledger.merge()

    # ------------------------------------------------------------------ edits

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens, UnfittedError where fitting comes first."""
        for edit in edits:
            self._host.text.pair(edit.prompt, edit.target)
        if self.networks and not bool(self.editor.fitted):
            raise UnfittedError(
                f"this {self.name!r} editor is not fitted; call plug.fit(cases) with cases that share no "
                "subject with your edits, or attach(..., editor=path) with one that save_editor(path) wrote"
            )
        if self.ledger.active != any(entry.on for entry in self.ledger.entries):
            raise EditError(
                "the plug is paused; edit outside of paused(): an edit is made on the edited weights"
            )

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """Change the weights, ``config.batch_size`` edits at a time, each batch on what the last one left.

        Raises:
            CollapseError: the guard refused a batch; none of the edits was made.
        """
        if not bool(self.editor.fitted):
            self._calibrate()
        before = self.ledger.entries
        statistics = deepcopy(self.editor.state_dict()) if self._observes() else None
        try:
            self._drop(replaced)
            with tqdm(
                total=len(edits),
                desc="editing",
                unit="edit",
                disable=not progress or len(edits) < 2,
                leave=False,
            ) as bar:
                for part in chunks(range(len(edits)), self.config.batch_size):
                    self._edit([edits[i] for i in part])
                    bar.update(len(part))
        except BaseException:
            self.ledger.hold(before)
            if statistics is not None:
                self.load_editor(statistics)
            raise
        for edit in replaced:
            self._edits.pop(str(edit.id), None)
        self._edits |= {str(edit.id): edit for edit in edits}

    def _drop(self, edits: Iterable[Edit]) -> None:
        ids = [str(edit.id) for edit in edits]
        if ids:
            self.ledger.delete(ids)

    def _edit(self, edits: Sequence[Edit]) -> None:
        pairs = [self._host.text.pair(edit.prompt, edit.target) for edit in edits]
        with evaluating(self._host.model):
            made = self.editor.make(self._host, pairs, observe=self._observes())
            self._named = None if self._observes() else self._named
            self.ledger.add(
                Entry(tuple(str(e.id) for e in edits), made.parts(self.sites), notes=self._notes(made))
            )
            self._guard.look()

    def _observes(self) -> bool:
        """Whether an edit changes the running statistics."""
        return False

    def _notes(self, made: Made) -> dict[str, Any]:
        before = hashlib.sha256("\n".join(id for e in self.ledger.entries for id in e.on).encode())
        notes: dict[str, Any] = {"before": before.hexdigest()[:16], "editor": self.fingerprint()}
        if made.choice is not None:
            names = [site.name for site in self.sites]
            notes["scores"] = dict(zip(names, made.choice.scores.tolist(), strict=True))
            notes["chosen"] = [n for n, m in zip(names, made.choice.mask.tolist(), strict=True) if m > 0.5]
        return notes

    def _calibrate(self) -> None:
        """Statistics and step size from the base model's own text; for editors without networks."""
        fresh = Editor(self.sites, self.config, self.gated, self.networks).to(self._host.text.device)
        with self.ledger.paused(), self._host.tracker.off(), evaluating(self._host.model):
            pairs = stand_ins(self._host, _STAND_INS, self.config.seed)
            fresh.make(self._host, pairs, observe=True)
            if self.config.inner_lr is None:
                find_step(self._host, fresh, pairs[:24])
        fresh.fitted.fill_(True)
        self.editor, self._named = fresh, None

    def forget(self, edits: Sequence[Edit], *, progress: bool, replay: bool = False) -> None:
        """Take edits out of the ledger; with ``replay``, make all that came later anew.

        Without it, later edits keep the change that was predicted on weights that held the deleted ones.
        With it the model becomes the one in which the deleted edits had never been made, to the bit (edits
        that are switched off are made again like the others, and then switched off).
        """
        if not replay:
            self._drop(edits)
        else:
            self._replay({str(edit.id) for edit in edits}, progress)
        for edit in edits:
            self._edits.pop(str(edit.id), None)

    def _replay(self, gone: set[str], progress: bool) -> None:
        before = self.ledger.entries
        first = next(i for i, entry in enumerate(before) if gone & set(entry.ids))
        off = {id for entry in before for id in entry.off} - gone
        try:
            # Kept entries count as they did when the later ones were made: switched on.
            self.ledger.hold(replace(entry, off=frozenset()) for entry in before[:first])
            for entry in tqdm(before[first:], desc="replaying", disable=not progress, leave=False):
                left = [self._edits[id] for id in entry.ids if id not in gone]
                if left:
                    self._edit(left)
            if off:
                self.ledger.switch(off, on=False)
        except BaseException:
            self.ledger.hold(before)
            raise

    def switch(self, edits: Sequence[Edit], on: bool, *, progress: bool) -> None:
        """Switch edits; a batch that was solved together is solved for those in force."""
        if edits:
            self.ledger.switch([str(edit.id) for edit in edits], on)

    # ------------------------------------------------------------------ looking

    def explain(self, prompt: str) -> Explanation:
        """Base and edited answer, what all edits change, and what those of this prompt or its subject did."""
        text = self._host.text
        ids = text.encode(prompt)
        edited = text.decode(text.generate([ids], 12)[0])
        with self.ledger.paused(), self._host.tracker.off():
            base = text.decode(text.generate([ids], 12)[0])
        near = [e for e in self._edits.values() if e.prompt == prompt or (e.subject or e.prompt) in prompt]
        reports = tuple(report(self.ledger, edit) for edit in near)
        return Explanation(prompt, base, edited, self.ledger.relative_change(), reports)

    # ------------------------------------------------------------------ saving

    def fingerprint(self) -> str:
        """A name for the networks and their statistics."""
        if self._named is None:
            digest = hashlib.sha256()
            for name, tensor in sorted(self.editor.state_dict().items()):
                plain = tensor.detach().cpu().contiguous().reshape(-1)
                digest.update(name.encode() + plain.view(torch.uint8).numpy().tobytes())
            self._named = digest.hexdigest()[:16]
        return self._named

    def state(self) -> State:
        """The ledger's rows and the networks."""
        tensors = {f"ledger.{name}": tensor for name, tensor in self.ledger.tensors().items()}
        tensors |= {f"editor.{name}": tensor for name, tensor in self.editor.state_dict().items()}
        return State(tensors, {"entries": self.ledger.meta()})

    def restore(
        self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: Mapping[str, Edit]
    ) -> None:
        """Take over what `state` gave."""
        self.load_editor(
            {n.removeprefix("editor."): t for n, t in tensors.items() if n.startswith("editor.")}
        )
        rows = {n.removeprefix("ledger."): t for n, t in tensors.items() if n.startswith("ledger.")}
        ids = [id for entry in meta["entries"] for id in entry["ids"]]
        if sorted(ids) != sorted(edits):
            raise ValueError(
                f"the ledger holds {len(ids)} edits, the list {len(edits)}, and they are not the same"
            )
        self.ledger.load(rows, meta["entries"])
        self._edits = dict(edits)

    def load_editor(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over networks and statistics.

        Raises:
            ValueError: they were made for other modules or with other constants.
        """
        try:
            self.editor.load_state_dict(dict(tensors))
            self._named = None
        except RuntimeError as error:
            raise ValueError(
                f"the editor's networks do not fit this {self.name!r} configuration: {error}"
            ) from error
