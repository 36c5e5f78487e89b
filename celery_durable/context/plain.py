"""A body without a journal: called directly, or continued while the journal is unavailable. Its steps are plain
calls.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec

from celery_durable.children.call import ChildCall
from celery_durable.effects import AnyTransactional
from celery_durable.errors import ConfigurationError, JournalUnavailable
from celery_durable.identity import child_id
from celery_durable.journal.cursor import ReplayCursor
from celery_durable.replay.scope import ScopeState
from celery_durable.runtime import Runtime
from celery_durable.steps.call import StepCall
from celery_durable.steps.current import Active, active, operation
from celery_durable.steps.descriptor import StepDescriptor, StepRecord
from celery_durable.steps.keys import fingerprint_for, naming
from celery_durable.steps.transactions.drive import transact_plainly, transact_plainly_async
from celery_durable.waits.promise import Promise, Timer
from celery_durable.waits.wait import Sleep, Wait

from .durable import DurableContext
from .logger import DurableLogger
from .parallel import Parallel
from .undoing import check_undo

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["PlainContext", "call_plainly", "run_plainly"]

P = ParamSpec("P")


def _nothing(position: int, rows: int) -> tuple[()]:
    return ()


def _local_clock() -> int:
    return int(time.time() * 1000)


def call_plainly(function: Callable[..., Any], context: PlainContext, args: tuple[Any, ...], kwargs: Any) -> Any:
    """Call a body whose steps are plain calls; inside another body, it is a part of that one."""
    if active.get() is not None:
        return function(*args, **kwargs)
    return run_plainly(function, context, args, kwargs)


def run_plainly(function: Callable[..., Any], context: PlainContext, args: tuple[Any, ...], kwargs: Any) -> Any:
    """The same, but always on its own."""
    here = context._enter()
    token, step = active.set(here), operation.set(None)
    try:
        value = function(*args, **kwargs)
    finally:
        operation.reset(step)
        active.reset(token)
    if not inspect.iscoroutine(value):
        return value
    # It is awaited where it was called: that event loop is the body's.
    context._outer_loop = None
    return _awaited(value, here)


async def _awaited(body: Coroutine[Any, Any, Any], here: Active) -> Any:
    token = active.set(here)
    try:
        return await body
    finally:
        active.reset(token)


class PlainContext(DurableContext):
    """Steps are plain calls, and ``current_step()`` works in them.

    :param app: whose database transactional steps use.
    :param execution_id: of the execution that runs on without its journal: its steps get the keys that they have in a
        durable run, so that the remote side can still deduplicate. Without one, keys are of this call alone.
    """

    def __init__(
        self, execution_id: str | None = None, namespace: str = "", app: Callable[[], Celery] | None = None
    ) -> None:
        self._id = execution_id or str(uuid.uuid4())
        self._namespace = namespace
        self._application = app
        self._real = execution_id is not None
        self._outer_loop = None
        self._body = self._scope("", "")
        self.logger = DurableLogger("celery_durable.body")

    @property
    def execution_id(self) -> str:
        """The execution's id; a random one where there is no execution."""
        return self._id

    @property
    def attempt(self) -> int:
        """Always 0."""
        return 0

    @property
    def replaying(self) -> bool:
        """Always False."""
        return False

    def patched(self, change_id: str) -> bool:
        """Always True: there is no old execution."""
        return True

    def on_failure(self, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Nothing is undone without a journal: it may be half done already, and nobody would know."""
        check_undo(function)

    def parallel(self, *, max_workers: int | None = None) -> Parallel:
        """Branches run at the same time here too."""
        scope = self._here()
        return _PlainParallel(self, scope, scope.take_position(), None, lane=scope.take_lane(), max_workers=max_workers)

    def _scope(self, path: str, lane: str, end: int | None = None, first: Any = None) -> ScopeState:
        return ScopeState(path, lane, ReplayCursor(_nothing, empty=True))

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
        position = scope.take_position()
        # Where there is no execution, arguments need no canonical form: their place tells the calls apart.
        print_, named, occurrence, lane = b"", None, 0, scope.place(position)
        if self._real:
            print_, lane = fingerprint_for(descriptor, args, kwargs), scope.lane
            named, occurrence = naming(descriptor, args, kwargs, print_, scope, self._namespace)
        call = StepCall(
            descriptor,
            op,
            args,
            kwargs,
            self._id,
            scope.path,
            lane,
            position,
            print_,
            occurrence,
            named,
            self._namespace,
        )
        handle = call.handle(1)

        def record(value: Any) -> Any:
            return StepRecord(call.place, descriptor.name, call.key, value, False, False, 1) if recorded else value

        async def later() -> Any:
            token = operation.set(handle)
            try:
                return record(await op(*args, **kwargs))
            finally:
                operation.reset(token)

        if descriptor.transaction is not None:
            op = self._in_transaction(descriptor.transaction, op, is_async)
        if is_async:
            return later()
        token = operation.set(handle)
        try:
            return record(op(*args, **kwargs))
        finally:
            operation.reset(token)

    def _wait(self, wait: Wait) -> Any:
        if isinstance(wait, ChildCall) and not self._real:
            return self._run_async(wait) if self._in_coroutine() else wait.run_plainly()
        if not isinstance(wait, Sleep):
            self._refuse(f"{wait.word}()")
        return self._sleep_async(wait) if self._in_coroutine() else self._sleep(wait)

    def _starter(self) -> None:
        """There is no journal that could name the children."""

    def _app(self) -> Celery:
        if self._application is None:
            self._refuse("a child task")
        return self._application()

    def _child_id(self, lane: str, name: str, number: int) -> str:
        return child_id(self._namespace, self._id, lane, name, number)

    @staticmethod
    async def _run_async(call: ChildCall) -> Any:
        return await asyncio.to_thread(call.run_plainly)

    @staticmethod
    def _sleep(sleep: Sleep) -> None:
        time.sleep(max(sleep.remaining(_local_clock), 0))

    @staticmethod
    async def _sleep_async(sleep: Sleep) -> None:
        await asyncio.sleep(max(sleep.remaining(_local_clock), 0))

    def _check_maker(self, source: Promise | Timer, what: str) -> None:
        """Whoever made it, there is nothing to wait with."""

    def _set_timer(self, delay_ms: int, until_ms: int | None) -> Timer:
        return self._refuse("timer()")

    def _make_promise(self, name: str, timeout_ms: int | None, heartbeat_ms: int | None) -> Promise:
        return self._refuse("promise()")

    def _refuse(self, what: str) -> NoReturn:
        if self._real:
            raise JournalUnavailable(
                f"{what} of execution {self._id} needs the journal, which cannot be reached; the body runs without it "
                "(durable_on_unavailable = 'degrade')."
            )
        raise ConfigurationError(
            f"{what} needs an execution in the journal, and this task was called directly. Call it with delay() or "
            "apply_async(), or for a test with apply()."
        )

    def _in_transaction(self, how: AnyTransactional, op: Callable[..., Any], is_async: bool) -> Callable[..., Any]:
        if self._application is None:
            raise JournalUnavailable(
                "a transactional step needs the journal's database, and this run continues without it."
            )
        transact = transact_plainly_async if is_async else transact_plainly
        return functools.partial(transact, Runtime.of(self._app()).transactions, how, op)

    def _check_left(self, scope: ScopeState, what: str) -> None:
        """There is no journal that could hold more."""


class _PlainParallel(Parallel):
    def _end(self) -> None:
        """There is no journal to write to."""

    def _hand_up(self, branch: ScopeState, *, seen: bool | None = None) -> None:
        """Nothing is in doubt without one."""
