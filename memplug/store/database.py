"""Connections, transactions and the one writer's turn, on SQLite and PostgreSQL. Knows nothing about edits.

A writer's turn is a lock in the database that lasts as long as its transaction: ``BEGIN IMMEDIATE`` on
SQLite, an advisory lock on PostgreSQL. It is held while an edit is learned. So no two writers learn on one
state, none has to learn again, ids do not collide, and nobody holds the lock whose process or connection is
gone. Others read meanwhile.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from .errors import NoStoreError, StoreError
from .schema import is_current, upgrade

__all__ = ["CHANNEL", "Database"]

CHANNEL = "memplug"
"""What PostgreSQL notifies of each revision."""

_SLICE = 1.0  # seconds that a writer waits for its turn before it looks whether Ctrl-C came
_TURN = {
    # With a write-ahead log readers wait for nobody; it is the file's own once set, and reading sets nothing.
    "sqlite": ("PRAGMA journal_mode=WAL", "BEGIN IMMEDIATE"),
    "postgresql": (
        f"SET LOCAL lock_timeout = {int(_SLICE * 1000)}",
        "SET LOCAL idle_in_transaction_session_timeout = 0",  # learning takes as long as it takes
        "SET LOCAL tcp_keepalives_idle = 30",  # a machine that is gone holds the lock for a minute
        "SET LOCAL tcp_keepalives_interval = 10",
        "SET LOCAL tcp_keepalives_count = 3",
        f"SELECT pg_advisory_xact_lock(hashtext('{CHANNEL}'), hashtext(current_schema()))",
    ),
}
_CONNECT: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": _SLICE},
    "postgresql": {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    },
}
_READ = {"sqlite": ("BEGIN",), "postgresql": ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",)}
"""One state from the first read to the last."""
_EXAMPLES = (
    "name an SQLite file (facts.db, sqlite:///facts.db) or a PostgreSQL database "
    "(postgresql+psycopg://user@host/name; an @ in a password is written %40)"
)
_NONE = "there is no store {}; see the name, or make one with an edit"
_BUSY = 5, 6  # SQLite's codes: busy, locked
_NO_LOCK = "55P03"  # PostgreSQL's: lock_not_available


class Database:
    """A database with the tables of a store, made or upgraded where they are not as they have to be.

    Args:
        where: the path of an SQLite file, or an SQLAlchemy URL of SQLite or PostgreSQL.
        create: whether a store that is not there is made.

    Attributes:
        name: what it is called in messages; without a password.
        patience: seconds that a writer waits for another.

    Raises:
        StoreError: it is neither, cannot be opened, or was made by a newer memplug.
        NoStoreError: it is not there, and not to be made; nothing was written.
        ImportError: its driver is not installed.
    """

    def __init__(self, where: str | Path, create: bool = True) -> None:
        url = _url(where)
        self._kind, self._file = url.get_backend_name(), Path(str(url.database)).absolute()
        self._opened: tuple[int, int] | None = None  # the file's device and number, once it is there
        # Without the query, which may hold secrets.
        self.name = str(url.database) if self._kind == "sqlite" else url.set(query={}).render_as_string()
        self.patience = 600.0
        if self._kind == "sqlite" and not create and not self._file.exists():
            raise NoStoreError(_NONE.format(self.name))
        given = {name: one for name, one in _CONNECT[self._kind].items() if name not in url.query}
        self._engine = create_engine(
            url, connect_args=given, pool_pre_ping=self._kind != "sqlite", hide_parameters=True
        )
        self._errors = SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error
        if self._kind == "sqlite":
            event.listen(self._engine, "connect", _prepare)
        try:
            with self.reading() as connection:
                current = is_current(connection, self.name)
            if current is None and not create:
                raise NoStoreError(_NONE.format(self.name))
            if not current:
                with self.writing() as connection:
                    upgrade(connection)
                    connection.commit()
            self._opened = self._identity()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the store and waits for nobody.

        Raises:
            StoreError: the database fails, in it.
        """
        with self._telling("read"), self._connect() as connection:
            for line in _READ[self._kind]:
                connection.exec_driver_sql(line)
            yield connection

    @contextmanager
    def writing(self, point: Callable[[], Any] = lambda: None) -> Iterator[Connection]:
        """The writer's turn: a transaction in which nobody else writes; what is not committed is undone.

        Args:
            point: called again and again while another one writes.

        Raises:
            StoreError: the database fails, in it; or others have been writing for `patience` seconds.
        """
        with self._telling("written"):
            connection = self._turn(point)
            try:
                yield connection
            finally:
                connection.close()

    def _identity(self) -> tuple[int, int] | None:
        if self._kind != "sqlite" or not self._file.exists():
            return None
        found = self._file.stat()
        return found.st_dev, found.st_ino

    def _connect(self) -> Connection:
        """A connection to the very file that was opened: one that has no name any more keeps nothing.

        Raises:
            StoreError: the file is another one.
        """
        if self._opened not in (None, self._identity()):
            raise StoreError(f"{self.name} was moved, deleted or replaced since it was opened; attach again")
        return self._engine.connect()

    def _turn(self, point: Callable[[], Any]) -> Connection:
        until = time.monotonic() + self.patience
        while True:
            point()
            connection = None
            try:
                connection = self._connect()
                for line in _TURN[self._kind]:
                    connection.exec_driver_sql(line)
                return connection
            except BaseException as error:
                if connection is not None:
                    connection.close()
                if not isinstance(error, self._errors) or not _busy(error):
                    raise
                if time.monotonic() > until:
                    raise StoreError(
                        f"another process has been writing to {self.name} for {self.patience:g} seconds; "
                        "wait for it, or end it, and call again"
                    ) from error

    @contextmanager
    def listening(self, stop: Event) -> Iterator[Callable[[float], Any]]:
        """A function that waits so many seconds, until ``stop``, or (PostgreSQL) for the next revision.

        Raises:
            StoreError: the connection was lost.
        """
        if self._kind == "sqlite":
            yield stop.wait
            return
        with self._telling("listened to"), self._engine.connect() as plain:
            connection = plain.execution_options(isolation_level="AUTOCOMMIT")
            connection.exec_driver_sql(f"LISTEN {CHANNEL}")
            driver: Any = connection.connection.driver_connection

            def wait(seconds: float) -> None:
                until = time.monotonic() + seconds
                while not stop.is_set() and (left := until - time.monotonic()) > 0:
                    if list(driver.notifies(timeout=min(left, _SLICE), stop_after=1)):
                        return

            yield wait

    def notify(self, connection: Connection) -> None:
        """Wake those that are `listening`, once the transaction is committed; SQLite's look by themselves."""
        if self._kind == "postgresql":
            connection.exec_driver_sql(f"NOTIFY {CHANNEL}")

    def close(self) -> None:
        """Close all connections; those in use close with their transactions."""
        self._engine.dispose()

    @contextmanager
    def _telling(self, done: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())
            raise StoreError(
                f"the store {self.name} could not be {done} ({reason}); nothing was changed here. See that "
                "the database can be reached and has room, and call again"
            ) from error


