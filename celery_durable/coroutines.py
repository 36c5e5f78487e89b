"""Between plain code and coroutines: runs the one for a caller who is the other."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType
from typing import Any, TypeVar

from sqlalchemy.util import greenlet_spawn

__all__ = ["in_own_loop", "is_coroutine_function", "run_to_end", "without_loop"]

T = TypeVar("T")


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

    When the caller is cancelled, so is what the function waits for, and its end is waited for.
    """
    loop = _OwnLoop()
    running = asyncio.ensure_future(asyncio.to_thread(lambda: asyncio.run(loop.run(function))))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        loop.cancel()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # nobody else asks for it
        raise


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
                with contextlib.suppress(RuntimeError):  # its loop is closed: it has come to its end
                    self._task.get_loop().call_soon_threadsafe(self._task.cancel)
