"""A journal with a crowd in it, in any number: executions that sleep, that have ended, that were pruned, and messages
that wait. They are made by the database itself, so that many cost little.
"""

from __future__ import annotations

import time

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

__all__ = ["analyse", "populate"]

_TABLES = ("durable_execution", "durable_payload", "durable_journal", "durable_promise", "durable_outbox")
_EXECUTION = (
    "pk, namespace, id, task, state, epoch, owner, lease_until, wake_at, generation, base_generation, attempts, "
    "retries, replacements, sends, steps, created_at, updated_at, pruned_at"
)
_ENTRY = (
    "pk, generation, scope, position, entry, kind, effect, name, fingerprint, {key}, epoch, attempt, at, duration_us, "
    "codec, payload"
)
_PROMISE = "id, pk, name, token_hash, state, awaited, needed, created_at, settled_at, codec, data"
_MESSAGE = "pk, namespace, id, task, wake_at, sends, created_at, codec, data"


def populate(
    engine: Engine, namespace: str, sleepers: int, ended: int, messages: int = 0, *, bare: bool = False
) -> None:
    """Fill a journal, and let the database look at it.

    :param sleepers: so many executions are suspended: every other one until a time that is hours away, the others
        until somebody keeps their promise.
    :param ended: so many have ended, each with the entries of two steps and a promise that was kept; every seventh of
        them was pruned.
    :param messages: so many of tasks that are not durable wait for their countdown.
    :param bare: without messages, entries and promises of the executions.
    """
    now = int(time.time() * 1000)
    day = 86_400_000
    with engine.begin() as connection:
        if sleepers:
            wake = f"CASE WHEN n % 2 = 0 THEN {now} + 3600000 + n * 10 ELSE NULL END"
            _executions(connection, namespace, "sleeper", now - day, sleepers, "'suspended'", wake, "NULL")
        if ended:
            state = "CASE WHEN n % 7 = 0 THEN 'failed' WHEN n % 7 = 1 THEN 'cancelled' ELSE 'completed' END"
            pruned = f"CASE WHEN n % 7 = 6 THEN {now} ELSE NULL END"
            _executions(connection, namespace, "ended", now - 2 * day, ended, state, "NULL", pruned)
        if (sleepers or ended) and not bare:
            _belongings(connection, now)
        if messages:
            values = f"{_pk(now)} + n, '{namespace}', {_text(connection, 'message', 'n')}, 'plain', {now} + 3600000 + n"
            source = f"SELECT {values}, 0, {now}, 17, {_bytes(connection, '')} FROM {_numbers(messages)}"
            _run(connection, f"INSERT INTO durable_outbox ({_MESSAGE}) {source}")
    analyse(engine)


def _pk(ms: int) -> int:
    return (ms - 1_577_836_800_000) << 22


def _executions(
    connection: Connection, namespace: str, name: str, since: int, count: int, state: str, wake: str, pruned: str
) -> None:
    # A product that PostgreSQL computes with 64 bits.
    key = f"{_pk(since)} + n * {1 << 40} / {1 << 18}"
    names = f"{_text(connection, name, 'n')}, {_text(connection, 'task', 'n % 5')}, {state}"
    values = f"{key}, '{namespace}', {names}, 1, 'host:1:1', 0, {wake}, 1, 1, 0, 0, 0, 0, 2, {since} + n, {since} + n"
    source = f"SELECT {values}, {pruned} FROM {_numbers(count)}"
    _run(connection, f"INSERT INTO durable_execution ({_EXECUTION}) {source}")


def _belongings(connection: Connection, now: int) -> None:
    rows = "FROM durable_execution WHERE pruned_at IS NULL"
    empty, secret = _bytes(connection, ""), _bytes(connection, "x" * 32)
    _run(connection, f"INSERT INTO durable_payload (pk, kind, codec, data) SELECT pk, 1, 17, {empty} {rows}")
    columns = _ENTRY.format(key=connection.dialect.identifier_preparer.quote_identifier("key"))
    # A guarded step's intent and result; and the result of one that is not guarded.
    for position, entry, kind, effect, key in ((0, 0, 0, 2, secret), (0, 1, 1, 2, secret), (1, 0, 1, 0, "NULL")):
        values = (
            f"pk, 1, '', {position}, {entry}, {kind}, {effect}, 'step', {secret}, {key}, 1, 1, {now}, 1, 17, {empty}"
        )
        _run(connection, f"INSERT INTO durable_journal ({columns}) SELECT {values} {rows}")
    waits = "CASE WHEN state = 'suspended' THEN {} ELSE {} END"
    state, settled = waits.format(0, 1), waits.format("NULL", now)
    values = (
        f"{_text(connection, 'promise', 'pk')}, pk, 'answer', {secret}, {state}, 1, 1, {now}, {settled}, 17, {empty}"
    )
    _run(connection, f"INSERT INTO durable_promise ({_PROMISE}) SELECT {values} {rows}")


def _run(connection: Connection, statement: str) -> None:
    sign = "%" if connection.dialect.name == "sqlite" else "%%"
    connection.exec_driver_sql(statement.replace("%", sign))


def _bytes(connection: Connection, text: str) -> str:
    written = text.encode().hex()
    return f"'\\x{written}'::bytea" if connection.dialect.name == "postgresql" else f"X'{written}'"


def _text(connection: Connection, word: str, number: str) -> str:
    if connection.dialect.name == "mysql":
        return f"CONCAT('{word}-', {number})"
    return f"'{word}-' || CAST({number} AS VARCHAR(20))"


def _numbers(count: int) -> str:
    """A table with the numbers below ``count``."""
    digits = " UNION ALL SELECT ".join(["SELECT 0 AS d", *map(str, range(1, 10))])
    size = len(str(count - 1))
    columns = " + ".join(f"t{place}.d * {10**place}" for place in range(size))
    tables = ", ".join(f"({digits}) t{place}" for place in range(size))
    return f"(SELECT {columns} AS n FROM {tables}) numbers WHERE n < {count}"


def analyse(engine: Engine) -> None:
    """What the database does by itself after a while: fresh statistics."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "postgresql":
            # With the map of what is visible, without which an index alone answers nothing.
            connection.execute(sa.text("VACUUM ANALYZE"))
        elif engine.dialect.name == "mysql":
            connection.execute(sa.text(f"ANALYZE TABLE {', '.join(_TABLES)}")).all()
        else:
            connection.execute(sa.text("ANALYZE"))
