"""Exceptions that steps raised in the body: they are journaled once it is known whether the body handles them."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from celery_durable.common.coroutines import running_task
from celery_durable.store.records import Entry

__all__ = ["BrokenOff", "PendingError", "ordinary"]


class PendingError(NamedTuple):
    """A step's exception that the body may or may not handle."""

    #: The place from which the body must continue to have handled it: that of the step; once the step's branch has
    #: ended, that at which the branch was opened or its result was asked for.
    scope: str
    position: int
    entry: Entry
    #: Why nobody knows whether the effect happened; None where that is known.
    doubt: str | None
    #: The asyncio task that the step ran in.
    task: asyncio.Task[Any] | None = None

    def is_handled(self, scope: str | None, before: int) -> bool:
        """Whether it has been handled when the body continues at a position of ``scope``; None: it ends or waits."""
        if scope is None:
            # Those still in a branch were seen by nobody: such a step can be tried again, but a doubt stays one.
            return not self.scope or self.doubt is None
        return self.scope == scope and self.position < before and self._is_delivered()

    def _is_delivered(self) -> bool:
        """False while nobody has received it yet from the task in which it was raised."""
        task = self.task
        if task is None or task is running_task():
            return True
        # asyncio's own sign that nobody has asked for the task's exception yet.
        return task.done() and not getattr(task, "_log_traceback", False)


class BrokenOff(RuntimeError):
    """Stands for a recorded exception that is no :class:`Exception`: the step was interrupted, for example by a
    timeout of asyncio or gevent.

    :param error: the exception.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(repr(error))
        self.error = error


def ordinary(error: BaseException) -> Exception:
    """A recorded exception as the rules of a step handle it: :class:`BrokenOff` if it is no :class:`Exception`."""
    return error if isinstance(error, Exception) else BrokenOff(error)
