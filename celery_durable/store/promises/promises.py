"""Promises: values that executions wait for and that somebody else provides."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..database import Database
from ..records import Awaited, Awaiting, NewPromise, PromiseState, StoredPayload
from ..tables import executions, now_ms, promises
from .making import insert_all
from .rows import COLUMNS, PromiseRow, Target, row_of, shares
from .settling import ALL, Settlement, Waking, beat, settle_for_all

__all__ = ["Look", "Promises", "await_promises"]

_p = promises.c
_x = executions.c

_PENDING = int(PromiseState.PENDING)


class Look(NamedTuple):
    """Some promises, and the database's clock when they were looked at."""

    now: int
    rows: dict[str, PromiseRow]


# -- inside other transactions ------------------------------------------------------------------------------------


def await_promises(connection: Connection, pk: int, epoch: int, awaiting: Awaiting) -> bool:
    """Let settlements wake an execution that is being suspended, whose row the caller has locked.

    :returns: True if enough promises are settled already: then it continues at once.
    """
    needed: dict[str, int] = {}
    for group in awaiting.groups:
        for one in group.ids:
            needed[one] = min(needed.get(one, group.needed), group.needed)
    if len(awaiting.groups) == 1 and len(needed) > 1 and awaiting.groups[0].needed >= len(needed):
        needed = dict.fromkeys(needed, ALL)
    for number in sorted(set(needed.values())):
        ids = [one for one, wanted in needed.items() if wanted == number]
        timer = None if awaiting.timer_ms is None else now_ms() + awaiting.timer_ms
        connection.execute(
            sa.update(promises).where(_p.id.in_(ids), _p.pk == pk).values(awaited=epoch, needed=number, timer_at=timer)
        )
    query = sa.select(_p.id, _p.state).where(_p.id.in_(list(needed)), _p.state != int(PromiseState.RESOLVED))
    rows = connection.execute(query).all()
    pending = {row.id for row in rows if row.state == _PENDING}
    if any(_enough(group, pending) for group in awaiting.groups) or len(pending) < len(rows):
        connection.execute(sa.update(executions).where(_x.pk == pk).values(wake_at=now_ms()))
        return True
    return False


def _enough(group: Awaited, pending: Collection[str]) -> bool:
    return sum(one not in pending for one in group.ids) >= group.needed


# -- transactions of their own ------------------------------------------------------------------------------------

_LOOK = sa.select(*COLUMNS, now_ms().label("now")).where(_p.id.in_(sa.bindparam("ids", expanding=True)))
_GLIMPSE = sa.select(*COLUMNS[:-2], sa.null().label("codec"), sa.null().label("data"), now_ms().label("now")).where(
    _p.id.in_(sa.bindparam("ids", expanding=True))
)
_CLOCK = sa.select(now_ms())


class Promises:
    """The promises of a database.

    :param patience_ms: how long recovery leaves it to somebody else to send the message of an execution that continues.
    """

    def __init__(self, database: Database, *, patience_ms: int = 5000) -> None:
        self._database = database
        self._patience_ms = patience_ms

    def look(self, ids: Sequence[str], *, values: bool = True) -> Look:
        """Some promises, by their ids; without any, just the clock. Those past their deadline are expired.

        :param values: False: without their results.
        """
        query = _LOOK if values else _GLIMPSE

        def read(connection: Connection) -> Look:
            rows = connection.execute(query, {"ids": list(ids)}).all() if ids else ()
            now = rows[0].now if rows else connection.execute(_CLOCK).scalar_one()
            return Look(int(now), {row.id: row_of(row) for row in rows})

        found = self._database.read(read)
        late = [r.id for r in found.rows.values() if r.pending and r.deadline is not None and r.deadline <= found.now]
        if not late:
            return found
        self.expire(late)
        return self._database.read(read)

    def restore(self, pk: int, made: Sequence[NewPromise]) -> None:
        """Insert promises of an execution that are in its journal, but have no rows."""

        def work(connection: Connection) -> None:
            insert_all(connection, [(pk, promise) for promise in made])

        self._database.write(work)

    def expire(self, ids: Sequence[str]) -> None:
        """Settle promises whose deadline has passed."""
        change = (
            sa.update(promises)
            .where(_p.id.in_(list(ids)), _p.state == _PENDING, _p.deadline <= now_ms())
            .values(state=int(PromiseState.EXPIRED), settled_at=_p.deadline)
        )
        self._database.write(lambda c: c.execute(change))

    def target(self, promise_id: str) -> Target | None:
        """What must be known before a promise is settled.

        :param promise_id: the id that was given away. It is valid as long as anybody shares the promise.
        """

        return self._database.read(lambda connection: self.target_in(connection, promise_id))

    @staticmethod
    def target_in(connection: Connection, promise_id: str) -> Target | None:
        """The same with an open connection."""
        # A text that cannot be an id is not sent to the database, which might raise an error.
        usable = promise_id.isascii() and promise_id.isalnum()
        rows = shares(connection, promise_id) if usable else ()
        if not rows:
            return None
        row = rows[0]
        token_hash = None if row.token_hash is None else bytes(row.token_hash)
        return Target(row.pk, row.name, token_hash, row.heartbeat_ms)

    def settle(
        self, promise_id: str, pk: int, state: PromiseState, payload: StoredPayload, *, namespace: str | None = None
    ) -> tuple[Settlement, list[Waking]]:
        """Settle a promise; parameters as in :func:`~.settling.settle_for_all`."""
        return self._database.write(
            lambda c: settle_for_all(
                c, promise_id, pk, state, payload, patience_ms=self._patience_ms, namespace=namespace
            )
        )

    def beat(self, promise_id: str, pk: int) -> Settlement:
        """A heartbeat; see :func:`~.settling.beat`."""
        return self._database.write(lambda c: beat(c, promise_id, pk))

    def of(self, pks: Sequence[int]) -> list[PromiseRow]:
        """All promises of some executions, the earliest first."""
        query = sa.select(*COLUMNS).where(_p.pk.in_(list(pks))).order_by(_p.created_at, _p.id)
        return self._database.read(lambda c: [row_of(row) for row in c.execute(query)])
