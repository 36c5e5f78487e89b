"""How promises are settled, and how heartbeats move their deadlines.

A promise is settled once, under the lock of its row: resolved, rejected, or expired because its deadline passed. A
settlement first locks the executions that may wait for it, as every change of an execution does. So it comes either
before an execution is suspended, which then sees it, or after, and wakes it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..records import FINAL_STATES, PayloadKind, PromiseState, State, StoredPayload
from ..rows import get_payload
from ..tables import executions, now_ms, promises
from .rows import COLUMNS, lock_execution, lock_owners, row_of

__all__ = ["ALL", "Settlement", "Waking", "beat", "settle_for_all", "settle_promise", "settled_as"]

_p = promises.c
_x = executions.c

_PENDING = int(PromiseState.PENDING)
_FINAL = frozenset(state.value for state in FINAL_STATES)

#: As the number of promises that a suspension needs: all of them.
ALL = 0


class Settlement(enum.Enum):
    """The result of an attempt to settle a promise."""

    DONE = "done"
    #: It had been settled in exactly the same way: the answer to an earlier attempt was lost.
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
    """An execution that continues because of a settlement."""

    pk: int
    namespace: str
    id: str
    task: str
    #: The message that lets it continue; None if recovery is to send it.
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
    joined: bool = False,
) -> tuple[Settlement, list[Waking]]:
    """Settle a promise for all executions that share it, and let those continue that wait for it.

    :param known_as: the id that was given away.
    :param first: key of the execution that it belonged to when it was looked up.
    :param joined: the transaction is a user's, and may see an old snapshot: so an execution that waits for several
        promises is woken to check by itself whether enough are settled.
    :returns: the result, and the executions that continue; other parameters as in :func:`settle_promise`.
    """
    done = Settlement.GONE
    woken: list[Waking] = []
    rows, owners = lock_owners(connection, known_as, first)
    if _is_for_nobody(connection, rows, owners):
        return Settlement.CANCELLED, woken
    for number, row in enumerate(rows):
        owner = owners[row.pk]
        became, waking = _settle(connection, row.id, owner, state, payload, patience_ms, namespace, joined)
        if number == 0 or became is Settlement.DONE:
            done = became
        if waking is not None:
            woken.append(waking)
    return done, woken


def _is_for_nobody(connection: Connection, rows: Sequence[Any], owners: Mapping[int, Any]) -> bool:
    """Whether all executions that share a pending promise were cancelled: then nobody would use an answer."""
    if not rows or not all(_is_cancelled(owners[row.pk]) for row in rows):
        return False
    pending = sa.select(sa.func.count()).where(_p.id.in_([row.id for row in rows]), _p.state == _PENDING)
    return bool(connection.execute(pending).scalar())


def _is_cancelled(execution: Any) -> bool:
    if execution is None:
        return False
    asked = execution.cancel_at is not None and execution.state not in _FINAL
    return bool(execution.state == State.CANCELLED.value or asked)


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
    """Settle one row of a promise in the caller's transaction, and let the execution that waits for it continue.

    :param pk: key of that execution.
    :param namespace: of the caller, which sends the message after the commit if it is the execution's namespace too.
        Recovery sends it if the execution has not continued within ``patience_ms``; at once in another namespace.
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
    joined: bool = False,
) -> tuple[Settlement, Waking | None]:
    """
    :param execution: the execution that the row belongs to, locked by the caller.
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
    if execution.sends:
        # Its message is on its way already; if it is lost, recovery sends it once more. Only a repeated settlement has
        # it sent at once, because the first caller may have died before sending; this is not counted as another send.
        asked_again = done is Settlement.AGAIN and execution.namespace == namespace
        return done, _waking(connection, execution) if asked_again else None
    # A rejection may end a wait for many promises at once.
    if state is PromiseState.RESOLVED and not joined and not _have_come(connection, execution, row.needed):
        return done, None
    return done, _wake(connection, execution, patience_ms, execution.namespace == namespace)


_AWAITED = (_p.pk == sa.bindparam("pk"), _p.awaited == sa.bindparam("epoch"))
_LEFT = sa.select(_p.state).where(*_AWAITED, _p.state == _PENDING).limit(1)
_COME = sa.select(sa.func.count()).select_from(
    sa.select(_p.state).where(*_AWAITED, _p.state > _PENDING).limit(sa.bindparam("most")).subquery()
)


def _have_come(connection: Connection, execution: Any, needed: int | None) -> bool:
    """Whether enough promises are settled for the suspension of an execution, which the caller has locked.

    Each of many children asks this when it ends, so it must not read all of them.
    """
    if needed is None or needed == 1:
        return True
    suspension = {"pk": execution.pk, "epoch": execution.epoch}
    if needed == ALL:
        return connection.execute(_LEFT, suspension).first() is None
    return int(connection.execute(_COME, suspension | {"most": needed}).scalar_one()) >= needed


def _wake(connection: Connection, execution: Any, patience_ms: int, sends: bool) -> Waking:
    """Let a suspended execution continue; the caller has locked it.

    :param sends: the caller sends its message after the commit.
    """
    waking = _waking(connection, execution) if sends else _unsent(execution)
    if waking.envelope is None:
        values: dict[str, Any] = {"wake_at": now_ms()}
    else:
        # As recovery does with claimed executions: it comes up again if this message does not start it.
        values = {"wake_at": now_ms() + patience_ms, "sends": _x.sends + 1}
    connection.execute(sa.update(executions).where(_x.pk == execution.pk).values(**values))
    return waking


def _unsent(execution: Any) -> Waking:
    return Waking(execution.pk, execution.namespace, execution.id, execution.task, None)


def _waking(connection: Connection, execution: Any) -> Waking:
    """The execution to be woken, with its message."""
    return _unsent(execution)._replace(envelope=get_payload(connection, execution.pk, PayloadKind.ENVELOPE))


def _set(connection: Connection, promise_id: str, **values: Any) -> None:
    connection.execute(sa.update(promises).where(_p.id == promise_id).values(**values))


def settled_as(connection: Connection, known_as: Sequence[str]) -> dict[str, PromiseState]:
    """The states of promises, by the ids that were given away."""
    known = sa.func.coalesce(_p.known_as, _p.id)
    query = sa.select(known.label("known"), _p.state).where(sa.or_(_p.id.in_(known_as), _p.known_as.in_(known_as)))
    return {row.known: PromiseState(row.state) for row in connection.execute(query)}


# -- heartbeats ------------------------------------------------------------------------------------------------

_ALIVE = _LOCKED.add_columns(_p.heartbeat_ms, _p.expires_at, _p.timer_at)


def beat(connection: Connection, known_as: str, first: int) -> Settlement:
    """A heartbeat: move the deadline for all executions that share a promise, and the times when these continue.

    :param first: as in :func:`settle_for_all`.
    :returns: ``DONE``, or how the promise was settled.
    """
    done = Settlement.GONE
    rows, owners = lock_owners(connection, known_as, first)
    if _is_for_nobody(connection, rows, owners):
        return Settlement.CANCELLED
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
        # Not an execution that is already due: it has been woken for another reason.
        connection.execute(
            sa.update(executions)
            .where(_x.pk == execution.pk, _x.sends == 0, _x.wake_at > now_ms())
            .values(wake_at=wake)
        )
    return Settlement.DONE
