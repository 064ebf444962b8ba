"""Opens a store, and says what is needed where that is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..edits import EditTable
from .errors import NoStoreError, StoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from .database import Database
    from .revisions import Revision

__all__ = ["is_empty", "open_database", "peek", "read_history"]


def open_database(where: str | Path, create: bool = True) -> Database:
    """The database at a path or URL.

    Raises:
        StoreError: see `Database`.
        ImportError: the extra is not installed.
    """
    try:
        from .database import Database

        return Database(where, create)
    except ModuleNotFoundError as error:
        raise ImportError(f'a store needs {error.name}; run `pip install "memplug[store]"`') from error


def peek(where: str | Path) -> tuple[str, EditTable]:
    """The method and the edits that a store holds, without a model.

    Raises:
        StoreError: there is none, or it cannot be read.
        LoadError: it is damaged.
    """
    with _reading(where) as (connection, name):
        from .revisions import latest, manifest_at

        number = latest(connection)
        if not number:
            raise StoreError(f"{name} holds no edits yet; make one")
        said = manifest_at(connection, number, name)
        return said.method, said.edits


def read_history(where: str | Path) -> list[Revision]:
    """See `Store.history`; raises StoreError where there is no store, or it cannot be read."""
    with _reading(where) as (connection, _):
        from .revisions import history

        return history(connection)


def is_empty(where: str | Path) -> bool:
    """Whether there is no revision, or no store; raises StoreError where it cannot be read."""
    try:
        with _reading(where) as (connection, _):
            from .revisions import latest

            return not latest(connection)
    except NoStoreError:
        return True


@contextmanager
def _reading(where: str | Path) -> Iterator[tuple[Connection, str]]:
    """A connection to a store, and what it is called."""
    database = open_database(where, create=False)
    try:
        with database.reading() as connection:
            yield connection, database.name
    finally:
        database.close()
