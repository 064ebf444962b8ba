"""What is held of the edits: an entry a subject, and its keys in the key memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..edits import Edit
from ..interface import Host
from ..memory import KeyMemory, quorum_of
from ..saving.checked import whole
from .config import RetrievalConfig
from .entries import Entry, changed, check_keys

__all__ = ["Held"]


class Held:
    """Entries by subject, and the key memory.

    Args:
        host: the model.
        config: constants, with the layers filled in.
        width: of the states that are compared.

    Attributes:
        memory: the keys in force are searched, the others wait.
        entries: by subject.
    """

    def __init__(self, host: Host, config: RetrievalConfig, width: int) -> None:
        layers = config.think_layers or ()
        self.memory = KeyMemory(
            len(layers),
            width,
            threshold=config.threshold,
            top_k=config.top_k,
            quorum=quorum_of(config.quorum, len(layers)),
            order=config.order,
            device=str(host.text.device),
            seed=config.seed,
        )
        self.entries: dict[str, Entry] = {}
        self._owner: dict[int, str] = {}  # key number -> subject
        self._next = 0
        self._stamp = 0

    def _threshold(self, key: Tensor) -> float | None:
        """Cosine that a new key [R,S,K] asks for; None is the memory's."""
        return None

    @property
    def active(self) -> bool:
        """Whether any edit is in force."""
        return any(entry.on for entry in self.entries.values())

    def _edits_of(self, key: int) -> tuple[str, ...]:
        """The edits in force of a key's subject."""
        entry = self.entries.get(self._owner.get(key, ""))
        return entry.on if entry else ()

    def edit(self, id: str) -> Edit:
        """The edit of an id."""
        return next(entry.edits[id] for entry in self.entries.values() if id in entry.edits)

    # ------------------------------------------------------------------ drafts of entries

    def _with(self, edits: Sequence[Edit], replaced: Sequence[Edit]) -> dict[str, Entry]:
        """The entries that change when ``edits`` come in place of ``replaced``."""
        drafts = self._without({edit.id for edit in replaced})
        for edit in edits:
            subject = str(edit.subject)
            draft = drafts.get(subject) or self.entries.get(subject) or Entry(subject, {})
            drafts[subject] = changed(draft, {**draft.edits, str(edit.id): edit}, draft.off)
        return drafts

    def _without(self, ids: Iterable[str | None]) -> dict[str, Entry]:
        """Those that change when these edits go."""
        gone = set(ids)
        drafts = {}
        for subject, entry in self.entries.items():
            if gone & entry.edits.keys():
                edits = {id: edit for id, edit in entry.edits.items() if id not in gone}
                drafts[subject] = changed(entry, edits, entry.off - gone)
        return drafts

    def _switched(self, edits: Sequence[Edit], on: bool) -> dict[str, Entry]:
        """Those that change when these edits are switched."""
        drafts: dict[str, Entry] = {}
        for edit in edits:
            entry = drafts.get(str(edit.subject)) or self.entries[str(edit.subject)]
            off = entry.off - {str(edit.id)} if on else entry.off | {str(edit.id)}
            drafts[entry.subject] = changed(entry, entry.edits, off)
        return drafts

    # ------------------------------------------------------------------ changes; all inside `Gate.changing`

    def _add(self, keys: Mapping[str, Sequence[Tensor]]) -> dict[str, tuple[int, ...]]:
        """Store new keys, all or none, and say under which numbers."""
        first = self._next
        numbers: dict[str, tuple[int, ...]] = {}
        try:
            for subject, some in keys.items():
                numbers[subject] = tuple(range(self._next, self._next + len(some)))
                for key in some:
                    self.memory.add(self._next, key, threshold=self._threshold(key))
                    self._next += 1
        except BaseException:
            for number in range(first, self._next):
                self.memory.remove(number)
            self._next = first
            raise
        return numbers

    def _put(self, draft: Entry, numbers: tuple[int, ...]) -> None:
        """Hold a draft, whose keys have these numbers; one without edits is dropped."""
        self._stamp += 1
        if not draft.edits:
            for number in numbers:
                self.memory.remove(number)
                del self._owner[number]
            del self.entries[draft.subject]
            return
        for number in numbers:
            self._owner[number] = draft.subject
            self.memory.set_enabled(number, bool(draft.on))
        self.entries[draft.subject] = Entry(
            draft.subject, draft.edits, draft.off, numbers, draft.values, self._stamp
        )

    def _take_over(
        self, tensors: Mapping[str, Tensor], entries: dict[str, Entry], meta: Mapping[str, Any]
    ) -> None:
        """Hold the saved keys ("key.*") and these entries, which own them.

        Raises:
            ValueError: they do not fit each other.
        """
        coming = whole(meta["next"], "the next number of a key")
        self.memory.load_state_dict(
            {name.removeprefix("key."): t for name, t in tensors.items() if name.startswith("key.")}
        )
        check_keys(entries.values(), self.memory, coming)
        self.entries = entries
        self._owner = {key: entry.subject for entry in entries.values() for key in entry.keys}
        # Another one than any before: what a cache holds of the entries that were there is not theirs.
        self._next, self._stamp = coming, max(self._stamp, len(entries)) + 1
