"""The durable bodies that run in this process, for steps that are called in a thread without one.

Context variables are not passed to threads that a body starts by itself: a step that is called there would silently be
the plain function.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Final

from celery._state import get_current_task

from celery_durable.errors import ConfigurationError

from .descriptor import StepDescriptor

__all__ = ["check_orphan", "running", "runs_here"]

logger = logging.getLogger(__name__)

#: Execution ids, each with the threads that there were before its body began; None where it runs in a worker, in which
#: whatever is no task belongs to one.
running: Final[dict[object, tuple[str, frozenset[int | None] | None]]] = {}
#: Names of steps that were warned of.
_warned: Final[set[str]] = set()


@contextlib.contextmanager
def runs_here(execution_id: str, *, eager: bool) -> Iterator[None]:
    """A body runs."""
    known = frozenset(thread.ident for thread in threading.enumerate()) if eager else None
    place = object()
    running[place] = execution_id, known
    try:
        yield
    finally:
        del running[place]


def check_orphan(descriptor: StepDescriptor) -> None:
    """A step function is called where no body is known.

    Where a plain function is harmless it is warned of, once; what must not be repeated, or is to be undone, is refused.

    :raises ConfigurationError: when a body that runs here has most likely started this thread.
    """
    here = threading.current_thread()
    if here is threading.main_thread() or get_current_task() is not None:
        return
    mine = [who for who, known in list(running.values()) if known is None or here.ident not in known]
    if not mine:
        return
    problem = (
        f"step {descriptor.name!r} was called in thread {here.name!r}, which belongs to no durable body, while the "
        f"body of {', '.join(mine[:3])} runs in this process. Threads that a body starts by itself do not belong to "
        "it: their calls are not journaled. Use self.durable.parallel() or self.durable.map(); where the plain "
        "function is meant, call its .operation."
    )
    if descriptor._lasting or descriptor.compensate is not None:
        raise ConfigurationError(problem)
    if descriptor.name not in _warned:
        _warned.add(descriptor.name)
        logger.warning("%s (logged once)", problem)
