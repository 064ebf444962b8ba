"""The method behind all weight editors: features, changes, networks and their statistics.

What a single method does differently stands in its own file, mostly as constants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...edits import Case, Edit, EditError, EditTable
from ...interface import Host, State
from ...model.architecture import evaluating
from ...saving.checked import shaped
from ...weights.entries import Entry
from ...weights.modules import Range
from ..inweights.config import WeightConfig
from ..inweights.guard import CollapseError
from ..inweights.method import LedgerMethod
from .calibrate import find_step, ordinary_inputs, stand_ins
from .config import EditorConfig
from .editor import Editor, Update
from .features import Request, requests
from .fit import FitError, FitReport, fit
from .grow_ranges import grow_ranges
from .metric import PastInputs

__all__ = ["FittedEditor", "UnfittedError", "WeightEditor"]

_STAND_INS = 64
_STEPPED = 12  # of them, edited at every step size


class UnfittedError(EditError):
    """An editor that has to be fitted first."""


class WeightEditor(LedgerMethod):
    """Learns an edit by predicting low-rank changes of a few weights from activations and gradients.

    Args:
        host: the model.
        config: constants.

    Raises:
        ValueError: modules that do not exist, or are named twice.
        UnsupportedModelError: modules that cannot be edited.
    """

    name: ClassVar[str] = ""
    _kinds: ClassVar[tuple[str, ...]] = ("ledger.", "editor.")
    networks: ClassVar[bool] = False
    """Whether there are networks."""
    gated: ClassVar[bool] = False
    """Whether modules are chosen for each batch of edits."""

    def __init__(self, host: Host, config: EditorConfig) -> None:
        super().__init__(host, config)
        self._take(self._fresh())

    def _take(self, editor: Editor) -> None:
        """Edit with these networks from now on."""
        self.editor = editor
        self._named: str | None = None
        self._counted: list[Entry] = []
        self._past: list[PastInputs] = []

    def _ranges(self) -> Sequence[Range]:
        given = self.config.ranges
        if given is not None:
            return tuple(given)
        return grow_ranges(self._host, WeightConfig().ranges or (), self.config.capacity)

    def _needs(self) -> int:
        """As in `LedgerMethod`, with the second moments of earlier edits' inputs."""
        wide = sum(site.d_k**2 for site in self.sites) if self.config.remember else 0
        return super()._needs() + 16 * wide

    def _fresh(self) -> Editor:
        """An editor as it is before fitting, where the features will be and as exact as they are."""
        editor = Editor(self.sites, self.config, self.gated, self.networks).to(self._host.text.device)
        return editor.double() if self._host.model.dtype == torch.float64 else editor

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """See `LedgerMethod.learn`; running statistics, too, are as before after an error."""
        if not bool(self.editor.fitted):
            with self.ledger.drafting():  # which looks at the base model
                self._calibrate()
        statistics = deepcopy(self.editor.state_dict()) if self._observes() else None
        try:
            super().learn(edits, replaced, progress=progress)
        except BaseException:
            if statistics is not None:
                self.load_editor(statistics)
            raise

    def _edit(self, edits: Sequence[Edit]) -> None:
        """As in `LedgerMethod`; a batch whose further steps would break the model is made without them."""
        before = self.ledger.entries
        try:
            super()._edit(edits)
        except CollapseError:
            if not self.config.extra_steps or self._observes():
                raise
            self.ledger.hold(before)
            with evaluating(self._host.model):
                self.ledger.add(self._make(edits, further=False))
                self._guard.check()

    def _make(self, edits: Sequence[Edit], further: bool = True) -> Entry:
        text = self._host.text
        asked = [requests(text, edit, text.forms(edit.prompt), self.config.tokens) for edit in edits]
        update = self.editor.make(
            self._host,
            [one for some in asked for one in some],
            of=[i for i, some in enumerate(asked) for _ in some],
            past=self._past_inputs(),
            observe=self._observes(),
            further=further,
        )
        self._named = None if self._observes() else self._named
        parts = tuple(part.kept(self.config.rows == "float16") for part in update.parts(self.sites))
        return Entry(tuple(str(e.id) for e in edits), parts, notes=self._notes(update))

    def _past_inputs(self) -> list[PastInputs] | None:
        """By module, the inputs of the edits in force: they follow from the ledger alone, to the bit."""
        if not self.config.remember:
            return None
        active = [entry for entry in self.ledger.entries if entry.on]
        # Counting goes on where the ledger has only grown.
        same = [one.key for one in active[: len(self._counted)]] == [one.key for one in self._counted]
        if not same or not self._past:
            self._counted, self._past = [], self.editor.no_past()
        by_name = dict(zip((site.name for site in self.sites), self._past, strict=True))
        for entry in active[len(self._counted) :]:
            on = torch.tensor([id in entry.on for id in entry.ids])
            for part in entry.parts:
                by_name[part.site].add(part.wide(self._host.text.device).keys[on[part.owner]])
        self._counted = active
        return self._past

    def _observes(self) -> bool:
        """Whether an edit changes the running statistics."""
        return False

    def _notes(self, update: Update) -> dict[str, Any]:
        notes: dict[str, Any] = {"before": self._before(), "editor": self.fingerprint()}
        if update.choice is not None:
            names = [site.name for site in self.sites]
            notes["scores"] = dict(zip(names, update.choice.scores.tolist(), strict=True))
            notes["chosen"] = [n for i, n in enumerate(names) if update.chosen(i)]
        return notes

    def _calibrate(self) -> None:
        """Statistics and step size from the base model's own text; for editors without networks."""
        fresh = self._fresh()
        with self.ledger.paused(), self._host.tracker.off(), evaluating(self._host.model):
            pairs = stand_ins(self._host, _STAND_INS, self.config.seed)
            asked = [Request(pair, list(range(pair.start - 1, len(pair.ids) - 1))) for pair in pairs]
            if fresh.usual:
                fresh.study(ordinary_inputs(self._host, self.sites, self.config.seed))
            fresh.make(self._host, asked, observe=True)
            if self.config.inner_lr is None:
                find_step(self._host, fresh, asked[:_STEPPED])
        fresh.fitted.fill_(True)
        self._take(fresh)

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
        tensors, meta = super().state()
        tensors |= {f"editor.{name}": tensor for name, tensor in self.editor.state_dict().items()}
        return State(tensors, meta)

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave; see `Method.restore`."""
        editor = {n.removeprefix("editor."): t for n, t in tensors.items() if n.startswith("editor.")}
        for name, mine in self.editor.state_dict().items():
            shaped(editor, name, tuple(mine.shape), mine.dtype)
        read = self._read(editor)
        super().restore(tensors, meta, edits)
        self._take(read)

    def load_editor(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over networks and statistics.

        Raises:
            ValueError: they were made for other modules or with other constants.
        """
        self._take(self._read(tensors))

    def _read(self, tensors: Mapping[str, Tensor]) -> Editor:
        """An editor with these networks and statistics: the present one where it has them."""
        held = self.editor.state_dict()
        if held.keys() == tensors.keys() and all(torch.equal(t, tensors[n].to(t)) for n, t in held.items()):
            return self.editor
        fresh = self._fresh()
        try:
            fresh.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise ValueError(
                f"the editor's networks do not fit this {self.name!r} configuration: {str(error)[:200]}"
            ) from error
        return fresh


