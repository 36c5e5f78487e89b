"""An execution from outside: ``celery_durable.get("order-42")``.

Works in any process that reaches the journal: a web view, a script, another service; with or without a Celery result
backend.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from . import timeline
from .cancelling import cancel
from .durations import seconds
from .effects import Effect
from .errors import ConfigurationError, ExecutionCancelled, ExecutionParked, ResultLost, ResultTimeout, WrongState
from .install import app_of
from .outcome import restore
from .rerun import rerun
from .runtime import Runtime
from .store import Operations
from .store.records import FINAL_STATES, PARKED_STATES, Closed, Execution, PayloadKind, State, StoredPayload
from .timeline import StepOutcome

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["ExecutionHandle", "ExecutionStatus", "StepInfo", "get"]

logger = logging.getLogger(__name__)

#: Pauses between two looks for a result, in seconds; each is longer than the one before.
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 1.0
_GROWTH: Final = 1.5


def get(execution_id: str, app: Celery[Any] | None = None) -> ExecutionHandle:
    """A handle on an execution.

    :param execution_id: its ``durable_id``, or its Celery task id.
    :param app: the Celery application whose journal it is in; default: the current one, or in a thread that has none,
        the only one there is.
    :raises ConfigurationError: when no application is given, and it is not clear which is meant.
    :raises UnknownExecution: when there is none of this id in the application's namespace. One that was published
        without a ``durable_id`` and without the outbox is not known before a worker has begun it.
    :raises JournalUnavailable: when the database did not answer.
    """
    handle = ExecutionHandle(execution_id, app_of(app))
    handle._row()
    return handle


@dataclass(frozen=True)
class ExecutionStatus:
    """What is known of an execution at one moment. All times are aware, in UTC, by the database's clock."""

    id: str
    #: The name of its task.
    task: str
    state: State
    #: Take-overs from an owner that died.
    attempts: int
    #: Celery's number of the retry that runs or may run next; 0 for none.
    retries: int
    #: Of the journal; 2 and more after the body diverged.
    generation: int
    #: Steps done in that generation.
    steps: int
    created_at: dt.datetime
    updated_at: dt.datetime
    #: When recovery looks at it next: the end of its wait, of its lease. None where it need not.
    wakes_at: dt.datetime | None
    #: Names of the promises that it waits for.
    awaits: tuple[str, ...]
    #: Why it was parked, cancelled, or failed from outside. May show arguments and messages of errors.
    reason: str | None
    #: When its journal, message and result were removed.
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
    """A step, as the journal has it."""

    #: Where it stands in the body: ``"4"``, or ``"4.0/1"`` in a branch.
    position: str
    name: str
    #: None where the entries cannot be read.
    effect: Effect | None
    outcome: StepOutcome
    #: The idempotency key (32 bytes) of a guarded step.
    key: bytes | None
    #: Tries.
    attempts: int
    #: How long the last try took; None where that is not known.
    duration: dt.timedelta | None
    #: When its latest entry was written.
    at: dt.datetime
    #: Why it is in doubt.
    doubt: str | None
    _values: _Values = field(repr=False, compare=False)

    def value(self) -> Any:
        """What it returned, or was assumed to; read from the journal now.

        :raises WrongState: when it has no value: it failed, or has not ended.
        :raises PayloadError: when the value cannot be decoded here.
        """
        if self.outcome not in (StepOutcome.DONE, StepOutcome.SKIPPED):
            raise WrongState(f"step {self.name!r} (position {self.position}) is {self.outcome}; it has no value.")
        return self._values.value(self)

    def error(self) -> Exception | None:
        """What it raised, the last time if there were several; None where it raised nothing that is recorded.

        :raises PayloadError: when the error cannot be decoded here.
        """
        if self.outcome is StepOutcome.LOST:
            return ResultLost(str(self._values.value(self)))
        return self._values.error(self) if self.outcome in (StepOutcome.FAILED, StepOutcome.RETRYING) else None


