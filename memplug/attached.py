"""A plug's hold on a model: its hooks, the edits in force, one change at a time, the base model in between.

Any number of threads may run the model, also while one changes the edits; see `gate`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from .edits import Edit, EditTable
from .interface import ChangesWeights, Host
from .methods import SEQ2SEQ, Registered
from .model.architecture import UnsupportedModelError, inspect_model, learning, uncast
from .model.hooks import HookSet
from .model.inner_hooks import watched
from .model.interrupts import undone
from .model.tracker import CallTracker
from .saving.versions import Saves
from .text.tokens import Text, apart
from .text.vocabulary import media_ids

if TYPE_CHECKING:
    from .store.revisions import Revision
    from .store.store import Store

__all__ = ["MARK", "Attached", "check_free", "plug_of"]

MARK = "_memplug_plug"
"""Attribute of a model that has a plug, which it is."""


class Attached:
    """What `Plug` stands on; see there."""

    def __init__(
        self, model: Any, tokenizer: Any, registered: Registered, config: Any, layers: str | None
    ) -> None:
        check_free(model)
        architecture = inspect_model(model, layers)
        if architecture.encoder is not None:
            _check_seq2seq(model, registered.name, config)
        text = self._text = Text(model, apart(tokenizer))
        tracker = self._tracker = CallTracker(architecture, text.bos_id, media_ids(model.config))
        self.model, self.tokenizer, self.name = model, tokenizer, registered.name
        with learning():
            self._host = Host(model, text, architecture, tracker)
            self.method = registered.method(self._host, config)
        self.layers = architecture.names[0].rpartition(".")[0]
        self._edits: dict[str, Edit] = {}
        self._off: frozenset[str] = frozenset()
        self._count = 0
        self.saves = Saves()
        self.store: Store | None = None
        self._paused = 0
        self._trial: tuple[int, EditTable] | None = None
        self._lock = threading.RLock()
        self._hooks: HookSet | None = None
        self._hooks = HookSet(
            [*tracker.hooks(self._wanted), *watched(architecture, tracker, self.method.hooks())]
        )
        setattr(model, MARK, self)

    def _wanted(self) -> object:
        """What stands for the edits in force; None where there are none."""
        on = self._hooks is not None and not self._paused and self.method.active
        return self._tracker.gate.version if on else None

    @property
    def version(self) -> object:
        """Stands for the edits as they are now: another object after each change of them."""
        return self._tracker.gate.version

    @property
    def count(self) -> int:
        """Edits ever learned; ids go on from here."""
        return self._count

    @property
    def edits(self) -> EditTable:
        """The edits by id, in order, as they are now; those that are only tried, for who tries them alone."""
        trial = self._trial
        if trial is not None and trial[0] != threading.get_ident():
            return trial[1]
        return EditTable(self._edits, self._off)

    def take_over(self, edits: Mapping[str, Edit], off: Iterable[str], count: int) -> None:
        """Hold these edits, which the method has learned already."""
        self._edits, self._off, self._count = dict(edits), frozenset(off), count

    @contextmanager
    def _changing(self, action: str | None = None) -> Iterator[None]:
        """One thread at a time, with gradients.

        Args:
            action: what the store's history calls it; None where it is not stored.

        Raises:
            RuntimeError: asked for inside a forward of the model, which would wait for itself.
        """
        gate = self._tracker.gate
        if gate.inside:
            raise RuntimeError("edits cannot be changed inside a forward of the model; do it before or after")
        with self._lock:
            store = None if action is None or self._trial else self.store
            if store is not None:
                self.refresh()  # by itself, since what is swapped in makes Ctrl-C wait for the end
            with gate.uninterrupted(), gate.renewing(), learning(), ExitStack() as stack:
                self._check_attached()  # another thread may have detached meanwhile
                if store is not None:
                    stack.enter_context(store.change(action or "", gate.point))
                yield

    @contextmanager
    def trying(self) -> Iterator[None]:
        """What is edited inside the ``with`` is taken back at its end, and never stored.

        Forwards of other threads wait until then, so that none of them sees it. A second state beside the
        first would spare them the wait, but methods have one, and weights are there once.
        """
        with self._changing(), self._tracker.gate.changing():
            before, count, state = self.edits, self._count, self.method.state()
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.tensors.items()}
            meta = json.loads(json.dumps(state.meta))
            self._trial = threading.get_ident(), before
            try:
                yield
            finally:
                try:
                    self.method.restore(tensors, meta, before)
                    off = [id for id in before if not before.enabled(id)]
                    self.take_over({id: before[id] for id in before}, off, count)
                finally:
                    self._trial = None

    def _chosen(self, given: Iterable[str | Edit | Iterable[str | Edit]]) -> list[Edit]:
        self._check_attached()
        return self.edits.named(given)

    def _check_attached(self) -> None:
        if self._hooks is None:
            raise ValueError("this plug was detached; attach a new one, or memplug.load a saved one")

    # ------------------------------------------------------------------ the base model

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the ``with`` the model is the base model, to the bit.

        That holds for all threads. A pause begins and ends between forwards; where edits are in the weights
        it waits for a change that another thread is making.
        """
        weights, stack, gate = isinstance(self.method, ChangesWeights), ExitStack(), self._tracker.gate

        @contextmanager
        def turning() -> Iterator[None]:
            with self._lock if weights else nullcontext(), gate.changing(), uncast():
                yield

        begun = False

        def end() -> None:
            nonlocal begun
            if begun:
                with gate.uninterrupted(hold=True), turning():
                    self._paused -= 1
                    stack.close()
                    begun = False

        with undone(end):
            with turning():
                if isinstance(self.method, ChangesWeights):
                    stack.enter_context(self.method.paused())
                self._paused += 1
                begun = True
            yield

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside the ``with`` this thread's forwards are the base model's, to the bit; others' stay edited.

        Where edits are in the weights, it waits for a change that another thread is making, and changes wait
        for its end.
        """
        self._check_attached()
        with ExitStack() as stack:
            if isinstance(self.method, ChangesWeights):
                stack.enter_context(self._lock)
                stack.enter_context(self.method.base())
            stack.enter_context(self._tracker.off())
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The base model for this thread inside the ``with``; forwards of others wait. For moments only."""
        with self._lock, self._tracker.gate.changing(), self.paused():
            yield

    @contextmanager
    def prompt_lengths(self, lengths: Sequence[int]) -> Iterator[None]:
        """Inside the ``with``, plain forwards over prompt and answer know where each prompt ends.

        Methods that decide at the end of the prompt need it where the model is handed the answer as well
        (teacher forcing); unsaid, a row's last real token counts. ``generate`` needs nothing, nor does an
        encoder-decoder, whose prompt is the source.

        Args:
            lengths: tokens of each row's prompt, padding left out, a BOS included.

        Raises:
            ValueError: a length below 1, or not one for each row.
        """
        with self._tracker.prompt_lengths(lengths):
            yield

    # ------------------------------------------------------------------ the store

    def refresh(self) -> int:
        """Take up what others have stored; gives back the number of the newest revision.

        Raises:
            ValueError: the plug has no store.
            StoreError: it cannot be read.
            LoadError: it is damaged, or holds edits of another model now.
        """
        with self._changing():
            return self._stored().take_up()

    def history(self) -> list[Revision]:
        """Every state of the store, the first one first: when, who, why, what was done, which edits.

        Raises:
            ValueError, StoreError: as `refresh`.
        """
        return self._stored().history()

    def rollback(self, revision: int) -> None:
        """Go back to the state of an earlier revision, as it was stored, which is a new revision.

        Ids go on from the last one all the same: in all of a history an id is one edit's.

        Raises:
            ValueError, StoreError, LoadError: as `refresh`; or there is no such revision, or it was pruned.
        """
        store = self._stored()
        with self._changing(f"rollback to {revision}"):
            count = self._count
            store.bring(revision)
            self._count = max(count, self._count)

    def _stored(self) -> Store:
        if self.store is None:
            raise ValueError('this plug has no store; memplug.attach(..., store="facts.db") gives it one')
        return self.store


def _check_seq2seq(model: Any, name: str, config: Any) -> None:
    """Raises UnsupportedModelError for a method that does not edit encoder-decoders."""
    if name not in SEQ2SEQ and not (name == "grace" and config.scope == "radius"):
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder, and {name!r} looks for its edits in what a "
            f"decoder reads; choose {', '.join(SEQ2SEQ)}, or grace with preset='paper'"
        )


def check_free(model: Any) -> None:
    """Raises ValueError for a model that has a plug."""
    if hasattr(model, MARK):
        raise ValueError(
            "this model has a plug already; call detach() on it first (memplug.attach gave it back), "
            "or load the model a second time"
        )


def plug_of(model: Any) -> Any:
    """The plug that is attached to ``model``, if any."""
    return getattr(model, MARK, None)
