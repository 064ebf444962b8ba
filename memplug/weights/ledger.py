"""The ledger of weight edits: original weights, ordered entries of low-rank factors, switches.

The live weight of a module is always ``cast(W0 + sum)``, where ``sum`` is the float32 sum of the active
entries' changes, taken block by block in the entries' order, and cast once. Nothing is ever added to or
subtracted from a live weight (adding and subtracting in place loses most of a small change in half precision
and never returns to the same bits).

What holds, to the bit, on one machine with one number of threads:

- The weights follow from the active edits and their order alone, however they were reached. Where a block
  ends is decided by the edits in it and not by their position, so a deletion disturbs one block only.
- Every edit off, deleted or paused: the original weights, copied back.
- An edit that was switched off and on again: the weights from before.
- An edit taken out of a batch that was solved together: each step's smaller system, solved again from the
  rows that are there. (A change that was trained as a whole holds for its own set of edits alone; whoever
  made it has to make the smaller one.)

What does not hold: that the model were the one in which a deleted edit had never been made. Later entries
were predicted on weights that held it, and so were the later steps of its own entry: the edits made together
with it keep what these steps predicted (five of ten taken out: a change 1 to 4 % away from that of the other
five made alone). Only making all of them anew gives that (``delete(..., replay=True)``).

Letters: d_k and d_v a module's widths, N rows of all entries, R columns of the factors in force.
Knows nothing about models beyond `LinearModule`, and nothing about how changes are predicted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..model.thread_forwards import Shadows
from .entries import Entry, Factors, summed
from .entry_tensors import entries_from, meta_of, rows_of
from .modules import LinearModule
from .originals import OriginalWeights

__all__ = ["BLOCK", "Ledger"]

BLOCK = 256
"""Edits in a block, on average."""


class Ledger:
    """Entries in order, and the weights that follow from them.

    Args:
        sites: the modules that may change.
        mode: "merged" writes the weights; "side" leaves them alone and gives `branch` to whoever adds it.
        cache_bytes: memory that block sums may take, and solved factors of all blocks but the last.
            Whatever it says, two float32 sums of each changed module are held: of all blocks, and of all but
            the last, so that an edit at the end sums the last block alone.
        changing, shadows: as for `OriginalWeights`.
    """

    def __init__(
        self,
        sites: Sequence[LinearModule],
        mode: Literal["merged", "side"] = "merged",
        cache_bytes: int = 1 << 30,
        changing: Callable[[], AbstractContextManager[None]] = nullcontext,
        shadows: Shadows | None = None,
    ) -> None:
        self.sites = {site.name: site for site in sites}
        self.mode = mode
        self.entries: tuple[Entry, ...] = ()
        self.originals = OriginalWeights(self.sites, changing, shadows)
        self._changing = changing
        self._published: _Published | None = None
        self._cache_bytes = cache_bytes
        self._sums: dict[tuple[Any, ...], _BlockSum] = {}
        self._running: tuple[_Running, ...] = ()
        self._total: dict[str, Tensor] | None = {}
        self._branches: dict[str, Factors] = {}
        self._paused = 0

    @property
    def active(self) -> bool:
        """Whether an edit is in force."""
        published = self._elsewhere()
        if published is not None:
            return any(entry.on for entry in published.entries)
        return not self._paused and any(entry.on for entry in self.entries)

    def _elsewhere(self) -> _Published | None:
        """What is in force while another thread makes a draft; None where this one does, or none."""
        published = self._published
        return None if published is None or published.thread == threading.get_ident() else published

    @contextmanager
    def drafting(self) -> Iterator[None]:
        """Changes for this thread's forwards alone inside the ``with``, and for all when it ends.

        They come at once, or not at all where it ends with an error. A pause inside is for this thread alone,
        too. In a paused ledger nothing is drafted: what is changed there takes effect after the pause.
        """
        if self._published is not None or self._paused:
            yield
            return
        published = _Published(threading.get_ident(), self.entries, self._total, self._branches)
        self._published = published
        try:
            with self.originals.drafting() as publish:
                yield
                if self.entries is not published.entries:
                    with self._changing():
                        try:
                            publish()
                        except BaseException:  # some weights may be written
                            self._take_back(published)
                            self.originals.write(self._changes_now())
                            raise
                        self._published = None
        except BaseException:
            if self._published is not None:
                self._take_back(published)
            raise
        finally:
            self._published = None

    # ------------------------------------------------------------------ changing

    def hold(self, entries: Iterable[Entry]) -> None:
        """Hold these entries, in this order, and bring the weights in line; on an error nothing changed.

        Raises:
            ValueError: an id in two entries, or a module that is not one of the ledger's.
            SolveError: a part that cannot be solved.
        """
        entries = tuple(entries)
        ids = [id for entry in entries for id in entry.ids]
        if len(set(ids)) < len(ids):
            twice = next(id for id in ids if ids.count(id) > 1)
            raise ValueError(f"the id {twice!r} is in two entries; give each edit its own")
        known = set(self.entries)
        fresh = [entry for entry in entries if entry not in known]
        unknown = {part.site for entry in fresh for part in entry.parts}
        unknown |= {whole.site for entry in fresh for whole in entry.wholes}
        unknown -= self.sites.keys()
        if unknown:
            raise ValueError(
                f"an entry changes {sorted(unknown)[0]!r}, the ledger knows {sorted(self.sites)[:8]}"
            )
        if self.mode == "side":
            branches = self._concatenated(entries)
            with self._changing():
                self.entries, self._branches, self._total = entries, branches, None
            return
        changes = self._changes(entries)
        if not self._paused:
            self.originals.write(changes)
        self.entries, self._total = entries, changes

    def add(self, entry: Entry) -> None:
        """Append an entry."""
        self.hold((*self.entries, entry))

    def delete(self, ids: Iterable[str]) -> None:
        """Take edits out for good."""
        self.hold(self.without(ids))

    def without(self, ids: Iterable[str]) -> tuple[Entry, ...]:
        """The entries without these edits; nothing is changed."""
        gone = self._known(ids)
        left = (entry if gone.isdisjoint(entry.ids) else entry.without(gone) for entry in self.entries)
        return tuple(entry for entry in left if entry is not None)

    def switch(self, ids: Iterable[str], on: bool) -> None:
        """Switch edits off, or on again."""
        self.hold(self.switched(ids, on))

    def switched(self, ids: Iterable[str], on: bool) -> tuple[Entry, ...]:
        """The entries with these edits off, or on again; nothing is changed."""
        asked = self._known(ids)
        return tuple(
            entry
            if asked.isdisjoint(entry.ids)
            else replace(
                entry, off=entry.off - asked if on else entry.off | (asked & set(entry.ids)), solved={}
            )
            for entry in self.entries
        )

    def _known(self, ids: Iterable[str]) -> set[str]:
        asked = set(ids)
        unknown = asked - {id for entry in self.entries for id in entry.ids}
        if unknown:
            raise ValueError(f"no entry holds {sorted(unknown)[0]!r}; there are {len(self.entries)} entries")
        return asked

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The original weights inside the ``with``; entries may be changed there and take effect after it."""
        self._paused += 1
        try:
            if self.mode == "merged" and self._paused == 1:
                self.originals.restore()
            yield
        finally:
            self._paused -= 1
            if self.mode == "merged" and not self._paused:
                self.originals.write(self._changes_now())

    def release(self) -> None:
        """The original weights, for good; the entries are let go."""
        self._clear()
        self.originals.restore()
        self.originals.drop()

    def merge(self) -> None:
        """Make the edited weights the model's own, also from side mode; the entries are let go."""
        self.originals.write(self._changes_now())
        self.originals.drop()
        self._clear()

    def _clear(self) -> None:
        self.entries, self._branches, self._total = (), {}, {}
        self._sums, self._running = {}, ()

    def _take_back(self, published: _Published) -> None:
        self.entries, self._total, self._branches = published[1:]

    # ------------------------------------------------------------------ saving

    def tensors(self) -> dict[str, Tensor]:
        """All rows by module and kind; see `rows_of`."""
        return rows_of(self.entries)

    def meta(self) -> list[dict[str, Any]]:
        """What `load` needs beside the tensors; goes through JSON."""
        return meta_of(self.entries)

    def load(self, tensors: Mapping[str, Tensor], meta: Sequence[Mapping[str, Any]]) -> None:
        """Hold what `tensors` and `meta` gave.

        Raises:
            ValueError: they do not fit each other or the modules.
        """
        self.hold(entries_from(self.sites, tensors, meta))

    # ------------------------------------------------------------------ looking

    def change(self, site: str) -> Tensor:
        """float32 [d_k,d_v], the sum of the active entries' changes of one module."""
        where = self.sites[site]
        found = self._changes_now().get(site)
        return torch.zeros(where.d_k, where.d_v, dtype=torch.float32) if found is None else found

    def branch(self, site: str) -> Factors | None:
        """``(a [d_k,R], b [R,d_v])`` to add as ``y + (x a) b`` in side mode; None where nothing is."""
        published = self._elsewhere()
        if published is not None:
            return published.branches.get(site)
        return None if self._paused else self._branches.get(site)

    def relative_change(self) -> dict[str, float]:
        """By module, the norm of the change over the norm of the original weight."""
        return {
            name: float(change.norm()) / max(self.originals.norm(name), 1e-12)
            for name, change in self._changes_now().items()
        }

    def _concatenated(self, entries: Sequence[Entry]) -> dict[str, Factors]:
        found: dict[str, list[Factors]] = {}
        for entry in (entry for entry in entries if entry.on):
            for site, pair in entry.factors(self._devices).items():
                found.setdefault(site, []).append(pair)
            for site, change in entry.dense().items():
                eye = torch.eye(change.shape[1], dtype=change.dtype, device=change.device)
                found.setdefault(site, []).append((change, eye))
        return {
            site: (torch.cat([a for a, _ in pairs], dim=1), torch.cat([b for _, b in pairs]))
            for site, pairs in found.items()
        }

    @property
    def _devices(self) -> dict[str, torch.device]:
        return {name: site.device for name, site in self.sites.items()}

    def _changes_now(self) -> dict[str, Tensor]:
        if self._total is None:
            self._total = self._changes(self.entries)
        return self._total

    def _changes(self, entries: Sequence[Entry]) -> dict[str, Tensor]:
        """By module that an active entry touches, the blocks' sums added up in order."""
        blocks = list(_blocks(entries))
        keys = tuple(tuple(entry.key for entry in block) for block in blocks)
        fits = [one for one in (*self._running, _Running()) if one.keys == keys[: len(one.keys)]]
        done, closed = fits[0], fits[:2][-1]  # the longest one that goes on, and the one before
        sums: dict[tuple[Any, ...], _BlockSum] = {}
        total, size, solved = dict(done.total), 0, 0
        for number, (key, block) in enumerate(zip(keys, blocks, strict=True), start=1):
            if number <= len(done.keys):  # the blocks of a running sum are held
                found = self._sums[key]
            else:
                found = self._sums.get(key, _BlockSum(None, (), 0))
                if found.sums is None:
                    held = tuple((e.parts, e.wholes) for e in block)
                    found = _BlockSum(summed(block, self._devices), held, sum(e.nbytes for e in block))
                if number == len(keys):
                    closed = _Running(keys[:-1], dict(total))
                _add(total, found.sums or {})
            solved += found.solved
            if solved > self._cache_bytes and number < len(blocks):
                for entry in block:
                    entry.solved.clear()
            kept = size + found.nbytes <= self._cache_bytes
            size += found.nbytes * kept
            sums[key] = found if kept else found._replace(sums=None)
        # Only now, so that an error leaves what belongs together.
        self._sums, self._running = sums, (_Running(keys, total), closed)
        return total


class _Published(NamedTuple):
    """What threads other than ``thread`` see while that one makes a draft."""

    thread: int
    entries: tuple[Entry, ...]
    total: dict[str, Tensor] | None
    branches: dict[str, Factors]


class _BlockSum(NamedTuple):
    """By module, the change of a block, None where memory does not do; the parts are kept so that nothing
    else gets their addresses. ``solved`` is what the factors that it was summed from take in bytes."""

    sums: dict[str, Tensor] | None
    parts: tuple[Any, ...]
    solved: int

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.sums or {}).values())


class _Running(NamedTuple):
    """By module, the sum of the blocks with these keys, from the first one on."""

    keys: tuple[tuple[Any, ...], ...] = ()
    total: Mapping[str, Tensor] = MappingProxyType({})


def _add(total: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    for site, part in sums.items():
        total[site] = total[site] + part if site in total else part


def _blocks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Active entries in runs that end where an edit's own id says so, and at four times the usual length."""
    block: list[Entry] = []
    size = 0
    for entry in entries:
        if not entry.on:
            continue
        block.append(entry)
        size += len(entry.on)
        if size >= 4 * BLOCK or entry.mark < 65536 // BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block
