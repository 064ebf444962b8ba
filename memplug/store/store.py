"""The store of one plug: each change is in it before the call returns, and those of others are taken up.

A change is made in the writer's turn (`Database.writing`): what others have stored is taken up, the method
learns, the new state is stored. So there is no other state to learn on than the newest one, and nothing to
merge. Where storing fails, plug and model go back to the state before. Forwards of other threads may meet an
edit between learning and storing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ..edits import EditTable
from ..saving.files import LoadError
from ..saving.plugs import Saved, check_base, described, fill
from ..text.printable import printable
from .blocks import cut, digest
from .database import Database
from .revisions import Author, Revision, append, history, latest, manifest_at, prune, tensors_at

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from ..plugin import Plug

__all__ = ["Store", "newest"]

_AUTHOR: ContextVar[Author | None] = ContextVar("memplug author", default=None)


class Store:
    """Where a plug keeps its edits; `memplug.attach` makes it.

    Args:
        plug: the plug, attached.
        database: the database.
        base: the base model's fingerprint.
        at: the revision that the plug holds; 0 makes the first one of what it holds, unless another process
            has made one meanwhile.

    Attributes:
        at: the revision that the plug holds; 0 where that is not known.
        trouble: why `follow` could not look the last time; None where it could.

    Raises:
        StoreError: it cannot be written.
    """

    def __init__(self, plug: Plug, database: Database, base: str, at: int) -> None:
        self._plug, self._database, self._base, self.at = plug, database, base, at
        self.trouble: Exception | None = None
        self._stop, self._closed = threading.Event(), False
        if not at:
            with database.writing() as connection:
                if not latest(connection):
                    self._append(connection, "attach", EditTable({}))

    @property
    def name(self) -> str:
        """The file, or the URL without a password."""
        return self._database.name

    @property
    def patience(self) -> float:
        """Seconds that a change waits while another process makes one; 600 unless it is set."""
        return self._database.patience

    @patience.setter
    def patience(self, seconds: float) -> None:
        self._database.patience = seconds

    # ------------------------------------------------------------------ changes

    @contextmanager
    def by(self, who: str | None = None, why: str | None = None) -> Iterator[None]:
        """Changes of this thread (or task) inside the ``with`` are made by ``who`` for the reason ``why``."""
        for value in (who, why):
            if value is not None and not (isinstance(value, str) and _is_storable(value)):
                raise ValueError(f"who and why are texts without NUL or half characters, got {value!r}")
        token = _AUTHOR.set(Author(who, why))
        try:
            yield
        finally:
            _AUTHOR.reset(token)

    @contextmanager
    def change(self, action: str, point: Callable[[], Any]) -> Iterator[None]:
        """Inside the ``with`` the plug holds the newest revision and nobody else writes; what it holds in the
        end is the next one. On any error it holds what it did before.

        Args:
            action: see `Revision`.
            point: called again and again while another one writes.

        Raises:
            StoreError: see `Database.writing`.
            LoadError: what others have stored is damaged.
        """
        plug, done = self._plug, False
        with self._database.writing(point) as connection:
            self._take_up(connection)
            at, version, edits, count = self.at, plug.version, plug.edits, plug.count
            state = plug.method.state()
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.tensors.items()}
            meta = json.loads(json.dumps(state.meta))
            try:
                yield
                done = True
                self._append(connection, action, edits)
            except BaseException:
                if done or plug.version is not version:
                    self.at = 0  # until it is put back
                    plug.method.restore(tensors, meta, edits)
                    plug.take_over(edits, _off(edits), count)
                    self.at = at
                raise

    def _append(self, connection: Connection, action: str, before: EditTable) -> None:
        plug = self._plug
        tensors, meta = plug.method.state()
        values, now = described(plug, meta, self._base), plug.edits
        was, is_ = ({id: (table[id], table.enabled(id)) for id in table} for table in (before, now))
        touched = [id for id in {**was, **is_} if was.get(id) != is_.get(id)]
        number = latest(connection) + 1
        append(connection, number, values, tensors, _AUTHOR.get() or Author(), action, touched)
        self._database.notify(connection)
        connection.commit()
        self.at = number

    # ------------------------------------------------------------------ taking up

    def take_up(self) -> int:
        """Bring the plug to the newest revision, which is returned."""
        with self._database.reading() as connection:
            self._take_up(connection)
        return self.at

    def _take_up(self, connection: Connection) -> None:
        newest = latest(connection)
        if newest != self.at:
            self._bring(connection, newest)
            self.at = newest

    def bring(self, number: int) -> None:
        """Give the plug the state of an earlier revision, inside `change`."""
        with self._database.reading() as connection:
            self._bring(connection, number)

    def _bring(self, connection: Connection, number: int) -> None:
        plug = self._plug
        said = manifest_at(connection, number, self.name)
        check_base(said, plug.model, self._base, f"revision {number} of {self.name}")
        if said.method != plug.name:
            raise LoadError(
                f"{self.name} holds edits of {printable(said.method)!r} now, not of {plug.name!r}; attach "
                "again"
            )
        held = {
            digest(block): block for tensor in plug.method.state().tensors.values() for block in cut(tensor)
        }
        tensors = tensors_at(connection, number, self.name, said.sha256, held)
        fill(plug, Saved(said, said.sha256, tensors))

    def follow(self, seconds: float = 1.0) -> None:
        """From now on take up what others store, on a thread of its own, until the plug is detached.

        PostgreSQL tells of each revision when it is made. Beside that, and on SQLite, the database is looked
        into every so many seconds. Where that fails (`trouble`) it is tried again.

        Args:
            seconds: above 0, up to 1e9.

        Raises:
            ValueError: they are not; or the plug was detached.
        """
        if not 0 < seconds <= 1e9:
            raise ValueError(f"seconds is {seconds!r}; give a number above 0, up to 1e9")
        if self._closed:
            raise ValueError("this plug was detached; attach a new one")
        self._stop.set()
        self._stop = threading.Event()
        name = f"memplug follows {self.name}"
        threading.Thread(target=self._follow, args=(seconds, self._stop), name=name, daemon=True).start()

    def _follow(self, seconds: float, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                with self._database.listening(stop) as wait:
                    while not stop.is_set():
                        self._plug.refresh()
                        self.trouble = None
                        wait(seconds)
            except Exception as error:
                self.trouble = error
                stop.wait(seconds)

    # ------------------------------------------------------------------ looking, leaving

    def history(self) -> list[Revision]:
        """All revisions, the first one first."""
        with self._database.reading() as connection:
            return history(connection)

    def prune(self, keep: int) -> int:
        """Let go of the states of all revisions but the newest ``keep``; what was done stays in the history.

        An SQLite file does not shrink; its free pages are used again.

        Returns:
            How many revisions were let go of.
        """
        if type(keep) is not int or keep < 1:
            raise ValueError(f"keep is {keep!r}; give a whole number from 1 on")
        with self._database.writing() as connection:
            gone = prune(connection, keep, self.name)
            connection.commit()
            return gone

    def close(self) -> None:
        """Stop following, and close the connections."""
        self._closed = True
        self._stop.set()
        self._database.close()


def _is_storable(value: str) -> bool:
    return "\0" not in value and value == value.encode(errors="ignore").decode()


def _off(edits: EditTable) -> Iterator[str]:
    return (id for id in edits if not edits.enabled(id))


def newest(database: Database, base: str, model: Any) -> tuple[Saved | None, int]:
    """What the newest revision holds, checked for ``model`` with the fingerprint ``base``, and its number.

    Raises:
        LoadError: it is damaged, or of another base model.
    """
    with database.reading() as connection:
        number = latest(connection)
        if not number:
            return None, 0
        said = manifest_at(connection, number, database.name)
        check_base(said, model, base, database.name)
        tensors = tensors_at(connection, number, database.name, said.sha256, {})
        return Saved(said, said.sha256, tensors), number
