"""Promises on their way into the store, with the journal entries that make them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Connection

from ..records import Batch, NewPromise, PromiseState
from ..tables import from_now, now_ms, promises

__all__ = ["insert_all", "insert_promises"]


def _inserts() -> dict[str, sa.Insert]:
    """By dialect: insert, unless the row exists. It does after a divergence: the earlier body made the promise, and may
    have given its token away.
    """
    computed: dict[str, Any] = {
        "deadline": from_now("b_deadline"),
        "expires_at": from_now("b_expires"),
        "created_at": now_ms(),
        "state": sa.literal_column(str(int(PromiseState.PENDING))),
        **{name: sa.bindparam(f"b_{name}") for name in ("id", "pk", "name", "token_hash", "heartbeat_ms", "known_as")},
    }
    lite, post = (d.insert(promises).values(computed).on_conflict_do_nothing() for d in (sqlite, postgresql))
    my = mysql.insert(promises).values(computed)
    ours = my.on_duplicate_key_update(name=my.inserted.name)
    return {"sqlite": lite, "postgresql": post, "mysql": ours, "mariadb": ours}


_INSERT = _inserts()


def insert_promises(connection: Connection, batches: Iterable[Batch]) -> None:
    """Make the promises that come with journal entries; the caller holds the fence."""
    insert_all(
        connection, [(batch.fence.pk, entry.promise) for batch in batches for entry in batch.entries if entry.promise]
    )


def insert_all(connection: Connection, made: Sequence[tuple[int, NewPromise]]) -> None:
    """Make promises, each for the execution with this key."""
    if made:
        connection.execute(_INSERT[connection.dialect.name], [_bound(pk, promise) for pk, promise in made])


def _bound(pk: int, promise: NewPromise) -> dict[str, Any]:
    patience = [ms for ms in (promise.timeout_ms, promise.heartbeat_ms) if ms is not None]
    return {
        "b_id": promise.id,
        "b_pk": pk,
        "b_name": promise.name,
        "b_token_hash": promise.token_hash,
        "b_heartbeat_ms": promise.heartbeat_ms,
        "b_deadline": min(patience, default=None),
        "b_expires": promise.timeout_ms,
        "b_known_as": promise.known_as,
    }
