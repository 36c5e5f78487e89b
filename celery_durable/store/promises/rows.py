"""A promise in the store, and its owners.

A promise is known outside by the id and token that its body gave away. A rerun shares promises that were made before
the step where it begins: for each it has its own row, with the id that is known outside. All rows are settled together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celery_durable.identity import child_of

from ..records import PromiseState, StoredPayload
from ..tables import executions, promises

__all__ = ["COLUMNS", "PromiseRow", "Target", "lock_execution", "lock_owners", "row_of", "shares"]

_p = promises.c
_x = executions.c


class PromiseRow(NamedTuple):
    """A promise as the store has it. Times are ms since the epoch, UTC, by the database's clock."""

    id: str
    pk: int
    name: str
    state: PromiseState
    #: The epoch of the suspension that waits for it.
    awaited: int | None
    deadline: int | None
    created_at: int
    settled_at: int | None
    payload: StoredPayload | None
    #: The task id of the child task that is to settle it; None if somebody outside is.
    child: str | None
    #: The id by which it is known outside: its own, or that of the promise that it shares.
    known_as: str

    @property
    def pending(self) -> bool:
        return self.state is PromiseState.PENDING


class Target(NamedTuple):
    """What must be known about a promise before it may be settled."""

    pk: int
    name: str
    token_hash: bytes | None
    heartbeat_ms: int | None


COLUMNS = (
    _p.id,
    _p.pk,
    _p.name,
    _p.state,
    _p.awaited,
    _p.deadline,
    _p.created_at,
    _p.settled_at,
    sa.case((_p.token_hash.is_(None), 1), else_=0).label("internal"),
    sa.func.coalesce(_p.known_as, _p.id).label("known_as"),
    _p.codec,
    _p.data,
)


def row_of(row: Any) -> PromiseRow:
    """The promise of a row of :data:`COLUMNS`."""
    payload = None if row.codec is None else StoredPayload(row.codec, bytes(row.data))
    return PromiseRow(
        row.id,
        row.pk,
        row.name,
        PromiseState(row.state),
        row.awaited,
        row.deadline,
        row.created_at,
        row.settled_at,
        payload,
        child_of(row.id) if row.internal else None,
        row.known_as,
    )


# Two queries instead of one with OR: for each of them every database uses an index.
_WHAT = (_p.id, _p.pk, _p.name, _p.token_hash, _p.heartbeat_ms)
_SHARES = sa.union_all(
    sa.select(*_WHAT, sa.literal_column("0").label("rank")).where(
        _p.id == sa.bindparam("known"), _p.known_as.is_(None)
    ),
    sa.select(*_WHAT, sa.literal_column("1").label("rank")).where(_p.known_as == sa.bindparam("known")),
).order_by("rank", "pk")
_LOCK = sa.select(_x.pk, _x.namespace, _x.id, _x.task, _x.state, _x.epoch, _x.sends, _x.cancel_at).with_for_update()


def shares(connection: Connection, known_as: str) -> Sequence[Any]:
    """The rows of a promise that is known by this id: the original one, if it still exists, and those of reruns. A
    child's promise has one row: it is never shared.
    """
    return connection.execute(_SHARES, {"known": known_as}).all()


def lock_execution(connection: Connection, pk: int) -> Any:
    """Lock an execution; None if it is gone."""
    return connection.execute(_LOCK.where(_x.pk == pk)).first()


def lock_owners(connection: Connection, known_as: str, first: int) -> tuple[Sequence[Any], dict[int, Any]]:
    """Lock all executions that a promise belongs to, always in the same order.

    :param first: key of the execution that it belonged to a moment ago.
    :returns: the promise's rows, and the executions by their keys. No row is added until the caller's transaction ends:
        a rerun that shares a promise first locks the execution that it belongs to.
    """
    owners = {first: lock_execution(connection, first)}
    while True:
        rows = shares(connection, known_as)
        new = sorted({row.pk for row in rows} - set(owners))
        if not new:
            return rows, owners
        for pk in new:
            owners[pk] = lock_execution(connection, pk)
