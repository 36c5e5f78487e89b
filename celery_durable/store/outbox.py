"""Messages that are recorded in the transaction which decides to send them, and sent after its commit.

Those of durable tasks are executions that have not started. Those of other tasks have their own table, from which they
are deleted once they are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Connection

from celery_durable.errors import ConfigurationError, JournalUnavailable

from .database import Database
from .records import PayloadKind, Published, State, StoredPayload, Unsent
from .rows import get_payload, spacing
from .tables import executions, from_now, new_pk, now_ms, now_once, outbox, payloads

__all__ = [
    "Existing",
    "IdTaken",
    "OutboxStore",
    "check",
    "existing",
    "forget",
    "insert",
    "known_ids",
    "new_pks",
    "present",
    "put",
    "row_of",
    "wakes",
]

_x = executions.c
_o = outbox.c

#: Width of the columns. MySQL would truncate longer values.
_LONGEST_ID = 255
#: How many keys one statement asks for.
_CHUNK = 500
#: A caller's connection may translate schemas; this must not affect the journal's tables.
_OPTIONS: dict[str, Any] = {"schema_translate_map": {}}


class Speaks(Protocol):
    """An SQLAlchemy connection, or one that is borrowed from somebody else."""

    @property
    def dialect(self) -> Any: ...

    def execute(self, statement: Any, parameters: Any = ..., *, execution_options: Any = ...) -> Any: ...


class Existing(NamedTuple):
    """An execution that has the id which a caller chose."""

    pk: int
    task: str
    state: State
    #: None if its id was not chosen as a ``durable_id``.
    args_hash: bytes | None
    #: ms since the epoch, UTC.
    created_at: int
    pruned: bool
    envelope: StoredPayload | None


class IdTaken(Exception):
    """Internal: a chosen id belongs to a call that is not known to be the same one; nothing was recorded."""

    def __init__(self, message: Published, existing: Existing | Published) -> None:
        super().__init__(message.id)
        self.message = message
        #: The execution; or a message, if the same batch has the id twice.
        self.existing = existing


class DueMessage(NamedTuple):
    """A message of a task that is not durable, claimed to be sent."""

    pk: int
    id: str
    task: str
    sends: int
    envelope: StoredPayload


def new_pks(count: int, after: int = 0) -> list[int]:
    """Fresh keys in ascending order, because messages are sent in the order of their keys.

    :param after: greater than this one, also within one millisecond.
    """
    keys = sorted(new_pk() for _ in range(count))
    for number, key in enumerate(keys):
        keys[number] = after = max(key, after + 1)
    return keys


def row_of(pk: int, namespace: str, message: Published, lease_ms: int) -> dict[str, Any]:
    """The row of an execution that has not begun, without its times: see :func:`wakes`."""
    return {
        "pk": pk,
        "namespace": namespace,
        "id": message.id,
        "task": message.task,
        "state": State.PENDING.value,
        "epoch": 0,
        "lease_until": 0,
        # Recovery sends its message a lease after it was due.
        "wake": None if message.envelope is None else lease_ms + message.delay_ms,
        "generation": 1,
        "base_generation": 1,
        "attempts": 0,
        "retries": message.retries,
        "replacements": message.replacements,
        "sends": 0,
        "steps": 0,
        "args_hash": message.args_hash,
    }


def wakes() -> dict[str, Any]:
    """The times of a row of :func:`row_of`."""
    return {"wake_at": from_now("wake"), "created_at": now_ms(), "updated_at": now_ms()}


def known_ids(connection: Speaks, namespace: str, messages: Sequence[Published]) -> dict[str, Any]:
    """Rows of executions that have the ids of these messages."""
    columns = (_x.id, _x.pk, _x.task, _x.state, _x.args_hash, _x.created_at, _x.pruned_at)
    query = sa.select(*columns).where(_x.namespace == namespace, _x.id.in_([m.id for m in messages]))
    return {row.id: row for row in connection.execute(query, execution_options=_OPTIONS)}


def existing(connection: Speaks, row: Any) -> Existing:
    """The execution of a row that :func:`known_ids` has found, with its message."""
    return Existing(
        pk=row.pk,
        task=row.task,
        state=State(row.state),
        args_hash=None if row.args_hash is None else bytes(row.args_hash),
        created_at=row.created_at,
        pruned=row.pruned_at is not None,
        envelope=get_payload(connection, row.pk, PayloadKind.ENVELOPE),  # type: ignore[arg-type]
    )


def _unless_known(dialect: str, values: dict[str, Any]) -> sa.Insert:
    """Insert executions, except those whose id is known: an error would end the caller's transaction."""
    unique = [_x.namespace, _x.id]
    if dialect == "sqlite":
        return sqlite.insert(executions).values(values).on_conflict_do_nothing(index_elements=unique)
    if dialect == "postgresql":
        return postgresql.insert(executions).values(values).on_conflict_do_nothing(index_elements=unique)
    return mysql.insert(executions).values(values).prefix_with("IGNORE")


