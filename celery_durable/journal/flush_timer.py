"""The thread that commits entries that nobody waits for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from celery_durable.common.threads import Bell, Tended

__all__ = ["FlushTimer"]

#: How long it looks around after the last append, in seconds, and how often at most.
_QUIET: Final = 1.0
_SHORTEST_PAUSE: Final = 0.001
#: It ends after this many seconds without an append; the next append starts it again.
_IDLE: Final = 5.0


class FlushTimer:
    """Sees to it that what has waited long enough is committed, by a thread that lives while there is something to do.

    :param interval: seconds within which something is to be committed.
    :param due: seconds until something must be committed; None where nothing waits.
    :param commit: commits what is due; False where another try makes no sense for a while.
    """

    def __init__(self, interval: float, *, due: Callable[[], float | None], commit: Callable[[], bool]) -> None:
        self._pause = max(interval / 2, _SHORTEST_PAUSE)
        self._due = due
        self._commit = commit
        self._bell = Bell()
        self._thread = Tended(self._run, "durable-flush", needed=lambda: due() is not None)
        #: It looks around, so that nobody needs to wake it.
        self.watching = False
        #: Looks after the other thread of this process, whenever this one comes by; True while that is needed.
        self.companion: Callable[[], bool] = bool

    def rouse(self) -> None:
        """Something waits now, and nobody is watching."""
        self._thread.ensure()
        self._bell.ring()

    def tend(self) -> None:
        """Whoever comes by sees to it that the thread lives, and does its work where it is late."""
        alive = self._thread.ensure()
        due = self._due()
        if due is not None and due < -_QUIET:
            self._bell.ring()
            if not alive:
                self._commit()

    def end(self) -> None:
        """Let the thread end: nothing is appended any more."""
        self._thread.end()
        self._bell.ring()

    def _run(self, sleep: Callable[[float], None]) -> None:
        try:
            self._watch(sleep)
        finally:
            self.watching = False  # whoever appends next looks after the thread

    def _watch(self, sleep: Callable[[float], None]) -> None:
        needed = time.monotonic()
        while not self._thread.ended:
            # In this order: who appends first tells of it, then looks whether it is seen.
            self.watching = False
            if self._due() is None and not self._bell.wait(_QUIET):
                if not self.companion() and time.monotonic() - needed > _IDLE:
                    return
                continue
            self.watching = True
            self._look_around(sleep)
            needed = time.monotonic()

    def _look_around(self, sleep: Callable[[float], None]) -> None:
        """While there is work the thread looks by itself: to wake it costs a body more than to be watched."""
        looked = quiet_since = time.monotonic()
        while not self._thread.ended:
            due = self._due()
            if due is None:
                if time.monotonic() - quiet_since >= _QUIET:
                    return
                sleep(self._pause)
            elif due > 0:
                sleep(due)
            else:
                quiet_since = time.monotonic()
                # Perhaps somebody else is at it.
                sleep(self._pause if self._commit() else _QUIET)
            if time.monotonic() - looked > _QUIET:
                looked = time.monotonic()
                self.companion()
