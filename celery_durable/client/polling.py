"""How often a caller who waits for a result looks for it: less often, the longer it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from celery_durable.common.arguments import seconds

__all__ = ["pauses"]

#: Pauses between two looks for a result, in seconds; each is longer than the last.
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 1.0
_GROWTH: Final = 1.5


def pauses(timeout: float | None) -> Iterator[float]:
    """How long to wait before each further look, until the time is over."""
    if timeout is not None:
        seconds(timeout, "result(timeout=)")
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        left = pause if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return
        yield min(pause, left)
        pause = min(pause * _GROWTH, _LONGEST_PAUSE)