#: The payload of an execution that was inserted just now.
_PAYLOAD = sa.insert(payloads).from_select(
    ["pk", "kind", "codec", "data"],
    sa.select(
        _x.pk,
        sa.literal(int(PayloadKind.ENVELOPE), sa.SmallInteger),
        sa.bindparam("b_codec", type_=sa.SmallInteger),
        sa.bindparam("b_data", type_=payloads.c.data.type),
    ).where(_x.pk == sa.bindparam("b_pk", type_=sa.BigInteger)),
)


def insert(
    connection: Speaks,
    namespace: str,
    lease_ms: int,
    messages: Sequence[Published | Unsent],
    *,
    settle: Callable[[IdTaken], None],
    after: int = 0,
) -> list[int]:
    """Record messages in an open transaction, in their order.

    A durable one whose id is known already is left out: the execution that has the id stands for it.

    :param settle: is asked about a chosen id that is taken, and raises unless the same call has it.
    :param after: the new keys are greater than this one.
    :returns: their keys; :func:`present` tells which of them really exist at the commit.
    :raises ConfigurationError: for an id that does not fit, or that is another task's.
    """
    for message in messages:
        check(message)
    keys = new_pks(len(messages), after)
    pairs = list(zip(keys, messages, strict=True))
    if not put(connection, namespace, lease_ms, pairs):
        _check_known(connection, namespace, [m for m in messages if isinstance(m, Published)], settle)
    return keys


def put(connection: Speaks, namespace: str, lease_ms: int, messages: Sequence[tuple[int, Published | Unsent]]) -> bool:
    """Record messages under these keys in an open transaction; durable ones whose ids are known are left out.

    :returns: False if some were left out, or the driver cannot tell.
    """
    durable = [(pk, m) for pk, m in messages if isinstance(m, Published)]
    plain = [(pk, m) for pk, m in messages if isinstance(m, Unsent)]
    complete = True
    if durable:
        statement = _unless_known(connection.dialect.name, wakes())
        rows = [row_of(pk, namespace, message, lease_ms) for pk, message in durable]
        done = connection.execute(statement, rows, execution_options={**_OPTIONS, "preserve_rowcount": True})
        data = [
            {"b_pk": pk, "b_codec": m.envelope.codec, "b_data": m.envelope.data}
            for pk, m in durable
            if m.envelope is not None
        ]
        connection.execute(_PAYLOAD, data, execution_options=_OPTIONS)
        complete = done.rowcount == len(rows)
    if plain:
        times = {"wake_at": now_ms() + lease_ms, "created_at": now_ms()}
        rows = [
            {
                "pk": pk,
                "namespace": namespace,
                "id": m.id,
                "task": m.task,
                "sends": 0,
                "codec": m.envelope.codec,
                "data": m.envelope.data,
            }
            for pk, m in plain
        ]
        connection.execute(sa.insert(outbox).values(times), rows, execution_options=_OPTIONS)
    return complete


