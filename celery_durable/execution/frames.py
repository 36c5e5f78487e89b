"""The frames of an exception on its way to Celery.

Celery copies each of them, with a list as long as its code, and sends the copies to the pool's parent: some five
kilobytes a frame, over a pipe that takes 64 before the parent reads. Our frames are of no use to a user.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final

from celery_durable.errors import DurableError

__all__ = ["free", "without_ours"]

_PACKAGE: Final = __name__.partition(".")[0]


def free(error: BaseException | None) -> None:
    """Free an exception, and those behind it, of the frames that hold them, and of each other."""
    while error is not None:
        behind = error.__cause__ or error.__context__
        error.__traceback__ = error.__cause__ = error.__context__ = None
        error = behind


def without_ours(error: BaseException) -> None:
    """Leave the frames of this library out of the tracebacks of an exception and of those behind it."""
    left, seen = [error], set()
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = _theirs(one)
        left += [behind for behind in (one.__cause__, one.__context__) if behind is not None]


def _theirs(error: BaseException) -> TracebackType | None:
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    kept: TracebackType | None = None
    for number, frame in enumerate(reversed(frames)):
        # Where an error of ours is a mistake of ours, its place says which.
        if _is_ours(frame) and (number or isinstance(error, DurableError)):
            continue
        kept = TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return kept


def _is_ours(trace: TracebackType) -> bool:
    name = trace.tb_frame.f_globals.get("__name__")
    return isinstance(name, str) and name.partition(".")[0] == _PACKAGE
