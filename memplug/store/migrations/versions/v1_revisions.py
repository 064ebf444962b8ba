"""Revisions, and the blobs that their tensors are made of."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "memplug_revisions",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("who", sa.Text),
        sa.Column("why", sa.Text),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("edits", sa.Text, nullable=False),
        sa.Column("manifest", sa.Text),
        sa.Column("tensors", sa.Text),
    )
    op.create_table(
        "memplug_blobs",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