class FittedEditor(WeightEditor):
    """A weight editor whose networks are fitted before they edit."""

    networks = True

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens, UnfittedError where fitting comes first."""
        if not bool(self.editor.fitted):
            raise UnfittedError(
                f"this {self.name!r} editor is not fitted; call plug.fit(cases) with cases that share no "
                "subject with your edits, or attach(..., editor=path) with one that `memplug fit` or "
                "save_editor(path) wrote. (Some ship for the embedded model and SmolLM2 in float32, "
                "and are taken where no constants of their networks are set otherwise)"
            )
        super().check(edits)

    def fit(
        self,
        cases: Sequence[Case],
        *,
        progress: bool = True,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 10,
    ) -> FitReport:
        """Fit from the start, or from a checkpoint; see `fit`. On an error the editor is what it was
        before."""
        for case in cases:
            if not isinstance(case, Case):
                raise FitError(
                    f"fit takes cases, got {type(case).__name__}; give Case(edit, rephrases, locality)"
                )
        fresh = self._fresh()
        report = fit(
            self._host,
            fresh,
            cases,
            progress=progress,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
        )
        self._take(fresh)
        return report

    def editor_state(self) -> dict[str, Tensor]:
        """The networks and their statistics.

        Raises:
            UnfittedError: there is nothing yet.
        """
        if not bool(self.editor.fitted):
            raise UnfittedError("there is no fitted editor to save; call plug.fit(cases) first")
        return dict(self.editor.state_dict())
