"""Decisions of an operator: carried out, and written into the journal, in one transaction."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .database import Database
from .journal import insert_entries
from .promises.rows import shares
from .promises.settling import Settlement, Waking, settle_for_all
from .records import DECISIONS, Batch, Entry, EntryKind, Fence, PromiseState, StoredPayload
from .tables import executions, journal

__all__ = ["settle_and_note"]

_x = executions.c
_j = journal.c


def settle_and_note(
    database: Database,
    promise_id: str,
    pk: int,
    state: PromiseState,
    payload: StoredPayload,
    *,
    note: StoredPayload,
    namespace: str,
    patience_ms: int = 5000,
) -> tuple[Settlement, list[Waking]]:
    """Settle a promise as :func:`~.settling.settle_for_all` does.

    :param note: who decided; goes into the journals of all executions that the promise belongs to.
    """

    def work(connection: Connection) -> tuple[Settlement, list[Waking]]:
        done, woken = settle_for_all(
            connection, promise_id, pk, state, payload, patience_ms=patience_ms, namespace=namespace
        )
        if done is Settlement.DONE:
            for row in shares(connection, promise_id):
                _note(connection, row.pk, row.name, note)
        return done, woken

    return database.write(work)


def _note(connection: Connection, pk: int, name: str, note: StoredPayload) -> None:
    """Write an audit in its own scope, because the execution may be running and writing entries at this moment.

    The caller has locked the execution.
    """
    row = connection.execute(sa.select(_x.epoch, _x.generation).where(_x.pk == pk)).first()
    if row is None:
        return
    here = (_j.pk == pk, _j.generation == row.generation, _j.scope == DECISIONS)
    last = connection.execute(sa.select(sa.func.max(_j.position)).where(*here)).scalar()
    place = 0 if last is None else last + 1
    entry = Entry(DECISIONS, place, 0, EntryKind.AUDIT, None, name[:200], payload=note)
    insert_entries(connection, [Batch(Fence(pk, row.epoch), row.generation, (entry,))])
