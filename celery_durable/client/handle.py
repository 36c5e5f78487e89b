"""Executions, seen from outside: ``celery_durable.get("order-42")``.

Works in any process that reaches the journal: a web view, a script, another service; with or without a Celery result
backend.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery_durable.app.installing import app_of
from celery_durable.effects import Effect
from celery_durable.errors import (
    ConfigurationError,
    ExecutionCancelled,
    ExecutionParked,
    ResultLost,
    ResultTimeout,
    WrongState,
)
from celery_durable.execution.cancelling import cancel
from celery_durable.execution.outcome import restore
from celery_durable.journal import timeline
from celery_durable.journal.timeline import StepOutcome
from celery_durable.runtime import Runtime
from celery_durable.store import Operations
from celery_durable.store.records import (
    FINAL_STATES,
    PARKED_STATES,
    Closed,
    Execution,
    PayloadKind,
    State,
    StoredPayload,
)
from celery_durable.store.rows import reason_text

from .polling import pauses
from .rerun import rerun

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["ExecutionHandle", "ExecutionStatus", "StepInfo", "get"]

logger = logging.getLogger(__name__)


def get(execution_id: str, app: Celery[Any] | None = None) -> ExecutionHandle:
    """Get a handle on an execution.

    :param execution_id: its ``durable_id``, or its Celery task id.
    :param app: the Celery application whose journal holds it; default: the current one, or in a thread without a
        current one, the only one.
    :raises ConfigurationError: when ``app`` is not given, and it is not clear which application is meant.
    :raises UnknownExecution: when the application's namespace has no execution with this id. One that was published
        without a ``durable_id`` and without the outbox is not known until a worker has started it.
    :raises JournalUnavailable: when the database did not answer.
    """
    handle = ExecutionHandle(execution_id, app_of(app))
    handle._row()
    return handle


@dataclass(frozen=True)
class ExecutionStatus:
    """The state of an execution at one moment. All times are aware datetimes in UTC, by the database's clock."""

    id: str
    #: The name of its task.
    task: str
    state: State
    #: How often it was taken over from an owner that died.
    attempts: int
    #: Celery's number of the current or next retry; 0 before the first.
    retries: int
    #: Generation of the journal; 2 and more after the body diverged.
    generation: int
    #: Steps done in that generation.
    steps: int
    created_at: dt.datetime
    updated_at: dt.datetime
    #: When recovery looks at it next: at the end of its wait, or of its lease. None if it need not.
    wakes_at: dt.datetime | None
    #: Names of the promises that it waits for.
    awaits: tuple[str, ...]
    #: Why it was parked, cancelled, or failed from outside. Of a cancellation it is the text that was given to it.
    reason: str | None
    #: When retention removed its journal, message and result.
    pruned_at: dt.datetime | None

    @property
    def finished(self) -> bool:
        """True when it has ended: ``completed``, ``failed`` or ``cancelled``."""
        return self.state in FINAL_STATES

    @property
    def parked(self) -> bool:
        """True while it waits for an operator: ``ambiguous`` or ``quarantined``."""
        return self.state in PARKED_STATES


@dataclass(frozen=True)
class StepInfo:
    """A step, as the journal records it."""

    #: Its position in the body: ``"4"``, or ``"4.0/1"`` in a branch.
    position: str
    name: str
    #: None if the entries cannot be read.
    effect: Effect | None
    outcome: StepOutcome
    #: The idempotency key (32 bytes) of a guarded step.
    key: bytes | None
    #: Tries.
    attempts: int
    #: How long the last try took; None if that is not known.
    duration: dt.timedelta | None
    #: When its latest entry was written.
    at: dt.datetime
    #: Why it is in doubt.
    doubt: str | None
    _values: _Values = field(repr=False, compare=False)

    def value(self) -> Any:
        """What it returned, or was assumed to return. Read from the journal now.

        :raises WrongState: when it has no value, because it failed or has not ended.
        :raises PayloadError: when the value cannot be decoded here.
        """
        if self.outcome not in (StepOutcome.DONE, StepOutcome.SKIPPED):
            raise WrongState(f"step {self.name!r} (position {self.position}) is {self.outcome}; it has no value.")
        return self._values.value(self)

    def error(self) -> Exception | None:
        """The error that it raised last; None if no error is recorded.

        :raises PayloadError: when the error cannot be decoded here.
        """
        if self.outcome is StepOutcome.LOST:
            about = {"execution_id": self._values.execution_id, "step_id": self.position, "step": self.name}
            return ResultLost(str(self._values.value(self)), **about)
        return self._values.error(self) if self.outcome in (StepOutcome.FAILED, StepOutcome.RETRYING) else None


