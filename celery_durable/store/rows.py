"""Operations on a row that several parts of the store share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Connection

from celery_durable.errors import LeaseLost

from .records import PayloadKind, State, StoredPayload
from .tables import executions, now_ms, payloads

__all__ = [
    "LONGEST_SPACING",
    "NotStorable",
    "get_payload",
    "is_name",
    "lease_lost",
    "parts",
    "put_payload",
    "put_payload_statement",
    "quarantine",
    "reason_payload",
    "reason_text",
    "spacing",
]

_x = executions.c

#: Longest pause between two sends of one message, in milliseconds.
LONGEST_SPACING: Final = 3_600_000
#: 2 ** 12 leases are longer than that for every lease of a second or more.
_MOST_DOUBLINGS = 12


def _upserts() -> dict[str, sa.Insert]:
    """Insert or replace, in the three dialects."""
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


class NotStorable(Exception):
    """The database refuses a value: it is too long, has characters that cannot be stored, or an id is taken."""


def put_payload_statement(dialect: str) -> sa.Insert:
    """Writes a payload row, or replaces it."""
    return _UPSERT[dialect]


def get_payload(connection: Connection, pk: int, kind: PayloadKind) -> StoredPayload | None:
    """Read a payload row."""
    row = connection.execute(
        sa.select(payloads.c.codec, payloads.c.data).where(payloads.c.pk == pk, payloads.c.kind == int(kind))
    ).first()
    return StoredPayload(row.codec, bytes(row.data)) if row else None


#: Most bytes in one statement, unless a single row is larger: a server refuses larger ones (the smallest default of
#: ``max_allowed_packet`` is 4 MB, and a driver may write each byte as two).
_STATEMENT_BYTES: Final = 1 << 20


def parts(rows: Sequence[dict[str, Any]], data: str) -> Iterator[Sequence[dict[str, Any]]]:
    """Rows in parts that fit into a statement.

    :param data: the column that may be large.
    """
    begin = size = 0
    for number, row in enumerate(rows):
        more = len(row[data] or b"")
        if number > begin and size + more > _STATEMENT_BYTES:
            yield rows[begin:number]
            begin, size = number, 0
        size += more
    if rows:
        yield rows[begin:] if begin else rows


def is_name(text: Any) -> bool:
    """Whether a text can be an id at all; otherwise some databases refuse to search for it."""
    return isinstance(text, str) and "\0" not in text and not any("\ud800" <= one <= "\udfff" for one in text)


#: Separates the part of a reason that everybody may read from the part that is shown only with values.
_DETAILS: Final = "\x1f"


def reason_payload(text: str, details: str = "") -> StoredPayload:
    """A reason as it is stored.

    :param details: texts of the user's errors, previews of arguments: they are shown only to those who ask for values.
    """
    stored = text.replace(_DETAILS, " ") + (_DETAILS + details if details else "")
    return StoredPayload(0, stored.encode("utf-8", "backslashreplace"))


def reason_text(stored: StoredPayload, *, reveal: bool = False) -> str:
    """A stored reason.

    :param reveal: with its details.
    """
    text, _, details = stored.data.decode(errors="replace").partition(_DETAILS)
    return f"{text}\n{details}" if reveal and details else text


def quarantine(connection: Connection, row: Any, max_attempts: int) -> str:
    """Park an execution whose owners keep dying; an owner that may still run it is fenced off.

    :returns: the reason, as it was stored.
    """
    deaths = row.attempts + (1 if row.state == State.RUNNING.value else 0)
    reason = (
        f"its owner died, lost its lease or ran into its hard time limit {deaths} times (durable_max_attempts is "
        f"{max_attempts}). "
        f"Find out what kills the worker, then: celery durable resume {row.id}"
    )
    connection.execute(
        sa.update(executions)
        .where(_x.pk == row.pk)
        .values(state=State.QUARANTINED.value, wake_at=None, lease_until=0, epoch=_x.epoch + 1, updated_at=now_ms())
    )
    put_payload(connection, row.pk, PayloadKind.REASON, reason_payload(reason))
    return reason


def spacing(lease_ms: int, sends: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    """How long after a send a message may be sent once more: a lease, doubled with every earlier send.

    :returns: milliseconds.
    """
    *steps, longest = [min(lease_ms << number, LONGEST_SPACING) for number in range(_MOST_DOUBLINGS + 1)]
    cases: list[Any] = [(sends == _number(sent), _number(ms)) for sent, ms in enumerate(steps)]
    return sa.case(*cases, else_=_number(longest))


def _number(value: int) -> sa.ColumnElement[int]:
    return sa.literal_column(str(value), sa.BigInteger)


def lease_lost(row: Any) -> LeaseLost:
    """The error for a fence that no longer holds; ``row`` is the execution's present row."""
    if row is None:
        return LeaseLost("the execution's row is gone; its result is dropped.")
    state = State(row.state)
    if state is State.RUNNING:
        return LeaseLost(
            f"another owner took the execution over (its epoch is {row.epoch} now); this one's result is dropped."
        )
    return LeaseLost(f"the execution is {state.value} now; this owner's result is dropped.", state=state)
