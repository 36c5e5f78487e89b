"""Executions, payloads, journal and guards.

Written out, not taken from ``tables.py``: a migration says what was true when it was made.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_MYSQL = ("mysql", "mariadb")
#: Each option twice: URLs that start with ``mariadb`` do not see those of MySQL.
_TABLE: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in _MYSQL
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"))
}


def _text(length: int) -> Any:
    return sa.String(length).with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), *_MYSQL)


def _ascii(length: int) -> Any:
    return sa.String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), *_MYSQL)


_BLOB = sa.LargeBinary().with_variant(mysql.LONGBLOB(), *_MYSQL)
_HASH = sa.LargeBinary(32).with_variant(mysql.BINARY(32), *_MYSQL)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "durable_execution",
        sa.Column(
            "pk",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("namespace", _text(64), nullable=False),
        sa.Column("id", _text(255), nullable=False),
        sa.Column("task", _text(255), nullable=False),
        sa.Column("state", _ascii(12), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("owner", _ascii(96), nullable=True),
        sa.Column("lease_until", sa.BigInteger, nullable=False),
        sa.Column("wake_at", sa.BigInteger, nullable=True),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("base_generation", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("retries", sa.Integer, nullable=False),
        sa.Column("replacements", sa.Integer, nullable=False),
        sa.Column("sends", sa.Integer, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("namespace", "id", name="uq_durable_execution_id"),
        **_TABLE,
    )
    if op.get_context().dialect.name == "postgresql":
        # Room in every page for the next version of a row: leases are renewed in place (HOT).
        op.execute("ALTER TABLE durable_execution SET (fillfactor = 80)")
    op.create_index(
        "ix_durable_execution_wake",
        "durable_execution",
        ["namespace", "wake_at"],
        sqlite_where=sa.text("wake_at IS NOT NULL"),
        postgresql_where=sa.text("wake_at IS NOT NULL"),
    )
    op.create_table(
        "durable_payload",
        sa.Column("pk", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("codec", sa.SmallInteger, nullable=False),
        sa.Column("data", _BLOB, nullable=False),
        **_TABLE,
    )
    op.create_table(
        "durable_journal",
        sa.Column("pk", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("scope", _ascii(200), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("entry", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("effect", sa.SmallInteger, nullable=True),
        sa.Column("name", _text(255), nullable=False),
        sa.Column("fingerprint", _HASH, nullable=True),
        sa.Column("key", _HASH, nullable=True),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("duration_us", sa.BigInteger, nullable=True),
        sa.Column("codec", sa.SmallInteger, nullable=True),
        sa.Column("payload", _BLOB, nullable=True),
        # The journal is read by ranges of its primary key: keep the rows in that order.
        sqlite_with_rowid=False,
        **_TABLE,
    )
    op.create_table(
        "durable_guard",
        sa.Column("key", _HASH, primary_key=True),
        sa.Column("fingerprint", _HASH, nullable=False),
        sa.Column("pk", sa.BigInteger, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("scope", _ascii(200), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        **_TABLE,
    )


def downgrade() -> None:
    """Drop the tables, and every journal in them."""
    for table in ("durable_guard", "durable_journal", "durable_payload", "durable_execution"):
        op.drop_table(table)
