"""The tables of a store, as the newest migration leaves them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, LargeBinary, MetaData, String, Table, Text

__all__ = ["BLOBS", "METADATA", "REVISIONS", "VERSION"]

METADATA = MetaData()

VERSION = "memplug_version"
"""The table that says which migrations were made; of our own, since a database may hold others' tables."""

REVISIONS = Table(
    "memplug_revisions",
    METADATA,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("time", DateTime(timezone=True), nullable=False),  # UTC
    Column("who", Text),
    Column("why", Text),
    Column("action", Text, nullable=False),
    Column("edits", Text, nullable=False),  # JSON: ids of the edits that came, went or were switched
    # JSON lists of blobs: the manifest of the state after it, the index of its tensors; NULL once pruned
    Column("manifest", Text),
    Column("tensors", Text),
)

BLOBS = Table(
    "memplug_blobs",
    METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
