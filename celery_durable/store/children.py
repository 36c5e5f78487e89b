"""Child tasks: recorded in the transaction in which their parent's journal names them, and reported in the transaction
in which they end.

The id of a child's promise consists of the digits of the child's task id. So the parent that waits for an execution is
found without another table. The parent is always locked before the child.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .outbox import known_ids, put
from .promises.making import insert_all
from .promises.settling import Waking, settle_promise
from .records import Batch, PromiseState, Published, StoredPayload, Unsent
from .rows import NotStorable
from .tables import executions, promises

__all__ = ["ChildEnd", "insert_children", "kept_by", "lock_parent", "tell_parent"]

_p = promises.c
_x = executions.c


class ChildEnd(NamedTuple):
    """How a child task has ended."""

    promise_id: str
    state: PromiseState
    payload: StoredPayload
    #: Namespace of the process that sends the parent's message after the commit; None: recovery sends it.
    namespace: str | None = None


def insert_children(connection: Connection, batches: Iterable[Batch]) -> None:
    """Record the child tasks that come with journal entries; the caller holds the fence."""
    for batch in batches:
        for entry in batch.entries:
            if entry.offspring is not None:
                namespace, lease_ms, children = entry.offspring
                insert_all(connection, [(batch.fence.pk, child.promise) for child in children])
                messages = [message for child in children for message in child.messages]
                if not put(connection, namespace, lease_ms, messages):
                    _check_own(connection, namespace, messages)


def _check_own(connection: Connection, namespace: str, messages: Sequence[tuple[int, Published | Unsent]]) -> None:
    """Check messages of which some may have been left out: if a child's id belonged to another execution, the parent
    would wait for ever, or get the wrong result.

    :raises NotStorable: if an id does; then nothing is recorded.
    """
    own = {message.id: pk for pk, message in messages if isinstance(message, Published)}
    durable = [message for _, message in messages if isinstance(message, Published)]
    for row in known_ids(connection, namespace, durable).values():
        if row.pk != own[row.id]:
            raise NotStorable(
                f"the id {row.id!r} of this child belongs to another execution already, of task {row.task!r} "
                f"({row.state}). Nothing was started. Without durable_secret, ids of children can be guessed from "
                "their parents', and somebody has chosen this one: set the secret, remove that execution, or start "
                "the parent's work under another id"
            )


def kept_by(execution_id: str) -> str | None:
    """Id of the promise that an execution settles by its end, if it is a child."""
    try:
        known = uuid.UUID(execution_id)
    except ValueError:
        return None
    return known.hex if str(known) == execution_id else None


def lock_parent(connection: Connection, promise_id: str | None) -> int | None:
    """Lock the execution that waits for a child, before the child itself is locked.

    :returns: its key; None if there is none.
    """
    if promise_id is None:
        return None
    query = sa.select(_p.pk).where(_p.id == promise_id, _p.token_hash.is_(None))
    pk = connection.execute(query).scalar()
    if pk is not None:
        connection.execute(sa.select(_x.pk).where(_x.pk == pk).with_for_update())
    return pk


def tell_parent(connection: Connection, parent: int | None, end: ChildEnd, patience_ms: int = 5000) -> Waking | None:
    """Settle the promise of a child that has ended, in the transaction that records the end.

    :param parent: the result of :func:`lock_parent`.
    :returns: the execution that continues because of it.
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
