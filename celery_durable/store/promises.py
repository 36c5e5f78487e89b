"""Promises: what executions wait for that somebody else brings.

A promise is settled once, under the lock of its row: resolved, rejected, or expired because its deadline passed. Who
settles it locks the execution that waits first, as everybody does who changes that one; so a settlement comes either
before the execution is suspended, which then sees it, or after, and wakes it.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..identity import child_of
from .database import Database
from .new_promises import insert_all
from .records import Awaited, Awaiting, NewPromise, PayloadKind, PromiseState, State, StoredPayload
from .rows import get_payload
from .tables import executions, now_ms, promises

__all__ = [
    "Look",
    "PromiseRow",
    "Promises",
    "Settlement",
    "Target",
    "Waking",
    "await_promises",
    "settle_promise",
]

_p = promises.c
_x = executions.c

_PENDING = int(PromiseState.PENDING)
#: How often an execution looks at what another one was promised.
_GLANCE_MS = 10_000


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
    #: The task id of the child task that is to keep it; None where somebody outside is.
    child: str | None = None

    @property
    def pending(self) -> bool:
        return self.state is PromiseState.PENDING


class Look(NamedTuple):
    """Some promises, and the database's clock when they were looked at."""

    now: int
    rows: dict[str, PromiseRow]


class Target(NamedTuple):
    """What must be known of a promise before it may be settled."""

    pk: int
    name: str
    token_hash: bytes | None
    heartbeat_ms: int | None


class Settlement(enum.Enum):
    """What became of an attempt to settle a promise."""

    DONE = "done"
    #: It had been settled in the very same way: the answer to an earlier attempt was lost.
    AGAIN = "again"
    #: Somebody else was first.
    RESOLVED = "resolved"
    REJECTED = "rejected"
    #: Its deadline had passed.
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    #: There is no such promise any more.
    GONE = "gone"


class Waking(NamedTuple):
    """An execution that goes on because of a settlement."""

    pk: int
    namespace: str
    id: str
    task: str
    #: The message that lets it go on; None where it is left to recovery.
    envelope: StoredPayload | None


_COLUMNS = (
    _p.id,
    _p.pk,
    _p.name,
    _p.state,
    _p.awaited,
    _p.deadline,
    _p.created_at,
    _p.settled_at,
    sa.case((_p.token_hash.is_(None), 1), else_=0).label("internal"),
    _p.codec,
    _p.data,
)


def _row(row: Any) -> PromiseRow:
    payload = None if row.codec is None else StoredPayload(row.codec, bytes(row.data))
    state = PromiseState(row.state)
    child = child_of(row.id) if row.internal else None
    return PromiseRow(
        row.id, row.pk, row.name, state, row.awaited, row.deadline, row.created_at, row.settled_at, payload, child
    )


# -- inside other transactions ------------------------------------------------------------------------------------


def await_promises(connection: Connection, pk: int, epoch: int, awaiting: Awaiting) -> bool:
    """Let settlements wake an execution that is being suspended, whose row the caller has locked.

    :returns: True where the settlements are there already: it goes on at once.
    """
    needed: dict[str, int] = {}
    for group in awaiting.groups:
        for one in group.ids:
            needed[one] = min(needed.get(one, group.needed), group.needed)
    for number in sorted(set(needed.values())):
        ids = [one for one, wanted in needed.items() if wanted == number]
        timer = None if awaiting.timer_ms is None else now_ms() + awaiting.timer_ms
        connection.execute(
            sa.update(promises).where(_p.id.in_(ids), _p.pk == pk).values(awaited=epoch, needed=number, timer_at=timer)
        )
    query = sa.select(_p.id, _p.pk, _p.state).where(_p.id.in_(list(needed)), _p.state != int(PromiseState.RESOLVED))
    rows = connection.execute(query).all()
    pending = {row.id: row.pk for row in rows if row.state == _PENDING}
    if any(_enough(group, pending) for group in awaiting.groups) or len(pending) < len(rows):
        connection.execute(sa.update(executions).where(_x.pk == pk).values(wake_at=now_ms()))
        return True
    if any(owner != pk for owner in pending.values()):
        # A rerun shares the promises of the one that it repeats, and a settlement wakes that one.
        soon = now_ms() + _GLANCE_MS
        later = sa.or_(_x.wake_at.is_(None), _x.wake_at > soon)
        connection.execute(sa.update(executions).where(_x.pk == pk, later).values(wake_at=soon))
    return False


