"""Child tasks: recorded in the transaction in which their parent's journal names them, and heard of in the transaction
in which they end.

A child's promise has the digits of the child's task id as its id. So whoever ends an execution finds the parent that
waits for it without a table of its own. The parent is always locked before the child.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .new_promises import insert_all
from .outbox import Published, Unsent, put
from .records import Batch, NewPromise, PromiseState, StoredPayload
from .settling import Waking, settle_promise
from .tables import executions, promises

__all__ = ["ChildEnd", "NewChild", "Offspring", "insert_children", "kept_by", "lock_parent", "tell_parent"]

_p = promises.c
_x = executions.c


class NewChild(NamedTuple):
    """A child task on its way into the store."""

    #: Kept by its end.
    promise: NewPromise
    #: What starts it, in the order in which it is sent, with the keys of their rows.
    messages: tuple[tuple[int, Published | Unsent], ...]


class Offspring(NamedTuple):
    """Child tasks that are recorded together with a journal entry."""

    namespace: str
    lease_ms: int
    children: tuple[NewChild, ...]


class ChildEnd(NamedTuple):
    """How a child task has ended."""

    promise_id: str
    state: PromiseState
    payload: StoredPayload
    #: Of whoever sends the parent's message after the commit; None: recovery does.
    namespace: str | None = None


def insert_children(connection: Connection, batches: Iterable[Batch]) -> None:
    """Record the child tasks that come with journal entries; the caller holds the fence."""
    for batch in batches:
        for entry in batch.entries:
            if entry.offspring is not None:
                namespace, lease_ms, children = entry.offspring
                insert_all(connection, [(batch.fence.pk, child.promise) for child in children])
                put(connection, namespace, lease_ms, [message for child in children for message in child.messages])


def kept_by(execution_id: str) -> str | None:
    """Id of the promise that an execution keeps by its end, if it is somebody's child."""
    try:
        known = uuid.UUID(execution_id)
    except ValueError:
        return None
    return known.hex if str(known) == execution_id else None


def lock_parent(connection: Connection, promise_id: str | None) -> int | None:
    """Lock the execution that waits for a child, before the child itself is locked.

    :returns: its key; None where there is none.
    """
    if promise_id is None:
        return None
    query = sa.select(_p.pk).where(_p.id == promise_id, _p.token_hash.is_(None))
    pk = connection.execute(query).scalar()
    if pk is not None:
        connection.execute(sa.select(_x.pk).where(_x.pk == pk).with_for_update())
    return pk


def tell_parent(connection: Connection, parent: int | None, end: ChildEnd, patience_ms: int = 5000) -> Waking | None:
    """Keep the promise of a child that has ended, in the transaction that says so.

    :param parent: what :func:`lock_parent` has given.
    :returns: the execution that goes on because of it.
    """
    if parent is None:
        return None
    _, waking = settle_promise(
        connection,
        end.promise_id,
        parent,
        end.state,
        end.payload,
        patience_ms=patience_ms,
        namespace=end.namespace,
    )
    return waking
