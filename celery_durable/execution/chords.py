"""What a result backend forgets while an execution waits."""

from __future__ import annotations

import datetime as dt
import logging
from typing import TYPE_CHECKING, Any

from celery_durable.runtime import Runtime

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = ["chord_expiry", "warn_of_chord"]

logger = logging.getLogger(__name__)

#: The doctor's code for it.
CODE = "CD946"

#: Tasks that were warned about in this process.
_told: set[str] = set()


def chord_expiry(app: Celery) -> float | None:
    """After how many seconds the result backend forgets a chord that has not ended; None: it does not."""
    if app.backend.as_uri().startswith(("disabled", "rpc")):
        return None
    given: Any = app.conf.get("result_chord_expires")  # since 5.7
    if given is None:
        given = app.conf.result_expires
    seconds = given.total_seconds() if isinstance(given, dt.timedelta) else given
    return float(seconds) if seconds else None


def warn_of_chord(task: Task[Any, Any], request: Any, delay: float | None) -> None:
    """A member of a chord begins to wait for this many seconds, or without a limit (None): warn, once for a task, if
    its chord may be forgotten meanwhile.
    """
    if not request.chord or task.name in _told:
        return
    app = task.app
    expiry = chord_expiry(app)
    if expiry is None or (delay is not None and delay <= expiry) or CODE in Runtime.of(app).settings.silence:
        return
    _told.add(task.name)
    wait = "for as long as it takes" if delay is None else f"for {delay:.0f} s"
    logger.warning(
        "[%s] %s[%s], a member of a chord, waits %s; the result backend remembers the chord for %.0f s "
        "(result_expires, or result_chord_expires since Celery 5.7). If it is forgotten, the chord's body never runs. "
        "To silence this: durable_silence = [%r]",
        CODE,
        task.name,
        request.id,
        wait,
        expiry,
        CODE,
    )
