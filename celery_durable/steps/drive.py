"""Carries out the rules of a step: once for plain functions, once for coroutines."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, Final, cast

from celery_durable.common.coroutines import came_late, check_late, in_thread
from celery_durable.common.faults import reached
from celery_durable.errors import JournalCorrupted
from celery_durable.replay.leaving import Held
from celery_durable.replay.run import Run
from celery_durable.store.records import Entry, Journaled

from .actions import Ask, Claim, Flush, Operate, Outcome, Pause, Transact
from .broken_off import is_broken_off, note_broken_off
from .call import StepCall, StepHandle
from .current import operation
from .protocol import perform
from .recording import failed, succeeded
from .transactions.drive import transact_async, transact_in

__all__ = ["drive", "drive_async", "drive_plain"]

#: How long to wait when another execution runs the operation of our global key, in seconds.
_HELD_ELSEWHERE: Final = 1.0


def drive_plain(run: Run, call: StepCall) -> Outcome:
    """As :func:`drive`, for what nearly all steps are: not guarded, without a retry policy, not in the journal."""
    name = call.descriptor.name
    reached("step.before_effect", run.execution_id, name)
    run.counters.called += 1
    handle = call.handle(1)
    started = time.perf_counter_ns()
    value, error = _operate(handle, call.op, call.args, call.kwargs)
    took = -((started - time.perf_counter_ns()) // 1000)
    if error is not None:
        return failed(call, error, 1, took, run)
    reached("step.after_effect", run.execution_id, name)
    return succeeded(call, value, 1, took, run)


def drive(run: Run, call: StepCall, rows: list[Journaled] | None) -> Outcome:
    """Bring a step to its outcome, in this thread."""
    rules = perform(call, rows, run)
    # A body that is stopped continues with what somebody has begun.
    check = run.check if run.stopping else run.check_start
    answer: Any = None
    #: Says of an operation that was announced that it has not started.
    unstarted: Callable[[], Entry] | None = None
    #: The try whose operation is under way; 0 for none.
    begun = 0
    try:
        while True:
            action = rules.send(answer)
            answer = None
            if isinstance(action, Operate):
                reached("step.before_effect", run.execution_id, call.descriptor.name)
                if action.leased:
                    run.assure_lease()
                unstarted = None
                run.counters.called += 1
                begun = action.handle.attempt
                answer = _operate(action.handle, call.op, call.args, call.kwargs)
                begun = 0
            elif isinstance(action, Flush):
                unstarted = action.unstarted
                run.flush()
                if unstarted is not None:
                    check()
            elif isinstance(action, Transact):
                reached("step.before_effect", run.execution_id, call.descriptor.name)
                run.counters.called += 1
                answer = transact_in(run, call, action)
            elif isinstance(action, Ask):
                begun = action.handle.attempt
                answer = _operate(action.handle, action.reconcile, (action.handle, *call.args), call.kwargs)
                begun = 0
            elif isinstance(action, Pause):
                time.sleep(action.seconds)
            elif isinstance(action, Claim):
                run.flush()
                (check if action.unstarted is not None else run.check)()
                unstarted = action.unstarted
                answer = run.claim(action.intent, action.take)
                unstarted = action.unstarted if answer is None else None
            elif run.inline:
                time.sleep(_HELD_ELSEWHERE)
            else:
                raise Held(timer=_HELD_ELSEWHERE, names=[call.descriptor.name])
    except StopIteration as stop:
        return cast("Outcome", stop.value)
    except BaseException as error:
        _note_end(run, call, error, unstarted, begun)
        raise


async def drive_async(run: Run, call: StepCall, rows: list[Journaled] | None) -> Outcome:
    """The same for a coroutine; what waits for the database does so in a thread.

    A cancellation breaks the operation off, or keeps it from starting. What has been done is journaled in any case, and
    a cancellation that comes meanwhile is too late for this step.
    """
    rules = perform(call, rows, run)
    check = run.check if run.stopping else run.check_start
    answer: Any = None
    #: Says of an operation that was announced that it has not started.
    unstarted: Callable[[], Entry] | None = None
    #: The try whose operation is under way; 0 for none.
    begun = 0
    #: The operation has been run, with this end.
    done = False
    try:
        check_late()
        while True:
            action = rules.send(answer)
            answer = None
            cancelled: asyncio.CancelledError | None = None
            if isinstance(action, Operate):
                reached("step.before_effect", run.execution_id, call.descriptor.name)
                if action.leased:
                    _, cancelled = await in_thread(run.assure_lease)
                    if cancelled is not None:
                        raise cancelled
                unstarted = None
                run.counters.called += 1
                begun = action.handle.attempt
                answer = await _operate_async(action.handle, call.op, call.args, call.kwargs)
                begun, done = 0, True
            elif isinstance(action, Flush):
                unstarted = action.unstarted
                _, cancelled = await in_thread(run.flush)
                if unstarted is not None:
                    check()
                    done = False
            elif isinstance(action, Transact):
                reached("step.before_effect", run.execution_id, call.descriptor.name)
                run.counters.called += 1
                answer = await transact_async(run, call, action)
            elif isinstance(action, Ask):
                begun = action.handle.attempt
                args = (action.handle, *call.args)
                answer = await _operate_async(action.handle, action.reconcile, args, call.kwargs)
                begun = 0
            elif isinstance(action, Pause):
                await asyncio.sleep(action.seconds)
            elif isinstance(action, Claim):
                _, cancelled = await in_thread(run.flush)
                (check if action.unstarted is not None else run.check)()
                if cancelled is None:
                    unstarted = action.unstarted
                    answer, cancelled = await in_thread(run.claim, action.intent, action.take)
                    unstarted = action.unstarted if answer is None else None
            elif run.inline:
                await asyncio.sleep(_HELD_ELSEWHERE)
            else:
                raise Held(timer=_HELD_ELSEWHERE, names=[call.descriptor.name])
            if cancelled is not None:
                if not done:
                    raise cancelled
                came_late()
    except StopIteration as stop:
        return cast("Outcome", stop.value)
    except BaseException as error:
        _note_end(run, call, error, unstarted, begun)
        raise


def _note_end(
    run: Run, call: StepCall, error: BaseException, unstarted: Callable[[], Entry] | None, begun: int
) -> None:
    """Journal what an exception leaves of a step.

    :raises DurableError: in its place, if a journaled value cannot be read.
    """
    if unstarted is not None:
        run.amend(unstarted())
    if isinstance(error, JournalCorrupted):
        raise run.unreadable(error) from error
    if is_broken_off(error):
        note_broken_off(run, call, error, max(begun, 1), bool(begun))


# Exceptions are handed to the rules as values: a StopIteration of an operation would end the generator.


def _operate(
    handle: StepHandle, op: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Exception | None]:
    token = operation.set(handle)
    try:
        return op(*args, **kwargs), None
    except Exception as error:
        return None, error
    finally:
        operation.reset(token)


async def _operate_async(
    handle: StepHandle, op: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Exception | None]:
    token = operation.set(handle)
    try:
        value = op(*args, **kwargs)
        return (await value if inspect.isawaitable(value) else value), None
    except Exception as error:
        return None, error
    finally:
        operation.reset(token)
