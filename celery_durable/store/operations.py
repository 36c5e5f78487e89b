"""What people and the worker's main process do to an execution from outside: look, cancel, fail, resume, resolve.

Everything that changes an execution raises its epoch: whoever runs it is fenced off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import UnknownExecution, WrongState
from .database import Database
from .journal import COLUMNS, insert_entries, journaled, to_execution
from .records import (
    FINAL_STATES,
    PARKED_STATES,
    Batch,
    EffectCode,
    Entry,
    EntryKind,
    Execution,
    Fence,
    Journaled,
    PayloadKind,
    State,
    StoredPayload,
)
from .rows import get_payload, put_payload
from .tables import executions, journal, now_ms

__all__ = ["Operations"]

_x = executions.c
_j = journal.c


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
    ) -> list[Execution]:
        """Executions, the latest first.

        :param before_pk: go on after the last one of the previous page.
        """
        query = sa.select(executions).where(_x.namespace == self._namespace).order_by(_x.pk.desc()).limit(limit)
        if states:
            query = query.where(_x.state.in_([s.value for s in states]))
        if task is not None:
            query = query.where(_x.task == task)
        if before_pk is not None:
            query = query.where(_x.pk < before_pk)
        return self._database.read(lambda c: [to_execution(r) for r in c.execute(query)])

    def entries(self, pk: int, generation: int) -> list[Journaled]:
        """All entries of a generation, in the order of the body, branches after the scope they belong to."""
        query = (
            sa.select(*COLUMNS)
            .where(_j.pk == pk, _j.generation == generation)
            .order_by(_j.scope, _j.position, _j.entry)
        )
        return self._database.read(lambda c: [journaled(r) for r in c.execute(query)])

    def payload(self, pk: int, kind: PayloadKind) -> StoredPayload | None:
        """The envelope, the outcome, or the reason for which it was parked."""
        return self._database.read(lambda c: get_payload(c, pk, kind))

    # -- changing -------------------------------------------------------------------------------------------

    def cancel(self, execution_id: str, reason: str) -> Execution:
        """End an execution that has not ended.

        :returns: the row as it was before.
        :raises UnknownExecution: when there is none of this id.
        :raises WrongState: when it has ended already.
        """

        def work(connection: Connection) -> Execution:
            row = self._locked(connection, execution_id)
            if row.state in FINAL_STATES:
                raise WrongState(f"execution {execution_id} is {row.state} already; there is nothing to cancel.")
            self._change(connection, row, State.CANCELLED, wake_at=None)
            put_payload(connection, row.pk, PayloadKind.REASON, StoredPayload(0, reason.encode()))
            return row

        return self._database.write(work)

    def fail(self, execution_id: str, outcome: StoredPayload, reason: str) -> bool:
        """End an execution as failed; Celery has been told already.

        :returns: False when there is nothing to end: it is unknown, or has ended.
        """

        def work(connection: Connection) -> bool:
            try:
                row = self._locked(connection, execution_id)
            except UnknownExecution:
                return False
            if row.state in FINAL_STATES:
                return False
            self._change(connection, row, State.FAILED, wake_at=None)
            put_payload(connection, row.pk, PayloadKind.OUTCOME, outcome)
            put_payload(connection, row.pk, PayloadKind.REASON, StoredPayload(0, reason.encode()))
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
            if row.state not in (*PARKED_STATES, State.FAILED):
                raise WrongState(
                    f"execution {execution_id} is {row.state}; only ambiguous, quarantined and failed ones can be "
                    "resumed."
                )
            self._change(connection, row, State.PENDING, wake_at=now_ms(), attempts=0, sends=0)
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
    ) -> Execution:
        """Settle a guarded step that is in doubt, and let the execution go on.

        :param kind: ``RESULT`` (it was done, with this value), ``RUN_AGAIN`` or ``ERROR``.
        :param note: who decided; goes into the audit.
        :returns: the row as it was before.
        :raises UnknownExecution: when there is none of this id.
        :raises WrongState: when it is not ambiguous, or the step is not in doubt.
        """
        place = f"{scope}/{position}" if scope else str(position)

        def work(connection: Connection) -> Execution:
            row = self._locked(connection, execution_id)
            if row.state is not State.AMBIGUOUS:
                raise WrongState(
                    f"execution {execution_id} is {row.state}; only steps of ambiguous executions can be resolved."
                )
            group = [
                journaled(r)
                for r in connection.execute(
                    sa.select(*COLUMNS)
                    .where(
                        _j.pk == row.pk,
                        _j.generation == row.generation,
                        _j.scope == scope,
                        _j.position == position,
                    )
                    .order_by(_j.entry)
                )
            ]
            if not group or group[-1].kind not in (EntryKind.AUDIT, EntryKind.INTENT):
                raise WrongState(
                    f"the step at position {place} of execution {execution_id} is not in doubt. See which one is: "
                    f"celery durable show {execution_id}"
                )
            last = group[-1]
            self._change(connection, row, State.PENDING, wake_at=now_ms(), attempts=0, sends=0, steps=row.steps + 1)

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
            return row

        return self._database.write(work)

    # -- helpers --------------------------------------------------------------------------------------------

    def _row(self, connection: Connection, execution_id: str, *, lock: bool = False) -> Any:
        query = sa.select(executions).where(_x.namespace == self._namespace, _x.id == execution_id)
        row = connection.execute(query.with_for_update() if lock else query).first()
        if row is None:
            raise UnknownExecution(
                f"there is no execution {execution_id!r} in namespace {self._namespace!r}. See what there is: celery "
                "durable list"
            )
        return row

    def _locked(self, connection: Connection, execution_id: str) -> Execution:
        return to_execution(self._row(connection, execution_id, lock=True))

    @staticmethod
    def _change(connection: Connection, row: Execution, state: State, **values: Any) -> None:
        connection.execute(
            sa.update(executions)
            .where(_x.pk == row.pk)
            .values(state=state.value, epoch=row.epoch + 1, lease_until=0, updated_at=now_ms(), **values)
        )
