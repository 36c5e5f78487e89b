"""What a durable body can ask for."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import random
import uuid
import weakref
from collections.abc import Callable, Coroutine
from types import FunctionType
from typing import Any, ParamSpec, TypeVar, overload

from . import divergence
from .actions import Outcome, StepCall
from .calling import CallingContext
from .checkpoint import FOLD_AT, fold_prefix
from .coroutines import is_coroutine_function
from .current import Active, active, operation
from .drive import drive, drive_async, drive_plain
from .effects import Effect
from .errors import ConfigurationError, ContextClosed, NestedStep, ReplayDivergence
from .identity import fingerprint
from .logger import DurableLogger
from .naming import fingerprint_for, naming
from .packing import unpacked
from .parallel import Parallel
from .replay import SEGMENT, ReplayCursor
from .run import Run
from .saga import UNDO
from .scope import ScopeState
from .step import Step, StepDescriptor, StepRecord, check_assumed, check_compensation
from .store.records import META, Entry, EntryKind, Journaled
from .transaction import TransactionMethods
from .transactional import check_operation
from .undoing import UndoingContext
from .waiting import WaitingContext

__all__ = ["DurableContext"]

P = ParamSpec("P")
R = TypeVar("R")


class DurableContext(WaitingContext, CallingContext, TransactionMethods, UndoingContext):
    """The durable side of a running body: ``self.durable`` in a bound task.

    Safe to share between threads. It ends with the body: used later, it raises :class:`ContextClosed`.
    """

    def __init__(self, run: Run, *, logger_name: str = "celery_durable.body") -> None:
        self._run = run
        self._closed = False
        self._folded = False
        self._fold_at = FOLD_AT * run.limits.max_steps
        self._unawaited = {}
        self._parkings = weakref.WeakKeyDictionary()
        self._body = self._scope("", "")
        #: A logger that is silent while the body replays.
        self.logger = DurableLogger(logger_name, self)

    # -- facts ----------------------------------------------------------------------------------------------

    @property
    def execution_id(self) -> str:
        """The Celery task id, or the id that the caller chose."""
        return self._run.execution_id

    @property
    def attempt(self) -> int:
        """How often this execution was taken over from an owner that died; 0 for none."""
        return self._run.opened.attempts

    @property
    def replaying(self) -> bool:
        """True while the journal holds a step that the body has not asked for yet (in this branch).

        For logs and progress bars. Steps must not depend on it.
        """
        scope = self._here()
        return scope.cursor.has(scope.next_position)

    # -- steps ----------------------------------------------------------------------------------------------

    def step(self, what: str | StepDescriptor, op: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do ``op(*args, **kwargs)`` as a step, or return what it returned when it was done.

        :param what: the step's name (then it is idempotent), or a :class:`StepDescriptor`.
        :param op: any callable. A coroutine function gives an awaitable.
        :returns: the operation's value, as the journal gives it back.
        :raises ContextClosed: after the body has ended.
        :raises NestedStep: inside another step's operation.
        :raises FingerprintError: for arguments without a canonical form.
        :raises PayloadError: when the value cannot be stored, or is too large (:class:`PayloadTooLarge`).
        :raises StepLimitExceeded: beyond ``durable_max_steps``.
        :raises AmbiguousEffect, ResultLost: see there; guarded steps only. :class:`GuardConflict`: where the step's
            ``key=`` was used with other arguments.
        :raises JournalUnavailable: the database did not answer; the body cannot go on, its message comes back.
        """
        if type(what) is str and type(op) is FunctionType:
            descriptor = _named(what)  # nothing can be wrong with the two
        else:
            descriptor, op = self._descriptor(what, op)
        # cast() would be a call for each step.
        return self._call(self._here(), descriptor, op, args, kwargs, is_coroutine_function(op))  # type: ignore[no-any-return]

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
        descriptor, op = self._descriptor(what, op)
        is_async = is_coroutine_function(op)
        return self._call(self._here(), descriptor, op, args, kwargs, is_async, recorded=True)

    def parallel(self, *, max_workers: int | None = None) -> Parallel:
        """A scope whose branches run at the same time: ``with self.durable.parallel() as branches:``.

        Each branch has positions of its own, fixed when it is created.

        :param max_workers: threads at most; default 8. Coroutines are not limited by it.
        :raises ConfigurationError: for a ``max_workers`` below 1.
        :raises ContextClosed, NestedStep, StepLimitExceeded, JournalUnavailable: as :meth:`step`.
        """
        scope = self._here()
        position, rows = self._open_scope(scope, "parallel")
        return Parallel(self, scope, position, rows, lane=scope.take_lane(), max_workers=max_workers)

    def patched(self, change_id: str) -> bool:
        """Whether this execution takes the new path of a change to the body.

        True for executions that come here for the first time, also later on; False for those whose journal goes on
        beyond this point without having taken it.

        :param change_id: names the change; once used, do not use it for another one.
        :raises ContextClosed, NestedStep: as :meth:`step`.
        """
        self._check()
        decided = self._run.patches.get(change_id)
        if decided is None:
            decided = not self.replaying
            self._run.patches[change_id] = decided
            if decided:
                number = len(self._run.patches)
                self._run.append(Entry(META, number, 0, EntryKind.PATCH, None, change_id))
        return decided

    # -- what varies, recorded ------------------------------------------------------------------------------

    def now(self) -> dt.datetime:
        """The time, aware, in UTC; a replay gives the time of the first run. It is a step like any other."""
        return self.step(_NOW, _utc_now)

    def uuid4(self) -> uuid.UUID:
        """A random UUID; a replay gives the same one. It is a step like any other."""
        return self.step(_UUID4, uuid.uuid4)

    def random(self) -> float:
        """A random number in [0, 1); a replay gives the same one. It is a step like any other."""
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
        if self._closed or run.sticky is not None or run.buffer.cancelled or operation.get() is not None:
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
        if descriptor.compensate is not None and not run.saga.marked:
            self._mark()
        rows = None
        if not is_async:
            rows = scope.cursor.take(position)
            if rows is not None and not recorded and descriptor.compensate is None:
                replayed = run.plain_result(rows, descriptor, print_)
                if replayed is not None:
                    return replayed[0]
        call = StepCall(
            descriptor, op, args, kwargs, run.execution_id, scope.path, scope.lane, position, print_, occurrence, named
        )
        if is_async:
            return self._call_async(scope, call, recorded)
        if rows is not None or scope.end is not None:
            self._compare(scope, call, rows)
        if run.saga.undoing:
            self._stop_at_the_end(scope, rows)
        outcome = drive_plain(run, call) if rows is None and descriptor._plain else drive(run, call, rows)
        return self._answer(call, outcome, recorded)

    async def _call_async(self, scope: ScopeState, call: StepCall, recorded: bool) -> Any:
        with self._parking().flight():
            if not scope.cursor.ready(call.position):
                await asyncio.to_thread(scope.cursor.has, call.position)
            rows = scope.cursor.take(call.position)
            self._compare(scope, call, rows)
            if self._run.saga.undoing:
                self._stop_at_the_end(scope, rows)
            return self._answer(call, await drive_async(self._run, call, rows), recorded)

    def _compare(self, scope: ScopeState, call: StepCall, rows: list[Journaled] | None) -> None:
        """Refuse to go on where the journal has something else than this call (G5)."""
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

    # -- scopes ---------------------------------------------------------------------------------------------

    def _scope(self, path: str, lane: str, end: int | None = None) -> ScopeState:
        run = self._run
        cursor = ReplayCursor(
            lambda position, rows: run.load(path, position, rows),
            empty=not run.opened.resumed,
            long=run.opened.steps > SEGMENT,
        )
        run.scopes.add(path)
        return ScopeState(path, lane, cursor, end)

    def _open_scope(self, scope: ScopeState, name: str) -> tuple[int, list[Journaled] | None]:
        """Take a position for a scope of branches, and journal that one stands there."""
        scope, position = self._next_place(name)
        run = self._run
        rows = scope.cursor.take(position)
        if run.saga.undoing:
            self._stop_at_the_end(scope, rows)
        if rows is None:
            run.append(Entry(scope.path, position, 0, EntryKind.SCOPE, None, name))
        else:
            found = divergence.check_scope(rows, self.execution_id, scope.place(position), name)
            if found is not None:
                self._diverge(found)
        return position, rows

    def _here(self) -> ScopeState:
        here = active.get()
        # A thread that the body started itself knows no scope: it works in the body's.
        return here.scope if here is not None and here.context is self else self._body

    # -- guards of the context itself -----------------------------------------------------------------------

    def _check(self, name: str = "") -> None:
        run = self._run
        if self._closed or run.sticky is not None or run.buffer.cancelled or operation.get() is not None:
            self._refuse(name)

    def _refuse(self, name: str) -> None:
        """Say what is wrong, if it is."""
        if self._closed:
            raise ContextClosed(
                f"the durable context of execution {self.execution_id} was used after its body had ended. Do all steps "
                "before the task returns; wait for the threads and coroutines that it starts."
            )
        self._run.check()
        outer = operation.get()
        if outer is not None:
            raise NestedStep(
                f"{f'step {name!r}' if name else 'the durable context'} was asked for inside the operation of step "
                f"{outer.name!r}. A step cannot contain steps: call it from the task's body, or call the plain "
                "function (.operation of a @step)."
            )

    def _diverge(self, error: ReplayDivergence) -> None:
        raise self._run.stuck(error)

    def _descriptor(
        self, what: str | StepDescriptor, op: Callable[..., Any]
    ) -> tuple[StepDescriptor, Callable[..., Any]]:
        if isinstance(what, StepDescriptor):
            descriptor = what
        elif isinstance(what, str):
            descriptor = _named(what)
        else:
            raise ConfigurationError(f"step() takes a name or a StepDescriptor first, not {what!r}.")
        if type(op) is FunctionType and not descriptor._particular:
            return descriptor, op  # nothing can be wrong with the two
        if not callable(op):
            raise ConfigurationError(
                f"step {descriptor.name!r} needs a callable, not {op!r}; pass the function and its arguments: "
                "step(name, function, argument, ...)."
            )
        if isinstance(op, Step):
            op = op.operation
        check_assumed(descriptor, op)
        check_compensation(descriptor, op)
        check_operation(descriptor.name, descriptor.transaction, op)
        return descriptor, op

    # -- the ends of a body ---------------------------------------------------------------------------------

    def _enter(self) -> Active:
        try:
            self._outer_loop = asyncio.get_running_loop()
        except RuntimeError:
            self._outer_loop = None
        return Active(self, self._body)

    def _load_patches(self) -> None:
        if self._body.cursor.ready(0):
            return
        for row in self._run.load(META, 0, 1000):
            if row.kind == EntryKind.PATCH:
                self._run.patches[row.name] = True
            else:
                self._run.saga.load(row)

    def _ended(self) -> None:
        """The body returned: whatever is wrong and was hidden comes out now.

        :raises ReplayDivergence: a recorded step was never reached.
        """
        run = self._run
        run.check()
        self._check_awaited()
        run.settle_errors(None)
        self._check_left(self._body, "the body")
        if run.opened.resumed and run.counters.replayed:
            self._check_scopes()

    def _check_left(self, scope: ScopeState, what: str) -> None:
        rows = scope.cursor.first_left(scope.next_position)
        if rows is not None:
            self._diverge(divergence.leftover(self.execution_id, scope.place(rows[0].position), rows, what))

    def _check_scopes(self) -> None:
        """No branch is left over of which the body created none this time."""
        for path in sorted(self._run.recorded_scopes() - self._run.scopes):
            rows = list(unpacked(self._run.load(path, 0, 1)))
            self._diverge(divergence.leftover(self.execution_id, f"{path}/0", rows, "the body"))

    def _close(self) -> None:
        self._closed = True

    def _fold(self) -> None:
        # A row that replay has still to read must stay where replay will look for it.
        if not self._body.cursor.exhausted:
            return
        self._folded = True
        self._run.flush()
        fold_prefix(self._run)


@functools.lru_cache(maxsize=1024)
def _named(name: str) -> StepDescriptor:
    """The descriptor of a step that is only named: the same few come in every run."""
    return StepDescriptor(name)


#: A member of an enumeration is slow to get at.
_IDEMPOTENT = Effect.IDEMPOTENT.value

_NOW = StepDescriptor("durable.now")
_UUID4 = StepDescriptor("durable.uuid4")
_RANDOM = StepDescriptor("durable.random")


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)
