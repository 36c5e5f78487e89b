"""Between plain code and coroutines: runs one for a caller that is the other."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

from sqlalchemy.util import greenlet_spawn

__all__ = [
    "all_ended",
    "came_late",
    "check_late",
    "in_own_loop",
    "in_thread",
    "is_coroutine_function",
    "run_to_end",
    "running_task",
    "without_loop",
]

P = ParamSpec("P")
T = TypeVar("T")

#: Tasks whose cancellation came when a step was done already: the next one gets it.
_late: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()


def running_task() -> asyncio.Task[Any] | None:
    """The task of an event loop that runs in this thread."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def came_late() -> None:
    """The running task was cancelled when its step was done: the step keeps its outcome."""
    task = running_task()
    if task is not None:
        _late.add(task)


def check_late() -> None:
    """
    :raises CancelledError: where the running task was cancelled, and has not been told yet.
    """
    task = running_task()
    if task is None or task not in _late:
        return
    _late.discard(task)
    # Python 3.10 does not say whether a timeout that cancelled it is over; it runs such a step in a task of its own.
    if getattr(task, "cancelling", lambda: 1)():
        raise asyncio.CancelledError


def is_coroutine_function(function: Any) -> bool:
    """As :func:`inspect.iscoroutinefunction`, whose care costs more than a quick step does."""
    if type(function) is FunctionType and not function.__dict__:
        return function.__code__.co_flags & inspect.CO_COROUTINE != 0
    return inspect.iscoroutinefunction(function)


def run_to_end(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The value of a coroutine, in an event loop of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    # A coroutine called a task eagerly: its thread has a loop, which has to stand still meanwhile.
    with ThreadPoolExecutor(1, thread_name_prefix="durable-body") as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, coroutine).result()


def without_loop(function: Callable[[], T]) -> T:
    """The value of a plain function, in a thread in which no event loop runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    with ThreadPoolExecutor(1, thread_name_prefix="durable-plain") as pool:
        return pool.submit(contextvars.copy_context().run, function).result()


async def in_own_loop(function: Callable[[], T]) -> T:
    """The value of a plain function that waits for coroutines (SQLAlchemy's ``await_only``), in a thread and an event
    loop of its own.

    Not in the caller's loop: a transaction keeps locks until its commit is done. Were that to wait for its turn in a
    loop that something else holds up, which waits for the same locks, both would wait in vain.

    When the caller is cancelled, so is what the function waits for, and its end is waited for. Where it has a value all
    the same, the cancellation came too late for it (:func:`came_late`).
    """
    loop = _OwnLoop()
    running = asyncio.ensure_future(asyncio.to_thread(lambda: asyncio.run(loop.run(function))))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        loop.cancel()
        await asyncio.wait([running])
        if running.cancelled() or running.exception() is not None:
            raise
        came_late()
        return running.result()


async def in_thread(
    function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> tuple[T, asyncio.CancelledError | None]:
    """The value of a plain function, called in a thread. Nobody can break that off: it is waited for in any case.

    :returns: the value; and the cancellation that came meanwhile, which the caller has to answer.
    """
    call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
    running = asyncio.get_running_loop().run_in_executor(None, call)
    cancelled: asyncio.CancelledError | None = None
    while True:
        try:
            return await asyncio.shield(running), cancelled
        except asyncio.CancelledError as error:
            if running.cancelled():
                raise
            cancelled = error


async def all_ended(tasks: Collection[asyncio.Task[Any]]) -> asyncio.CancelledError | None:
    """Return when all tasks have ended. Where the caller is cancelled meanwhile, so are they.

    :returns: that cancellation.
    """
    cancelled: asyncio.CancelledError | None = None
    while left := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(left)
        except asyncio.CancelledError as error:
            cancelled = error
            for task in left:
                task.cancel()
    return cancelled


class _OwnLoop:
    """What runs in an event loop of its own, and can be cancelled from outside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._task: asyncio.Task[Any] | None = None

    async def run(self, function: Callable[[], T]) -> T:
        with self._lock:
            self._task = asyncio.current_task()
            if self._cancelled:
                raise asyncio.CancelledError
        return await greenlet_spawn(function)

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._task is not None:
                with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended
                    self._task.get_loop().call_soon_threadsafe(self._task.cancel)
