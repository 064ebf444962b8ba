"""Brings a database's tables to the version that this memplug knows, by Alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from ..text.printable import brief
from .errors import StoreError
from .tables import VERSION

__all__ = ["is_current", "upgrade"]


def is_current(connection: Connection, where: str) -> bool | None:
    """Whether the tables are as this memplug knows them; None where there are none.

    Raises:
        StoreError: a newer memplug made them.
    """
    script = ScriptDirectory.from_config(_config())
    held = MigrationContext.configure(connection, opts={"version_table": VERSION}).get_current_heads()
    newest = script.get_current_head()
    if len(held) > 1 or not {*held} <= {one.revision for one in script.walk_revisions()}:
        made = brief(", ".join(held))
        raise StoreError(
            f"{where} has the schema {made}, this memplug knows them up to {newest}; upgrade memplug"
        )
    return held == (newest,) if held else None


def upgrade(connection: Connection) -> None:
    """Run the migrations that are missing, in the connection's own transaction."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config
