"""Promises that a rerun shares with the execution that made them.

Written out, not taken from ``tables.py``: a migration says what was true when it was made.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ID = sa.String(64).with_variant(mysql.VARCHAR(64, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


def upgrade() -> None:
    """Add the column and its index."""
    op.add_column("durable_promise", sa.Column("known_as", _ID, nullable=True))
    op.create_index(
        "ix_durable_promise_known_as",
        "durable_promise",
        ["known_as"],
        sqlite_where=sa.text("known_as IS NOT NULL"),
        postgresql_where=sa.text("known_as IS NOT NULL"),
    )


def downgrade() -> None:
    """Drop them. What reruns share is theirs alone after that: nobody outside can keep it."""
    op.drop_index("ix_durable_promise_known_as", "durable_promise")
    op.drop_column("durable_promise", "known_as")
