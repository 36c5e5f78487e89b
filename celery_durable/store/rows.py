"""What several parts of the store do to a row."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Connection

from ..errors import LeaseLost
from .records import PayloadKind, State, StoredPayload
from .tables import executions, now_ms, payloads

__all__ = [
    "get_payload",
    "is_name",
    "lease_lost",
    "put_payload",
    "put_payload_statement",
    "quarantine",
    "reason_payload",
    "spacing",
]

_x = executions.c

#: Longest pause between two sends of one message, in milliseconds.
_LONGEST_SPACING = 3_600_000
#: 2 ** 12 leases are beyond it for every lease of a second or more.
_MOST_DOUBLINGS = 12


def _upserts() -> dict[str, sa.Insert]:
    """The three ways to say: insert, or replace."""
    lite, post, my = sqlite.insert(payloads), postgresql.insert(payloads), mysql.insert(payloads)
    primary = list(payloads.primary_key)
    ours = my.on_duplicate_key_update(codec=my.inserted.codec, data=my.inserted.data)
    return {
        "sqlite": lite.on_conflict_do_update(
            index_elements=primary, set_={"codec": lite.excluded.codec, "data": lite.excluded.data}
        ),
        "postgresql": post.on_conflict_do_update(
            index_elements=primary, set_={"codec": post.excluded.codec, "data": post.excluded.data}
        ),
        "mysql": ours,
        "mariadb": ours,
    }


_UPSERT = _upserts()


def put_payload(connection: Connection, pk: int, kind: PayloadKind, payload: StoredPayload) -> None:
    """Write or replace a payload row."""
    values = {"pk": pk, "kind": int(kind), "codec": payload.codec, "data": payload.data}
    connection.execute(put_payload_statement(connection.dialect.name), values)


def put_payload_statement(dialect: str) -> sa.Insert:
    """Writes a payload row, or replaces it."""
    return _UPSERT[dialect]


def get_payload(connection: Connection, pk: int, kind: PayloadKind) -> StoredPayload | None:
    """Read a payload row."""
    row = connection.execute(
        sa.select(payloads.c.codec, payloads.c.data).where(payloads.c.pk == pk, payloads.c.kind == int(kind))
    ).first()
    return StoredPayload(row.codec, bytes(row.data)) if row else None


def is_name(text: Any) -> bool:
    """Whether a text can be an id at all; otherwise some databases refuse to look for it."""
    return isinstance(text, str) and "\0" not in text and not any("\ud800" <= one <= "\udfff" for one in text)


def reason_payload(text: str) -> StoredPayload:
    """A reason as it is stored. Errors of the user's are quoted in it, with whatever their texts hold."""
    return StoredPayload(0, text.encode("utf-8", "backslashreplace"))


def quarantine(connection: Connection, row: Any, max_attempts: int) -> str:
    """Park an execution whose owners keep dying; fences off whoever may still run it.

    :returns: the reason, as it was stored.
    """
    deaths = row.attempts + (1 if row.state == State.RUNNING.value else 0)
    reason = (
        f"its owner died or lost its lease {deaths} times (durable_max_attempts is {max_attempts}). "
        f"Find out what kills the worker, then: celery durable resume {row.id}"
    )
    connection.execute(
        sa.update(executions)
        .where(_x.pk == row.pk)
        .values(state=State.QUARANTINED.value, wake_at=None, lease_until=0, epoch=_x.epoch + 1, updated_at=now_ms())
    )
    put_payload(connection, row.pk, PayloadKind.REASON, reason_payload(reason))
    return reason


def spacing(lease_ms: int, sends: int) -> int:
    """How long after a send a message may be sent once more: a lease, doubled with every send before it.

    :returns: milliseconds.
    """
    return min(lease_ms << min(sends, _MOST_DOUBLINGS), _LONGEST_SPACING)


def lease_lost(row: Any) -> LeaseLost:
    """The error for a fence that no longer holds; ``row`` is what the execution is now."""
    if row is None:
        return LeaseLost("the execution's row is gone; its result is dropped.")
    state = State(row.state)
    if state is State.RUNNING:
        return LeaseLost(
            f"another owner took the execution over (its epoch is {row.epoch} now); this one's result is dropped."
        )
    return LeaseLost(f"the execution is {state.value} now; this owner's result is dropped.", state=state)
