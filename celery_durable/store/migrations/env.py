"""What Alembic runs to migrate the journal's tables: over the connection it gets, or offline for ``--sql``."""

from __future__ import annotations

from alembic import context

from celery_durable.store.migrations import VERSION_TABLE
from celery_durable.store.tables import metadata

connection = context.config.attributes.get("connection")
dialect: str = context.config.attributes["dialect"]

context.configure(
    connection=connection,
    dialect_name=None if connection is not None else dialect,
    literal_binds=connection is None,
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # SQLite can do it, although Alembic does not assume so; MySQL cannot.
    transactional_ddl=dialect in ("sqlite", "postgresql"),
)

with context.begin_transaction():
    context.run_migrations()
