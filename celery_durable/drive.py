"""Carries out what the rules of a step ask for: once for plain functions, once for coroutines."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from .actions import Ask, Call, Claim, Flush, Outcome, Pause, StepCall, Transact
from .control import Suspend
from .current import StepHandle, operation
from .faults import reached
from .protocol import failed, perform, succeeded
from .transaction import transact_async, transact_in

if TYPE_CHECKING:
    from .run import Run
    from .store.records import Entry, Journaled

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
    answer: Any = None
    #: Says of an operation that was announced that it has not started.
    unstarted: Callable[[], Entry] | None = None
    try:
        while True:
            action = rules.send(answer)
            answer = None
            if isinstance(action, Call):
                reached("step.before_effect", run.execution_id, call.descriptor.name)
                if action.guarded:
                    run.assure_lease()
                unstarted = None
                run.counters.called += 1
                answer = _operate(action.handle, call.op, call.args, call.kwargs)
            elif isinstance(action, Flush):
                unstarted = action.unstarted
                run.flush()
                if unstarted is not None:
                    run.check()
            elif isinstance(action, Transact):
                reached("step.before_effect", run.execution_id, call.descriptor.name)
                run.counters.called += 1
                answer = transact_in(run, call, action)
            elif isinstance(action, Ask):
                answer = _operate(action.handle, action.reconcile, (action.handle, *call.args), call.kwargs)
            elif isinstance(action, Pause):
                time.sleep(action.seconds)
            elif isinstance(action, Claim):
                run.flush()
                run.check()
                unstarted = action.unstarted
                answer = run.claim(action.intent, action.take)
                unstarted = action.unstarted if answer is None else None
            elif run.inline:
                time.sleep(_HELD_ELSEWHERE)
            else:
                raise run.stuck(Suspend(_HELD_ELSEWHERE))
    except StopIteration as stop:
        return cast("Outcome", stop.value)
    except BaseException:
        if unstarted is not None:
            run.amend(unstarted())
        raise


async def drive_async(run: Run, call: StepCall, rows: list[Journaled] | None) -> Outcome:
    """The same for a coroutine; what waits for the database does so in a thread."""
    rules = perform(call, rows, run)
    answer: Any = None
    #: Says of an operation that was announced that it has not started.
    unstarted: Callable[[], Entry] | None = None
    try:
        while True:
            action = rules.send(answer)
            answer = None
            if isinstance(action, Call):
                reached("step.before_effect", run.execution_id, call.descriptor.name)
                if action.guarded:
                    await asyncio.to_thread(run.assure_lease)
                unstarted = None
                run.counters.called += 1
                answer = await _operate_async(action.handle, call.op, call.args, call.kwargs)
            elif isinstance(action, Flush):
                unstarted = action.unstarted
                await asyncio.to_thread(run.flush)
                if unstarted is not None:
                    run.check()
            elif isinstance(action, Transact):
                reached("step.before_effect", run.execution_id, call.descriptor.name)
                run.counters.called += 1
                answer = await transact_async(run, call, action)
            elif isinstance(action, Ask):
                args = (action.handle, *call.args)
                answer = await _operate_async(action.handle, action.reconcile, args, call.kwargs)
            elif isinstance(action, Pause):
                await asyncio.sleep(action.seconds)
            elif isinstance(action, Claim):
                await asyncio.to_thread(run.flush)
                run.check()
                unstarted = action.unstarted
                answer = await asyncio.to_thread(run.claim, action.intent, action.take)
                unstarted = action.unstarted if answer is None else None
            elif run.inline:
                await asyncio.sleep(_HELD_ELSEWHERE)
            else:
                raise run.stuck(Suspend(_HELD_ELSEWHERE))
    except StopIteration as stop:
        return cast("Outcome", stop.value)
    except BaseException:
        if unstarted is not None:
            run.amend(unstarted())
        raise


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
