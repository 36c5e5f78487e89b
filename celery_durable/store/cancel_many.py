"""Cancels executions that have not started, many at once: they have no journal, and nothing to undo.

A parent that no longer needs its children may have hundreds; if they were cancelled one by one, most would start first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .children import kept_by
from .database import Database
from .journal_reader import to_execution
from .records import Execution, PayloadKind, PromiseState, State, StoredPayload
from .rows import put_payload_statement, reason_payload
from .tables import executions, now_ms, now_once, payloads, promises

__all__ = ["MOST", "Unbegun", "cancel_unbegun"]

_x = executions.c
_p = promises.c

#: Ids in one transaction, at most.
MOST: Final = 200


class Unbegun(NamedTuple):
    """An execution that was cancelled before it began."""

    #: As it was before.
    row: Execution
    envelope: StoredPayload | None


def cancel_unbegun(database: Database, namespace: str, ids: Sequence[str], reason: str) -> dict[str, Unbegun]:
    """Cancel, in one transaction, those of these executions that nobody has started, and notify their parents.

    :returns: those, by their ids. Others are unchanged, also children of a suspended parent, which has to be woken.
    :raises JournalUnavailable: when the database did not answer.
    """
    wanted = set(ids)
    kept = {promise: one for one in wanted if (promise := kept_by(one)) is not None}

    def work(connection: Connection) -> dict[str, Unbegun]:
        # Parents are always locked before their children.
        query = sa.select(_p.id, _p.pk).where(_p.id.in_(list(kept)), _p.token_hash.is_(None))
        parents = {row.id: row.pk for row in connection.execute(query)} if kept else {}
        asleep = _asleep(connection, sorted(set(parents.values())))
        named = wanted - {kept[promise] for promise, pk in parents.items() if pk in asleep}
        query = (
            sa.select(executions)
            .where(_x.namespace == namespace, _x.id.in_(list(named)), _x.state == State.PENDING.value, _x.epoch == 0)
            .order_by(_x.pk)
            .with_for_update()
        )
        # MySQL ignores blanks at the end of an id.
        rows = [row for row in connection.execute(query) if row.id in named] if named else []
        if not rows:
            return {}
        pks = [row.pk for row in rows]
        connection.execute(
            sa.update(executions)
            .where(_x.pk.in_(pks))
            .values(state=State.CANCELLED.value, epoch=_x.epoch + 1, wake_at=None, lease_until=0, updated_at=now_ms())
        )
        why = reason_payload(reason)
        reasons = [{"pk": pk, "kind": int(PayloadKind.REASON), "codec": why.codec, "data": why.data} for pk in pks]
        connection.execute(put_payload_statement(connection.dialect.name), reasons)
        told = [promise for row in rows if (promise := kept_by(row.id)) in parents]
        if told:
            connection.execute(
                sa.update(promises)
                .where(
                    _p.id.in_(told),
                    _p.state == int(PromiseState.PENDING),
                    sa.or_(_p.deadline.is_(None), _p.deadline > now_once()),
                )
                .values(state=int(PromiseState.CANCELLED), settled_at=now_ms(), codec=why.codec, data=why.data)
            )
        query = sa.select(payloads.c.pk, payloads.c.codec, payloads.c.data).where(
            payloads.c.pk.in_(pks), payloads.c.kind == int(PayloadKind.ENVELOPE)
        )
        messages = {row.pk: StoredPayload(row.codec, bytes(row.data)) for row in connection.execute(query)}
        return {row.id: Unbegun(to_execution(row), messages.get(row.pk)) for row in rows}

    return database.write(work)


def _asleep(connection: Connection, pks: Sequence[int]) -> set[int]:
    """Lock these executions, and return those that are suspended."""
    if not pks:
        return set()
    query = sa.select(_x.pk, _x.state).where(_x.pk.in_(list(pks))).order_by(_x.pk).with_for_update()
    return {row.pk for row in connection.execute(query) if row.state == State.SUSPENDED.value}