class _Values:
    """The values of a journal's steps, read when the first one is asked for."""

    def __init__(self, handle: ExecutionHandle, row: Execution) -> None:
        self._handle = handle
        self._row = row
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

    Every method asks the journal anew, and raises :class:`UnknownExecution` when the execution is gone, and
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
        """What it does now."""
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
            reason=None if stored is None else stored.data.decode(errors="replace"),
            pruned_at=None if row.pruned_at is None else _time(row.pruned_at),
        )

    def _awaits(self, row: Execution) -> tuple[str, ...]:
        if row.state is not State.SUSPENDED:
            return ()
        found = self._runtime.promises.of([row.pk])
        return tuple(one.name for one in found if one.pending and one.awaited == row.epoch)

    def steps(self) -> list[StepInfo]:
        """The steps of the journal's present generation, in the order of the body. Their values are not read yet."""
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
        """What the body returned; waits for it.

        Asks the journal with growing pauses, up to a second each. Needs no result backend.

        :param timeout: seconds to wait; None: as long as it takes. 0: do not wait.
        :returns: the value, as the journal gives it back; None where the body ended by Celery's ``Ignore``.
        :raises ConfigurationError: for a timeout that is no number of seconds.
        :raises ResultTimeout: when it has not ended by then.
        :raises ExecutionParked: when it waits for an operator.
        :raises ExecutionCancelled: when it was cancelled.
        :raises WrongState: when it was pruned: the result is gone.
        :raises PayloadError: when the result cannot be decoded here.
        :raises: what the body raised, where it failed.
        """
        ended = self._ended()
        for pause in _pauses(timeout):
            if ended is not None:
                break
            time.sleep(pause)
            ended = self._ended()
        return self._outcome(ended, timeout)

    async def aresult(self, timeout: float | None = None) -> Any:
        """As :meth:`result`, for coroutines: the event loop is not held up."""
        ended = await asyncio.to_thread(self._ended)
        for pause in _pauses(timeout):
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
                "goes on: ask again later.",
                execution_id=self._id,
                state=now.state.value,
            )
        if row.state in (*PARKED_STATES, State.CANCELLED):
            stored = self._operations.payload(row.pk, PayloadKind.REASON)
            reason = "" if stored is None else stored.data.decode(errors="replace")
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

    def cancel(self, reason: str = "cancelled by the application") -> None:
        """End it, if it has not ended. The operation that runs at this moment is not interrupted, but its result is
        dropped and nothing comes after it; waiting callers get ``TaskRevokedError``. An execution with something to
        undo keeps that result, undoes what it did, and is cancelled then.

        :param reason: why; is shown to whoever looks at it.
        :raises WrongState: when it has ended already, is being undone, or a step of it is in doubt.
        """
        if not isinstance(reason, str):
            raise ConfigurationError(f"cancel() takes the reason as a text, not {reason!r}.")
        _, problem, _ = cancel(self._app, self._id, reason)
        if problem is not None:
            logger.warning("the result backend was not told that %s is cancelled: %s", self._id, problem)

    def resume(self) -> None:
        """Let it go on where it stopped, as the same execution, if it is parked or failed. Steps in doubt are not
        settled by this: their policy is asked again.

        :raises WrongState: when it runs, waits, or ended otherwise.
        """
        self._operations.resume(self._id)

    def rerun(
        self, from_step: int | str | None = None, *, durable_id: str | None = None, callbacks: bool = True
    ) -> ExecutionHandle:
        """Do its work anew, from a step on, in a new execution; this one stays as it is.

        The new one has the same message. It takes over what the steps before ``from_step`` have come to, guarded ones
        included: those are not done again. The others are, guarded ones too, with idempotency keys of the new
        execution; only what was done under a ``key=`` of the application's is not done again.

        :param from_step: the first step that is done anew: its position in the body, or its name. The position after
            the last one stands for sharing everything. None: share nothing.
        :param durable_id: id of the new execution, which is started once, however often this is called; default: a
            random one.
        :param callbacks: False: without the links of the message and without the rest of its chain. Of a chord or group
            the new execution is never a member.
        :returns: a handle on the new execution.
        :raises UnknownStep: when there is no such step, or several of the name.
        :raises WrongState: when this one has not ended and is not parked, was pruned, or ran eagerly; or when a step
            before ``from_step`` has not ended.
        :raises DurableIdConflict: when ``durable_id`` belongs to something else.
        :raises ConfigurationError: for a ``durable_id`` that cannot be one.
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
        runtime = self._runtime
        return Operations(runtime.database, namespace=runtime.settings.namespace)

    def _row(self) -> Execution:
        return self._operations.get(self._id)

    def _timeline(self, row: Execution, *, values: bool) -> timeline.Timeline:
        entries = self._operations.entries(row.pk, row.generation, values=values)
        return timeline.read(entries, self._runtime.codec, row.state)


def _pauses(timeout: float | None) -> Iterator[float]:
    """How long to wait before each further look, until the time is over."""
    if timeout is not None:
        seconds(timeout, "result(timeout=)")
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        left = pause if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return
        yield min(pause, left)
        pause = min(pause * _GROWTH, _LONGEST_PAUSE)


def _time(ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(ms / 1000, dt.timezone.utc)
