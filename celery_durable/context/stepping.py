"""Steps: the part of :class:`~celery_durable.DurableContext` that runs them, or returns their recorded values."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import uuid
from collections.abc import Callable, Coroutine
from types import FunctionType
from typing import Any, ParamSpec, TypeVar, overload

from celery_durable.common.coroutines import is_coroutine_function
from celery_durable.effects import Effect
from celery_durable.identity import fingerprint
from celery_durable.replay import divergence
from celery_durable.replay.checkpoint import fold_prefix
from celery_durable.replay.leaving import Held, Undoing
from celery_durable.replay.pending import BrokenOff
from celery_durable.replay.scope import ScopeState
from celery_durable.steps.actions import Outcome
from celery_durable.steps.broken_off import until_broken_off, until_broken_off_here
from celery_durable.steps.call import StepCall
from celery_durable.steps.current import operation
from celery_durable.steps.described import described, only_named
from celery_durable.steps.descriptor import StepDescriptor, StepRecord
from celery_durable.steps.drive import drive, drive_async, drive_plain
from celery_durable.steps.keys import fingerprint_for, naming
from celery_durable.store.records import UNDO, Journaled

from .undoing import UndoingContext

__all__ = ["SteppingContext"]

P = ParamSpec("P")
R = TypeVar("R")


class SteppingContext(UndoingContext):
    """Steps. A coroutine function gives an awaitable."""

    #: Steps that an ``async def`` body asked for, and has not begun to await, by their places.
    _unbegun: dict[str, tuple[Coroutine[Any, Any, Any], StepCall]]
    #: Beyond so many steps a long journal is folded, once.
    _fold_at: float
    _folded: bool

    def step(self, what: str | StepDescriptor, op: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run ``op(*args, **kwargs)`` as a step, or return its recorded value if it has run already.

        :param what: the step's name, or a :class:`StepDescriptor`.
        :param op: any callable. With a name, a ``@step`` function keeps its other options, such as its effect; any
            other function is an idempotent step. A coroutine function gives an awaitable.
        :returns: the operation's value, as read back from the journal.
        :raises ContextClosed: after the body has ended.
        :raises NestedStep: inside another step's operation.
        :raises ConfigurationError: when a descriptor would remove the guard of a ``@step`` function.
        :raises FingerprintError: for arguments without a canonical form.
        :raises PayloadError: when the value cannot be stored, or is too large (:class:`PayloadTooLarge`).
        :raises StepLimitExceeded: for more steps than ``durable_max_steps``.
        :raises AmbiguousEffect: see there; guarded steps only. :class:`ResultLost`: those, and steps that can be
            undone. :class:`GuardConflict`: the step's ``key=`` was used with other arguments.
        :raises JournalUnavailable: the database did not answer. The body cannot continue; its message is delivered
            again.
        """
        if type(what) is str and type(op) is FunctionType:
            # Nothing can be wrong with the two; and cast() would be a call for each step.
            return self._call(self._here(), only_named(what), op, args, kwargs, is_coroutine_function(op))  # type: ignore[no-any-return]
        step = described(what, op, args, kwargs)
        return self._call(self._here(), *step, is_coroutine_function(step.op))  # type: ignore[no-any-return]

    @overload
    def step_recorded(
        self,
        what: str | StepDescriptor,
        op: Callable[P, Coroutine[Any, Any, Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, StepRecord]: ...

    @overload
    def step_recorded(
        self, what: str | StepDescriptor, op: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> StepRecord: ...

    def step_recorded(self, what: str | StepDescriptor, op: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`step`, but returns the :class:`StepRecord`: id, key, value, whether it was replayed.

        For a coroutine function: an awaitable of it. Parameters and errors are those of :meth:`step`.
        """
        step = described(what, op, args, kwargs)
        return self._call(self._here(), *step, is_coroutine_function(step.op), recorded=True)

    # -- what varies, recorded ------------------------------------------------------------------------------

    def now(self) -> dt.datetime:
        """The time as an aware datetime in UTC. A replay returns the time of the first run. It is a step like any
        other.
        """
        return self.step(_NOW, _utc_now)

    def uuid4(self) -> uuid.UUID:
        """A random UUID. A replay returns the same one. It is a step like any other."""
        return self.step(_UUID4, uuid.uuid4)

    def random(self) -> float:
        """A random number in [0, 1). A replay returns the same one. It is a step like any other."""
        return self.step(_RANDOM, random.random)

    # -- the way of a step ----------------------------------------------------------------------------------

    def _call(
        self,
        scope: ScopeState,
        descriptor: StepDescriptor,
        op: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        is_async: bool,
        recorded: bool = False,
    ) -> Any:
        run = self._run
        # What _check() does, without the price of a call: each step has one, and each of its replays.
        if self._closed or run.standing.barred is not None or run.buffer.cancelled or operation.get() is not None:
            self._refuse(descriptor.name)
        if scope.left is not None:
            raise scope.left
        total = run.count_step(descriptor.name) if scope.path != UNDO else 0
        # Fixed now, also for coroutines: the order of calls is the order of positions.
        known = descriptor._by_arguments
        print_ = (
            fingerprint(descriptor.name, _IDEMPOTENT, args, kwargs)
            if known
            else fingerprint_for(descriptor, args, kwargs)
        )
        position = scope.take_position()
        named, occurrence = (None, 0) if known else naming(descriptor, args, kwargs, print_, scope, run.namespace)
        if run.pending:
            run.settle_errors(scope.path, position)
        if total > self._fold_at and not self._folded:
            self._fold()
        if descriptor.compensate is not None and descriptor.name not in run.saga.named and not run.stopping:
            self._mark(descriptor.name, scope.path, position)
        rows = None
        if not is_async:
            rows = scope.cursor.take(position)
            if rows is not None and not recorded and descriptor.compensate is None and descriptor.guard is None:
                replayed = run.plain_result(rows, descriptor.name, descriptor._code, print_)
                if replayed is not None:
                    return replayed[0]
        call = StepCall(
            descriptor,
            op,
            args,
            kwargs,
            run.execution_id,
            scope.path,
            scope.lane,
            position,
            print_,
            occurrence,
            named,
            run.namespace,
        )
        if is_async:
            later = self._call_async(scope, call, recorded)
            self._unbegun[call.place] = later, call
            return later
        if rows is not None or scope.end is not None:
            self._compare(scope, call, rows)
        if run.stopping and self._at_the_end(scope, rows):
            raise self._leave(scope, Undoing())
        if rows is None and descriptor._plain:
            return self._answer(call, drive_plain(run, call), recorded)
        try:
            outcome = drive(run, call, rows)
        except (Held, Undoing) as left:
            raise self._leave(scope, left) from None
        return self._answer(call, outcome, recorded)

    async def _call_async(self, scope: ScopeState, call: StepCall, recorded: bool) -> Any:
        self._unbegun.pop(call.place, None)
        held, run = self._coroutines(), self._run
        with held.flight():
            if not scope.cursor.ready(call.position):
                await asyncio.to_thread(scope.cursor.has, call.position)
            rows = scope.cursor.take(call.position)
            self._compare(scope, call, rows)
            try:
                if (run.stopping or held.closing) and self._at_the_end(scope, rows):
                    raise Undoing
                outcome = await drive_async(run, call, rows)
                if isinstance(outcome.error, BrokenOff):
                    await until_broken_off(outcome.error.error, stopping=run.stopping)
                return self._answer(call, outcome, recorded)
            except (Held, Undoing) as reason:
                left = reason
        await held.hold(scope, left)

    def _compare(self, scope: ScopeState, call: StepCall, rows: list[Journaled] | None) -> None:
        """Refuse to continue where the journal has something else than this call (G5)."""
        name, effect = call.descriptor.name, call.descriptor.effect
        if rows is not None:
            found = divergence.check_step(rows, self.execution_id, call.place, name, effect, call.fingerprint)
            if found is not None:
                self._diverge(found)
        elif scope.end is not None and call.position >= scope.end:
            self._diverge(divergence.unexpected(self.execution_id, call.place, name, effect, call.fingerprint))

    def _answer(self, call: StepCall, outcome: Outcome, recorded: bool) -> Any:
        counters = self._run.counters
        if outcome.replayed:
            counters.replayed += 1
        if call.guard is not None and (outcome.replayed or outcome.skipped):
            counters.guarded_skipped += 1
        if call.descriptor.compensate is not None:
            self._done(call, outcome.value, outcome.error)
        if outcome.error is not None:
            self._run.check()
            if isinstance(outcome.error, BrokenOff):
                until_broken_off_here(outcome.error.error, stopping=self._run.stopping)
                raise outcome.error.error
            raise outcome.error
        if not recorded:
            return outcome.value
        return StepRecord(
            call.place,
            call.descriptor.name,
            call.key,
            outcome.value,
            outcome.replayed,
            outcome.skipped,
            outcome.attempt,
        )

    def _fold(self) -> None:
        # A row that replay has still to read must stay where replay will look for it.
        if not self._body.cursor.exhausted:
            return
        self._folded = True
        self._run.flush()
        fold_prefix(self._run)


#: A member of an enumeration is slow to get at.
_IDEMPOTENT = Effect.IDEMPOTENT.value

_NOW = StepDescriptor("durable.now")
_UUID4 = StepDescriptor("durable.uuid4")
_RANDOM = StepDescriptor("durable.random")


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)
