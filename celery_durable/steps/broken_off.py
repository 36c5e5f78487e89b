"""Interrupted steps: by a timeout of asyncio or gevent, or in a task that was cancelled.

The body may handle that as it likes, but the journal has to record it before the body continues: a replay that returned
the result after all would take another path than the first run.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any, Final

from celery_durable.errors import DurableError
from celery_durable.replay.leaving import Leave
from celery_durable.replay.run import Run
from celery_durable.store.records import EntryKind

from .call import StepCall
from .doubt_messages import doubt_of

__all__ = [
    "is_broken_off",
    "note_broken_off",
    "until_broken_off",
    "until_broken_off_here",
]

#: Longest wait for what broke a step off in the first run, in seconds; and where the body is being undone.
_LONGEST: Final = 3600.0
_UNDOING: Final = 30.0


def is_broken_off(error: BaseException) -> bool:
    """Whether an operation was broken off from outside."""
    return not isinstance(error, (Exception, Leave, DurableError))


def note_broken_off(run: Run, call: StepCall, error: BaseException, attempt: int, begun: bool) -> None:
    """The body gets this exception instead of the step's outcome.

    :param begun: the operation was under way, so that it may have done something.
    """
    payload = run.roundtrip_error(error, f"the error of {call.where}")[0]
    name = type(error).__name__
    doubt = doubt_of(call, error, f"was interrupted by {name} while its operation ran") if begun else None
    run.note_error(call.entry(EntryKind.ERROR, attempt=attempt, payload=payload), doubt)


async def until_broken_off(error: BaseException, *, stopping: bool) -> None:
    """The first run was broken off here, so this one will be: by the same timeout, perhaps, or the same other task."""
    if isinstance(error, asyncio.CancelledError):
        await asyncio.sleep(_UNDOING if stopping else _LONGEST)


def until_broken_off_here(error: BaseException, *, stopping: bool) -> None:
    """The same in a greenlet."""
    gevent: Any = sys.modules.get("gevent")
    if gevent is not None and isinstance(error, gevent.Timeout):
        time.sleep(_UNDOING if stopping else _LONGEST)
