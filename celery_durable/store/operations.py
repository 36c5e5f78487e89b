"""What people and the worker's main process do to an execution from outside: look, cancel, fail, resume, resolve.

Everything that changes an execution raises its epoch: whoever runs it is fenced off.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import UnknownExecution, WrongState
from .children import ChildEnd, kept_by, lock_parent, tell_parent
from .database import Database
from .journal import insert_entries, journaled, to_execution
from .records import (
    FINAL_STATES,
    META,
    PARKED_STATES,
    TOLD,
    Batch,
    Doubt,
    EffectCode,
    Entry,
    EntryKind,
    Execution,
    Fence,
    Journaled,
    PayloadKind,
    PromiseState,
    State,
    StoredPayload,
    place_of,
)
from .rows import get_payload, is_name, put_payload, reason_payload
from .statements import ENTRY_COLUMNS
from .tables import executions, journal, now_ms, payloads

__all__ = ["Operations"]

_x = executions.c
_j = journal.c

#: Entries whose payload is no value of a step, but says what happened.
_TELLING = (
    EntryKind.AUDIT,
    EntryKind.SCOPE_END,
    EntryKind.ABORTED,
    EntryKind.CHECKPOINT,
    EntryKind.TIMER,
    EntryKind.CALL,
)
#: The same columns, without the values of steps: those may be large, and secret.
_WITHOUT_VALUES = (
    *(c for c in ENTRY_COLUMNS if c is not _j.payload),
    sa.case((_j.kind.in_([int(k) for k in _TELLING]), _j.payload), else_=None).label("payload"),
)


class Operations:
    """Operations on the executions of one namespace."""

    def __init__(self, database: Database, *, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    # -- looking --------------------------------------------------------------------------------------------

    def get(self, execution_id: str) -> Execution:
        """One execution.

        :raises UnknownExecution: when there is none of this id.
        """
        return self._database.read(lambda c: to_execution(self._row(c, execution_id)))

    def find(
        self,
        *,
        states: Sequence[State] = (),
        task: str | None = None,
        limit: int = 50,
        before_pk: int | None = None,
        pruned: bool | None = False,
    ) -> list[Execution]:
        """Executions, the latest first.

        :param pruned: False: without tombstones; True: nothing else; None: both.

        :param before_pk: go on after the last one of the previous page.
        """
        query = sa.select(executions).where(_x.namespace == self._namespace).order_by(_x.pk.desc()).limit(limit)
        if states:
            query = query.where(_x.state.in_([s.value for s in states]))
        if task is not None:
            query = query.where(_x.task == task)
        if before_pk is not None:
            query = query.where(_x.pk < before_pk)
        if pruned is not None:
            query = query.where(_x.pruned_at.is_not(None) if pruned else _x.pruned_at.is_(None))
        return self._database.read(lambda c: [to_execution(r) for r in c.execute(query)])

    def entries(self, pk: int, generation: int, *, values: bool = True) -> list[Journaled]:
        """All entries of a generation, scope by scope.

        :param values: with the values, errors and arguments of the steps.
        """
        query = (
            sa.select(*(ENTRY_COLUMNS if values else _WITHOUT_VALUES))
            .where(_j.pk == pk, _j.generation == generation)
            .order_by(_j.scope, _j.position, _j.entry)
        )
        return self._database.read(lambda c: [journaled(r) for r in c.execute(query)])

    def generations(self, pk: int) -> list[int]:
        """The generations that have entries, the earliest first."""
        query = sa.select(_j.generation).where(_j.pk == pk).distinct().order_by(_j.generation)
        return self._database.read(lambda c: list(c.execute(query).scalars()))

    def aborts(self, pk: int) -> dict[int, StoredPayload]:
        """Why generations were aborted."""
        query = sa.select(_j.generation, _j.codec, _j.payload).where(
            _j.pk == pk, _j.kind == int(EntryKind.ABORTED), _j.payload.is_not(None)
        )
        return self._database.read(
            lambda c: {r.generation: StoredPayload(r.codec, bytes(r.payload)) for r in c.execute(query)}
        )

    def doubts(self, execution: Execution) -> list[Doubt]:
        """The guarded steps of the present generation that are in doubt, scope by scope."""
        return self._database.read(lambda c: self._doubts(c, execution))

    def payload(self, pk: int, kind: PayloadKind) -> StoredPayload | None:
        """The envelope, the outcome, or the reason for which it was parked."""
        return self._database.read(lambda c: get_payload(c, pk, kind))

    # -- changing -------------------------------------------------------------------------------------------

    def cancel(self, execution_id: str, reason: str) -> Execution:
        """End an execution that has not ended: at once, or, where it has something to undo, as soon as that is undone.

        :returns: the row as it was before.
        :raises UnknownExecution: when there is none of this id.
        :raises WrongState: when it has ended already, is being undone, or a step is in doubt of which nobody knows
            whether it is to be undone.
        """

        def work(connection: Connection) -> Execution:
            parent = lock_parent(connection, kept_by(execution_id))
            row = self._locked(connection, execution_id)
            if row.state in FINAL_STATES:
                raise WrongState(f"execution {execution_id} is {row.state} already; there is nothing to cancel.")
            known = self._saga(connection, row)
            if EntryKind.UNDOING in known:
                raise WrongState(f"execution {execution_id} is being undone already. {_PRESENT[row.state]}")
            why = reason_payload(reason)
            if EntryKind.SAGA not in known:
                self._change(connection, row, State.CANCELLED, wake_at=None)
                self._tell(connection, parent, execution_id, PromiseState.CANCELLED, why)
            elif row.state is State.AMBIGUOUS:
                raise WrongState(
                    f"execution {execution_id} is ambiguous, and what it did is to be undone: first say what became of "
                    f"the step in doubt, with: celery durable resolve {execution_id}"
                )
            elif row.state is State.RUNNING:
                # Its owner learns of it with its next commit. Where it is dead, the next one does.
                asked = sa.update(executions).where(_x.pk == row.pk).values(cancel_at=now_ms(), updated_at=now_ms())
                connection.execute(asked)
            else:
                self._go_on(connection, row, cancel_at=now_ms())
            put_payload(connection, row.pk, PayloadKind.REASON, why)
            return row

        return self._database.write(work)

    def fail(self, execution_id: str, outcome: StoredPayload, reason: str) -> bool:
        """End an execution as failed, after what it did is undone; Celery has been told already.

        :returns: False when there is nothing to end: it is unknown, or has ended.
        """

        def work(connection: Connection) -> bool:
            parent = lock_parent(connection, kept_by(execution_id))
            try:
                row = self._locked(connection, execution_id)
            except UnknownExecution:
                return False
            if row.state in FINAL_STATES:
                return False
            known = self._saga(connection, row)
            if EntryKind.UNDOING in known:
                self._go_on(connection, row)
                return True
            if EntryKind.SAGA in known:
                decision = Entry(META, 0, 1, EntryKind.UNDOING, None, TOLD, payload=outcome)
                self._go_on(connection, row)
                insert_entries(connection, [Batch(Fence(row.pk, row.epoch + 1), row.generation, (decision,))])
                put_payload(connection, row.pk, PayloadKind.REASON, reason_payload(reason))
                return True
            self._change(connection, row, State.FAILED, wake_at=None)
            put_payload(connection, row.pk, PayloadKind.OUTCOME, outcome)
            self._tell(connection, parent, execution_id, PromiseState.REJECTED, outcome)
            put_payload(connection, row.pk, PayloadKind.REASON, reason_payload(reason))
            return True

        return self._database.write(work)

    def resume(self, execution_id: str) -> Execution:
        """Let a parked or failed execution go on where it stopped, with a fresh count of attempts.

        :returns: the row as it was before.
        :raises UnknownExecution: when there is none of this id.
        :raises WrongState: when it runs, waits, or ended otherwise.
        """

        def work(connection: Connection) -> Execution:
            row = self._locked(connection, execution_id)
            if row.pruned_at is not None:
                raise WrongState(
                    f"execution {execution_id} is {row.state} and was pruned (durable_retention): its journal is gone, "
                    "so it cannot go on. To have its work done, call the task again under another id."
                )
            if row.state not in (*PARKED_STATES, State.FAILED):
                raise WrongState(
                    f"execution {execution_id} is {row.state}; only ambiguous, quarantined and failed ones can be "
                    f"resumed. {_PRESENT[row.state]}"
                )
            self._go_on(connection, row)
            return row

        return self._database.write(work)

    def resolve(
        self,
        execution_id: str,
        scope: str,
        position: int,
        kind: EntryKind,
        payload: StoredPayload | None,
        *,
        note: StoredPayload,
    ) -> list[Doubt]:
        """Settle a guarded step that is in doubt. The execution goes on when none is left that waits for an operator:
        before that, it would only be parked again.

        :param kind: ``RESULT`` (it was done, with this value), ``RUN_AGAIN`` or ``ERROR``.
        :param note: who decided; goes into the audit.
        :returns: the steps that are still to be settled.
        :raises UnknownExecution: when there is none of this id.
        :raises WrongState: when it is not ambiguous, or the step is not in doubt.
        """
        tries = 0

        def work(connection: Connection) -> list[Doubt]:
            nonlocal tries
            tries += 1
            row = self._locked(connection, execution_id)
            group = self._group(connection, row, scope, position)
            doubts = self._doubts(connection, row)
            left = [d for d in doubts if d.parked and (d.scope, d.position) != (scope, position)]
            if tries > 1 and len(group) > 1 and group[-1].kind == kind and _holds(group[-2], note):
                return left  # our own commit, whose acknowledgement was lost
            if row.state is not State.AMBIGUOUS:
                raise WrongState(
                    f"execution {execution_id} is {row.state}; only steps of ambiguous executions can be resolved. "
                    f"{_PRESENT[row.state]}"
                )
            if all((d.scope, d.position) != (scope, position) for d in doubts):
                found = ", ".join(f"{d.place} ({d.name})" for d in doubts) or "none"
                raise WrongState(
                    f"the step at position {place_of(scope, position)} of execution {execution_id} is not in doubt. In "
                    f"doubt: {found}. See: celery durable show {execution_id}"
                )
            steps = row.steps + (kind is not EntryKind.RUN_AGAIN)
            if left:
                self._change(connection, row, State.AMBIGUOUS, steps=steps)
            else:
                self._go_on(connection, row, steps=steps)
            last = group[-1]

            def entry(number: int, what: EntryKind, data: StoredPayload | None) -> Entry:
                return Entry(
                    scope,
                    position,
                    last.entry + number,
                    what,
                    EffectCode(last.effect) if last.effect is not None else None,
                    last.name,
                    last.fingerprint,
                    last.key,
                    last.attempt,
                    None,
                    data,
                )

            fence = Fence(row.pk, row.epoch + 1)
            entries = (entry(1, EntryKind.AUDIT, note), entry(2, kind, payload))
            insert_entries(connection, [Batch(fence, row.generation, entries)])
            return left

        return self._database.write(work)

    # -- helpers --------------------------------------------------------------------------------------------

    def _row(self, connection: Connection, execution_id: str, *, lock: bool = False) -> Any:
        query = sa.select(executions).where(_x.namespace == self._namespace, _x.id == execution_id)
        row = None
        if is_name(execution_id):
            row = connection.execute(query.with_for_update() if lock else query).first()
        # MySQL overlooks blanks at the end.
        if row is None or row.id != execution_id:
            raise UnknownExecution(
                f"there is no execution {execution_id!r} in namespace {self._namespace!r}. See what there is: celery "
                "durable list"
            )
        return row

    def _locked(self, connection: Connection, execution_id: str) -> Execution:
        return to_execution(self._row(connection, execution_id, lock=True))

    @staticmethod
    def _saga(connection: Connection, row: Execution) -> set[EntryKind]:
        """What the journal says of undoing."""
        here = (_j.pk == row.pk, _j.generation == row.generation, _j.scope == META, _j.position == 0)
        return {EntryKind(kind) for kind in connection.execute(sa.select(_j.kind).where(*here)).scalars()}

    @staticmethod
    def _tell(
        connection: Connection, parent: int | None, execution_id: str, state: PromiseState, payload: StoredPayload
    ) -> None:
        promise = kept_by(execution_id)
        if promise is not None:
            tell_parent(connection, parent, ChildEnd(promise, state, payload))

    @staticmethod
    def _group(connection: Connection, row: Execution, scope: str, position: int) -> list[Journaled]:
        here = (_j.pk == row.pk, _j.generation == row.generation, _j.scope == scope, _j.position == position)
        query = sa.select(*ENTRY_COLUMNS).where(*here).order_by(_j.entry)
        return [journaled(r) for r in connection.execute(query)]

    @staticmethod
    def _doubts(connection: Connection, row: Execution) -> list[Doubt]:
        query = (
            sa.select(_j.scope, _j.position, _j.kind, _j.name, _j.key)
            .where(
                _j.pk == row.pk,
                _j.generation == row.generation,
                _j.effect.in_([int(EffectCode.EXACTLY_ONCE_GUARDED), int(EffectCode.TRANSACTIONAL)]),
            )
            .order_by(_j.scope, _j.position, _j.entry)
        )
        found = []
        for (scope, position), rows in groupby(connection.execute(query).all(), key=lambda r: (r.scope, r.position)):
            last = list(rows)[-1]
            if last.kind in (EntryKind.AUDIT, EntryKind.INTENT):
                key = None if last.key is None else bytes(last.key)
                found.append(Doubt(scope, position, last.name, key, parked=last.kind == EntryKind.AUDIT))
        return found

    def _go_on(self, connection: Connection, row: Execution, **values: Any) -> None:
        """Let it run again, at once: recovery sends its message. An eager run has none; its caller calls again."""
        message = sa.select(payloads.c.pk).where(payloads.c.pk == row.pk, payloads.c.kind == int(PayloadKind.ENVELOPE))
        wake = now_ms() if connection.execute(message).first() is not None else None
        connection.execute(
            sa.delete(payloads).where(payloads.c.pk == row.pk, payloads.c.kind == int(PayloadKind.REASON))
        )
        self._change(connection, row, State.PENDING, wake_at=wake, attempts=0, sends=0, **values)

    @staticmethod
    def _change(connection: Connection, row: Execution, state: State, **values: Any) -> None:
        connection.execute(
            sa.update(executions)
            .where(_x.pk == row.pk)
            .values(state=state.value, epoch=row.epoch + 1, lease_until=0, updated_at=now_ms(), **values)
        )


#: What there is to say to somebody who cannot do what he wanted, by the state in which the execution is.
_PRESENT = {
    State.PENDING: "It goes on by itself as soon as a worker is free.",
    State.RUNNING: "It goes on by itself.",
    State.SUSPENDED: "It goes on by itself when its time has come.",
    State.AMBIGUOUS: "It waits for: celery durable resolve",
    State.QUARANTINED: "It waits for: celery durable resume",
    State.COMPLETED: "It has ended.",
    State.FAILED: "It has ended; celery durable resume lets it go on where it stopped.",
    State.CANCELLED: "It has ended; to have its work done, call the task again.",
}


def _holds(row: Journaled, payload: StoredPayload) -> bool:
    return row.codec is not None and row.payload is not None and StoredPayload(row.codec, row.payload) == payload
