"""Promises, the outbox of plain tasks, and what chosen ids, cancellation and retention need.

Written out, not taken from ``tables.py``: a migration says what was true when it was made.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
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


_COLUMNS = (
    ("args_hash", _HASH),
    ("cancel_at", sa.BigInteger()),
    ("pruned_at", sa.BigInteger()),
)


def upgrade() -> None:
    """Add the columns and the tables."""
    for name, kind in _COLUMNS:
        op.add_column("durable_execution", sa.Column(name, kind, nullable=True))
    op.create_table(
        "durable_promise",
        sa.Column("id", _ascii(64), primary_key=True),
        sa.Column("pk", sa.BigInteger, nullable=False),
        sa.Column("name", _text(255), nullable=False),
        sa.Column("token_hash", _HASH, nullable=True),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("awaited", sa.Integer, nullable=True),
        sa.Column("needed", sa.Integer, nullable=True),
        sa.Column("timer_at", sa.BigInteger, nullable=True),
        sa.Column("deadline", sa.BigInteger, nullable=True),
        sa.Column("heartbeat_ms", sa.BigInteger, nullable=True),
        sa.Column("expires_at", sa.BigInteger, nullable=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("settled_at", sa.BigInteger, nullable=True),
        sa.Column("codec", sa.SmallInteger, nullable=True),
        sa.Column("data", _BLOB, nullable=True),
        **_TABLE,
    )
    op.create_index("ix_durable_promise_pk", "durable_promise", ["pk"])
    op.create_table(
        "durable_outbox",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
        sa.Column("namespace", _text(64), nullable=False),
        sa.Column("id", _text(255), nullable=False),
        sa.Column("task", _text(255), nullable=False),
        sa.Column("wake_at", sa.BigInteger, nullable=False),
        sa.Column("sends", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("codec", sa.SmallInteger, nullable=False),
        sa.Column("data", _BLOB, nullable=False),
        **_TABLE,
    )
    op.create_index("ix_durable_outbox_wake", "durable_outbox", ["namespace", "wake_at"])
    op.create_table(
        "durable_upkeep",
        sa.Column("namespace", _text(64), primary_key=True),
        sa.Column("owner", _ascii(96), nullable=False),
        sa.Column("held_until", sa.BigInteger, nullable=False),
        sa.Column("progress", _ascii(4000), nullable=False),
        **_TABLE,
    )


def downgrade() -> None:
    """Drop them, and every promise and unsent message in them."""
    op.drop_table("durable_upkeep")
    op.drop_table("durable_outbox")
    op.drop_table("durable_promise")
    for name, _ in reversed(_COLUMNS):
        op.drop_column("durable_execution", name)
