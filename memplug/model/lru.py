"""A few things that are made when they are first asked for, and kept for the next time; for any threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar

__all__ = ["Kept"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """Things by name, at most ``limit`` of them; the one that was made first goes first.

    Two threads that ask for the same at once may both make it; both get what was finished first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._things: dict[K, V] = {}

    def get(self, name: K, make: Callable[[], V]) -> V:
        """The thing called ``name``, made by ``make()`` if it is not there."""
        found = self._things.get(name)
        if found is not None:
            return found
        made = make()
        with self._lock:
            made = self._things.setdefault(name, made)
            while len(self._things) > self._limit:
                del self._things[next(iter(self._things))]
        return made

    def drop(self, names: Collection[K]) -> None:
        """Let go of these."""
        with self._lock:
            for name in names:
                self._things.pop(name, None)

    def keep(self, names: Collection[K]) -> None:
        """Let go of all others."""
        self.drop([name for name in list(self._things) if name not in names])

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._things.clear()
