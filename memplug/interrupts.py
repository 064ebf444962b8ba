"""Ctrl-C, made to wait while something is under way that must not be broken off."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Interrupts"]


class Interrupts:
    """Keeps Ctrl-C while it is held. It reaches the main thread alone, so on others nothing is done."""

    def __init__(self) -> None:
        self._held = 0
        self._before: Callable[..., Any] | None = None
        self._late: list[tuple[Any, ...]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside the ``with`` Ctrl-C is kept from `hold` to `let`, or to the end of the ``with``."""
        before = signal.getsignal(signal.SIGINT) if self._here else None
        if not callable(before) or self._before is not None:
            yield
            return
        self._before = before
        try:
            signal.signal(signal.SIGINT, self._arrived)
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            self._before, self._held = None, 0
            self._deliver(before)

    def hold(self) -> None:
        """From now on Ctrl-C waits."""
        if self._here and self._before is not None:
            self._held += 1

    def let(self) -> None:
        """Undoes one `hold`; Ctrl-C that has waited for the last one comes now."""
        if self._here and self._held:
            self._held -= 1
            if not self._held and self._before is not None:
                self._deliver(self._before)

    @property
    def _here(self) -> bool:
        return threading.current_thread() is threading.main_thread()

    def _arrived(self, *what: Any) -> None:
        if self._held:
            self._late.append(what)
        elif self._before is not None:
            self._before(*what)

    def _deliver(self, handler: Callable[..., Any]) -> None:
        late, self._late = self._late[:1], []
        for what in late:
            handler(*what)
