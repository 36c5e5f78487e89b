"""Exceptions of steps that the body got, and that are not journaled before it is known whether it handles them."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from celery_durable.common.coroutines import running_task
from celery_durable.store.records import Entry

__all__ = ["BrokenOff", "PendingError", "ordinary"]


class PendingError(NamedTuple):
    """A step's exception that the body may or may not handle."""

    #: Where it lies before the body, which has handled it once it continues from there: at the step, until the branch
    #: that the step is in has ended.
    scope: str
    position: int
    entry: Entry
    #: Why nobody knows whether the effect happened; None where that is known.
    doubt: str | None
    #: The task of an event loop that the step ran in.
    task: asyncio.Task[Any] | None = None

    def is_handled(self, scope: str | None, before: int) -> bool:
        """Whether it has been handled when the body continues at a position of ``scope``; None: it ends or waits."""
        if scope is None:
            # In a branch lies only what nobody was told of; that can be tried again, but a doubt stays one.
            return not self.scope or self.doubt is None
        return self.scope == scope and self.position < before and self._is_delivered()

    def _is_delivered(self) -> bool:
        """False while it is on its way to whoever waits for the task that it was raised in."""
        task = self.task
        if task is None or task is running_task():
            return True
        # asyncio's own sign that nobody has asked for the task's exception yet.
        return task.done() and not getattr(task, "_log_traceback", False)


class BrokenOff(RuntimeError):
    """Stands for a recorded exception that is no :class:`Exception`: somebody broke the step off (a time-out of
    asyncio's or gevent's, say).

    :param error: the exception.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(repr(error))
        self.error = error


def ordinary(error: BaseException) -> Exception:
    """A recorded exception as the rules of a step handle it: what is no :class:`Exception`, by what stands for it."""
    return error if isinstance(error, Exception) else BrokenOff(error)
