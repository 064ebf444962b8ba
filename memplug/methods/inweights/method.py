"""The method behind all whose edits are entries of a ledger: batches, the guard, switching, replay, saving.

How an edit's change comes about is for the subclass to say, in `LedgerMethod._make`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor
from tqdm.auto import tqdm

from ...edits import Edit, EditError, EditTable
from ...interface import Host, State
from ...model.architecture import evaluating
from ...model.hooks import Hook
from ...saving.checked import check_edits, check_rest
from ...text.chat import Prompt, canonical, question
from ...text.names import names
from ...weights.entries import Entry
from ...weights.entry_tensors import entries_from
from ...weights.free_memory import check_room
from ...weights.ledger import Ledger
from ...weights.modules import Range, find_sites
from .branch import Factors, side_branch
from .config import WeightConfig
from .explain import Explanation, report
from .guard import Guard
from .rows import chunks

__all__ = ["LedgerMethod"]


class LedgerMethod:
    """Keeps edits in a ledger over original weights.

    Args:
        host: the model.
        config: constants.

    Raises:
        ValueError: modules that do not exist, or are named twice.
        UnsupportedModelError: modules that cannot be edited.
    """

    name: ClassVar[str] = ""
    _kinds: ClassVar[tuple[str, ...]] = ("ledger.",)
    """How names of saved tensors begin."""

    def __init__(self, host: Host, config: WeightConfig) -> None:
        self.config: Any = config
        self._host = host
        merged = config.mode == "merged"
        ranges = self._ranges() if config.modules is None else ()
        self.sites = find_sites(host.model, host.architecture, ranges, config.modules, writable=merged)
        gate, shadows = host.tracker.gate, host.architecture.shadows
        self.ledger = Ledger(self.sites, config.mode, changing=gate.changing, shadows=shadows)
        self._guard = Guard(host, self.ledger, config)
        self._edits: dict[str, Edit] = {}

    def _ranges(self) -> Sequence[Range]:
        """Which linears of which layers to edit, where no modules are named."""
        return tuple(self.config.ranges)

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

    @contextmanager
    def base(self) -> Iterator[None]:
        """The original weights inside the ``with``, for this thread alone."""
        with self.ledger.drafting(), self.ledger.paused():
            yield

    def release(self) -> None:
        """Put the original weights back, for good."""
        self.ledger.release()

    def merge(self) -> None:
        """Make the edited weights the model's own."""
        find_sites(self._host.model, self._host.architecture, (), [site.name for site in self.sites])
        self.ledger.merge()

    # ------------------------------------------------------------------ edits

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens, EditError where the plug is paused."""
        for edit in edits:
            self._host.text.pair(edit.prompt, edit.target)
        self._check_not_paused()

    def _check_not_paused(self) -> None:
        if self.ledger.active != any(entry.on for entry in self.ledger.entries):
            raise EditError(
                "the plug is paused; edit outside of paused(): an edit is made on the edited weights"
            )

    def _needs(self) -> int:
        """Bytes that edits take beside the model, most of all: of each module a copy, and sums of changes."""
        sizes = ((site.d_k * site.d_v, site.weight.element_size()) for site in self.sites)
        return sum(size * (3 * 4 + kept) for size, kept in sizes)

    def _check_room(self) -> None:
        if not self.ledger.entries:
            check_room(
                self._needs(),
                self.sites[0].device,
                f"{self.name} on {len(self.sites)} modules ({self.sites[0].name}, ...)",
                "name fewer or narrower ones with modules or ranges",
            )

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """Change the weights, ``config.batch_size`` edits at a time, each batch on what the last one left.

        Raises:
            CollapseError: the guard refused a batch; the whole call is undone, batches before it included.
        """
        quiet = not progress or len(edits) < 2
        self._check_room()
        with self._drafting():
            self._drop(replaced)
            with tqdm(total=len(edits), desc="editing", unit="edit", disable=quiet, leave=False) as bar:
                for part in chunks(range(len(edits)), self.config.batch_size):
                    self._edit([edits[i] for i in part])
                    bar.update(len(part))
        for edit in replaced:
            self._edits.pop(str(edit.id), None)
        self._edits |= {str(edit.id): edit for edit in edits}

    @contextmanager
    def _drafting(self) -> Iterator[None]:
        """Changes for this thread alone, and for all in the end; on an error the entries are as they were."""
        before = self.ledger.entries
        with self.ledger.drafting():
            try:
                yield
            except BaseException:
                if self.ledger.entries is not before:
                    self.ledger.hold(before)
                raise

    def _make(self, edits: Sequence[Edit]) -> Entry:
        """The entry of a batch of edits, made at the weights as they are now."""
        raise NotImplementedError

    def _hold(self, entries: Iterable[Entry]) -> None:
        """Bring the weights in line with entries that were switched or taken from."""
        self.ledger.hold(entries)

    def _edit(self, edits: Sequence[Edit]) -> None:
        with evaluating(self._host.model):
            self.ledger.add(self._make(edits))
            self._guard.look()

    def _drop(self, edits: Iterable[Edit]) -> None:
        ids = [str(edit.id) for edit in edits]
        if ids:
            self._hold(self.ledger.without(ids))

    def _before(self) -> str:
        """A name for the edits in force, those that the next one is made on."""
        names = "\n".join(id for entry in self.ledger.entries for id in entry.on)
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    def forget(self, edits: Sequence[Edit], *, progress: bool, replay: bool = False) -> None:
        """Take edits out of the ledger; with ``replay``, make all that came later anew.

        Without it, what was made on weights that held the deleted edits stays as it was made: later edits,
        and with several steps also the later steps of edits that were made together with a deleted one.
        With it all of these are made anew, and the model becomes the one in which the deleted edits had never
        been made, to the bit (edits that are switched off are made again like the others, and then switched
        off).
        """
        with self._drafting():
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
        # Kept entries count as they did when the later ones were made: switched on.
        self._hold(replace(entry, off=frozenset()) for entry in before[:first])
        for entry in tqdm(before[first:], desc="replaying", disable=not progress, leave=False):
            left = [self._edits[id] for id in entry.ids if id not in gone]
            if left:
                self._edit(left)
        if off:
            self._hold(self.ledger.switched(off, on=False))

    def switch(self, edits: Sequence[Edit], on: bool, *, progress: bool) -> None:
        """Switch edits; a batch that was made together is solved again, step by step, for those in force."""
        if edits:
            with self._drafting():
                self._hold(self.ledger.switched([str(edit.id) for edit in edits], on))

    # ------------------------------------------------------------------ looking

    def explain(self, prompt: Prompt) -> Explanation:
        """Base and edited answer, what all edits change, and what those of this prompt or its subject did."""
        text = self._host.text
        ids = text.encode(prompt)
        edited = text.decode(text.generate([ids], 12)[0])
        with self.base(), self._host.tracker.off():
            base = text.decode(text.generate([ids], 12)[0])
        same, asked = canonical(prompt), question(prompt)
        near = [
            e
            for e in self._edits.values()
            if canonical(e.prompt) == same or names(asked, e.subject or e.question)
        ]
        reports = tuple(report(self.ledger, edit) for edit in near)
        return Explanation(prompt, base, edited, self.ledger.relative_change(), reports)

    # ------------------------------------------------------------------ saving

    def state(self) -> State:
        """The ledger's rows."""
        tensors = {f"ledger.{name}": tensor for name, tensor in self.ledger.tensors().items()}
        return State(tensors, {"entries": self.ledger.meta()})

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave; see `Method.restore`."""
        check_rest(tensors, (name for name in tensors if name.startswith(self._kinds)))
        rows = {n.removeprefix("ledger."): t for n, t in tensors.items() if n.startswith("ledger.")}
        entries = entries_from(self.ledger.sites, rows, meta["entries"])
        check_edits(
            (id for entry in entries for id in entry.ids),
            (id for entry in entries for id in entry.off),
            edits,
        )
        with self._drafting():
            self.ledger.hold(entries)
        self._edits = dict(edits)