def _url(where: str | Path) -> URL:
    """The URL of a file or a PostgreSQL database. A password stands where it is not shown.

    Raises:
        StoreError: it is neither; told without what could be a password.
    """
    text = str(where)
    shown = text if not {*"@?"} & {*text} else f"{text.partition('://')[0]}://..."
    try:
        url = make_url(text) if "://" in text else URL.create("sqlite", database=str(Path(text)))
    except (ArgumentError, ValueError):  # which may quote it
        raise StoreError(f"{shown} is no URL of a database; {_EXAMPLES}") from None
    if url.get_backend_name() in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
        known = url.database and "@" not in (url.host or "")
        if secret := url.query.get("password"):
            url = url.difference_update_query(["password"]).set(password=str(secret))
    else:
        known = url.drivername in ("sqlite", "sqlite+pysqlite") and url.database not in (None, "", ":memory:")
        known = known and not (url.host or url.username or url.query)
    if not known:
        raise StoreError(f"edits are not kept in {shown}; {_EXAMPLES}")
    return url


def _prepare(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin as `_TURN` and `_READ` say
    connection.execute("PRAGMA synchronous=FULL")  # what is committed outlives a power failure


def _busy(error: BaseException) -> bool:
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _BUSY
    return getattr(cause, "sqlstate", None) == _NO_LOCK
