"""How promises are settled, and their time is moved ahead.

A promise is settled once, under the lock of its row: resolved, rejected, or expired because its deadline passed. Who
settles it locks the executions that may wait for it first, as everybody does who changes one; so a settlement comes
either before an execution is suspended, which then sees it, or after, and wakes it.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .promise_rows import COLUMNS, lock_execution, lock_owners, row_of
from .records import PayloadKind, PromiseState, State, StoredPayload
from .rows import get_payload
from .tables import executions, now_ms, promises

__all__ = ["Settlement", "Waking", "beat", "settle_for_all", "settle_promise"]

_p = promises.c
_x = executions.c

_PENDING = int(PromiseState.PENDING)


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


def settle_for_all(
    connection: Connection,
    known_as: str,
    first: int,
    state: PromiseState,
    payload: StoredPayload,
    *,
    patience_ms: int,
    namespace: str | None = None,
) -> tuple[Settlement, list[Waking]]:
    """Settle a promise for all executions that share it, and let those go on that wait for it.

    :param known_as: the id that was given away.
    :param first: key of the execution that it belonged to when it was looked up.
    :returns: what became of it, and who goes on; other parameters as of :func:`settle_promise`.
    """
    done, woken = Settlement.GONE, []
    rows, owners = lock_owners(connection, known_as, first)
    for number, row in enumerate(rows):
        became, waking = _settle(connection, row.id, owners[row.pk], state, payload, patience_ms, namespace)
        if number == 0 or became is Settlement.DONE:
            done = became
        if waking is not None:
            woken.append(waking)
    return done, woken


_LOCKED = sa.select(*COLUMNS, _p.needed, now_ms().label("now")).where(_p.id == sa.bindparam("id")).with_for_update()


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
    """Settle one row of a promise in the caller's transaction, and let the execution that waits for it go on.

    :param pk: of that execution.
    :param namespace: of whoever can send its message after the commit; recovery does so where nothing has come of it
        within ``patience_ms``, and at once where this is not the execution's own.
    """
    return _settle(connection, promise_id, lock_execution(connection, pk), state, payload, patience_ms, namespace)


def _settle(
    connection: Connection,
    promise_id: str,
    execution: Any,
    state: PromiseState,
    payload: StoredPayload,
    patience_ms: int,
    namespace: str | None,
) -> tuple[Settlement, Waking | None]:
    """
    :param execution: that the row belongs to, and the caller has locked.
    """
    row = connection.execute(_LOCKED, {"id": promise_id}).first()
    if row is None:
        return Settlement.GONE, None
    found = row_of(row)
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
        settled = sa.select(sa.func.count()).where(
            _p.pk == execution.pk, _p.awaited == execution.epoch, _p.state != _PENDING
        )
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


# -- signs of life ------------------------------------------------------------------------------------------------

_ALIVE = _LOCKED.add_columns(_p.heartbeat_ms, _p.expires_at, _p.timer_at)


def beat(connection: Connection, known_as: str, first: int) -> Settlement:
    """A sign of life: move the deadline ahead for all who share a promise, and with it the times at which they look
    again.

    :param first: as of :func:`settle_for_all`.
    :returns: ``DONE``, or how the promise was settled.
    """
    done = Settlement.GONE
    rows, owners = lock_owners(connection, known_as, first)
    for number, row in enumerate(rows):
        became = _beat(connection, row.id, owners[row.pk])
        if number == 0 or became is Settlement.DONE:
            done = became
    return done


def _beat(connection: Connection, promise_id: str, execution: Any) -> Settlement:
    row = connection.execute(_ALIVE, {"id": promise_id}).first()
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
            _p.pk == execution.pk, _p.awaited == row.awaited, _p.state == _PENDING
        )
        times = [connection.execute(others).scalar(), row.timer_at]
        wake = min(int(time) for time in times if time is not None)
        # One that is to go on now has been woken for another reason.
        connection.execute(
            sa.update(executions)
            .where(_x.pk == execution.pk, _x.sends == 0, _x.wake_at > now_ms())
            .values(wake_at=wake)
        )
    return Settlement.DONE