def _enough(group: Awaited, pending: Collection[str]) -> bool:
    return sum(one not in pending for one in group.ids) >= group.needed


_LOCKED = sa.select(*_COLUMNS, _p.needed, now_ms().label("now")).where(_p.id == sa.bindparam("id")).with_for_update()


def settle_promise(
    connection: Connection,
    promise_id: str,
    pk: int,
    state: PromiseState,
    payload: StoredPayload,
    *,
    patience_ms: int,
    namespace: str | None = None,
) -> tuple[Settlement, Waking | None]:
    """Settle a promise in the caller's transaction, and let the execution that waits for it go on.

    :param pk: of that execution.
    :param namespace: of whoever can send its message after the commit; recovery does so where nothing has come of it
        within ``patience_ms``, and at once where this is not the execution's own.
    """
    execution = connection.execute(
        sa.select(_x.pk, _x.namespace, _x.id, _x.task, _x.state, _x.epoch).where(_x.pk == pk).with_for_update()
    ).first()
    row = connection.execute(_LOCKED, {"id": promise_id}).first()
    if row is None:
        return Settlement.GONE, None
    found = _row(row)
    if found.pending and found.deadline is not None and found.deadline <= row.now:
        found = found._replace(state=PromiseState.EXPIRED)
        _set(connection, promise_id, state=int(found.state), settled_at=_p.deadline)
    done = Settlement.DONE if found.pending else Settlement.AGAIN
    if found.pending:
        codec, data = payload
        _set(connection, promise_id, state=int(state), settled_at=now_ms(), codec=codec, data=data)
    elif (found.state, found.payload) != (state, payload):
        return Settlement[found.state.name], None
    if execution is None or execution.state != State.SUSPENDED.value or found.awaited != execution.epoch:
        return done, None
    # What went wrong may decide a wait for many at once.
    if (row.needed or 1) > 1 and state is PromiseState.RESOLVED:
        settled = sa.select(sa.func.count()).where(_p.pk == pk, _p.awaited == execution.epoch, _p.state != _PENDING)
        if (connection.execute(settled).scalar() or 0) < row.needed:
            return done, None
    # Also where it was settled before: whoever did that may have died before the message was sent.
    return done, _wake(connection, execution, patience_ms, execution.namespace == namespace)


def _wake(connection: Connection, execution: Any, patience_ms: int, sends: bool) -> Waking:
    """Let a suspended execution go on; the caller has locked it.

    :param sends: the caller sends its message after the commit.
    """
    envelope = get_payload(connection, execution.pk, PayloadKind.ENVELOPE) if sends else None
    if envelope is None:
        values: dict[str, Any] = {"wake_at": now_ms()}
    else:
        # As recovery does with what it has claimed: it comes up again if this message starts nothing.
        values = {"wake_at": now_ms() + patience_ms, "sends": _x.sends + 1}
    connection.execute(sa.update(executions).where(_x.pk == execution.pk).values(**values))
    return Waking(execution.pk, execution.namespace, execution.id, execution.task, envelope)


def _set(connection: Connection, promise_id: str, **values: Any) -> None:
    connection.execute(sa.update(promises).where(_p.id == promise_id).values(**values))


# -- transactions of their own ------------------------------------------------------------------------------------

_LOOK = sa.select(*_COLUMNS, now_ms().label("now")).where(_p.id.in_(sa.bindparam("ids", expanding=True)))
_GLIMPSE = sa.select(*_COLUMNS[:-2], sa.null().label("codec"), sa.null().label("data"), now_ms().label("now")).where(
    _p.id.in_(sa.bindparam("ids", expanding=True))
)
_CLOCK = sa.select(now_ms())


