"""Run by Alembic: migrations go through the connection, and in the transaction, that `store.schema` has."""

from alembic import context

from memplug.store.tables import METADATA, VERSION

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, version_table=VERSION
)
with context.begin_transaction():
    context.run_migrations()
