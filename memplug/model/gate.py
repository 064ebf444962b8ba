"""The gate between forwards and changes: any number of forwards at once, or one change alone.

A forward enters the gate when the decoder is entered and leaves it with the decoder; nothing is locked in
between, so any number of them run at once. A change is prepared beside them. To be put in force it waits
until the forwards that run have ended, and those that come meanwhile wait until it is done. So every forward
sees one state from its first layer to its last, and one that begins later sees the new one.

A forward that was broken off (Ctrl-C) never says that it left. The place in the call stack where it was
entered tells: it is forgotten when that place is gone. What prepares a change is broken off where it begins
a forward, and nowhere else. A change is not broken off: once it has the gate to itself, Ctrl-C waits until
it is done.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from .interrupts import Interrupts

__all__ = ["Gate"]

_LOOK = 0.05  # seconds after which a change that waits looks for forwards that were broken off


class Gate:
    """Forwards inside, by thread, and the thread that changes something, if any.

    Attributes:
        version: stands for the edits in force; another one from the very change on that puts others in force.
    """

    def __init__(self) -> None:
        self._moved = threading.Condition(threading.Lock())
        self._inside: dict[int, list[FrameType | None]] = {}
        self._changing: int | None = None
        self._depth = 0
        self._waiting = set[int]()
        self._interrupts = Interrupts()
        self.version = object()
        self._renewing = False

    def enter(self, frame: FrameType | None) -> int:
        """Come in, after a change that is being made or waits to be; at once inside another forward.

        Args:
            frame: a frame of the call stack that lasts as long as the forward; None where there is none.

        Returns:
            Forwards of this thread that had been broken off and are forgotten now.
        """
        self._interrupts.point()
        me = threading.get_ident()
        with self._moved:
            gone = self._forget(me, sys._getframe(1))
            if me not in self._inside and self._changing != me:
                while self._changing is not None or self._waiting:
                    self._moved.wait()
            self._inside.setdefault(me, []).append(frame)
        return gone

    def leave(self) -> None:
        """Go out of the forward that was entered last on this thread."""
        me = threading.get_ident()
        with self._moved:
            frames = self._inside.get(me)
            if frames:
                frames.pop()
                if not frames:
                    del self._inside[me]
                    if self._waiting:
                        self._moved.notify_all()

    @property
    def inside(self) -> bool:
        """Whether this thread is inside a forward."""
        me = threading.get_ident()
        with self._moved:
            self._forget(me, sys._getframe(1))
            return me in self._inside

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Inside the ``with`` nothing changes, as inside a forward."""
        self.enter(None)
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Inside the ``with`` no forward runs on another thread. To be held for moments only.

        From here on Ctrl-C waits for the end of what `uninterrupted` surrounds.
        """
        me = threading.get_ident()
        with self._interrupts.watched():
            self._begin(me)
            try:
                yield
            finally:
                with self._moved:
                    self._depth -= 1
                    if not self._depth:
                        if self._renewing:  # with the change: no forward sees the one without the other
                            self.version = object()
                        self._changing = None
                        self._moved.notify_all()

    @contextmanager
    def renewing(self) -> Iterator[None]:
        """Inside the ``with`` a change is one of the edits in force: from it on `version` is another one."""
        before, self._renewing = self._renewing, True
        try:
            yield
        finally:
            self._renewing = before

    def uninterrupted(self, hold: bool = False) -> AbstractContextManager[None]:
        """Inside the ``with`` Ctrl-C waits for the next forward; for the end once the last change is being
        made, or with ``hold``."""
        return self._interrupts.watched(hold)

    def point(self) -> None:
        """Here, inside `uninterrupted`, Ctrl-C does no harm: one that waits comes now, unless it is held."""
        self._interrupts.point()

    def _begin(self, me: int) -> None:
        with self._moved:
            try:
                self._waiting.add(me)
                while self._changing not in (None, me) or self._inside.keys() - {me}:
                    if not self._moved.wait(_LOOK):
                        self._forget_lost(me)
                    self._interrupts.point()
                self._interrupts.hold()
                self._changing = me
                self._depth += 1
            finally:
                self._waiting.discard(me)
                if self._changing is None:  # broken off: those who wait for it may go on
                    self._moved.notify_all()

    def _forget_lost(self, me: int) -> None:
        """Forget what was broken off on other threads."""
        frames = sys._current_frames()
        for thread in self._inside.keys() - {me}:
            self._forget(thread, frames.get(thread))

    def _forget(self, thread: int, top: FrameType | None) -> int:
        """Forget forwards of a thread that are no longer on its call stack, which ends with ``top``."""
        frames = self._inside.get(thread)
        if frames is None:
            return 0
        running = set[int]()
        while top is not None:
            running.add(id(top))
            top = top.f_back
        kept = [frame for frame in frames if frame is None or id(frame) in running]
        gone = len(frames) - len(kept)
        if kept:
            frames[:] = kept
        else:
            del self._inside[thread]
        return gone
