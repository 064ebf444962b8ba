"""Ctrl-C, made to wait for a point where it does no harm; and what is undone even if Ctrl-C comes then."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Interrupts", "undone"]


class Interrupts:
    """Keeps Ctrl-C while it is watched. It reaches the main thread alone, so on others nothing is done."""

    def __init__(self) -> None:
        self._held = False
        self._before: Callable[..., Any] | None = None
        self._late: list[tuple[Any, ...]] = []

    @contextmanager
    def watched(self, hold: bool = False) -> Iterator[None]:
        """Inside the ``with`` Ctrl-C waits for the next `point`, or for the end.

        Args:
            hold: whether it waits for the end in any case.
        """
        before = signal.getsignal(signal.SIGINT) if self._here else None
        if not callable(before) or self._before is not None:
            if hold:
                self.hold()
            yield
            return
        try:
            self._late, self._held, self._before = [], hold, before
            signal.signal(signal.SIGINT, self._arrived)
            yield
        finally:
            # First, since once the handler is the old one Ctrl-C may come before the next line.
            self._before = None
            signal.signal(signal.SIGINT, before)
            for what in self._late[:1]:
                before(*what)

    def hold(self) -> None:
        """From now on Ctrl-C waits for the end."""
        if self._here:
            self._held = True

    def point(self) -> None:
        """Here Ctrl-C does no harm: one that has waited comes now, unless it is held."""
        if self._here and self._before is not None and self._late and not self._held:
            late, self._late = self._late[0], []
            self._before(*late)

    @property
    def _here(self) -> bool:
        return threading.current_thread() is threading.main_thread()

    def _arrived(self, *what: Any) -> None:
        self._late.append(what)


@contextmanager
def undone(undo: Callable[[], Any]) -> Iterator[None]:
    """``undo()`` at the end of the ``with``, and again, so that Ctrl-C in the first does no harm."""
    try:
        try:
            yield
        finally:
            undo()
    finally:
        undo()
