"""What a worker's pool raises inside a body to end it, as opposed to what the body raises itself."""

from __future__ import annotations

import sys
from typing import Any

from billiard import common as billiard_common

__all__ = ["is_hard_limit", "is_interruption"]


def is_interruption(error: BaseException) -> bool:
    """True for what a cold stop, or a revoking, raises in a body."""
    if isinstance(error, Exception):
        # The solo pool cannot interrupt, and its attempt to do so is raised in the middle of the body.
        return isinstance(error, NotImplementedError) and _worker_is_told("should_terminate")
    greenlet: Any = sys.modules.get("greenlet")
    if greenlet is not None and isinstance(error, greenlet.GreenletExit):
        return True
    # A pool process that was told to end, or a worker in whose own process bodies run.
    told: Any = getattr(billiard_common, "_should_have_exited", [False])
    return bool(told[0]) or _worker_is_told("should_stop", "should_terminate")


def _worker_is_told(*flags: str) -> bool:
    """True once the worker of this process has one of these flags, which hold its exit code."""
    state: Any = sys.modules.get("celery.worker.state")
    return state is not None and any(getattr(state, flag) is not None for flag in flags)


def is_hard_limit(error: BaseException) -> bool:
    """True for the way in which the gevent pool enforces a hard time limit. It must reach the pool."""
    gevent: Any = sys.modules.get("gevent")
    return gevent is not None and isinstance(error, gevent.Timeout)
