"""The journal's tables.

Times are integers: milliseconds since 1970-01-01 UTC by the *database's* clock, because they are compared and
added on three databases whose interval arithmetic differs (see :func:`now_ms`).

``pk`` is a number that grows with time and is chosen by the writer, so that rows of about the same time are neighbours
in every index, and an execution can be written together with its first entries in one transaction.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
    bindparam,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

__all__ = [
    "executions",
    "from_now",
    "guards",
    "journal",
    "metadata",
    "new_pk",
    "now_ms",
    "now_once",
    "outbox",
    "payloads",
    "pk_at",
    "promises",
    "upkeep",
]

metadata = MetaData()

_MYSQL = ("mysql", "mariadb")
#: Any size; the settings limit it, not the column.
_Blob = LargeBinary().with_variant(mysql.LONGBLOB(), *_MYSQL)
#: A BLAKE3 hash.
_Hash = LargeBinary(32).with_variant(mysql.BINARY(32), *_MYSQL)


def _text(length: int) -> Any:
    """Text that is compared byte by byte everywhere; MySQL's default collations ignore case."""
    return String(length).with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), *_MYSQL)


def _ascii(length: int) -> Any:
    return String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), *_MYSQL)


#: One row per execution: narrow, hot, without payloads.
executions = Table(
    "durable_execution",
    metadata,
    Column("pk", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=False),
    #: The application it belongs to (``durable_namespace``).
    Column("namespace", _text(64), nullable=False),
    #: The Celery task id, or the caller's ``durable_id``.
    Column("id", _text(255), nullable=False),
    Column("task", _text(255), nullable=False),
    #: A :class:`~celery_durable.store.records.State`.
    Column("state", _ascii(12), nullable=False),
    #: Fencing number: grows whenever the right to run changes hands.
    Column("epoch", Integer, nullable=False),
    #: Which process, and which opening in it, holds or last held the lease.
    Column("owner", _ascii(96), nullable=True),
    Column("lease_until", BigInteger, nullable=False),
    #: When recovery must look at this row; NULL where it never has to.
    Column("wake_at", BigInteger, nullable=True),
    #: The journal's current generation; a divergence starts the next one.
    Column("generation", Integer, nullable=False),
    #: The first generation that belongs to the present task (``Task.replace`` starts again under the same id).
    Column("base_generation", Integer, nullable=False),
    #: How often it was taken over from a dead owner.
    Column("attempts", Integer, nullable=False),
    #: Celery's ``request.retries`` of the message that may run next.
    Column("retries", Integer, nullable=False),
    #: How often ``Task.replace`` has passed the id on; messages of earlier tasks are stale.
    Column("replacements", Integer, nullable=False),
    #: How often recovery has sent the message since it last ran; spaces out further sends.
    Column("sends", Integer, nullable=False),
    #: Steps journaled in the current generation.
    Column("steps", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    #: A hash of the arguments, if the caller chose the id: another call with this id must be the same one.
    Column("args_hash", _Hash, nullable=True),
    #: When its cancellation was requested; set while its owner or its compensation has not finished yet.
    Column("cancel_at", BigInteger, nullable=True),
    #: When journal and payloads were removed. The row stays a while, so that a late duplicate does not run.
    Column("pruned_at", BigInteger, nullable=True),
    UniqueConstraint("namespace", "id", name="uq_durable_execution_id"),
)

#: For recovery. With partial indexes, rows that recovery never has to look at have no entry.
Index(
    "ix_durable_execution_wake",
    executions.c.namespace,
    executions.c.wake_at,
    sqlite_where=executions.c.wake_at.is_not(None),
    postgresql_where=executions.c.wake_at.is_not(None),
)

#: For lists, the latest first: by state, and by task. Each change of state updates both, so there are no more of them.
_SHELF = (executions.c.state, executions.c.pruned_at, executions.c.pk)
Index("ix_durable_execution_state", executions.c.namespace, *_SHELF)
Index("ix_durable_execution_task", executions.c.namespace, executions.c.task, *_SHELF)

#: Data that is too big for the hot row: the message's envelope, the outcome, the reason for parking.
payloads = Table(
    "durable_payload",
    metadata,
    Column("pk", BigInteger, primary_key=True, autoincrement=False),
    #: A :class:`~celery_durable.store.records.PayloadKind`.
    Column("kind", SmallInteger, primary_key=True, autoincrement=False),
    Column("codec", SmallInteger, nullable=False),
    Column("data", _Blob, nullable=False),
)

#: The append-only record. The primary key is in the order of the body, so replay reads a range.
journal = Table(
    "durable_journal",
    metadata,
    Column("pk", BigInteger, primary_key=True, autoincrement=False),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    #: "" is the body; a branch has a path such as "4.0" (first branch of the scope at position 4).
    Column("scope", _ascii(200), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    #: Number of the entry among those of its position: intent 0, result 1, ...
    Column("entry", SmallInteger, primary_key=True, autoincrement=False),
    #: An :class:`~celery_durable.store.records.EntryKind`.
    Column("kind", SmallInteger, nullable=False),
    #: An :class:`~celery_durable.store.records.EffectCode`; NULL for entries that are not of a step.
    Column("effect", SmallInteger, nullable=True),
    Column("name", _text(255), nullable=False),
    Column("fingerprint", _Hash, nullable=True),
    #: The idempotency key; guarded steps only.
    Column("key", _Hash, nullable=True),
    #: The epoch that wrote the row.
    Column("epoch", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
    #: How long the operation took, in microseconds.
    Column("duration_us", BigInteger, nullable=True),
    Column("codec", SmallInteger, nullable=True),
    Column("payload", _Blob, nullable=True),
    sqlite_with_rowid=False,
)

#: Who holds an idempotency key that names an operation for the whole application (``key=``).
guards = Table(
    "durable_guard",
    metadata,
    Column("key", _Hash, primary_key=True),
    Column("fingerprint", _Hash, nullable=False),
    Column("pk", BigInteger, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("scope", _ascii(200), nullable=False),
    Column("position", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

#: Values that executions wait for and that others provide: a decision from outside, the end of a child task.
promises = Table(
    "durable_promise",
    metadata,
    #: Known outside. Derived from the execution and the promise's name, so that it stays the same after a divergence.
    Column("id", _ascii(64), primary_key=True),
    #: The execution that waits.
    Column("pk", BigInteger, nullable=False),
    Column("name", _text(255), nullable=False),
    #: BLAKE3 of the token; NULL if only the library itself may settle it.
    Column("token_hash", _Hash, nullable=True),
    #: A :class:`~celery_durable.store.records.PromiseState`.
    Column("state", SmallInteger, nullable=False),
    #: The epoch in which the execution was suspended to wait for it; its settlement wakes that suspension only.
    Column("awaited", Integer, nullable=True),
    #: How many of the promises awaited together must be settled before that suspension ends; 0: all of them.
    Column("needed", Integer, nullable=True),
    #: When that suspension ends at the latest, because of a timer; NULL for never.
    Column("timer_at", BigInteger, nullable=True),
    #: When it expires; NULL for never.
    Column("deadline", BigInteger, nullable=True),
    #: Each heartbeat moves the deadline this many milliseconds ahead; NULL if none is expected.
    Column("heartbeat_ms", BigInteger, nullable=True),
    #: Heartbeats move the deadline no further than this; NULL if nothing limits it.
    Column("expires_at", BigInteger, nullable=True),
    Column("created_at", BigInteger, nullable=False),
    Column("settled_at", BigInteger, nullable=True),
    Column("codec", SmallInteger, nullable=True),
    Column("data", _Blob, nullable=True),
    #: The id by which it is known outside, if it is another promise's: a rerun shares promises whose tokens were given
    #: away before it begins. NULL: its own.
    Column("known_as", _ascii(64), nullable=True),
    # For finding whether an execution still waits for a promise, without reading those that are settled.
    Index("ix_durable_promise_awaited", "pk", "awaited", "state"),
)

#: For finding the rows that share a promise; nearly none is shared.
Index(
    "ix_durable_promise_known_as",
    promises.c.known_as,
    sqlite_where=promises.c.known_as.is_not(None),
    postgresql_where=promises.c.known_as.is_not(None),
)

#: Messages of tasks that are not durable, written in the transaction that decided to send them.
outbox = Table(
    "durable_outbox",
    metadata,
    #: Grows with time: the order in which they are sent.
    Column("pk", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=False),
    Column("namespace", _text(64), nullable=False),
    Column("id", _text(255), nullable=False),
    Column("task", _text(255), nullable=False),
    Column("wake_at", BigInteger, nullable=False),
    Column("sends", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("codec", SmallInteger, nullable=False),
    Column("data", _Blob, nullable=False),
    Index("ix_durable_outbox_wake", "namespace", "wake_at"),
)

#: One row per namespace: which service does retention, and how far it has come.
upkeep = Table(
    "durable_upkeep",
    metadata,
    Column("namespace", _text(64), primary_key=True),
    #: The service that has the right to do so, until the time below.
    Column("owner", _ascii(96), nullable=False),
    Column("held_until", BigInteger, nullable=False),
    #: What it needs to continue, as JSON.
    Column("progress", _ascii(4000), nullable=False),
)


class now_ms(GenericFunction[int]):  # noqa: N801 (SQLAlchemy names functions so)
    """The database's clock: milliseconds since the epoch, UTC."""

    type = BigInteger()
    inherit_cache = True


class now_once(GenericFunction[int]):  # noqa: N801
    """The same, read once for a whole statement: for conditions, which can use an index only then."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms)
def _now_standard(element: Any, compiler: Any, **kw: Any) -> str:
    # clock_timestamp(), not now(): a transaction that waited for a lock must not use its start time.
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


@compiles(now_once)
def _now_once(element: Any, compiler: Any, **kw: Any) -> str:
    # PostgreSQL calls a volatile function for each row, and so reads each row.
    return f"(SELECT {_now_standard(element, compiler)})"


@compiles(now_once, "sqlite")
@compiles(now_ms, "sqlite")
def _now_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)"


@compiles(now_once, "mysql", "mariadb")
@compiles(now_ms, "mysql", "mariadb")
def _now_mysql(element: Any, compiler: Any, **kw: Any) -> str:
    # Not UNIX_TIMESTAMP(NOW()): that goes through the session's time zone and repeats an hour each autumn.
    # SYSDATE-like exactness inside one statement is not needed: our transactions are a few statements long.
    return "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6)) DIV 1000)"


def from_now(name: str) -> ColumnElement[int]:
    """This many milliseconds from now, by the parameter of this name; NULL for NULL."""
    return now_ms() + bindparam(name, type_=BigInteger)


def new_pk() -> int:
    """A fresh primary key: 41 bits of milliseconds, then 22 random ones. The insert notices a collision."""
    return (pk_at(int(time.time() * 1000)) | _random.getrandbits(22)) & 0x7FFF_FFFF_FFFF_FFFF


#: A separate generator, which nobody else seeds. A fork must not continue with its parent's numbers.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


def pk_at(ms: int) -> int:
    """A bound for keys: all that were made before a time, by the clock of their maker, are smaller.

    :param ms: since 1970-01-01 UTC.
    """
    return ms - 1_577_836_800_000 << 22