class Promises:
    """The promises of a database.

    :param patience_ms: how long recovery leaves it to somebody else to send the message of an execution that goes on.
    """

    def __init__(self, database: Database, *, patience_ms: int = 5000) -> None:
        self._database = database
        self._patience_ms = patience_ms

    def look(self, ids: Sequence[str], *, values: bool = True) -> Look:
        """Some promises, by their ids; without any, just the clock. What has passed its deadline has expired.

        :param values: False: without what they were settled with.
        """
        query = _LOOK if values else _GLIMPSE

        def read(connection: Connection) -> Look:
            rows = connection.execute(query, {"ids": list(ids)}).all() if ids else ()
            now = rows[0].now if rows else connection.execute(_CLOCK).scalar_one()
            return Look(int(now), {row.id: _row(row) for row in rows})

        found = self._database.read(read)
        late = [r.id for r in found.rows.values() if r.pending and r.deadline is not None and r.deadline <= found.now]
        if not late:
            return found
        self.expire(late)
        return self._database.read(read)

    def restore(self, pk: int, made: Sequence[NewPromise]) -> None:
        """Make promises of an execution that are known, and have no rows."""

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
        """What must be known before a promise is settled."""
        query = sa.select(_p.pk, _p.name, _p.token_hash, _p.heartbeat_ms).where(_p.id == promise_id)

        def read(connection: Connection) -> Target | None:
            row = connection.execute(query).first()
            if row is None:
                return None
            return Target(row.pk, row.name, None if row.token_hash is None else bytes(row.token_hash), row.heartbeat_ms)

        return self._database.read(read)

    def settle(
        self, promise_id: str, pk: int, state: PromiseState, payload: StoredPayload, *, namespace: str | None = None
    ) -> tuple[Settlement, Waking | None]:
        """Settle a promise; parameters as of :func:`settle_promise`."""
        return self._database.write(
            lambda c: settle_promise(
                c, promise_id, pk, state, payload, patience_ms=self._patience_ms, namespace=namespace
            )
        )

    def beat(self, promise_id: str, pk: int) -> Settlement:
        """A sign of life: move the deadline ahead, and with it the time at which the execution looks again.

        :returns: ``DONE``, or how the promise was settled.
        """

        def work(connection: Connection) -> Settlement:
            query = sa.select(_x.state, _x.epoch).where(_x.pk == pk).with_for_update()
            execution = connection.execute(query).first()
            row = connection.execute(
                _LOCKED.add_columns(_p.heartbeat_ms, _p.expires_at, _p.timer_at), {"id": promise_id}
            ).first()
            if row is None:
                return Settlement.GONE
            if row.state == _PENDING and row.deadline is not None and row.deadline <= row.now:
                _set(connection, promise_id, state=int(PromiseState.EXPIRED), settled_at=_p.deadline)
                return Settlement.EXPIRED
            if row.state != _PENDING:
                return Settlement[PromiseState(row.state).name]
            deadline = row.now + row.heartbeat_ms
            if row.expires_at is not None:
                deadline = min(deadline, row.expires_at)
            _set(connection, promise_id, deadline=deadline)
            if execution is not None and (execution.state, execution.epoch) == (State.SUSPENDED.value, row.awaited):
                others = sa.select(sa.func.min(_p.deadline)).where(
                    _p.pk == pk, _p.awaited == row.awaited, _p.state == _PENDING
                )
                times = [connection.execute(others).scalar(), row.timer_at]
                wake = min(int(time) for time in times if time is not None)
                # One that is to go on now has been woken for another reason.
                connection.execute(
                    sa.update(executions).where(_x.pk == pk, _x.sends == 0, _x.wake_at > now_ms()).values(wake_at=wake)
                )
            return Settlement.DONE

        return self._database.write(work)

    def of(self, pks: Sequence[int]) -> list[PromiseRow]:
        """All promises of some executions, the earliest first."""
        query = sa.select(*_COLUMNS).where(_p.pk.in_(list(pks))).order_by(_p.created_at, _p.id)
        return self._database.read(lambda c: [_row(row) for row in c.execute(query)])
