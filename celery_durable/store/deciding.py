"""What an operator has decided in somebody else's place: done, and written into the journal, in one transaction."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .database import Database
from .journal import insert_entries
from .promises import Settlement, Target, Waking, settle_promise
from .records import DECISIONS, Batch, Entry, EntryKind, Fence, PromiseState, StoredPayload
from .tables import executions, journal

__all__ = ["settle_and_note"]

_x = executions.c
_j = journal.c


def settle_and_note(
    database: Database,
    promise_id: str,
    target: Target,
    state: PromiseState,
    payload: StoredPayload,
    *,
    note: StoredPayload,
    namespace: str,
    patience_ms: int = 5000,
) -> tuple[Settlement, Waking | None]:
    """Settle a promise as :func:`~.promises.settle_promise` does.

    :param note: who decided; goes into the journal of the execution that waits.
    """

    def work(connection: Connection) -> tuple[Settlement, Waking | None]:
        done, waking = settle_promise(
            connection, promise_id, target.pk, state, payload, patience_ms=patience_ms, namespace=namespace
        )
        if done is Settlement.DONE:
            _note(connection, target, note)
        return done, waking

    return database.write(work)


def _note(connection: Connection, target: Target, note: StoredPayload) -> None:
    """Write an audit where no step stands: the execution may run at this moment, and write its own entries.

    The caller has locked the execution.
    """
    row = connection.execute(sa.select(_x.epoch, _x.generation).where(_x.pk == target.pk)).first()
    if row is None:
        return
    here = (_j.pk == target.pk, _j.generation == row.generation, _j.scope == DECISIONS)
    last = connection.execute(sa.select(sa.func.max(_j.position)).where(*here)).scalar()
    place = 0 if last is None else last + 1
    entry = Entry(DECISIONS, place, 0, EntryKind.AUDIT, None, target.name[:200], payload=note)
    insert_entries(connection, [Batch(Fence(target.pk, row.epoch), row.generation, (entry,))])
