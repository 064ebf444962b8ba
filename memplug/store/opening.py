"""Opens a store, and says what is needed where that is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..edits import EditTable
from .errors import StoreError

if TYPE_CHECKING:
    from .database import Database

__all__ = ["open_database", "peek"]


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
    database = open_database(where, create=False)
    from .revisions import latest, manifest_at

    try:
        with database.reading() as connection:
            number = latest(connection)
            if not number:
                raise StoreError(f"{database.name} holds no edits yet; make one")
            said = manifest_at(connection, number, database.name)
            return said.method, said.edits
    finally:
        database.close()
