"""Operations on an execution for people and a worker's main process: look, cancel, fail, resume, resolve.

Everything that changes an execution raises its epoch: its current owner is fenced off.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from celery_durable.errors import UnknownExecution, WrongState

from .children import ChildEnd, kept_by, lock_parent, tell_parent
from .execution_reader import ExecutionReader
from .journal import insert_entries
from .journal_reader import journaled, to_execution
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
    runs_again,
)
from .rows import put_payload, reason_payload
from .statements import ENTRY_COLUMNS
from .tables import executions, journal, now_ms, payloads
from .wrong_state import goes_on

__all__ = ["Operations"]

_x = executions.c
_j = journal.c


class Operations(ExecutionReader):
    """Operations on the executions of one namespace."""

    # -- changing -------------------------------------------------------------------------------------------

    def cancel(self, execution_id: str, reason: str, *, undo: bool = True) -> Execution:
        """End an execution that has not ended: at once or, if it has something to undo, as soon as that is undone.

        :param undo: False: at once in any case, without undoing anything more.
        :returns: the row as it was before.
        :raises UnknownExecution: when there is none of this id.
        :raises WrongState: when it has ended already, is being undone, or has a step in doubt, so that nobody knows
            whether that is to be undone.
        """

        def work(connection: Connection) -> Execution:
            parent = lock_parent(connection, kept_by(execution_id))
            row = self._locked(connection, execution_id)
            if row.state in FINAL_STATES:
                raise WrongState(f"execution {execution_id} is {row.state} already; there is nothing to cancel.")
            known = self._saga(connection, row) if undo else set()
            if EntryKind.UNDOING in known:
                raise WrongState(f"execution {execution_id} is being undone already. {self._present(connection, row)}")
            why = reason_payload(reason)
            if EntryKind.SAGA not in known:
                self._change(connection, row, State.CANCELLED, wake_at=None)
                self._tell(connection, parent, execution_id, PromiseState.CANCELLED, why)
            elif row.state is State.AMBIGUOUS:
                raise WrongState(
                    f"execution {execution_id} is ambiguous, and its effects are to be undone: first say what happened "
                    f"to the step in doubt, with: celery durable resolve {execution_id}"
                )
            elif row.state is State.RUNNING:
                # Its owner learns of this with its next commit; if it is dead, the next owner does.
                asked = sa.update(executions).where(_x.pk == row.pk).values(cancel_at=now_ms(), updated_at=now_ms())
                connection.execute(asked)
            else:
                self._go_on(connection, row, cancel_at=now_ms())
            put_payload(connection, row.pk, PayloadKind.REASON, why)
            return row

        return self._database.write(work)

    def fail(self, execution_id: str, outcome: StoredPayload, reason: str) -> bool:
        """End an execution as failed, once what it did is undone; Celery has already been notified.

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
                # Counted, because an undo that takes too long each time would otherwise be restarted for ever.
                self._go_on(connection, row, attempts=row.attempts + 1)
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
        """Let a parked or failed execution continue where it stopped, with a fresh count of attempts.

        :returns: the row as it was before.
        :raises UnknownExecution: when there is none of this id.
        :raises WrongState: when it is neither parked nor failed.
        """

        def work(connection: Connection) -> Execution:
            row = self._locked(connection, execution_id)
            if row.pruned_at is not None:
                raise WrongState(
                    f"execution {execution_id} is {row.state} and was pruned (durable_retention): its journal is gone, "
                    "so it cannot continue. To do its work again, call the task again under another id."
                )
            if row.state not in (*PARKED_STATES, State.FAILED):
                raise WrongState(
                    f"execution {execution_id} is {row.state}; only ambiguous, quarantined and failed ones can be "
                    f"resumed. {self._present(connection, row)}"
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
        """Settle a step that is in doubt. The execution continues when no step waits for an operator any more: before,
        it would only be parked again.

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
                    f"{self._present(connection, row)}"
                )
            if all((d.scope, d.position) != (scope, position) for d in doubts):
                found = ", ".join(f"{d.place} ({d.name})" for d in doubts) or "none"
                here = f"the step at position {place_of(scope, position)} of execution {execution_id} is not in doubt"
                if group and runs_again(group[-1]):
                    here += ": it had started, and is run again when the execution continues, as its effect allows"
                raise WrongState(f"{here}. In doubt: {found}. See: celery durable show {execution_id}")
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

    def _locked(self, connection: Connection, execution_id: str) -> Execution:
        return to_execution(self._row(connection, execution_id, lock=True))

    @staticmethod
    def _saga(connection: Connection, row: Execution) -> set[EntryKind]:
        """The entries about undoing that the journal has."""
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

    def _go_on(self, connection: Connection, row: Execution, *, attempts: int = 0, **values: Any) -> None:
        """Let it run again at once: recovery sends its message. An eager run has none, so its caller must call again.

        :param attempts: the new count of take-overs.
        """
        wake = now_ms() if self._has_message(connection, row) else None
        connection.execute(
            sa.delete(payloads).where(payloads.c.pk == row.pk, payloads.c.kind == int(PayloadKind.REASON))
        )
        self._change(connection, row, State.PENDING, wake_at=wake, attempts=attempts, sends=0, **values)

    @staticmethod
    def _has_message(connection: Connection, row: Execution) -> bool:
        message = sa.select(payloads.c.pk).where(payloads.c.pk == row.pk, payloads.c.kind == int(PayloadKind.ENVELOPE))
        return connection.execute(message).first() is not None

    def _present(self, connection: Connection, row: Execution) -> str:
        return goes_on(row, eager=not self._has_message(connection, row))

    @staticmethod
    def _change(connection: Connection, row: Execution, state: State, **values: Any) -> None:
        connection.execute(
            sa.update(executions)
            .where(_x.pk == row.pk)
            .values(state=state.value, epoch=row.epoch + 1, lease_until=0, updated_at=now_ms(), **values)
        )


def _holds(row: Journaled, payload: StoredPayload) -> bool:
    return row.codec is not None and row.payload is not None and StoredPayload(row.codec, row.payload) == payload