def check(message: Published | Unsent) -> None:
    for what, text in (("id", message.id), ("task name", message.task)):
        if not text or len(text) > _LONGEST_ID or "\0" in text:
            raise ConfigurationError(
                f"a message of task {message.task[:_LONGEST_ID]!r} cannot be recorded: its {what} is "
                f"{len(text)} characters long, or holds a NUL. It has to be 1 to {_LONGEST_ID} characters."
            )


def _check_known(
    connection: Speaks, namespace: str, messages: Sequence[Published], settle: Callable[[IdTaken], None]
) -> None:
    """Some messages were left out: raise an error if an id belongs to another call, or its message would be lost."""
    rows = known_ids(connection, namespace, messages)
    for message in messages:
        row = rows.get(message.id)
        if row is None:
            # MySQL also leaves out a row whose key collides.
            raise JournalUnavailable(f"the message of {message.id} could not be recorded; try again.")
        if message.args_hash is not None:
            if row.args_hash is None or bytes(row.args_hash) != message.args_hash:
                settle(IdTaken(message, existing(connection, row)))
        elif row.task != message.task:
            raise ConfigurationError(
                f"task {message.task!r} cannot be enqueued under the id {row.id!r}: an execution of task {row.task!r} "
                "has it. Choose another task_id."
            )


def present(connection: Speaks, durable: Sequence[int], plain: Sequence[int]) -> set[int]:
    """Which of these keys exist in this transaction: a savepoint may have been rolled back, or an id was known."""
    found: set[int] = set()
    for column, keys in ((_x.pk, durable), (_o.pk, plain)):
        for start in range(0, len(keys), _CHUNK):
            query = sa.select(column).where(column.in_(keys[start : start + _CHUNK]))
            found.update(connection.execute(query, execution_options=_OPTIONS).scalars())
    return found


def forget(connection: Connection, plain: Sequence[int]) -> None:
    """Delete these again, in the transaction in which they were recorded."""
    if plain:
        connection.execute(sa.delete(outbox).where(_o.pk.in_(list(plain))), execution_options=_OPTIONS)


class OutboxStore:
    """The messages of tasks that are not durable, of one namespace.

    :param lease_ms: also the spacing of repeated sends of one message; it doubles with every send.
    """

    def __init__(self, database: Database, *, namespace: str, lease_ms: int) -> None:
        self._database = database
        self._namespace = namespace
        self._lease_ms = lease_ms

    def claim(self, limit: int) -> list[DueMessage]:
        """Take up to ``limit`` messages that should have been sent by now; the oldest come first.

        A claimed message comes up again after a while, unless :meth:`sent` reports it as sent.
        """

        def work(connection: Connection) -> list[DueMessage]:
            query = (
                sa.select(outbox)
                .where(_o.namespace == self._namespace, _o.wake_at <= now_once())
                .order_by(_o.wake_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            rows = connection.execute(query).all()
            if rows:
                again = now_ms() + spacing(self._lease_ms, _o.sends)
                change = sa.update(outbox).where(_o.pk.in_([row.pk for row in rows]))
                connection.execute(change.ordered_values((_o.wake_at, again), (_o.sends, _o.sends + 1)))
            due = [DueMessage(r.pk, r.id, r.task, r.sends, StoredPayload(r.codec, bytes(r.data))) for r in rows]
            return sorted(due)

        return self._database.write(work)

    def sent(self, pks: Iterable[int]) -> None:
        """Delete messages that the broker has. If a crash of the database restores one, it is sent once more."""
        keys = list(pks)
        if keys:
            self._database.write(lambda c: c.execute(sa.delete(outbox).where(_o.pk.in_(keys))), durable=False)

    def unsent(self, pks: Sequence[int], delay_ms: int) -> None:
        """Claimed messages could not be sent: let them come up again after ``delay_ms``, as if they had not been."""
        if pks:
            mine = sa.and_(_o.pk.in_(list(pks)), _o.sends > 0)
            values = {"wake_at": now_ms() + delay_ms, "sends": _o.sends - 1}
            self._database.write(lambda c: c.execute(sa.update(outbox).where(mine).values(values)))
