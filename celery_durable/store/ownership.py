"""Who may run an execution: opening, renewing, giving back, ending.

Every change of owner raises ``epoch``; every write of an owner checks, in the same transaction, the epoch that it was
granted (G2, G3). Rows are locked before anything is decided, so two messages of one execution are answered one after
the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from celery_durable.errors import LeaseLost

from .children import ChildEnd, lock_parent, tell_parent
from .copying import keep_prefix
from .database import Database
from .drivers.base import Driver, LastCommit, is_usual
from .first_commit import insert_new, new_row
from .granting import Granting
from .journal import insert_entries
from .promises.promises import await_promises
from .promises.settling import Waking
from .records import (
    FINAL_STATES,
    Awaiting,
    Batch,
    Birth,
    Closed,
    Entry,
    EntryKind,
    Fence,
    Opened,
    OpenRequest,
    PayloadKind,
    Refused,
    State,
    StoredPayload,
)
from .rows import lease_lost, put_payload
from .statements import BY_ID, BY_PK, KNOWN, bound, let_go
from .tables import executions, new_pk, now_ms

__all__ = ["Ownership"]

_x = executions.c

#: Leases that one statement renews at most: SQLite takes neither endless conditions nor endless parameters.
_MOST_AT_ONCE: Final = 400


class Ownership:
    """Leases and states of the executions of one namespace.

    :param namespace: ``durable_namespace``.
    :param lease_ms: ``durable_lease_timeout``, in milliseconds.
    :param max_attempts: take-overs after which an execution is quarantined.
    """

    def __init__(self, database: Database, *, namespace: str, lease_ms: int, max_attempts: int) -> None:
        self._database = database
        self._namespace = namespace
        self._lease_ms = lease_ms
        self._granting = Granting(lease_ms, max_attempts)

    # -- opening --------------------------------------------------------------------------------------------

    def open(self, request: OpenRequest) -> Opened | Closed | Refused:
        """Decide whether a message may run, and grant it the lease.

        A new execution is inserted with its envelope, at once or with its first commit; a known one is granted only if
        nobody else holds it and the message is not stale. A message that would be one take-over too many parks the
        execution.
        """
        if request.fresh:
            if not self._is_known(request.id):
                return self._new(new_pk(), request, Birth(self._namespace, request))
        elif request.pk is None and request.retries == 0 and request.recoverable:
            # Most likely a first delivery: insert without a look-up. If the insert's acknowledgement is lost, the
            # look-up recognises its owner. The row need not be on disk before the body starts: a crash of the database
            # that undoes it undoes all later entries, and the message is still there: see :meth:`vanished`.
            opened = self._database.write(
                lambda c: self._insert(c, request),
                durable=False,
                single=lambda driver: self._insert_at_once(driver, request),
            )
            if opened:
                return opened
        for _ in range(8):
            # If an insert fails here, another process was faster, or the random part of its pk collided.
            answer = self._database.write(lambda c: self._look(c, request))
            if answer:
                return answer
        raise LeaseLost(f"execution {request.id!r} could be neither found nor inserted in 8 tries.")

    def _is_known(self, execution_id: str) -> bool:
        values = {"namespace": self._namespace, "id": execution_id}
        return self._database.read(
            lambda c: c.execute(KNOWN, values).first() is not None,
            single=lambda driver: driver.known(self._namespace, execution_id),
        )

    def _look(self, connection: Connection, request: OpenRequest) -> Opened | Closed | Refused | Literal[False]:
        row = self._find(connection, request)
        return self._insert(connection, request) if row is None else self._granting.answer(connection, row, request)

    def _find(self, connection: Connection, request: OpenRequest) -> Row[Any] | None:
        if request.pk is not None:
            row = connection.execute(BY_PK, {"pk": request.pk}).first()
            # The message may be older than this database: its key is only a hint, its id decides.
            if row is not None and (row.namespace, row.id) == (self._namespace, request.id):
                return row
        return connection.execute(BY_ID, {"namespace": self._namespace, "id": request.id}).first()

    def _insert(self, connection: Connection, request: OpenRequest) -> Opened | Literal[False]:
        pk = new_pk()
        row = new_row(pk, self._namespace, request, self._lease_ms)
        envelope = request.envelope() if request.recoverable else None
        return insert_new(connection, row, envelope) and self._new(pk, request)

    def _insert_at_once(self, driver: Driver, request: OpenRequest) -> Opened | Literal[False]:
        pk = new_pk()
        row = new_row(pk, self._namespace, request, self._lease_ms)
        return driver.open_new(row, request.envelope()) and self._new(pk, request)

    @staticmethod
    def _new(pk: int, request: OpenRequest, birth: Birth | None = None) -> Opened:
        return Opened(
            fence=Fence(pk, 1),
            owner=request.owner,
            generation=1,
            base_generation=1,
            attempts=0,
            retries=request.retries,
            resumed=False,
            birth=birth,
        )

    # -- keeping --------------------------------------------------------------------------------------------

    def renew(self, fences: Sequence[Fence]) -> list[Fence]:
        """Prolong leases, with one statement for hundreds of them.

        :returns: those that are no longer held.
        """
        lost: list[Fence] = []
        for begin in range(0, len(fences), _MOST_AT_ONCE):
            lost += self._renew(fences[begin : begin + _MOST_AT_ONCE])
        return lost

    def _renew(self, fences: Sequence[Fence]) -> list[Fence]:
        # Nearly all executions were never taken over, and have the same epoch.
        by_epoch: dict[int, list[int]] = {}
        for fence in fences:
            by_epoch.setdefault(fence.epoch, []).append(fence.pk)
        mine = sa.and_(
            _x.state == State.RUNNING.value,
            sa.or_(*((_x.epoch == epoch) & _x.pk.in_(pks) for epoch, pks in by_epoch.items())),
        )

        def work(connection: Connection) -> list[Fence]:
            until = now_ms() + self._lease_ms
            # wake_at stays NULL for executions that recovery must not touch.
            wake = sa.case((_x.wake_at.is_not(None), until), else_=None)
            done = connection.execute(sa.update(executions).where(mine).values(lease_until=until, wake_at=wake))
            if done.rowcount == len(fences):
                return []
            held = {Fence(*row) for row in connection.execute(sa.select(_x.pk, _x.epoch).where(mine))}
            return [f for f in fences if f not in held]

        return self._database.write(work, durable=False)

    def vanished(self, execution_id: str) -> bool:
        """True when there is no row: a crash of the database undid its insert, or somebody deleted it."""
        return not self._is_known(execution_id)

    def count_death(self, execution_id: str) -> None:
        """Count a take-over: an owner was killed by a time limit, although its lease is given back normally."""
        open_ = _x.state.in_([State.PENDING.value, State.RUNNING.value, State.SUSPENDED.value])
        mine = sa.and_(_x.namespace == self._namespace, _x.id == execution_id, open_)
        self._database.write(lambda c: c.execute(sa.update(executions).where(mine).values(attempts=_x.attempts + 1)))

    # -- letting go -----------------------------------------------------------------------------------------

    def _settle(
        self,
        batch: Batch,
        owner: str,
        state: State,
        wake_ms: int | None,
        payload: tuple[PayloadKind, StoredPayload | None],
        *,
        awaiting: Awaiting | None = None,
        child: ChildEnd | None = None,
        **values: Any,
    ) -> tuple[bool, Waking | None]:
        """Commit the last entries and a new state in one transaction, under the fence.

        :param wake_ms: in how many milliseconds recovery looks at it; None for never.
        :param child: the end of which its parent is notified.
        :returns: whether its wait has ended already; and the parent, if that continues now.
        """
        pk, epoch = batch.fence
        values |= {"state": state.value}
        parameters = bound({"pk": pk, "held": epoch, "steps": batch.steps, "wake": wake_ms, **values})
        kind, data = payload
        birth = batch.birth
        waits = state is State.SUSPENDED
        envelope: StoredPayload | None = None
        if birth is not None:
            parameters = new_row(pk, birth.namespace, birth.request, self._lease_ms) | parameters
            if data is None or kind is not PayloadKind.ENVELOPE:
                envelope = birth.request.envelope()

        def written(connection: Connection) -> bool:
            if birth is not None:
                return insert_new(connection, parameters, envelope, *values, leased=False)
            return bool(connection.execute(let_go(*values, waits=waits), parameters).rowcount)

        at_once = False
        waking: Waking | None = None

        def work(connection: Connection) -> bool:
            nonlocal at_once, waking
            parent = lock_parent(connection, child.promise_id) if child is not None else None
            if not written(connection):
                row = connection.execute(sa.select(_x.epoch, _x.state, _x.owner).where(_x.pk == pk)).first()
                if row is not None and (row.epoch, row.state, row.owner) == (epoch, state.value, owner):
                    return True  # our own commit, whose acknowledgement was lost
                raise lease_lost(row)
            insert_entries(connection, [batch])
            if data is not None:
                put_payload(connection, pk, kind, data)
            if awaiting is not None:
                at_once = await_promises(connection, pk, epoch, awaiting)
            if child is not None:
                waking = tell_parent(connection, parent, child)
            return True

        def single(driver: Driver) -> bool | None:
            return driver.settle(LastCommit(batch, tuple(values), waits, parameters, envelope, kind, data)) or None

        alone = awaiting is None and child is None and is_usual(batch)
        self._database.write(work, single=single if alone else None)
        return at_once, waking

    def finish(
        self,
        batch: Batch,
        owner: str,
        state: State,
        outcome: StoredPayload | None,
        *,
        dispatched: bool = False,
        child: ChildEnd | None = None,
    ) -> Waking | None:
        """Commit the outcome. Until :meth:`mark_dispatched`, recovery makes sure that it is passed on to Celery.

        :param child: the end of which its parent is notified in the same transaction.
        :returns: the parent, if that continues now.
        :raises LeaseLost: when the execution is no longer ours.
        """
        wake = None if dispatched else self._lease_ms
        _, waking = self._settle(batch, owner, state, wake, (PayloadKind.OUTCOME, outcome), child=child, sends=0)
        return waking

    def suspend(
        self,
        batch: Batch,
        owner: str,
        *,
        delay_ms: int | None,
        retries: int,
        envelope: StoredPayload | None = None,
        task: str | None = None,
        replacements: int = 0,
        awaiting: Awaiting | None = None,
        sent: bool = False,
    ) -> bool:
        """Give the execution up until ``delay_ms`` from now (None: until somebody sends its message); that message will
        carry ``retries``.

        :param awaiting: settlements of these promises end the suspension too.
        :param sent: the caller sends that message. Until it is sent, any message that comes is a duplicate.
        :param task: the task as which the execution continues (``Task.replace``), after this many ``replacements``: its
            journal starts again.
        :returns: True if its wait has ended already, so that it continues at once.
        """
        values: dict[str, Any] = {"retries": retries, "sends": int(sent)}
        if task is not None:
            values |= {
                "task": task,
                "replacements": replacements,
                "generation": batch.generation + 1,
                "base_generation": batch.generation + 1,
                "attempts": 0,
            }
        at_once, _ = self._settle(
            batch, owner, State.SUSPENDED, delay_ms, (PayloadKind.ENVELOPE, envelope), awaiting=awaiting, **values
        )
        return at_once

    def release(self, batch: Batch, owner: str, *, recoverable: bool = True, attempts: int | None = None) -> None:
        """Give the lease back in an orderly way: another worker continues.

        :param attempts: the new count of take-overs; None: this is not one.
        """
        wake = 0 if recoverable else None
        counted: dict[str, Any] = {} if attempts is None else {"attempts": attempts}
        self._settle(batch, owner, State.PENDING, wake, (PayloadKind.REASON, None), sends=0, **counted)

    def park(self, batch: Batch, owner: str, state: State, reason: StoredPayload) -> None:
        """Leave the execution to an operator."""
        self._settle(batch, owner, state, None, (PayloadKind.REASON, reason))

    def restart(self, batch: Batch, abort: Entry, first: Sequence[Entry] = (), *, keep: int = 0, steps: int = 0) -> int:
        """Abort the journal's generation and begin the next one; the lease stays.

        :param first: the first entries of the next generation.
        :param keep: it begins with a copy of everything before this position.
        :param steps: how many steps these are.
        :returns: the new generation.
        """
        pk, epoch = batch.fence
        generation = batch.generation + 1

        def work(connection: Connection) -> int:
            done = connection.execute(
                sa.update(executions)
                .where(
                    _x.pk == pk,
                    _x.epoch == epoch,
                    _x.state == State.RUNNING.value,
                    _x.generation == batch.generation,
                )
                .values(generation=generation, steps=steps, lease_until=now_ms() + self._lease_ms, updated_at=now_ms())
            )
            if not done.rowcount:
                row = connection.execute(sa.select(_x.epoch, _x.state, _x.generation).where(_x.pk == pk)).first()
                if row is not None and (row.epoch, row.generation) == (epoch, generation):
                    return generation
                raise lease_lost(row)
            aborted = Batch(batch.fence, batch.generation, (*batch.entries, abort))
            insert_entries(connection, [aborted, Batch(batch.fence, generation, tuple(first))])
            if keep:
                keep_prefix(connection, pk, generation, keep)
            return generation

        assert abort.kind is EntryKind.ABORTED
        return self._database.write(work)

    # -- telling Celery -------------------------------------------------------------------------------------

    def mark_dispatched(self, pks: Sequence[int]) -> None:
        """Note that Celery has stored these results and sent their callbacks: later duplicates are dropped."""
        if pks:
            states = [s.value for s in FINAL_STATES]
            self._database.write(
                lambda c: c.execute(
                    sa.update(executions).where(_x.pk.in_(list(pks)), _x.state.in_(states)).values(wake_at=None)
                ),
                durable=False,
            )