class _Values:
    """The values of a journal's steps, read when the first one is asked for."""

    def __init__(self, handle: ExecutionHandle, row: Execution) -> None:
        self._handle = handle
        self._row = row
        self.execution_id = row.id
        self._payloads: dict[str, StoredPayload | None] | None = None

    def _payload(self, step: StepInfo) -> StoredPayload | None:
        if self._payloads is None:
            steps = self._handle._timeline(self._row, values=True).steps
            self._payloads = {s.position: s.payload for s in steps}
        if step.position not in self._payloads:
            raise WrongState(f"step {step.name!r} of execution {self._row.id} is gone: its journal was pruned.")
        return self._payloads[step.position]

    def value(self, step: StepInfo) -> Any:
        payload = self._payload(step)
        where = f"the journaled result of step {step.name!r}"
        return None if payload is None else self._handle._runtime.codec.decode(payload.codec, payload.data, where)

    def error(self, step: StepInfo) -> Exception | None:
        payload = self._payload(step)
        if payload is None:
            return None
        error = self._handle._runtime.codec.decode_error(payload.codec, payload.data, f"the error of {step.name!r}")
        return error if isinstance(error, Exception) else RuntimeError(repr(error))


class ExecutionHandle:
    """One execution, seen from outside. Made by :func:`get`; cheap, holds nothing, and may be used by several threads.

    Every method reads the journal, and raises :class:`UnknownExecution` when the execution is gone, and
    :class:`JournalUnavailable` when the database did not answer.
    """

    def __init__(self, execution_id: str, app: Celery[Any]) -> None:
        self._id = execution_id
        self._app = app

    def __repr__(self) -> str:
        return f"<execution {self._id!r}>"

    @property
    def id(self) -> str:
        """Its ``durable_id``, or its Celery task id."""
        return self._id

    # -- looking --------------------------------------------------------------------------------------------

    def status(self) -> ExecutionStatus:
        """Its state now."""
        row = self._row()
        stored = None
        if row.state in PARKED_STATES or row.state in (State.CANCELLED, State.FAILED):
            stored = self._operations.payload(row.pk, PayloadKind.REASON)
        return ExecutionStatus(
            id=row.id,
            task=row.task,
            state=row.state,
            attempts=row.attempts,
            retries=row.retries,
            generation=row.generation,
            steps=row.steps,
            created_at=_time(row.created_at),
            updated_at=_time(row.updated_at),
            wakes_at=None if row.wake_at is None else _time(row.wake_at),
            awaits=self._awaits(row),
            reason=None if stored is None else reason_text(stored),
            pruned_at=None if row.pruned_at is None else _time(row.pruned_at),
        )

    def _awaits(self, row: Execution) -> tuple[str, ...]:
        if row.state is not State.SUSPENDED:
            return ()
        found = self._runtime.promises.of([row.pk])
        return tuple(one.name for one in found if one.pending and one.awaited == row.epoch)

    def steps(self) -> list[StepInfo]:
        """The steps of the journal's current generation, in the order of the body. Their values are read on demand."""
        row = self._row()
        values = _Values(self, row)
        return [
            StepInfo(
                position=step.position,
                name=step.name,
                effect=None if step.effect is None else Effect(step.effect),
                outcome=step.outcome,
                key=step.key,
                attempts=step.attempts,
                duration=None if step.duration_us is None else dt.timedelta(microseconds=step.duration_us),
                at=_time(step.at),
                doubt=step.doubt,
                _values=values,
            )
            for step in self._timeline(row, values=False).steps
        ]

    # -- waiting --------------------------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the execution, and return what its body returned.

        Polls the journal with growing pauses, up to a second each. Needs no result backend.

        :param timeout: seconds to wait; None: no limit; 0: do not wait.
        :returns: the value, as read back from the journal; None if the body ended by Celery's ``Ignore``.
        :raises ConfigurationError: for a timeout that is not a number of seconds.
        :raises ResultTimeout: when it has not ended by then.
        :raises ExecutionParked: when it waits for an operator.
        :raises ExecutionCancelled: when it was cancelled.
        :raises WrongState: when it was pruned: the result is gone.
        :raises PayloadError: when the result cannot be decoded here.
        :raises: what the body raised, if it failed.
        """
        ended = self._ended()
        for pause in pauses(timeout):
            if ended is not None:
                break
            time.sleep(pause)
            ended = self._ended()
        return self._outcome(ended, timeout)

    async def aresult(self, timeout: float | None = None) -> Any:
        """As :meth:`result`, for coroutines: it does not block the event loop."""
        ended = await asyncio.to_thread(self._ended)
        for pause in pauses(timeout):
            if ended is not None:
                break
            await asyncio.sleep(pause)
            ended = await asyncio.to_thread(self._ended)
        return await asyncio.to_thread(self._outcome, ended, timeout)

    def _ended(self) -> Execution | None:
        """The execution, where nothing is left to wait for."""
        row = self._row()
        return row if row.state in FINAL_STATES | PARKED_STATES else None

    def _outcome(self, row: Execution | None, timeout: float | None) -> Any:
        if row is None:
            now = self._row()
            raise ResultTimeout(
                f"execution {self._id} of task {now.task} has not ended within {timeout:g} s; it is {now.state}. It "
                "continues: ask again later.",
                execution_id=self._id,
                state=now.state.value,
            )
        if row.state in (*PARKED_STATES, State.CANCELLED):
            stored = self._operations.payload(row.pk, PayloadKind.REASON)
            reason = "" if stored is None else reason_text(stored)
            why = f": {reason}" if reason else "."
            if row.state is State.CANCELLED:
                raise ExecutionCancelled(
                    f"execution {self._id} was cancelled{why}", execution_id=self._id, reason=reason
                )
            raise ExecutionParked(
                f"execution {self._id} is parked as {row.state} and waits for an operator{why}",
                execution_id=self._id,
                state=row.state.value,
                reason=reason,
            )
        outcome = self._operations.payload(row.pk, PayloadKind.OUTCOME)
        if outcome is None and row.pruned_at is not None:
            raise WrongState(
                f"execution {self._id} is {row.state}, and was pruned on {_time(row.pruned_at):%Y-%m-%d}: its result "
                "is gone."
            )
        if outcome is None:
            return None
        return restore(self._runtime, Closed(row.pk, row.state, outcome), self._id)

    # -- acting ---------------------------------------------------------------------------------------------

    def cancel(self, reason: str = "cancelled by the application", *, undo: bool = True) -> None:
        """Cancel it. An operation that runs at this moment is not interrupted, but its result is dropped and nothing
        runs after it; waiting callers get ``TaskRevokedError``. An execution with something to undo keeps that result,
        undoes what it did, and is then cancelled.

        :param reason: why; recorded in the journal.
        :param undo: False: cancel it at once, and undo nothing (more), because you have taken care of that by other
            means.
        :raises WrongState: when it has ended already, is being undone, or a step of it is in doubt.
        """
        if not isinstance(reason, str):
            raise ConfigurationError(f"cancel() takes the reason as a text, not {reason!r}.")
        problem = cancel(self._app, self._id, reason, undo=undo).problem
        if problem is not None:
            logger.warning("the result backend could not be notified that %s is cancelled: %s", self._id, problem)

    def resume(self) -> None:
        """Continue a parked or failed execution where it stopped, as the same execution. This does not settle steps in
        doubt: their policy decides again.

        :raises WrongState: when it is neither parked nor failed.
        """
        self._operations.resume(self._id)

    def rerun(
        self, from_step: int | str | None = None, *, durable_id: str | None = None, callbacks: bool = True
    ) -> ExecutionHandle:
        """Do its work again from a step on, in a new execution. This one stays as it is.

        The new one has the same message. It takes over the outcomes of the steps before ``from_step``, guarded ones
        included: they do not run again. The others run again, guarded ones too, with idempotency keys of the new
        execution; only an operation with a ``key=`` of the application's does not run again.

        :param from_step: the first step to run again: its position in the body, or its name. The position after the
            last one shares everything. None: share nothing.
        :param durable_id: id of the new execution, which starts once, however often this is called; default: a random
            one.
        :param callbacks: False: without the links of the message and without the rest of its chain. The new execution
            is never a member of a chord or group.
        :returns: a handle on the new execution.
        :raises UnknownStep: when there is no such step, or several of that name.
        :raises WrongState: when this one has not ended and is not parked, was pruned, or ran eagerly; or when a step
            before ``from_step`` has not ended.
        :raises DurableIdConflict: when ``durable_id`` belongs to another call.
        :raises ConfigurationError: for an invalid ``durable_id``.
        :raises PayloadError: when the message cannot be read in this process.
        """
        new_id = rerun(self._app, self._id, from_step, durable_id=durable_id, callbacks=callbacks)
        return ExecutionHandle(new_id, self._app)

    # -- helpers --------------------------------------------------------------------------------------------

    @property
    def _runtime(self) -> Runtime:
        return Runtime.of(self._app)

    @property
    def _operations(self) -> Operations:
        return self._runtime.operations

    def _row(self) -> Execution:
        return self._operations.get(self._id)

    def _timeline(self, row: Execution, *, values: bool) -> timeline.Timeline:
        entries = self._operations.entries(row.pk, row.generation, values=values)
        return timeline.read(entries, self._runtime.codec, row.state)


def _time(ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(ms / 1000, dt.timezone.utc)
